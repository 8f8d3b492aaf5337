"""Ways to compute λ·MMD² + β·margin loss (eq. 6) of r [b, d], prototypes g [k, d] and noise."""

from __future__ import annotations

import math

from torch import Tensor

import cgm_fast
from benchmarks.peers import (
    Peer,
    at_high,
    compiled,
    mmd,
    our_peers,
    prototype_margin,
    with_gradients,
)

# The defaults of cgm_fast.cgm_loss.
SIGMA2 = 0.02
MMD_WEIGHT = 1000.0


def eager(r: Tensor, g: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """What one writes, from the eager forms of the other two ops; the noise is given."""
    pull, assignment = prototype_margin.eager(r, g)
    z = r + math.sqrt(SIGMA2) * noise[0]
    prior = g[assignment] + math.sqrt(SIGMA2) * noise[1]
    value, _ = mmd.eager(z, prior)
    return MMD_WEIGHT * value + pull, assignment


def ours(backend: str, r: Tensor, g: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """This package."""
    result = cgm_fast.cgm_loss(
        r, g, sigma2=SIGMA2, mmd_weight=MMD_WEIGHT, noise=noise, backend=backend
    )
    return result.loss, result.assignment


EAGER = Peer("eager", with_gradients(eager), stores_pairs=True)

PEERS = (
    *our_peers(ours),
    EAGER,
    at_high(EAGER),
    Peer("compile", compiled(eager), compiles=True, stores_pairs=True),
)
