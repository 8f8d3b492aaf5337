"""PixelSNAIL: causal convolutions for what is near, causal attention for all before a pixel.

Chen, Mishra, Rohaninejad, Abbeel, "PixelSNAIL: an improved autoregressive generative model",
ICML 2018. The residual blocks are those of PixelCNN++ (Salimans, Karpathy, Chen, Kingma, ICLR
2017) with ELU. Much smaller here than in the paper, and keys and queries come from two layers
where the paper has a residual block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, pad, scaled_dot_product_attention

from cgm_fast.cgm.models.networks.autoregressive import (
    AutoregressiveDecoder,
    CausalConv2d,
    centre,
    check_positive,
    shift_down,
    shift_right,
)
from cgm_fast.cgm.models.networks.dcgan import _xavier


class GatedResidual(nn.Module):
    """x plus a gated function of x, of a second input and of the map of z, all at [B, ·, h, w].

    Args:
        width: Channels of x and of the map of z.
        kernel: Side of the two convolutions.
        second: Channels of the second input; 0 for none.
        dropout: Probability, between the convolutions.
    """

    def __init__(self, width: int, kernel: int, second: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = CausalConv2d(width, width, (kernel, kernel))
        self.second = nn.Conv2d(second, width, 1, bias=False) if second else None
        self.dropout = nn.Dropout(dropout)
        self.outer = CausalConv2d(width, 2 * width, (kernel, kernel))
        self.condition = nn.Conv2d(width, 2 * width, 1, bias=False)

    def forward(self, x: Tensor, context: Tensor, second: Tensor | None = None) -> Tensor:
        """The next x [B, width, h, w]."""
        inner = self.inner(elu(x))
        if self.second is not None and second is not None:
            inner = inner + self.second(elu(second))
        outer = self.outer(self.dropout(elu(inner))) + self.condition(context)
        value, gate = outer.chunk(2, 1)
        change: Tensor = value * gate.sigmoid()
        return x + change


def causal_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of every pixel to the pixels strictly before it in raster order.

    Args:
        query: [B, a, h, w].
        key: [B, a, h, w].
        value: [B, a, h, w].
        heads: A divisor of a; channels are split among them.

    Returns:
        [B, a, h, w], zero at the first pixel, which has none before it.
    """
    batch, channels, height, breadth = query.shape
    shape = (batch, heads, channels // heads, height * breadth)
    # Channels last, and so in memory too: the fused kernels take nothing else.
    q, k, v = (t.reshape(shape).transpose(2, 3).contiguous() for t in (query, key, value))
    # The second pixel's query against the first one's key, and so on: what is strictly before a
    # pixel becomes the usual causal mask, and no row of the softmax is empty.
    mixed = scaled_dot_product_attention(q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], is_causal=True)
    return pad(mixed, (0, 0, 1, 0)).transpose(2, 3).reshape(query.shape)


class CausalAttention(nn.Module):
    """What a pixel finds among the pixels before it, [B, attention_width, h, w].

    Keys and values know their own pixel of the image: only later pixels see them.

    Args:
        image_shape: (c, h, w) of the images.
        width: Channels of the features.
        attention_width: Channels of queries, keys and values, a multiple of `heads`.
        heads: How many ways to attend.
    """

    background: Tensor

    def __init__(
        self, image_shape: tuple[int, int, int], width: int, attention_width: int, heads: int
    ) -> None:
        super().__init__()
        channels, height, breadth = image_shape
        self.heads = heads
        # Where a pixel is, in [−1, 1] from side to side: attention alone could not tell.
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, breadth)
        background = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        self.register_buffer("background", background, persistent=False)
        self.query = nn.Sequential(
            nn.Conv2d(width + 2, width, 1), nn.ELU(), nn.Conv2d(width, attention_width, 1)
        )
        self.key_value = nn.Sequential(
            nn.Conv2d(width + 2 + channels, width, 1),
            nn.ELU(),
            nn.Conv2d(width, 2 * attention_width, 1),
        )

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        """Attend, with features [B, width, h, w] of images x [B, c, h, w]."""
        background = self.background[:, : x.shape[2]].expand(len(x), -1, -1, -1)
        known = torch.cat([features, background], 1)
        key, value = self.key_value(torch.cat([known, x], 1)).chunk(2, 1)
        return causal_attention(self.query(known), key, value, self.heads)


class Block(nn.Module):
    """Residual blocks of causal convolutions, then one that takes in what attention found.

    Args:
        image_shape: (c, h, w) of the images.
        width: Channels of the features.
        layers: Residual blocks before the attention.
        attention_width: As for `CausalAttention`.
        heads: As for `CausalAttention`.
        dropout: Probability, inside the residual blocks.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        width: int,
        layers: int,
        attention_width: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.near = nn.ModuleList(GatedResidual(width, 2, dropout=dropout) for _ in range(layers))
        self.attention = CausalAttention(image_shape, width, attention_width, heads)
        self.merge = GatedResidual(width, 1, second=attention_width, dropout=dropout)

    def forward(self, features: Tensor, context: Tensor, x: Tensor) -> Tensor:
        """The next features [B, width, h, w], given the map of z and the images."""
        for layer in self.near:
            features = layer(features, context)
        merged: Tensor = self.merge(features, context, self.attention(features, x))
        return merged


class PixelSNAIL(AutoregressiveDecoder):
    """The parameters of each pixel from z [B, N] and the pixels before it in x [B, c, h, w].

    Args:
        latent_dim: N.
        image_shape: (c, h, w) of the images.
        out_channels: The likelihood's parameters per pixel.
        width: Channels of the features.
        blocks: Blocks, each of convolutions and then attention.
        layers: Residual blocks of causal convolutions per block.
        heads: Attention heads.
        attention_width: Channels of queries, keys and values, split among the heads.
        dropout: Probability, inside the residual blocks.

    Raises:
        ValueError: a side is under 8 pixels, a size under 1, `attention_width` not a multiple of
            `heads`, or `dropout` not a probability.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: tuple[int, int, int],
        out_channels: int,
        width: int = 32,
        blocks: int = 2,
        layers: int = 2,
        heads: int = 1,
        attention_width: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(latent_dim, image_shape, out_channels, width)
        check_positive(blocks=blocks, layers=layers, heads=heads, attention_width=attention_width)
        if attention_width % heads:
            raise ValueError(
                f"attention_width must be a multiple of heads, got {attention_width} and {heads}"
            )
        channels = self.image_shape[0]
        self.above = CausalConv2d(channels, width, (1, 3), ahead=1)
        self.left = CausalConv2d(channels, width, (2, 1))
        self.blocks = nn.ModuleList(
            Block(self.image_shape, width, layers, attention_width, heads, dropout)
            for _ in range(blocks)
        )
        self.head = nn.Sequential(nn.ELU(), nn.Conv2d(width, out_channels, 1))
        self.apply(_xavier)

    def predict(self, context: Tensor, x: Tensor) -> Tensor:
        """The parameters [B, out_channels, h, w] from the map of z and the images."""
        x = centre(x)
        features = self.above(shift_down(x)) + self.left(shift_right(x))
        for block in self.blocks:
            features = block(features, context, x)
        params: Tensor = self.head(features)
        return params
