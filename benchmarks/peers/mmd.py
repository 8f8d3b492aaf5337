"""Ways to compute MMD² (biased, eq. 7) of x [n, d] and y [m, d] with both gradients."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import torch
from torch import Tensor

import cgm_fast
from benchmarks.peers import Peer, Planned, Step, compiled, our_peers, with_gradients

TILE = 512
"""Rows and columns of a tile: 1 MB of float32, which a core's L2 cache about holds."""


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
    """

    @torch.no_grad()
    def step() -> Any:
        z, w, h = stacked(x, y)
        q, k = as_products(z, h)
        v = torch.cat([w * z, w, torch.zeros_like(w)], 1)
        mark = v.new_zeros(1, v.shape[1])
        mark[0, -1] = 1
        q, k, v = q[None, None], torch.cat([k, 0 * mark])[None, None], torch.cat([v, mark])
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v[None, None], scale=1.0)
        return finish(x, z, w, h, out[0, 0, :, :-1] / out[0, 0, :, -1:])

    return step


def tiled(x: Tensor, y: Tensor) -> Step:
    """By hand: tiles that stay in cache, each pair once, buffers reused, no autograd."""

    @torch.no_grad()
    def step() -> Any:
        z, w, h = stacked(x, y)
        q, k = as_products(z, h)
        k, v = k.T.contiguous(), torch.cat([w * z, w], 1)
        rows = len(z)
        sums = torch.zeros_like(v)
        buffer = z.new_empty(TILE * TILE)
        for i in range(0, rows, TILE):
            own = slice(i, min(i + TILE, rows))
            for j in range(i, rows, TILE):
                other = slice(j, min(j + TILE, rows))
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

PEERS = (
    *our_peers(ours),
    Peer("eager", with_gradients(eager), stores_pairs=True),
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
    ),
    Peer(f"pykeops{KEOPS}", keops, needs=("pykeops",), compiles=True),
    Peer("jax", jax_jit, needs=("jax",), devices=("cpu",), stores_pairs=True),
)
