"""Gated PixelCNN: two stacks of causal convolutions, conditioned on the latent in every gate.

van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu, "Conditional image generation
with PixelCNN decoders", NIPS 2016. The vertical stack sees all rows above a pixel, the horizontal
one what is to its left, and takes in the vertical one at every layer: together they see every
pixel before it, with no blind spot.
"""

from __future__ import annotations

from torch import Tensor, nn

from cgm_fast.cgm.models.networks.autoregressive import (
    AutoregressiveDecoder,
    CausalConv2d,
    centre,
    check_positive,
    shift_down,
    shift_right,
)
from cgm_fast.cgm.models.networks.dcgan import _xavier


def _gate(x: Tensor) -> Tensor:
    """tanh(a)·sigmoid(b), where a and b are the halves of x's channels."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


def _vertical(channels: int, out: int, kernel: int) -> CausalConv2d:
    """The upper half of a square kernel, its middle row included: the input was shifted down."""
    return CausalConv2d(channels, out, (kernel // 2 + 1, kernel), ahead=kernel // 2)


def _horizontal(channels: int, out: int, kernel: int) -> CausalConv2d:
    """The left half of one row, its middle included: the input was shifted to the right."""
    return CausalConv2d(channels, out, (1, kernel // 2 + 1))


class GatedLayer(nn.Module):
    """One layer of both stacks (figure 2 of the paper), all maps [B, width, h, w].

    Args:
        width: Channels of each stack and of the map of z.
        kernel: Side of the square whose earlier half the layer sees.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.vertical = _vertical(width, 2 * width, kernel)
        self.horizontal = _horizontal(width, 2 * width, kernel)
        self.across = nn.Conv2d(2 * width, 2 * width, 1, bias=False)
        self.condition = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, v: Tensor, h: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The next v and h from the vertical stack v, the horizontal stack h, the map of z."""
        for_v, for_h = self.condition(context).chunk(2, 1)
        above = self.vertical(v)
        # The vertical stack knows rows above alone, so the horizontal one may have all of it.
        left = self.horizontal(h) + self.across(above)
        return _gate(above + for_v), h + self.mix(_gate(left + for_h))


class GatedPixelCNN(AutoregressiveDecoder):
    """The parameters of each pixel from z [B, N] and the pixels before it in x [B, c, h, w].

    Args:
        latent_dim: N.
        image_shape: (c, h, w) of the images.
        out_channels: The likelihood's parameters per pixel.
        width: Channels of each stack.
        layers: Gated layers, after a first plain one.
        kernel: Side of the layers' square window, odd; a pixel sees (layers + 1)·(kernel // 2)
            columns to either side, and one row more than that above it.

    Raises:
        ValueError: a side is under 8 pixels, a size under 1, or `kernel` not an odd number
            above 1.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: tuple[int, int, int],
        out_channels: int,
        width: int = 32,
        layers: int = 6,
        kernel: int = 5,
    ) -> None:
        super().__init__(latent_dim, image_shape, out_channels, width)
        check_positive(layers=layers)
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number above 1, got {kernel}")
        channels = self.image_shape[0]
        self.first_vertical = _vertical(channels, width, kernel)
        self.first_horizontal = _horizontal(channels, width, kernel)
        self.layers = nn.ModuleList(GatedLayer(width, kernel) for _ in range(layers))
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, out_channels, 1)
        )
        self.apply(_xavier)

    def predict(self, context: Tensor, x: Tensor) -> Tensor:
        """The parameters [B, out_channels, h, w] from the map of z and the images."""
        x = centre(x)
        v, h = self.first_vertical(shift_down(x)), self.first_horizontal(shift_right(x))
        for layer in self.layers:
            v, h = layer(v, h, context)
        params: Tensor = self.head(h)
        return params
