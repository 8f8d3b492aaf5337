"""Folders of images, and the files that torchvision's data sets consist of."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import pixels, write_npz

from cgm_fast.data import DataError, load

# Folders


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


# torchvision's sets, from files


def _idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def _write_mnist(root, name="MNIST", packed=False):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 5), ("t10k", 3)):
        files = {
            f"{part}-images-idx3-ubyte": pixels(n, side=28, seed=n)[..., 0],
            f"{part}-labels-idx1-ubyte": np.arange(n),
        }
        for file, array in files.items():
            if packed:
                (raw / f"{file}.gz").write_bytes(gzip.compress(_idx(array)))
            else:
                (raw / file).write_bytes(_idx(array))
    return raw


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path, name, folder, packed):
    raw = _write_mnist(tmp_path, folder, packed)
    before = sorted(file.name for file in raw.iterdir())
    data = load(name, root=tmp_path)
    assert torch.equal(data.train[:, 0], torch.from_numpy(pixels(5, side=28, seed=5))[..., 0])
    assert data.test.shape == (3, 1, 28, 28)
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4]
    assert len(data.class_names) == 10
    assert sorted(file.name for file in raw.iterdir()) == before  # the data's folder is only read


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("content", [b"", b"\x00\x00", b"garbage" * 9])
def test_damaged_mnist(tmp_path, packed, content):
    raw = _write_mnist(tmp_path, packed=packed)
    (raw / f"t10k-images-idx3-ubyte{'.gz' if packed else ''}").write_bytes(content)
    with pytest.raises(DataError, match=r"mnist in .*raw is damaged"):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_absent_sets_name_the_options(tmp_path, name):
    with pytest.raises(DataError, match=f"{name} is not in .*--data-root .*--download"):
        load(name, root=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_pair_of_npz_files_in_place_of_a_set(tmp_path):
    write_npz(tmp_path / "cifar10-train.npz", n=20, channels=3)
    with pytest.raises(DataError, match="cifar10 is not in"):  # half of it
        load("cifar10", root=tmp_path)
    write_npz(tmp_path / "cifar10-test.npz", n=7, channels=3, seed=1)
    data = load("cifar10", root=tmp_path)
    assert (data.name, len(data.train), len(data.test)) == ("cifar10", 20, 7)
    assert torch.equal(data.test, torch.from_numpy(pixels(7, 3, seed=1)).permute(0, 3, 1, 2))
    (tmp_path / "cifar-10-batches-py").mkdir()  # torchvision's own go before
    with pytest.raises(DataError, match="cifar10 is not in"):
        load("cifar10", root=tmp_path)


def test_a_failed_download(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", refuse)
    with pytest.raises(DataError, match=r"mnist could not be downloaded to .*: Error downloading"):
        load("mnist", root=tmp_path, download=True)
