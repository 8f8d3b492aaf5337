"""K V and its derivatives in plain PyTorch: what every other implementation must compute.

Rows are visited in chunks (chunked.py). See README.md beside this file for the formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgm_fast.ops.chunks import wide_dtype
from cgm_fast.ops.kernel_product import chunked
from cgm_fast.ops.kernel_product.problem import Problem, Value, Wanted
from cgm_fast.ops.mmd.common import batched
from cgm_fast.ops.mmd.kernels import FAMILIES


class Float64Points:
    """Rows and columns about the columns' median, which a few far rows do not move.

    |a|² + |b|² - 2ab loses what |a|² has over the distance: so it is taken in float64, where there
    is one.
    """

    def __init__(self, problem: Problem) -> None:
        x, y = problem.x, problem.y
        m, wide = y.shape[1], wide_dtype(x.device)
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        far_x, far_y = x.to(wide), y.to(wide)
        centre = far_y.sort(1).values[:, m // 2 : m // 2 + 1]
        self.far_x, self.far_y = far_x - centre, far_y - centre
        self.of_x, self.of_y = ((far * far).sum(-1) for far in (self.far_x, self.far_y))
        self.x, self.y = self.far_x.to(self.dtype), self.far_y.to(self.dtype)
        # Where the kernel has a kink, rows that coincide have to be at distance zero, exactly.
        self.kink = FAMILIES[problem.kernel].order < 2

    def squared(self, batch: slice, i: slice) -> Tensor:
        """Of rows i with all columns, [b, c, m]; not negative."""
        far_x, far_y = self.far_x[batch, i], self.far_y[batch]
        if self.kink:
            mode = "donot_use_mm_for_euclid_dist"
            u = torch.cdist(far_x, far_y, compute_mode=mode).square_()
        else:
            u = self.of_x[batch, i, None] + self.of_y[batch, None, :]
            u.baddbmm_(far_x, far_y.mT, alpha=-2).clamp_min_(0)
        return u.to(self.dtype)


@batched
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """The derivatives of Q that are wanted: see `Value`."""
    return chunked.fwd(problem, wanted, Float64Points(problem))
