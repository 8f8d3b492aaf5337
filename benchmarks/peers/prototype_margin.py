"""Ways to compute the margin loss (eq. 8) of r [b, d] and prototypes g [k, d] with both gradients.

faiss, scikit-learn and flash-kmeans have no such loss: they find the nearest prototypes, a part of
the work.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

import cgm_fast
from benchmarks.peers import (
    Peer,
    Step,
    at_high,
    compiled,
    our_peers,
    why_not_keops,
    with_gradients,
)

MARGIN = 1.0


def eager(r: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """What one writes: distances by a matrix product, argmin, hinge; a few b x k matrices."""
    squares = r.square().sum(1, keepdim=True) + g.square().sum(1)
    distance = squares - 2 * r @ g.T
    assignment = distance.argmin(1)
    nearest = distance.gather(1, assignment[:, None]).squeeze(1)
    # The nearest has a hinge of its own, which is taken off again: cheaper than a mask.
    hinge = (MARGIN - distance).relu().sum(1) - (MARGIN - nearest).relu()
    return (nearest + hinge).mean(), assignment


def keops(r: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Two KeOps reductions, argmin and the sum of hinges, the latter with KeOps's autograd."""
    from pykeops.torch import LazyTensor

    def distance(r: Tensor, g: Tensor) -> Any:
        return ((LazyTensor(r[:, None]) - LazyTensor(g[None])) ** 2).sum(-1)

    assignment = distance(r.detach(), g.detach()).argmin(1).flatten()
    nearest = (r - g[assignment]).square().sum(1)
    hinge = (MARGIN - distance(r, g)).relu().sum(1).flatten() - (MARGIN - nearest).relu()
    return (nearest + hinge).mean(), assignment


def faiss(r: Tensor, g: Tensor) -> Step:
    """The exact index, filled beforehand."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(g.shape[1])
    index.add(g.numpy())
    queries = r.numpy()
    return lambda: index.search(queries, 1)[1][:, 0]


def sklearn(r: Tensor, g: Tensor) -> Step:
    """Its fused distances and argmin."""
    from sklearn.metrics import pairwise_distances_argmin

    rows, centres = r.numpy(), g.numpy()
    return lambda: pairwise_distances_argmin(rows, centres)


def flash_kmeans(r: Tensor, g: Tensor) -> Step:
    """Its assignment kernel, called as FlashKMeans.predict does; tf32, as Triton defaults."""
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    rows, centres = r[None], g[None]
    return lambda: euclid_assign_triton(rows, centres, rows.square().sum(-1))[0]


def ours(backend: str, r: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """This package."""
    result = cgm_fast.prototype_margin(r, g, margin=MARGIN, backend=backend)
    return result.loss, result.assignment


KEOPS = "-native" if "-march=native" in os.environ.get("CXXFLAGS", "") else ""

EAGER = Peer("eager", with_gradients(eager), stores_pairs=True)

PEERS = (
    *our_peers(ours),
    EAGER,
    at_high(EAGER),
    Peer("compile", compiled(eager), compiles=True, stores_pairs=True),
    Peer(
        f"pykeops{KEOPS}",
        with_gradients(keops),
        needs=("pykeops",),
        compiles=True,
        captures=False,
        unusable=why_not_keops,
    ),
    Peer("faiss", faiss, needs=("faiss",), devices=("cpu",), assigns_only=True),
    Peer("scikit-learn", sklearn, needs=("sklearn",), devices=("cpu",), assigns_only=True),
    Peer(
        "flash-kmeans",
        flash_kmeans,
        needs=("flash_kmeans.assign_euclid_triton",),
        devices=("cuda",),
        assigns_only=True,
        precision="high",
    ),
)
