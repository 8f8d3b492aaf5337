"""Images from an npz file."""

import io
import zipfile

import numpy as np
import pytest
import torch
from tiny import pixels, write_npz

from cgm_fast.cgm.data import DataError, load, memory


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [True, False])
def test_npz(tmp_path, channels, labels):
    data = load(str(write_npz(tmp_path / "a.npz", 50, channels, labels=labels)))
    assert data.train.shape == (45, channels, 8, 8)
    assert data.test.shape == (5, channels, 8, 8)
    given = torch.from_numpy(pixels(50, channels)).permute(0, 3, 1, 2)
    rows = {bytes(image.numpy()): i for i, image in enumerate(given.contiguous())}
    train, test = (
        [rows[bytes(image.numpy())] for image in part] for part in (data.train, data.test)
    )
    assert sorted(train + test) == list(range(50))
    assert data.class_names == (("0", "1", "2") if labels else ())
    if labels:
        assert data.train_labels.tolist() == [i % 3 for i in train]
        assert data.test_labels.tolist() == [i % 3 for i in test]
    else:
        assert data.train_labels is None
        assert data.test_labels is None
    assert torch.equal(load(str(tmp_path / "a.npz")).test, data.test)


def test_npz_with_a_test_set_and_names(tmp_path):
    train, test = tmp_path / "train.npz", tmp_path / "test.npz"
    np.savez(train, images=pixels(9), labels=np.array([0, 1, 2] * 3), names=["a", "b", "c"])
    np.savez(test, images=pixels(4, seed=1), labels=np.array([0, 1, 1, 0]), names=["c", "a"])
    data = load(str(train), test=str(test))
    assert data.train.shape[0] == 9
    assert torch.equal(data.test[:, 0], torch.from_numpy(pixels(4, seed=1))[..., 0])
    assert data.class_names == ("a", "b", "c")
    assert data.test_labels.tolist() == [2, 0, 0, 2]  # classes go by name


def every_label(data):
    """The labels of all images in the file's order, of which each has its number as a pixel."""
    images, labels = (
        torch.cat(pair) for pair in ((data.train, data.test), (data.train_labels, data.test_labels))
    )
    return labels[images[:, 0, 0, 0].argsort()].tolist()


def numbered(n):
    images = pixels(n)
    images[:, 0, 0, 0] = np.arange(n)
    return images


def test_npz_with_names_by_image(tmp_path):
    labels = np.array([0, 3, 1, 3, 0])  # no image shows class 2
    names = ["a", "d", "b", "d", "a"]
    np.savez(tmp_path / "a.npz", images=numbered(5), labels=labels, names=names)
    data = load(str(tmp_path / "a.npz"))
    assert data.class_names == ("a", "b", "d")
    assert every_label(data) == [0, 2, 1, 2, 0]


def test_labels_with_gaps_are_the_classes_that_there_are(tmp_path):
    np.savez(tmp_path / "a.npz", images=numbered(6), labels=np.array([7, 100, 9, 7, 9, 100]))
    data = load(str(tmp_path / "a.npz"))
    assert data.class_names == ("7", "9", "100")
    assert every_label(data) == [0, 2, 1, 0, 1, 2]
    assert data.notes == ("labels 7, 9, 100 are classes 0 to 2",)
    # A test set's labels count too, and have the same meaning.
    np.savez(tmp_path / "b.npz", images=pixels(3), labels=np.array([100, 50, 7]))
    data = load(str(tmp_path / "a.npz"), test=str(tmp_path / "b.npz"))
    assert data.class_names == ("7", "9", "50", "100")
    assert data.test_labels.tolist() == [3, 2, 0]
    assert data.train_labels.tolist() == [0, 3, 1, 0, 1, 3]


@pytest.mark.parametrize("all_but", ["train", "test"])
def test_labels_that_the_split_leaves_to_one_part(tmp_path, all_but):
    np.savez(tmp_path / "all.npz", images=numbered(40), labels=np.arange(40) % 3)
    aside = load(str(tmp_path / "all.npz")).test[:, 0, 0, 0].long()  # `numbered`'s numbers
    held_out = np.isin(np.arange(40), aside.numpy())
    labels = np.where(held_out == (all_but == "test"), -1, np.arange(40) % 3)
    np.savez(tmp_path / "a.npz", images=numbered(40), labels=labels)
    data = load(str(tmp_path / "a.npz"))
    given = {"train": data.train_labels, "test": data.test_labels}
    assert given.pop(all_but) is None
    assert given.popitem()[1] is not None


def test_names_of_every_class_keep_the_numbers(tmp_path):
    names = [f"class {i}" for i in range(8)]
    np.savez(tmp_path / "a.npz", images=numbered(4), labels=np.array([7, 1, 7, 1]), names=names)
    data = load(str(tmp_path / "a.npz"))
    assert data.class_names == tuple(names)
    assert every_label(data) == [7, 1, 7, 1]


@pytest.mark.parametrize("names", [False, True])
def test_images_without_a_label(tmp_path, names):
    more = {"names": ["a", "x", "b", "y", "b", "b"]} if names else {}
    labels = np.array([7, -1, 9, -1, 9, 9], np.int8)
    np.savez(tmp_path / "a.npz", images=numbered(6), labels=labels, **more)
    data = load(str(tmp_path / "a.npz"))
    assert every_label(data) == [0, -1, 1, -1, 1, 1]
    assert data.class_names == (("a", "b") if names else ("7", "9"))
    np.savez(tmp_path / "b.npz", images=pixels(6), labels=np.full(6, -1), **more)
    data = load(str(tmp_path / "b.npz"))  # none has one
    assert data.train_labels is None
    assert data.test_labels is None
    assert data.class_names == ()


def test_a_test_set_with_names_and_without_some_labels(tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels(4), labels=[0, 1, 0, -1], names=["a", "b"])
    np.savez(tmp_path / "b.npz", images=pixels(3), labels=[-1, 0, 1], names=["b", "a"])
    data = load(str(tmp_path / "a.npz"), test=str(tmp_path / "b.npz"))
    assert data.train_labels.tolist() == [0, 1, 0, -1]
    assert data.test_labels.tolist() == [-1, 1, 0]


# What others write

MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels", "val_images")
KERAS = ("x_train", "y_train", "x_test", "y_test", "x_val")


@pytest.mark.parametrize("keys", [MEDMNIST, KERAS])
@pytest.mark.parametrize("compressed", [False, True])
def test_names_of_other_libraries(tmp_path, keys, compressed):
    arrays = (
        pixels(9)[..., 0],
        np.arange(9, dtype=np.uint8)[:, None] % 3,
        pixels(4, seed=1)[..., 0],
        np.array([[2], [1], [0], [1]], np.uint8),
        pixels(5, seed=2)[..., 0],
    )
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "a.npz", **dict(zip(keys, arrays, strict=True)))
    data = load(str(tmp_path / "a.npz"))
    assert torch.equal(data.train[:, 0], torch.from_numpy(arrays[0]))
    assert torch.equal(data.test[:, 0], torch.from_numpy(arrays[2]))
    assert data.train_labels.tolist() == [0, 1, 2] * 3
    assert data.test_labels.tolist() == [2, 1, 0, 1]
    assert data.class_names == ("0", "1", "2")
    (note,) = data.notes
    assert note.endswith(f"a.npz: {keys[0]}, {keys[2]} to test on; {keys[4]} is not read")
    other = str(write_npz(tmp_path / "other.npz"))
    assert torch.equal(load(other, test=str(tmp_path / "a.npz")).test, data.test)
    assert len(load(str(tmp_path / "a.npz"), test=other).test) == 40


def test_validation_images_test_where_nothing_else_does(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=pixels(9), val_images=pixels(4, seed=1))
    assert len(load(str(tmp_path / "a.npz")).test) == 4
    np.savez(tmp_path / "a.npz", train_images=pixels(10))
    assert len(load(str(tmp_path / "a.npz")).test) == 1


COLOUR = pixels(12, 3)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (pixels(12)[..., 0], pixels(12)),
        (pixels(12).transpose(0, 3, 1, 2), pixels(12)),
        (COLOUR.astype(np.float32) / 255, COLOUR),
        (COLOUR.astype(np.float64) / 255, COLOUR),
        (COLOUR.astype(np.int64), COLOUR),
        (np.asfortranarray(COLOUR), COLOUR),
        (COLOUR > 99, 255 * (COLOUR > 99).astype(np.uint8)),
        ((COLOUR > 99).astype(np.float16), 255 * (COLOUR > 99).astype(np.uint8)),
    ],
)
def test_forms_of_images(tmp_path, images, expected):
    np.savez(tmp_path / "a.npz", images=images)
    np.savez(tmp_path / "b.npz", images=expected)
    data = load(str(tmp_path / "a.npz"), test=str(tmp_path / "b.npz"))
    assert data.train.is_contiguous()
    assert torch.equal(data.train, torch.from_numpy(expected).permute(0, 3, 1, 2))
    assert torch.equal(data.test, data.train)


# What cannot be used


GOOD = {"images": pixels(6), "labels": np.arange(6) % 3}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": GOOD["images"]}, r"no array named 'images' .*x_train'; it holds pictures"),
        ({"test_images": GOOD["images"]}, r"no array named .* it holds test_images"),
        ({"images": GOOD["images"].astype(np.float32)}, r"in \[0, 1\], got \[0, 251\]"),
        ({"images": np.full((6, 8, 8), np.nan)}, r"in \[0, 1\], got \[nan, nan\]"),
        ({"images": GOOD["images"] / 255 - 0.5}, r"in \[0, 1\], got \[-0.5, 0.4"),
        ({"images": 300 * GOOD["images"].astype(np.uint16)}, r"\[0, 255\], got \[0, "),
        ({"images": GOOD["images"].astype(np.int16) - 1}, r"\[0, 255\], got \[-1, "),
        ({"images": GOOD["images"] // 128}, "no level but 0 and 1 of 255"),
        ({"images": GOOD["images"].astype(complex)}, r"got \[6, 8, 8, 1\] complex128"),
        ({"images": GOOD["images"].astype(str)}, r"got \[6, 8, 8, 1\] <U"),
        ({"images": np.zeros((6, 8, 8, 2), np.uint8)}, r"c 1 or 3, .* got \[6, 8, 8, 2\]"),
        ({"images": np.zeros((6, 64), np.uint8)}, r"c 1 or 3, .* got \[6, 64\]"),
        ({"images": np.zeros((0, 8, 8, 1), np.uint8)}, r"is empty: \[0, 8, 8, 1\]"),
        ({"images": np.zeros((6, 0, 8, 1), np.uint8)}, r"is empty: \[6, 0, 8, 1\]"),
        ({"images": pixels(1)}, "at least 2 images, got 1"),
        (
            {"images": np.array([object()])},
            r"'images' in .* of Python objects, .*allow_pickle",
        ),
        ({**GOOD, "labels": np.arange(5)}, r"'labels' .* must be \[6\] integers .* got \[5\]"),
        ({**GOOD, "labels": np.arange(6.0)}, r"must be \[6\] integers .* got \[6\] float64"),
        ({**GOOD, "labels": np.arange(6) - 2}, r"integers in \[0, 65536\), .* in \[-2, 3\]"),
        (
            {**GOOD, "labels": np.zeros((6, 2), int)},
            r"\[6\] integers .* got \[6, 2\] int64",
        ),
        ({**GOOD, "labels": np.arange(6) * 10**9}, r"in \[0, 5000000000\]"),
        ({**GOOD, "labels": np.array([object()] * 6)}, r"'labels' in .* array of Python objects"),
        ({**GOOD, "names": np.array(["a", object(), "b"])}, r"'names' in .* of Python objects"),
        ({**GOOD, "names": np.array(["a", "b"])}, r"each of the 3 classes, or of the 6 .* \[2\]"),
        (
            {**GOOD, "names": np.array("abc")},
            r"each of the 3 classes, or of the 6 images, got \[\]",
        ),
        ({**GOOD, "names": np.array(list("abcabd"))}, r"same for all .* 'c' and 'd' for class 2"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(str(tmp_path / "bad.npz"))
    assert str(tmp_path / "bad.npz") in str(caught.value)


def test_pickles_are_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    np.savez(tmp_path / "bad.npz", images=np.array([Bomb()]))
    with pytest.raises(DataError):
        load(str(tmp_path / "bad.npz"))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.99])
def test_truncated_npz(tmp_path, share):
    whole = write_npz(tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"a\.npz (cannot be read|is damaged)"):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("content", [b"not a zip", b"PK\x03\x04" + bytes(40)])
def test_files_that_are_no_npz(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz (cannot be read|is damaged)"):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    "content", [b"\x93NUMPY garbage", b"\x93NUMPY\x01\x00\x05\x00{'a'}", b"text"]
)
@pytest.mark.parametrize("name", ["images", "images.npy"])
def test_a_member_that_is_no_array(tmp_path, name, content):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr(name, content)
    with pytest.raises(DataError, match=r"'images' in .*a\.npz is no plain numpy array"):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_byte(tmp_path, compression):
    buffer = io.BytesIO()
    np.save(buffer, pixels())
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as file:
        file.writestr("images.npy", buffer.getvalue())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz (cannot be read|is damaged)"):
        load(str(tmp_path / "a.npz"))


def claim(path, shape, dtype="|u1"):
    """An npz of a few bytes whose array says that it has this shape."""
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", buffer.getvalue() + bytes(10**6))


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    claim(tmp_path / "a.npz", (10**9, 1000, 1000, 1))
    with pytest.raises(DataError, match=r"a\.npz, .* would take 1000000.0 GB of memory, of which"):
        load(str(tmp_path / "a.npz"))
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was read"))
    claim(tmp_path / "a.npz", (1100, 1000, 1000, 1))
    with pytest.raises(DataError, match=r"would take 1.1 GB of memory, of which 1.0 GB are left"):
        load(str(tmp_path / "a.npz"))
    # Floats become 8-bit pixels, for which there must be room beside them.
    claim(tmp_path / "a.npz", (240, 1000, 1000, 1), "<f4")
    with pytest.raises(DataError, match=r"would take 1.2 GB of memory"):
        load(str(tmp_path / "a.npz"))


def test_memory_that_is_refused_all_the_same(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError("Unable to allocate 1.00 TiB for an array")

    write_npz(tmp_path / "a.npz")
    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(DataError, match=r"a\.npz does not fit into the memory .*: Unable to alloc"):
        load(str(tmp_path / "a.npz"))


def test_missing_and_mismatched(tmp_path):
    train = str(write_npz(tmp_path / "train.npz"))
    with pytest.raises(DataError, match=r"gone\.npz does not exist"):
        load(str(tmp_path / "gone.npz"))
    with pytest.raises(DataError, match=r"gone\.npz does not exist"):
        load(train, test=str(tmp_path / "gone.npz"))
    other = str(write_npz(tmp_path / "other.npz", side=9))
    with pytest.raises(DataError, match=r"training images' shape \[1, 8, 8\], got \[1, 9, 9\]"):
        load(train, test=other)
    with pytest.raises(DataError, match="digits has test images of its own"):
        load("digits", test=train)


@pytest.mark.parametrize("name", ["imagenet", "nowhere/at/all", "MNIST"])
def test_unknown_name(name):
    with pytest.raises(DataError, match=f"digits, mnist, fashion-mnist, cifar10.* got '{name}'"):
        load(name)
