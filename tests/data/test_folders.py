"""Folders of images."""

import pytest
import torch
from PIL import Image
from tiny import write_npz

from cgm_fast.data import DataError, load


def _pictures(folder, counts, size=(10, 8), mode="RGB"):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            colour = (20 * i, 100, 200) if mode == "RGB" else 20 * i
            Image.new(mode, size, colour).save(folder / name / f"{i}.png")


def test_folder(tmp_path):
    _pictures(tmp_path, {"cat": 12, "dog": 8})
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
    _pictures(tmp_path / "train", {"cat": 3, "dog": 2, "emu": 2})
    _pictures(tmp_path / "test", {"emu": 1, "dog": 1}, size=(30, 31))
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
    _pictures(tmp_path / "good", {"cat": 3})
    with pytest.raises(DataError, match="one folder of images per class"):
        load(str(tmp_path / "good"), test=str(tmp_path / "gone"))
    with pytest.raises(DataError, match="one folder of images per class"):
        load(str(tmp_path / "good"), test=str(write_npz(tmp_path / "a.npz")))
    _pictures(tmp_path / "other", {"gnu": 3})
    with pytest.raises(DataError, match="classes that training ones lack: gnu"):
        load(str(tmp_path / "good"), test=str(tmp_path / "other"))
    whole = (tmp_path / "good" / "cat" / "1.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2], whole.replace(b"IDAT", b"IDAX")):
        (tmp_path / "good" / "cat" / "1.png").write_bytes(content)
        with pytest.raises(DataError, match=r"1\.png cannot be read as an image"):
            load(str(tmp_path / "good"))
