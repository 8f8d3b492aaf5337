"""Folders of images."""

import pytest
import torch
from PIL import Image
from tiny import write_npz, write_pictures

from cgm_fast.cgm.data import DataError, folders, load, memory


def test_folder(tmp_path):
    write_pictures(tmp_path, {"cat": 12, "dog": 8})
    Image.new("L", (40, 30), 77).save(tmp_path / "dog" / "grey.png")  # of another size, and grey
    data = load(str(tmp_path))
    assert data.image_shape == (3, 8, 8)  # the first image's shorter side
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (19, 2)
    labels = torch.cat((data.train_labels, data.test_labels))
    assert torch.bincount(labels).tolist() == [12, 9]
    values = torch.cat((data.train, data.test))[:, :, 4, 4]
    assert sorted(values.tolist()) == sorted(
        [[20 * i, 100, 200] for count in (12, 8) for i in range(count)] + [[77, 77, 77]]
    )
    assert load(str(tmp_path), image_size=16).image_shape == (3, 16, 16)


def test_folder_with_a_test_folder(tmp_path):
    write_pictures(tmp_path / "train", {"cat": 3, "dog": 2, "emu": 2})
    write_pictures(tmp_path / "test", {"emu": 1, "dog": 1}, size=(30, 31))
    for data in (load(str(tmp_path)), load(str(tmp_path / "train"), test=str(tmp_path / "test"))):
        assert len(data.train) == 7
        assert data.test.shape == (2, 3, 8, 8)
        assert data.class_names == ("cat", "dog", "emu")
        assert data.test_labels.tolist() == [1, 2]  # not 0 and 1: classes go by name


def test_bad_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="one folder of images per class"):
        load(str(tmp_path / "empty"))
    (tmp_path / "empty" / "class").mkdir()
    with pytest.raises(DataError, match="one folder of images per class"):
        load(str(tmp_path / "empty"))
    write_pictures(tmp_path / "good", {"cat": 3})
    with pytest.raises(DataError, match="one folder of images per class"):
        load(str(tmp_path / "good"), test=str(tmp_path / "gone"))
    with pytest.raises(DataError, match="one folder of images per class"):
        load(str(tmp_path / "good"), test=str(write_npz(tmp_path / "a.npz")))
    write_pictures(tmp_path / "other", {"gnu": 3})
    with pytest.raises(DataError, match="classes that training ones lack: gnu"):
        load(str(tmp_path / "good"), test=str(tmp_path / "other"))
    whole = (tmp_path / "good" / "cat" / "1.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2], whole.replace(b"IDAT", b"IDAX")):
        (tmp_path / "good" / "cat" / "1.png").write_bytes(content)
        with pytest.raises(DataError, match=r"1\.png cannot be read as an image"):
            load(str(tmp_path / "good"))


def test_hidden_folders_and_files_are_no_classes(tmp_path):
    write_pictures(tmp_path, {"cat": 3, "dog": 2})
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git"):
        write_pictures(tmp_path, {name: 1})
        write_pictures(tmp_path / "cat", {name: 1})
    (tmp_path / "dog" / "._1.png").write_bytes(b"a Macintosh's resources")
    data = load(str(tmp_path))
    assert data.class_names == ("cat", "dog")
    assert len(data.train) + len(data.test) == 5


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("test", ["test", "testing", "val", "valid", "Validation"])
def test_names_of_splits(tmp_path, train, test):
    write_pictures(tmp_path / train, {"cat": 3, "dog": 2})
    write_pictures(tmp_path / test, {"dog": 2, "cat": 1})
    data = load(str(tmp_path))
    assert (len(data.train), len(data.test)) == (5, 3)
    assert data.class_names == ("cat", "dog")
    assert data.test_labels.tolist() == [0, 1, 1]


def test_validation_images_beside_test_images_are_left_and_named(tmp_path):
    for name in ("train", "valid", "test"):
        write_pictures(tmp_path / name, {"cat": 3, "dog": 2})
    assert f"{tmp_path}: not read: valid" in load(str(tmp_path)).notes


def test_splits_without_classes(tmp_path):
    write_pictures(tmp_path, {"train": 5, "test": 2})
    data = load(str(tmp_path))
    assert (len(data.train), len(data.test)) == (5, 2)
    assert data.train_labels is None
    assert data.test_labels is None
    assert data.class_names == ()


def test_classes_that_are_called_as_splits_are(tmp_path):
    write_pictures(tmp_path, {"car": 2, "plane": 2, "train": 2})
    assert load(str(tmp_path)).class_names == ("car", "plane", "train")


def test_splits_that_cannot_be_meant(tmp_path):
    write_pictures(tmp_path / "one" / "train", {"cat": 2})
    write_pictures(tmp_path / "one" / "training", {"cat": 2})
    with pytest.raises(DataError, match=r"must hold one of train, training, got train and trainin"):
        load(str(tmp_path / "one"))
    write_pictures(tmp_path / "two" / "test", {"cat": 2})
    with pytest.raises(DataError, match="two holds test and no folder named train or training"):
        load(str(tmp_path / "two"))


def test_images_without_classes(tmp_path):
    write_pictures(tmp_path, {"all": 10})
    (tmp_path / "all" / "notes.txt").write_text("of 1999")
    data = load(str(tmp_path / "all"))
    assert (len(data.train), len(data.test), data.train_labels) == (9, 1, None)
    assert data.notes == (
        f"{tmp_path / 'all'}: 10 images without labels, colour, 8 x 8 pixels, the first one's "
        "shorter side",
        f"{tmp_path / 'all'}: not read: files, 1 .txt",
    )


def test_what_was_read_is_said(tmp_path):
    write_pictures(tmp_path, {"cat": 3, "dog": 2}, mode="L")
    (tmp_path / "dog" / "a.heic").write_bytes(b"")
    Image.new("L", (8, 8)).save(tmp_path / "beside.png")
    assert load(str(tmp_path), image_size=16).notes == (
        f"{tmp_path}: 5 images of 2 classes (cat, dog), grey, 16 x 16 pixels",
        f"{tmp_path}: not read: files, 1 .heic",
        f"{tmp_path}: not read: images beside the classes' folders, 1",
    )


def test_grey_folders_are_grey(tmp_path):
    write_pictures(tmp_path / "train", {"cat": 3, "dog": 2}, mode="L")
    write_pictures(tmp_path / "test", {"dog": 2})
    data = load(str(tmp_path))
    assert data.image_shape == (1, 8, 8)
    assert data.test.shape == (2, 1, 8, 8)  # colour, made grey as the training images are
    assert sorted(data.train[:, 0, 0, 0].tolist()) == [0, 0, 20, 20, 40]
    forced = load(str(tmp_path), channels=3)
    assert torch.equal(forced.train, data.train.expand(-1, 3, -1, -1))
    with pytest.raises(DataError, match="channels must be 1, 3 or None, got 4"):
        load(str(tmp_path), channels=4)
    assert load(str(tmp_path / "test"), channels=1).image_shape == (1, 8, 8)


def test_links_that_lead_back_are_refused(tmp_path):
    write_pictures(tmp_path / "data", {"cat": 3, "dog": 2})
    for link, target in (
        (tmp_path / "data" / "cat" / "again", tmp_path / "data" / "cat"),
        (tmp_path / "data" / "cat" / "again", tmp_path / "data"),
        (tmp_path / "data" / "cat" / "again", tmp_path),
        (tmp_path / "data" / "again", tmp_path / "data"),
    ):
        link.symlink_to(target)
        with pytest.raises(DataError, match=r"again.* is a link to .*, which holds it"):
            load(str(tmp_path / "data"))
        link.unlink()
    # Others are followed, also twice to one folder.
    write_pictures(tmp_path / "more", {"emu": 2})
    for name in ("emu", "eft"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "more" / "emu")
    assert load(str(tmp_path / "data")).class_names == ("cat", "dog", "eft", "emu")


def test_broken_images_are_left_out_on_request(tmp_path):
    write_pictures(tmp_path, {"cat": 6, "dog": 4})
    whole = (tmp_path / "cat" / "1.png").read_bytes()
    (tmp_path / "cat" / "0.png").write_bytes(b"no image")
    (tmp_path / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])  # its header is sound
    with pytest.raises(DataError, match=r"0\.png .*--skip-broken leaves such files out"):
        load(str(tmp_path))
    data = load(str(tmp_path), skip_broken=True)
    assert len(data.train) + len(data.test) == 8
    assert torch.bincount(torch.cat((data.train_labels, data.test_labels))).tolist() == [5, 3]
    assert data.notes[1].startswith(f"{tmp_path}: left out: 2, such as: {tmp_path / 'cat'}/0.png ")
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no image that can be read: .*png cannot be read"):
        load(str(tmp_path), skip_broken=True)


def test_sizes_are_questioned_before_they_are_read(tmp_path, monkeypatch):
    write_pictures(tmp_path, {"cat": 3}, size=(300, 400))
    monkeypatch.setattr(folders, "read_picture", lambda *_: pytest.fail("it was read"))
    monkeypatch.setattr(folders, "LARGE_TOTAL", 600_000)
    with pytest.raises(
        DataError,
        match=r"3 images of 300 x 300 pixels in .*, the first one's size, would take 0.9 MB: pass "
        "--image-size",
    ):
        load(str(tmp_path))
    monkeypatch.setattr(memory, "available", lambda: 800_000)
    with pytest.raises(DataError, match=r"would take 0.9 MB of memory, of which 0.8 MB are left"):
        load(str(tmp_path), image_size=300)
    monkeypatch.undo()
    monkeypatch.setattr(folders, "LARGE_TOTAL", 600_000)
    assert load(str(tmp_path), image_size=300).image_shape == (3, 300, 300)  # it was asked for

    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(DataError, match="do not fit into the memory that is left: pass --image"):
        load(str(tmp_path), image_size=300)
