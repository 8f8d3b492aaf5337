"""K V and its derivatives by matrix products, at the precision that the user allows.

See README.md beside this file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgm_fast.ops.chunks import no_autocast
from cgm_fast.ops.kernel_product import chunked
from cgm_fast.ops.kernel_product.problem import Problem, Value, Wanted
from cgm_fast.ops.mmd.common import batched
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.products import Distances, points_of


class Points:
    """Rows and columns about the columns' median, which a few far rows do not move."""

    def __init__(self, problem: Problem) -> None:
        y, dtype = problem.y, torch.promote_types(problem.x.dtype, torch.float32)
        # A row that is no number is not to be everyone's.
        centre = y.nanmedian(1, keepdim=True).values.to(dtype)
        rows, columns = (points_of((some,), centre, 1.0) for some in (problem.x, y))
        least: float | Tensor
        if problem.variance is None:
            least = min(problem.variances)
        else:
            least = problem.variance.to(dtype).amin()
        exact = FAMILIES[problem.kernel].order < 2
        self.distances = Distances(rows, columns, 0.5 / least, exact)
        # Nothing is to be rounded before it is subtracted.
        if self.distances.differences:
            self.distances.rows = rows._replace(z=problem.x.to(dtype))
            self.distances.columns = columns._replace(z=y.to(dtype))
        elif self.distances.double:
            self.distances.rows = rows._replace(z=problem.x.double() - centre.double())
            self.distances.columns = columns._replace(z=y.double() - centre.double())
        self.x, self.y = rows.z, columns.z

    def squared(self, batch: slice, i: slice) -> Tensor:
        """Of rows i with all columns, [b, c, m]; not negative."""
        x, y = self.x[batch, i], self.y[batch]
        out = x.new_empty((*x.shape[:2], y.shape[1]))
        return self.distances.squared(batch, i, slice(0, y.shape[1]), out)


@batched
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """The derivatives of Q that are wanted: see `Value`."""
    with no_autocast(problem.x.device.type):
        return chunked.fwd(problem, wanted, Points(problem))
