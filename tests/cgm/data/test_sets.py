"""Data sets of others: the embedded digits, and the files that torchvision's consist of."""

import errno
import gzip
import struct

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tiny import pixels, write_npz

from cgm_fast.cgm.data import DataError, load


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


def test_no_room_to_unpack(tmp_path, monkeypatch):
    """A full disk is not an absent data set."""
    _write_mnist(tmp_path, packed=True)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(DataError, match=r"mnist could not be unpacked to .*: No space .*TMPDIR"):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_files_that_may_not_be_read_are_not_absent(tmp_path, monkeypatch, packed):
    raw = _write_mnist(tmp_path, packed=packed)
    refused = raw / f"t10k-labels-idx1-ubyte{'.gz' if packed else ''}"
    real = open

    def limited(file, *args, **options):
        if str(file) == str(refused):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, *args, **options)

    monkeypatch.setattr("builtins.open", limited)
    with pytest.raises(DataError, match=r"mnist in .* cannot be read: .*denied.*t10k-labels"):
        load("mnist", root=tmp_path)
