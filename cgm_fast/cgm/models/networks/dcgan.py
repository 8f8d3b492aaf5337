"""DCGAN encoder and decoder: strided convolutions, no pooling, no fully connected layers.

Radford, Metz, Chintala, "Unsupervised representation learning with deep convolutional generative
adversarial networks", ICLR 2016. Channels double at every halving of the image. Any image of at
least 8 x 8 pixels fits, odd sides too.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

MAX_LEVELS = 4


def _sides(height: int, width: int) -> list[tuple[int, int]]:
    """The image's sides at every level: halved while they stay at least 2, or MAX_LEVELS times."""
    if min(height, width) < 8:
        raise ValueError(f"images must be at least 8 x 8 pixels, got {height} x {width}")
    levels = min(MAX_LEVELS, min(height, width).bit_length() - 2)
    return [(height >> level, width >> level) for level in range(levels + 1)]


def _xavier(module: nn.Module) -> None:
    """Xavier uniform weights and zero biases, as in section IV-A of the paper."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class DCGANEncoder(nn.Sequential):
    """Images [B, c, h, w] to vectors [B, latent_dim].

    Args:
        image_shape: (c, h, w).
        latent_dim: N.
        width: Channels of the first layer.

    Raises:
        ValueError: a side is under 8 pixels.
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int, width: int = 64) -> None:
        channels, height, breadth = image_shape
        sides = _sides(height, breadth)
        layers: list[nn.Module] = []
        for level in range(len(sides) - 1):
            out = width << level
            layers += [
                nn.Conv2d(channels, out, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.LeakyReLU(0.2),
            ]
            channels = out
        super().__init__(*layers, nn.Conv2d(channels, latent_dim, sides[-1]), nn.Flatten())
        self.latent_dim = latent_dim
        self.apply(_xavier)


class DCGANDecoder(nn.Sequential):
    """Vectors [B, latent_dim] to the likelihood's parameters [B, c, h, w].

    Args:
        latent_dim: N.
        image_shape: (c, h, w); c counts the likelihood's parameters per pixel.
        width: Channels of the last hidden layer.

    Raises:
        ValueError: a side is under 8 pixels.
    """

    def __init__(self, latent_dim: int, image_shape: tuple[int, int, int], width: int = 64) -> None:
        out, height, breadth = image_shape
        sides = _sides(height, breadth)[::-1]
        channels = width << (len(sides) - 2)
        layers: list[nn.Module] = [
            nn.Unflatten(1, (latent_dim, 1, 1)),
            nn.ConvTranspose2d(latent_dim, channels, sides[0], bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        for level, (small, large) in enumerate(pairwise(sides)):
            # A transposed convolution doubles a side; what an odd side lost is added back.
            odd = (large[0] - 2 * small[0], large[1] - 2 * small[1])
            last = level == len(sides) - 2
            following = out if last else channels // 2
            layers.append(
                nn.ConvTranspose2d(
                    channels, following, 4, stride=2, padding=1, output_padding=odd, bias=last
                )
            )
            if not last:
                layers += [nn.BatchNorm2d(following), nn.ReLU()]
            channels = following
        super().__init__(*layers)
        self.latent_dim = latent_dim
        self.apply(_xavier)

    def forward(self, input: Tensor) -> Tensor:
        """Decode [B, latent_dim]; see the class."""
        return super().forward(input)
