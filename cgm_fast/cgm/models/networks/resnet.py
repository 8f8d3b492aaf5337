"""Residual encoder and decoder: pre-activation blocks, strided down, nearest neighbours up.

He, Zhang, Ren, Sun, "Identity mappings in deep residual networks", ECCV 2016. Levels and channels
are those of `dcgan`: channels double at every halving of the image, and any image of at least
8 x 8 pixels fits, odd sides too. The decoder is the encoder in reverse.
"""

from __future__ import annotations

from torch import Tensor, nn

from cgm_fast.cgm.models.networks.dcgan import _sides, _xavier


class PreActivationBlock(nn.Module):
    """x [B, channels, h, w] plus what two convolutions of it say: [B, out, h, w].

    Normalisation and ReLU come before each convolution, so nothing but sums lies on the way of x.
    Where the shapes differ, a linear map of the activated x takes the place of x.

    Args:
        channels: Of the input.
        out: Channels of the output.
        halve: Whether to return sides half as long (rounded down).
    """

    def __init__(self, channels: int, out: int, *, halve: bool = False) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        # Kernels of even sides halve a side without a pixel left over: 3 x 3 would round up.
        kernel, stride = (4, 2) if halve else (3, 1)
        self.residual = nn.Sequential(
            nn.Conv2d(channels, out, kernel, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
        )
        self.shortcut: nn.Module | None = None
        if halve or channels != out:
            self.shortcut = nn.Conv2d(channels, out, stride, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output; see the class."""
        active = self.activation(x)
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(active)
        residual: Tensor = self.residual(active)
        return shortcut + residual


def _channels(levels: int, width: int) -> list[int]:
    """Channels at every level: `width` twice, since the first halving only mixes the stem's."""
    return [width] + [width << level for level in range(levels)]


def _check_blocks(blocks: int) -> None:
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1, got {blocks}")


class ResNetEncoder(nn.Sequential):
    """Images [B, c, h, w] to vectors [B, latent_dim].

    Args:
        image_shape: (c, h, w).
        latent_dim: N.
        width: Channels at the full size and after the first halving.
        blocks: Residual blocks per level; the first of them halves.

    Raises:
        ValueError: a side is under 8 pixels, or `blocks` under 1.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], latent_dim: int, width: int = 64, blocks: int = 2
    ) -> None:
        channels, height, breadth = image_shape
        _check_blocks(blocks)
        sides = _sides(height, breadth)
        widths = _channels(len(sides) - 1, width)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
        for level in range(len(sides) - 1):
            layers.append(PreActivationBlock(widths[level], widths[level + 1], halve=True))
            layers += [
                PreActivationBlock(widths[level + 1], widths[level + 1]) for _ in range(blocks - 1)
            ]
        super().__init__(
            *layers,
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(),
            nn.Conv2d(widths[-1], latent_dim, sides[-1]),
            nn.Flatten(),
        )
        self.latent_dim = latent_dim
        self.apply(_xavier)


class ResNetDecoder(nn.Sequential):
    """Vectors [B, latent_dim] to the likelihood's parameters [B, c, h, w].

    Args:
        latent_dim: N.
        image_shape: (c, h, w); c counts the likelihood's parameters per pixel.
        width: Channels at the full size and before the last doubling.
        blocks: Residual blocks per level; the last of them works on the doubled image.

    Raises:
        ValueError: a side is under 8 pixels, or `blocks` under 1.
    """

    def __init__(
        self, latent_dim: int, image_shape: tuple[int, int, int], width: int = 64, blocks: int = 2
    ) -> None:
        out, height, breadth = image_shape
        _check_blocks(blocks)
        sides = _sides(height, breadth)
        widths = _channels(len(sides) - 1, width)
        layers: list[nn.Module] = [
            nn.Unflatten(1, (latent_dim, 1, 1)),
            nn.ConvTranspose2d(latent_dim, widths[-1], sides[-1], bias=False),
        ]
        for level in reversed(range(len(sides) - 1)):
            channels = widths[level + 1]
            layers += [PreActivationBlock(channels, channels) for _ in range(blocks - 1)]
            # To the exact sides, where doubling would miss an odd one.
            layers.append(nn.Upsample(sides[level], mode="nearest"))
            layers.append(PreActivationBlock(channels, widths[level]))
        super().__init__(
            *layers, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, out, 3, padding=1)
        )
        self.latent_dim = latent_dim
        self.apply(_xavier)
