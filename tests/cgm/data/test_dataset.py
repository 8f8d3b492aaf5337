"""Data sets: the images held out, the fingerprint, devices."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import pixels, write_npz

from cgm_fast.cgm.data import ImageData, fingerprint, load
from cgm_fast.cgm.data.dataset import Part, assemble

LABELS = torch.tensor([0, 1, 2, 1])


def a_set(**changes):
    images = torch.from_numpy(pixels(6)).permute(0, 3, 1, 2)
    whole = ImageData("a", images[:4], LABELS, images[4:], LABELS[:2], ("x", "y", "z"))
    return dataclasses.replace(whole, **changes)


def test_a_fingerprint_is_of_the_content():
    found = fingerprint(a_set())
    assert len(found) == 32
    assert int(found, 16) >= 0
    assert fingerprint(a_set(name="elsewhere", notes=("moved",))) == found
    strided = a_set().train.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert fingerprint(a_set(train=strided)) == found


@pytest.mark.parametrize(
    "changes",
    [
        {"train": a_set().train.flip(0)},
        {"train": a_set().train ^ (torch.arange(4 * 64) == 200).reshape(4, 1, 8, 8).byte()},
        {"train": a_set().train.reshape(4, 1, 4, 16)},
        {"train_labels": LABELS.flip(0)},
        {"train_labels": None},
        {"test": a_set().test[:1]},
        {"test_labels": LABELS[2:]},
        {"class_names": ("x", "y")},
    ],
)
def test_other_content_has_another_fingerprint(changes):
    assert fingerprint(a_set(**changes)) != fingerprint(a_set())


def test_a_fingerprint_sees_past_the_first_images():
    images = torch.zeros(3000, 1, 8, 8, dtype=torch.uint8)
    whole = a_set(train=images, train_labels=None)
    before = fingerprint(whole)
    images[2999, 0, 7, 7] = 1
    assert fingerprint(whole) != before


def test_a_tenth_is_held_out_in_place():
    """The same images as by indexing, whose copy of all would need their memory twice."""
    images = torch.arange(5000, dtype=torch.int32).view(-1, 1, 1, 1).clone()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    data = assemble("a", Part(images, torch.arange(5000), ()), None)
    assert torch.equal(data.train.flatten().long(), order[500:].sort().values)
    assert torch.equal(data.test.flatten().long(), order[:500].sort().values)
    assert torch.equal(data.train.flatten().long(), data.train_labels)
    assert torch.equal(data.test.flatten().long(), data.test_labels)
    assert data.train.data_ptr() == images.data_ptr()


@pytest.mark.parametrize("name", ["digits", "npz"])
def test_data_stays_on_the_cpu_whatever_the_default_device(tmp_path, name):
    """A default device of "meta" stands for a GPU's, where a CPU's generator is refused."""
    source = str(write_npz(tmp_path / "a.npz")) if name == "npz" else name
    expected = load(source)
    with torch.device("meta"):
        data = load(source)
    for part in ("train", "train_labels", "test", "test_labels"):
        assert torch.equal(getattr(data, part), getattr(expected, part))


def test_names_of_a_test_set_on_another_default_device(tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels(3), labels=[0, 1, 2], names=["a", "b", "c"])
    np.savez(tmp_path / "b.npz", images=pixels(2), labels=[0, 1], names=["c", "a"])
    with torch.device("meta"):
        data = load(str(tmp_path / "a.npz"), test=str(tmp_path / "b.npz"))
    assert data.test_labels.tolist() == [2, 0]
