"""Images for a model of some shape, from wherever they are."""

import numpy as np
import pytest
import torch
from tiny import pixels, write_npz, write_pictures

from cgm_fast.cgm.data import DataError, load, load_images


def test_images_for_a_model(tmp_path):
    write_pictures(tmp_path / "data", {"b": 2, "a": 3}, size=(20, 30))
    found = load_images(str(tmp_path / "data"), (1, 8, 8))
    assert found.shape == (5, 1, 8, 8)
    order = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    expected = [load_images(str(tmp_path / "data" / c / f"{i}.png"), (1, 8, 8)) for c, i in order]
    assert torch.equal(found, torch.cat(expected))
    assert torch.equal(load_images(str(tmp_path / "data"), (1, 8, 8), count=4), found[:4])
    flat = load_images(str(tmp_path / "data" / "a"), (3, 8, 12))
    assert flat.shape == (3, 3, 8, 12)
    assert flat[:, 0, 0, 0].tolist() == [0, 20, 40]
    (tmp_path / "data" / "a" / "0.png").write_bytes(b"")
    shown = load_images(str(tmp_path / "data"), (1, 8, 8), count=2, skip_broken=True)
    assert torch.equal(shown, found[1:3])


def test_images_for_a_model_are_the_test_sets(tmp_path):
    write_pictures(tmp_path / "train", {"a": 3})
    write_pictures(tmp_path / "test", {"a": 2})
    assert len(load_images(str(tmp_path), (3, 8, 8))) == 2
    assert torch.equal(load_images("digits", (1, 8, 8)), load("digits").test)
    np.savez(tmp_path / "a.npz", x_train=pixels(5), x_test=pixels(3, seed=1))
    expected = torch.from_numpy(pixels(3, seed=1)).permute(0, 3, 1, 2)
    assert torch.equal(load_images(str(tmp_path / "a.npz"), (1, 8, 8)), expected)
    assert torch.equal(load_images(str(tmp_path / "a.npz"), (1, 8, 8), count=2), expected[:2])


def test_images_that_a_model_cannot_take(tmp_path):
    write_npz(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz must be \[3, 8, 8\], got \[1, 8, 8\]"):
        load_images(str(tmp_path / "a.npz"), (3, 8, 8))
    for name in ("gone.png", "gone", "a.npz.txt"):
        with pytest.raises(DataError, match="data must be the path of an npz, of a folder"):
            load_images(str(tmp_path / name), (1, 8, 8))
