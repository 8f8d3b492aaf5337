"""Ways to compute K(x, y) v, Gaussian with σ² = d, and the gradients in x, y and v.

The loss is ⟨c, K v⟩ with a cotangent c, so that peers are checked like those of the other ops.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

import cgm_fast
from benchmarks.peers import Peer, at_high, compiled, our_peers, why_not_keops, with_gradients

LEAVES = 3


def eager(x: Tensor, y: Tensor, v: Tensor, cotangent: Tensor) -> tuple[Tensor, None]:
    """What one writes: distances by a matrix product, exp, another product; n x m matrices."""
    squares = x.square().sum(1, keepdim=True) + y.square().sum(1)
    kernel = torch.exp((squares - 2 * x @ y.T) / (-2 * x.shape[1]))
    return (cotangent * (kernel @ v)).sum(), None


def keops(x: Tensor, y: Tensor, v: Tensor, cotangent: Tensor) -> tuple[Tensor, None]:
    """KeOps' reduction, with its autograd."""
    from pykeops.torch import LazyTensor

    rows, columns = LazyTensor(x[:, None]), LazyTensor(y[None])
    kernel: Any = (((rows - columns) ** 2).sum(-1) / (-2 * x.shape[1])).exp()
    return (cotangent * (kernel @ v)).sum(), None


def ours(backend: str, x: Tensor, y: Tensor, v: Tensor, cotangent: Tensor) -> tuple[Tensor, None]:
    """This package."""
    return (cotangent * cgm_fast.kernel_product(x, y, v, backend=backend)).sum(), None


KEOPS = "-native" if "-march=native" in os.environ.get("CXXFLAGS", "") else ""
EAGER = Peer("eager", with_gradients(eager, LEAVES), stores_pairs=True)

PEERS = (
    *our_peers(ours, LEAVES),
    EAGER,
    at_high(EAGER),
    Peer("compile", compiled(eager, LEAVES), compiles=True, stores_pairs=True),
    Peer(
        f"pykeops{KEOPS}",
        with_gradients(keops, LEAVES),
        needs=("pykeops",),
        compiles=True,
        captures=False,
        unusable=why_not_keops,
    ),
)
