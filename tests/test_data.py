import zipfile

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tiny import pixels, write_npz

from cgm_fast.data import DataError, ImageData, draw_once, load, prepare

# The embedded digits


def test_digits():
    data = load("digits")
    assert data.train.shape == (1437, 1, 8, 8)
    assert data.test.shape == (360, 1, 8, 8)
    assert data.train.dtype == torch.uint8
    assert data.image_shape == (1, 8, 8)
    assert (data.train.min(), data.train.max()) == (0, 255)
    assert data.class_names == tuple("0123456789")
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert torch.bincount(data.test_labels).min() >= 34  # a fifth of every class
    everything = torch.cat((data.train, data.test)).flatten(1).int().tolist()
    original = np.round(load_digits().images.reshape(-1, 64) * 255 / 16).astype(int).tolist()
    assert sorted(everything) == sorted(original)


def test_the_split_does_not_depend_on_seeds():
    first = load("digits")
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 (the global state is the point)
    assert torch.equal(first.train, load("digits").train)


# npz


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


def test_npz_with_names_by_image(tmp_path):
    labels = np.array([0, 3, 1, 3, 0])  # no image shows class 2
    np.savez(tmp_path / "a.npz", images=pixels(5), labels=labels, names=["a", "d", "b", "d", "a"])
    assert load(str(tmp_path / "a.npz")).class_names == ("a", "b", "2", "d")


GOOD = {"images": pixels(6), "labels": np.arange(6) % 3}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": GOOD["images"]}, r"no array named 'images' \(\[n, h, w, c\] uint8\)"),
        ({"images": GOOD["images"].astype(np.float32)}, r"got \[6, 8, 8, 1\] float32"),
        ({"images": GOOD["images"][..., 0]}, r"must be \[n, h, w, c\] uint8 .* got \[6, 8, 8\]"),
        ({"images": np.zeros((6, 8, 8, 2), np.uint8)}, r"c 1 or 3, got \[6, 8, 8, 2\]"),
        ({"images": np.zeros((6, 1, 8, 8), np.uint8)}, r"c 1 or 3, got \[6, 1, 8, 8\]"),
        ({"images": np.zeros((0, 8, 8, 1), np.uint8)}, r"is empty: \[0, 8, 8, 1\]"),
        ({"images": np.zeros((6, 0, 8, 1), np.uint8)}, r"is empty: \[6, 0, 8, 1\]"),
        ({"images": pixels(1)}, "at least 2 images, got 1"),
        ({"images": np.array([object()])}, "allow_pickle=False"),
        ({**GOOD, "labels": np.arange(5)}, r"'labels' .* must be \[6\] integers .* got \[5\]"),
        ({**GOOD, "labels": np.arange(6.0)}, r"must be \[6\] integers .* got \[6\] float64"),
        ({**GOOD, "labels": np.arange(6) - 1}, r"integers in \[0, 65536\), .* in \[-1, 4\]"),
        ({**GOOD, "labels": np.arange(6) * 10**9}, r"in \[0, 5000000000\]"),
        ({**GOOD, "labels": np.array([object()] * 6)}, "allow_pickle=False"),
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


def test_a_damaged_member(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.npy", b"\x93NUMPY garbage")
    with pytest.raises(DataError, match=r"a\.npz cannot be read"):
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


# Batches


def _every_value(copies):
    return torch.arange(256, dtype=torch.uint8).repeat(copies, 1, 1).reshape(copies, 1, 16, 16)


def test_dynamic_binarisation_has_the_grey_values_as_means():
    n = 4000
    found = prepare(_every_value(n), "dynamic", False, torch.Generator().manual_seed(0))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    p = torch.arange(256).double() / 255
    mean = found.double().mean(0).flatten()
    # Of 256 means none should lie 4.5 standard errors off (once in 600 such tests).
    assert ((mean - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt()).all()


def test_other_ways_to_prepare():
    images = _every_value(1)
    assert prepare(images, "threshold", False).flatten().tolist() == [0.0] * 128 + [1.0] * 128
    assert torch.equal(prepare(images, "none", False), images.float() / 255)
    spread = prepare(_every_value(500), "none", True)
    low = _every_value(500).float() / 256
    assert (spread >= low).all()
    assert (spread <= low + 1 / 256).all()
    share = (256 * (spread - low)).double()  # uniform: mean ½, variance 1/12
    assert abs(float(share.mean()) - 0.5) < 3 / (12 * share.numel()) ** 0.5
    with pytest.raises(ValueError, match="binarization must be one of none, dynamic, static"):
        prepare(images, "fixed", False)


@pytest.mark.parametrize(("binarization", "continuous"), [("dynamic", False), ("none", True)])
def test_draws_depend_on_the_generator_alone(binarization, continuous):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return prepare(_every_value(2), binarization, continuous, generator)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_pixels_drawn_once_are_the_same_at_every_visit():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(500, -1, -1, -1)
    data = ImageData("x", grey, None, grey[:3], None, ())
    drawn = draw_once(data)
    assert drawn.train.unique().tolist() == [0, 255]
    assert torch.equal(drawn.train, draw_once(data).train)
    x = prepare(drawn.train, "static", False)
    assert torch.equal(x, prepare(drawn.train, "static", False))
    share = x.mean(0).flatten()
    expected = torch.arange(256) / 255
    assert bool(((share - expected).abs() <= 5 * (expected * (1 - expected) / 500).sqrt()).all())
