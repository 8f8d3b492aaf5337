"""Ways to compute MMD² (biased, eq. 7) of x [n, d] and y [m, d] with both gradients."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import cgm_fast
from benchmarks.cases import BANDWIDTHS
from benchmarks.peers import (
    Peer,
    Planned,
    Step,
    at_high,
    compiled,
    our_peers,
    why_not_keops,
    with_gradients,
)

TILES = {"cpu": 512, "cuda": 2048}
"""Rows and columns of a tile: 1 MB of float32, which a core's second-level cache about holds, or
16 MB, which that of a large GPU does."""


def eager(x: Tensor, y: Tensor) -> tuple[Tensor, None]:
    """What one writes: distances by a matrix product, exp, mean; three n x m matrices."""
    h = x.shape[1]

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = a.square().sum(1, keepdim=True) + b.square().sum(1)
        return torch.exp((squares - 2 * a @ b.T) / (-2 * h)).mean()

    return mean_kernel(x, x) - 2 * mean_kernel(x, y) + mean_kernel(y, y), None


def stacked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """Centred rows z [M, d], signed weights w [M, 1], h: MMD² = Σ w_i w_j k(z_i, z_j)."""
    z = torch.cat([x, y])
    w = torch.cat([x.new_full((len(x), 1), 1 / len(x)), y.new_full((len(y), 1), -1 / len(y))])
    return z - z.mean(0), w, float(x.shape[1])


def finish(x: Tensor, z: Tensor, w: Tensor, h: float, sums: Tensor) -> tuple[Tensor, ...]:
    """Loss and gradients from sums [M, d + 1] = Σ_j k_ij w_j (z_j, 1): the closed form."""
    s = w * sums[:, -1:]
    gradient = (s * z - w * sums[:, :-1]) * (-2 / h)
    return s.sum(), gradient[: len(x)], gradient[len(x) :]


def as_products(z: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """q, k [M, d + 2] with q_i · k_j = log k_ij = −|z_i − z_j|² / 2h."""
    bias = z.square().sum(1, keepdim=True) / (-2 * h)
    one = torch.ones_like(bias)
    return torch.cat([z / h, bias, one], 1), torch.cat([z, one, bias], 1)


def sdpa(x: Tensor, y: Tensor) -> Step:
    """As attention: rows are queries, keys and values, and nothing n x m is stored.

    A softmax divides each row by its sum. One more key, whose logit is 0 for every row, and a
    value column that is 1 there alone, give the inverse of that sum, which takes it out again.
    On a GPU columns of zeros are added: the kernel that stores nothing n x m wants widths in fours.
    """

    @torch.no_grad()
    def step() -> Any:
        z, w, h = stacked(x, y)
        q, k = as_products(z, h)
        v = torch.cat([w * z, w, torch.zeros_like(w)], 1)
        mark = v.new_zeros(1, v.shape[1])
        mark[0, -1] = 1
        inputs = q, torch.cat([k, 0 * mark]), torch.cat([v, mark])
        if x.is_cuda and (short := -q.shape[1] % 4):
            inputs = tuple(torch.nn.functional.pad(value, (0, short)) for value in inputs)
        out = torch.nn.functional.scaled_dot_product_attention(
            *(value[None, None] for value in inputs), scale=1.0
        )[0, 0, :, : q.shape[1]]
        return finish(x, z, w, h, out[:, :-1] / out[:, -1:])

    if x.is_cuda:  # once with that kernel or an error, so that no other is measured unnoticed
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            step()

    return step


def tiled(x: Tensor, y: Tensor) -> Step:
    """By hand: tiles that stay in cache, each pair once, buffers reused, no autograd."""

    @torch.no_grad()
    def step() -> Any:
        z, w, h = stacked(x, y)
        q, k = as_products(z, h)
        k, v = k.T.contiguous(), torch.cat([w * z, w], 1)
        rows, size = len(z), TILES[z.device.type]
        sums = torch.zeros_like(v)
        buffer = z.new_empty(size * size)
        for i in range(0, rows, size):
            own = slice(i, min(i + size, rows))
            for j in range(i, rows, size):
                other = slice(j, min(j + size, rows))
                shape = (own.stop - i, other.stop - j)
                tile = buffer[: shape[0] * shape[1]].view(shape)
                torch.mm(q[own], k[:, other], out=tile).exp_()
                sums[own].addmm_(tile, v[other])
                if i != j:
                    sums[other].addmm_(tile.T, v[own])
        return finish(x, z, w, h, sums)

    return step


def geomloss(backend: str, x: Tensor, y: Tensor) -> tuple[Tensor, None]:
    """GeomLoss's kernel norm, which is half of MMD²."""
    from geomloss import SamplesLoss

    loss = SamplesLoss("gaussian", blur=math.sqrt(x.shape[1]), backend=backend)
    return 2 * loss(x, y), None


def keops(x: Tensor, y: Tensor) -> Step:
    """One KeOps reduction over all pairs for loss and gradients; half the time of its autograd."""
    from pykeops.torch import LazyTensor

    @torch.no_grad()
    def step() -> Any:
        z, w, h = stacked(x, y)
        scaled = z / math.sqrt(2 * h)
        logs = -((LazyTensor(scaled[:, None]) - LazyTensor(scaled[None])) ** 2).sum(-1)
        return finish(x, z, w, h, logs.exp() @ torch.cat([w * z, w], 1))

    return step


def flash_sinkhorn(x: Tensor, y: Tensor) -> Step:
    """FlashSinkhorn's kernels that apply a transport plan, with potentials that make it the kernel.

    Its plan is exp((f̂_i + ĝ_j + z_i · z_j) / h): with −|z|²/2 for both it is k_ij. It has no MMD;
    matrices as wide as the samples and vectors go through two kernels. Precision as it defaults.
    """
    from flash_sinkhorn.kernels import apply_plan_mat_flashstyle, apply_plan_vec_flashstyle

    @torch.no_grad()
    def step() -> Any:
        z, w, h = stacked(x, y)
        z = z.contiguous()
        potential = z.square().sum(1) / -2
        zero = torch.zeros_like(potential)
        plan = (z, z, potential, potential, zero, zero)
        matrix = apply_plan_mat_flashstyle(*plan, w * z, eps=h, axis=1, cost_scale=0.5)
        vector = apply_plan_vec_flashstyle(*plan, w[:, 0], eps=h, axis=1, cost_scale=0.5)
        return finish(x, z, w, h, torch.cat([matrix, vector[:, None]], 1))

    return step


def jax_jit(x: Tensor, y: Tensor) -> Step:
    """The eager formula under jax.jit, with its value_and_grad."""
    import jax
    import jax.numpy as jnp

    h = x.shape[1]

    def mean_kernel(a: Any, b: Any) -> Any:
        squares = (a * a).sum(1)[:, None] + (b * b).sum(1)
        return jnp.exp((squares - 2 * a @ b.T) / (-2 * h)).mean()

    def loss(x: Any, y: Any) -> Any:
        return mean_kernel(x, x) - 2 * mean_kernel(x, y) + mean_kernel(y, y)

    inputs = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
    call = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*inputs).compile()

    def step() -> Any:
        value, gradients = jax.block_until_ready(call(*inputs))
        return value, *gradients

    # Its allocator holds back what it has had before, so that the process does not grow again.
    plan = call.memory_analysis()
    return Planned(step, plan.temp_size_in_bytes + plan.output_size_in_bytes)


def ours(backend: str, x: Tensor, y: Tensor) -> tuple[Tensor, None]:
    """This package."""
    return cgm_fast.mmd(x, y, backend=backend), None


# KeOps reads CXXFLAGS once, when it is imported: the two variants need a process each.
KEOPS = "-native" if "-march=native" in os.environ.get("CXXFLAGS", "") else ""

EAGER = Peer("eager", with_gradients(eager), stores_pairs=True)

PEERS = (
    *our_peers(ours),
    EAGER,
    at_high(EAGER),
    Peer("compile", compiled(eager), compiles=True, stores_pairs=True),
    Peer("sdpa", sdpa),
    Peer("tiled", tiled),
    Peer(
        "geomloss-tensorized",
        with_gradients(functools.partial(geomloss, "tensorized")),
        needs=("geomloss",),
        stores_pairs=True,
    ),
    Peer(
        f"geomloss-online{KEOPS}",
        with_gradients(functools.partial(geomloss, "online")),
        needs=("geomloss", "pykeops"),
        compiles=True,
        captures=False,
        unusable=why_not_keops,
    ),
    Peer(
        f"pykeops{KEOPS}",
        keops,
        needs=("pykeops",),
        compiles=True,
        captures=False,
        unusable=why_not_keops,
    ),
    Peer(
        "flash-sinkhorn",
        flash_sinkhorn,
        needs=("flash_sinkhorn.kernels",),
        devices=("cuda",),
        compiles=True,
    ),
    Peer("jax", jax_jit, needs=("jax",), devices=("cpu",), stores_pairs=True),
)

# At many features the others are slow, or the same matrix products. On a GPU such shapes are among
# those of PEERS.
WIDE_PEERS = tuple(
    replace(peer, devices=("cpu",))
    for peer in PEERS
    if peer.name in ("native", "matmul", "eager", "compile", "tiled")
)


# Several bandwidths


def eager_bandwidths(x: Tensor, y: Tensor) -> tuple[Tensor, None]:
    """What one writes: the eager form with the mean of a kernel for each bandwidth."""

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = a.square().sum(1, keepdim=True) + b.square().sum(1)
        distance = squares - 2 * a @ b.T
        kernels = [(distance / (-2 * x.shape[1] * unit**2)).exp().mean() for unit in BANDWIDTHS]
        return torch.stack(kernels).mean()

    return mean_kernel(x, x) - 2 * mean_kernel(x, y) + mean_kernel(y, y), None


def our_bandwidths(backend: str, x: Tensor, y: Tensor) -> tuple[Tensor, None]:
    """This package, in one pass over the pairs."""
    sigma = [unit * math.sqrt(x.shape[1]) for unit in BANDWIDTHS]
    return cgm_fast.mmd(x, y, bandwidth=sigma, backend=backend), None


EAGER_BANDWIDTHS = Peer("eager", with_gradients(eager_bandwidths), stores_pairs=True)

BANDWIDTHS_PEERS = (
    *our_peers(our_bandwidths),
    EAGER_BANDWIDTHS,
    at_high(EAGER_BANDWIDTHS),
    Peer("compile", compiled(eager_bandwidths), compiles=True, stores_pairs=True),
)
