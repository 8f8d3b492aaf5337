"""One image file: depths, transparency, orientation, in files that Pillow writes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from cgm_fast.cgm.data import DataError
from cgm_fast.cgm.data.pictures import Seen, read_header, read_picture

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
LEVELS = np.round(RAMP * 255).astype(np.uint8)


def save(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def read(path, channels=1, size=(8, 8), seen=None):
    return read_picture(path, channels, size, seen)


DEEP = np.round(RAMP * 65535).astype(np.uint16)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_by_their_range(tmp_path, ending):
    seen = Seen()
    path = save(tmp_path / f"a.{ending}", DEEP)
    assert read_header(path).grey
    assert torch.equal(read(path, seen=seen)[0], torch.from_numpy(LEVELS))
    assert read(path, 3).shape == (3, 8, 8)
    read(save(tmp_path / f"b.{ending}", DEEP // 16), seen=seen)
    (note,) = seen.notes()
    assert note == "16-bit images, scaled from [0, 65535], the highest value being 65535: 2"


def test_the_highest_value_tells_12_bits(tmp_path):
    seen = Seen()
    read(save(tmp_path / "a.png", DEEP // 16), seen=seen)
    assert seen.notes()[0].endswith("the highest value being 4095: 1")


def test_floats_between_0_and_1(tmp_path):
    path = save(tmp_path / "a.tif", RAMP.astype(np.float32))
    assert read_header(path).grey
    assert torch.equal(read(path)[0], torch.from_numpy(LEVELS))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (255 * RAMP.astype(np.float32), r"must be in \[0, 1\], got \[0, 255\]"),
        (RAMP.astype(np.float32) - 0.5, r"must be in \[0, 1\], got \[-0.5, 0.5\]"),
        (np.full((8, 8), np.nan, np.float32), r"must be in \[0, 1\], got \[nan, nan\]"),
        (LEVELS.astype(np.int32), "pixels of mode I, whose range is not known"),
        (LEVELS.astype(np.int16), "pixels of mode I, whose range is not known"),
    ],
)
def test_pixels_whose_range_is_not_known_are_refused(tmp_path, pixels, message):
    path = tmp_path / "a.tif"
    if pixels.dtype == np.int16:  # which Pillow reads and does not write
        Image.fromarray(pixels.astype(np.uint16)).save(path, tiffinfo={339: 2})
    else:
        save(path, pixels)
    with pytest.raises(DataError, match=rf"a\.tif .*{message}"):
        read(path)


def test_lab_colours_are_refused_by_name(tmp_path):
    Image.new("LAB", (8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="pixels of mode LAB"):
        read(tmp_path / "a.tif", 3)


def test_modes_as_pillow_shows_them(tmp_path):
    colour = np.stack([LEVELS, LEVELS.T, 255 - LEVELS], -1)
    for name, mode in (("a.tif", "CMYK"), ("p.png", "P"), ("rgb.png", "RGB")):
        path = save(tmp_path / name, colour, mode)
        expected = np.array(Image.open(path).convert("RGB"))
        assert not read_header(path).grey
        assert torch.equal(read(path, 3), torch.from_numpy(expected.transpose(2, 0, 1)))
    path = save(tmp_path / "bits.png", LEVELS > 99)
    assert read_header(path).grey
    assert torch.equal(read(path)[0], torch.from_numpy(255 * (LEVELS > 99).astype(np.uint8)))
    path = tmp_path / "grey palette.png"
    Image.fromarray(LEVELS).quantize(16).save(path)
    assert read_header(path).grey


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_lie_on_white(tmp_path, mode):
    path, seen = tmp_path / "a.png", Seen()
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([0, 0, 0, 100, 100, 100])
        image.paste(1, (0, 0, 8, 4))
        image.save(path, transparency=0)  # its lower half
        expected = [100, 255]
    else:
        image = Image.new(mode, (8, 8), (100, 128) if mode == "LA" else (100, 100, 100, 128))
        image.paste((0, 0) if mode == "LA" else (0, 0, 0, 0), (0, 4, 8, 8))
        image.save(path)
        expected = [round(100 * 128 / 255 + 255 * 127 / 255), 255]
    for channels in (1, 3):
        found = read(path, channels, seen=seen)
        assert found[:, 0, 0].tolist() == [expected[0]] * channels
        assert found[:, 7, 7].tolist() == [expected[1]] * channels
    assert seen.notes() == ("images with transparent pixels, put on white: 2",)


def test_nothing_is_said_of_opaque_images(tmp_path):
    seen = Seen()
    read(save(tmp_path / "a.png", LEVELS, "RGBA"), seen=seen)
    assert seen.notes() == ()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_held_otherwise(tmp_path, orientation):
    """The same scene, stored as each orientation has it, is read the same."""
    scene = Image.fromarray(np.kron(LEVELS[:2, :3] // 2 * 2, np.ones((16, 16), np.uint8)) + 40)
    stored = {
        1: lambda a: a,
        2: lambda a: a.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda a: a.transpose(Image.Transpose.ROTATE_180),
        4: lambda a: a.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda a: a.transpose(Image.Transpose.TRANSPOSE),
        6: lambda a: a.transpose(Image.Transpose.ROTATE_90),
        7: lambda a: a.transpose(Image.Transpose.TRANSVERSE),
        8: lambda a: a.transpose(Image.Transpose.ROTATE_270),
    }[orientation](scene)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    seen = Seen()
    found = read(tmp_path / "a.jpg", size=(32, 48), seen=seen).int()
    assert (found[0] - torch.from_numpy(np.array(scene)).int()).abs().max() <= 4
    assert seen.turned == (orientation > 1)


def test_a_damaged_orientation_leaves_the_pixels(tmp_path):
    save(tmp_path / "a.jpg", LEVELS, exif=b"Exif\x00\x00garbage")
    assert read(tmp_path / "a.jpg").shape == (1, 8, 8)


@pytest.mark.parametrize("shape", [(10, 8), (9, 20), (31, 30), (8, 8)])
def test_the_centre_is_cut_out_and_resized_as_torchvision_does(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", pixels)
    square = functional.center_crop(Image.fromarray(pixels), [min(shape)] * 2)
    for side in (8, 12):
        expected = np.array(functional.resize(square, [side] * 2))
        assert torch.equal(read(path, 3, (side, side)), torch.from_numpy(expected).permute(2, 0, 1))


def test_a_window_that_is_no_square(tmp_path):
    pixels = np.zeros((20, 40), np.uint8)
    pixels[:, 15:25] = 200
    found = read(save(tmp_path / "a.png", pixels), size=(16, 8))  # twice as high as wide
    assert found.shape == (1, 16, 8)
    assert bool((found == 200).all())


def test_the_first_of_several_frames(tmp_path):
    frames = [Image.new("L", (8, 8), level) for level in (10, 20)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    seen = Seen()
    assert read(tmp_path / "a.tif", seen=seen).unique().tolist() == [10]
    assert seen.notes() == ("images of several frames, of which the first is read: 1",)


def test_renderings_of_one_picture_are_no_frames(tmp_path):
    frames = [Image.new("RGB", (8, 8), (level,) * 3) for level in (10, 20)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    seen = Seen()
    assert read(tmp_path / "a.jpg", seen=seen).unique().tolist() == [10]
    assert seen.notes() == ()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "JPEG2000"])
def test_an_image_under_the_name_of_another_kind(tmp_path, form):
    Image.new("RGB", (16, 16), (200, 10, 10)).save(tmp_path / "a.jpg", form)
    found = read(tmp_path / "a.jpg", 3)[:, 0, 0]
    assert (found - torch.tensor([200, 10, 10])).abs().max() <= 4


@pytest.mark.parametrize("function", [read_header, read])
def test_a_program_is_no_image(tmp_path, monkeypatch, function):
    """Pillow would have another program draw it."""
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("it was started"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", "EPS")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image: cannot identify"):
        function(tmp_path / "a.png")


@pytest.mark.parametrize("function", [read_header, read])
def test_what_is_no_image(tmp_path, function):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        function(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read as an image: .*No such file"):
        function(tmp_path / "gone.png")
