import errno

import numpy as np
import pytest
import torch
from PIL import Image

from cgm_fast.cgm.extras import MissingExtraError
from cgm_fast.cgm.figures import PIXELS, image_grid, plain, save_grid, save_latents
from cgm_fast.cgm.files import RunError


def _open(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_image_grid_puts_every_pixel_in_its_place():
    images = torch.rand(5, 3, 2, 4)
    grid = image_grid(images, 3)
    assert grid.shape == (2 * 3 + 1, 3 * 5 + 1, 3)
    line = np.ones(grid.shape, dtype=bool)
    for i in range(5):
        top, left = 1 + i // 3 * 3, 1 + i % 3 * 5
        cell = grid[top : top + 2, left : left + 4]
        assert np.array_equal(cell, images[i].permute(1, 2, 0).numpy())
        line[top : top + 2, left : left + 4] = False
    assert (grid[line] == 1).all()  # white, as is the empty sixth cell


def test_image_grid_clips_and_spreads_grey():
    grid = image_grid(torch.tensor([-0.5, 0.25, 1.5]).reshape(3, 1, 1, 1), 3)
    assert grid[1, 1::2].tolist() == [[0.0] * 3, [0.25] * 3, [1.0] * 3]


@pytest.mark.parametrize(("side", "scale"), [(8, PIXELS / 8), (64, 1.0)])
def test_save_grid(tmp_path, side, scale):
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    images = torch.stack([red, blue]).reshape(2, 3, 1, 1).expand(2, 3, side, side)
    save_grid(tmp_path / "a.png", images, 1, row_labels=("red", "blue"), title="Colours")
    pixels = _open(tmp_path / "a.png")
    height, width = (2 * (side + 1) + 1) * scale + 60, (side + 2) * scale + 120
    assert abs(pixels.shape[0] - height) <= 1
    assert abs(pixels.shape[1] - width) <= 1
    where = {name: np.argwhere((pixels == colour).all(2)) for name, colour in
             (("red", [255, 0, 0]), ("blue", [0, 0, 255]))}  # fmt: skip
    for name in where:  # the layout may shrink a picture somewhat, but not to a stamp
        assert len(where[name]) > 0.5 * (side * scale) ** 2
    assert where["red"][:, 0].max() < where["blue"][:, 0].min()


@pytest.mark.parametrize("latent_dim", [1, 2, 10])
def test_save_latents(tmp_path, latent_dim):
    r = torch.randn(40, latent_dim)
    g = torch.nn.Parameter(torch.randn(3, latent_dim))
    save_latents(tmp_path / "a.png", r, g, torch.arange(40) % 3, ("a", "b", "c"), "Codes")
    pixels = _open(tmp_path / "a.png")
    assert pixels.shape == (572, 704, 3)
    assert (pixels == 0).all(2).sum() > 100  # three black prototypes
    saturated = pixels.max(2) - pixels.min(2) > 80
    assert saturated.sum() > 100  # coloured codes


@pytest.mark.parametrize("n", [1, 2])
def test_save_latents_of_few_codes(tmp_path, n):
    save_latents(tmp_path / "a.png", torch.randn(n, 5), torch.randn(2, 5), torch.zeros(n).long())
    assert _open(tmp_path / "a.png").shape == (572, 704, 3)


def test_save_latents_of_many_categories(tmp_path):
    save_latents(tmp_path / "a.png", torch.randn(60, 2), torch.randn(30, 2), torch.arange(60) % 30)
    assert _open(tmp_path / "a.png").shape == (572, 704, 3)


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingExtraError, match=r"pictures needs matplotlib: pip install 'cgm-fast"
    ):
        save_grid(tmp_path / "a.png", torch.rand(1, 1, 8, 8), 1)
    assert not (tmp_path / "a.png").exists()


def test_names_are_shown_as_they_are(tmp_path):
    """A pair of dollars is mathematics to matplotlib; bytes of file names need not be text."""
    names = ("$5 to $10", "$\\frac{$", "caf\udce9")
    r, g = torch.randn(9, 2), torch.randn(3, 2)
    save_latents(tmp_path / "a.png", r, g, torch.arange(9) % 3, names, "from $1 to $2_{")
    save_grid(tmp_path / "b.png", torch.rand(3, 1, 8, 8), 1, row_labels=names, title="$a_ $")
    assert _open(tmp_path / "a.png").shape == (572, 704, 3)
    assert plain("$5 to $10") == r"\$5 to \$10"


def test_a_picture_is_there_whole_or_the_old_one_is(tmp_path, monkeypatch):
    images = torch.rand(1, 1, 8, 8)
    save_grid(tmp_path / "a.png", images, 1)
    before = (tmp_path / "a.png").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"a\.png could not be written: no space left; the old one"):
        save_grid(tmp_path / "a.png", 1 - images, 1)
    with pytest.raises(RunError, match=r"b\.png could not be written"):
        save_latents(tmp_path / "b.png", torch.randn(4, 2), torch.randn(2, 2), torch.zeros(4).int())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 1, 8, 8), torch.nan), "was not drawn: its images hold NaN or infinity"),
        (torch.zeros(20_000, 1, 8, 8), "20000 images would be .* pixels.*: ask for fewer images"),
    ],
)
def test_pictures_that_cannot_be_drawn(tmp_path, images, message):
    with pytest.raises(RunError, match=message):
        save_grid(tmp_path / "a.png", images, 10)
    assert not any(tmp_path.iterdir())


def test_codes_without_a_label(tmp_path):
    save_latents(
        tmp_path / "a.png",
        torch.randn(9, 2),
        torch.randn(2, 2),
        torch.arange(9) % 3 - 1,
        ("a", "b"),
    )
    assert _open(tmp_path / "a.png").shape == (572, 704, 3)
