"""Decoders that predict each pixel from the latent and from the pixels before it.

With z as a condition, p(x given z) = Π_i p(x_i given x_1 … x_{i−1}, z) over the pixels in raster
order: rows from the top, each from the left. van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel
recurrent neural networks", ICML 2016, and the papers that the subclasses name.

No weight is masked. An image is shifted once by one pixel, down or to the right, so that a pixel
no longer sees itself; after that every layer may look at its own position, and padding on one side
keeps it from looking further (Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad

from cgm_fast.cgm.models.networks.dcgan import DCGANDecoder


def centre(x: Tensor) -> Tensor:
    """Images in [0, 1] to [−1, 1]; zero, what shifting lets in, is then neither black nor white."""
    return 2 * x - 1


def shift_down(x: Tensor) -> Tensor:
    """Images [B, c, h, w] one row lower: zeros come in, the last row is lost."""
    return pad(x, (0, 0, 1, -1))


def shift_right(x: Tensor) -> Tensor:
    """Images [B, c, h, w] one column further right: zeros come in, the last column is lost."""
    return pad(x, (1, -1))


class CausalConv2d(nn.Conv2d):
    """A convolution [B, channels, h, w] to [B, out, h, w] that looks up and to the left.

    An output sees its own pixel, `kernel[0] - 1` rows above it and the other columns of the
    kernel to its left, except that it sees `ahead` columns to its right. Those include pixels to
    the right in its own row, so `ahead` is for inputs that were shifted down.

    Args:
        channels: Of the input.
        out: Channels of the output.
        kernel: Rows and columns.
        ahead: How many columns lie to the right.
    """

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], ahead: int = 0) -> None:
        super().__init__(channels, out, kernel)
        self.margins = (kernel[1] - 1 - ahead, ahead, kernel[0] - 1, 0)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, with zeros around the image; see the class."""
        return super().forward(pad(input, self.margins))


def check_positive(**sizes: int) -> None:
    """Raise ValueError, with the argument's name, unless all of these are at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


class AutoregressiveDecoder(nn.Module):
    """Interface, and what all share: the network that turns z into a map of the image's sides.

    A subclass has `predict`. To sample, compute `context(z)` once and call `predict` with the
    rows so far, h·w times; in evaluation mode, since the map's network normalises by batch.

    Args:
        latent_dim: N.
        image_shape: (c, h, w) of the images.
        out_channels: The likelihood's parameters per pixel.
        width: Channels of the map.

    Raises:
        ValueError: a side is under 8 pixels, or a size under 1.
    """

    def __init__(
        self, latent_dim: int, image_shape: tuple[int, int, int], out_channels: int, width: int
    ) -> None:
        super().__init__()
        channels, height, breadth = image_shape
        check_positive(
            latent_dim=latent_dim, channels=channels, out_channels=out_channels, width=width
        )
        self.image_shape = (channels, height, breadth)
        self.out_channels = out_channels
        self.context = DCGANDecoder(latent_dim, (width, height, breadth), width)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The likelihood's parameters, of each pixel given z and the pixels before it.

        Args:
            z: [B, N] latents.
            x: [B, c, h, w] images in [0, 1].

        Returns:
            [B, out_channels, h, w]. A pixel's parameters depend on all channels of the pixels
            strictly before it and on none of its own.

        Raises:
            ValueError: x does not have the shape of B images.
        """
        expected = [len(z), *self.image_shape]
        if list(x.shape) != expected:
            raise ValueError(f"x must be {expected}, got {list(x.shape)}")
        return self.predict(self.context(z), x)

    def predict(self, context: Tensor, x: Tensor) -> Tensor:
        """As `forward`, from the map of z [B, width, h, w]; or of the upper rows from those."""
        raise NotImplementedError
