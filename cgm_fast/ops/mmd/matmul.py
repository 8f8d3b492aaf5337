"""MMD² by matrix products of tiles of pairs: the fast way for many features on any device.

Tiles of rows and columns j > i are met once and serve both orders: a product for the distances, a
few passes over the tile, and two products that add up the gradient. See README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.chunks import no_autocast, tile_size, wide_dtype
from cgm_fast.ops.gpu import constants, tf32_allowed
from cgm_fast.ops.mmd import chunked
from cgm_fast.ops.mmd.common import (
    PairSums,
    batched,
    bounds_of_groups,
    by_group,
    of_columns,
    pair_masses,
    relation_of,
)
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.mmd.matmul_tile import Kernel, TileOfPairs
from cgm_fast.ops.mmd.problem import Problem, Product, Tangent, Value, Wanted
from cgm_fast.ops.products import (
    Distances,
    add_product,
    kernels_for,
    mean_of,
    points_of,
    together,
    too_wide,
)


class Tile(NamedTuple):
    """Pairs of rows [begin, end) of one group with columns that lie behind them or are they."""

    batch: slice
    group: int
    rows: slice
    columns: slice
    of_group: int | None
    """Of all columns, if they are of one."""

    @property
    def own(self) -> bool:
        """Whether the first columns are the rows."""
        return self.rows.start == self.columns.start


def tiles(batch: int, sizes: tuple[int, ...], device: torch.device) -> Iterator[Tile]:
    """Every pair of rows once, and a row with itself besides."""
    rows = sum(sizes)
    size = tile_size(device, rows)
    some = max(1, size.rows * size.columns // rows**2)
    bounds = bounds_of_groups(sizes)
    # Columns of one group have one Γ; where groups are small tiles are not to be.
    ends = [end for _, end in bounds] if size.columns < rows and rows >= 256 * len(sizes) else []
    for b0 in range(0, batch, some):
        items = slice(b0, min(b0 + some, batch))
        for g, (first, last) in enumerate(bounds):
            for i0 in range(first, last, size.rows):
                i1, j0 = min(i0 + size.rows, last), i0
                while j0 < rows:
                    j1 = min([j0 + size.columns, rows, *(end for end in ends if end > j0)])
                    around = (
                        k for k, (begin, end) in enumerate(bounds) if begin <= j0 and j1 <= end
                    )
                    yield Tile(items, g, slice(i0, i1), slice(j0, j1), next(around, None))
                    j0 = j1


class Pass:
    """One pass over the tiles, and what it adds up."""

    def __init__(self, problem: Problem, wanted: Wanted) -> None:
        self.problem, self.wanted = problem, wanted
        x, sizes = problem.x, problem.sizes
        (b, _, d), rows, groups = x.shape, sum(sizes), len(sizes)
        scales = len(problem.kernel_weights)
        dtype, self.wide = torch.promote_types(x.dtype, torch.float32), wide_dtype(x.device)
        self.h, ratios, widest = _bandwidths(problem, dtype)
        samples = together(x, problem.y)
        scale = (0.5 / self.h) ** 0.5
        self.points = points_of(samples, mean_of(samples), scale)
        self.exact = FAMILIES[problem.kernel].order < 2
        self.distances = Distances(self.points, self.points, widest, self.exact)
        self.fused = _fused(x.device)
        if self.fused is not None:
            self._prepare_fused(ratios, widest)
        self.kernel = Kernel(problem.kernel, ratios, problem.kernel_weights, wanted)
        self.weights = None if problem.weights is None else problem.weights.to(dtype).contiguous()
        self._relate(dtype)
        z = self.points.z
        self.tile = z.new_empty(0)
        # Sums over the rows of each group, column by column, of pairs i < j.
        self.small = z.new_zeros((b, groups, rows), dtype=self.wide)
        self.near = z.new_zeros((b, scales, groups, rows), dtype=self.wide)
        self.far = None if self.weights is None else torch.zeros_like(self.near)
        # Of rows that want a gradient: Σ c_ij slope_ij, and times z_j.
        self.slopes = z.new_zeros((b, rows), dtype=self.wide)
        self.sums = z.new_zeros((b, wanted.row_end - wanted.row_begin, d))
        self.inside = z.new_zeros((b, rows if wanted.weights else 0), dtype=self.wide)
        self.by_h = z.new_zeros((b, scales), dtype=self.wide)

    def _relate(self, dtype: torch.dtype) -> None:
        """Γ in units of its largest: 1/nm times what is left of a narrow kernel would be less than
        numbers go."""
        problem, groups = self.problem, len(self.problem.sizes)
        relation = relation_of(problem, self.wide)
        self.gammas: list[list[float]] | None = None
        self.largest: float | Tensor
        if problem.relation is None:
            self.largest = max(map(abs, problem.relations)) or 1.0
            flat = [number / self.largest for number in problem.relations]
            self.gammas = [flat[g * groups : (g + 1) * groups] for g in range(groups)]
        else:
            largest = relation.abs().amax((-2, -1))[:, None]
            self.largest = torch.where(largest > 0, largest, 1.0)
        self.per_unit = (relation / self._largest(2)).to(dtype)
        self.of_group: tuple[int, Tensor] | None = None

    def _relation(self, group: int) -> Tensor:
        """Γ of a group with every row, [b or 1, 1, M]; tiles come group by group."""
        if self.of_group is None or self.of_group[0] != group:
            row = of_columns(self.per_unit[:, group], self.problem.sizes)
            self.of_group = group, row.unsqueeze(1)
        return self.of_group[1]

    def _largest(self, dims: int) -> float | Tensor:
        """With so many dimensions behind that of the batch."""
        if isinstance(self.largest, float):
            return self.largest
        return self.largest.view(-1, *(1,) * dims)

    def visit(self, tile: Tile) -> None:
        """Add what a tile's pairs come to."""
        batch, rows, columns = tile.batch, tile.rows, tile.columns
        shape = (batch.stop - batch.start, rows.stop - rows.start, columns.stop - columns.start)
        if self.tile.numel() < shape[0] * shape[1] * shape[2]:
            self.tile = self.tile.new_empty(shape[0] * shape[1] * shape[2])
        t = self.tile[: shape[0] * shape[1] * shape[2]].view(shape)
        begin, end = self.wanted.row_begin, self.wanted.row_end
        gradient = _within(rows, begin, end) or _within(columns, begin, end)
        if self.fused is not None:
            self._visit_fused(tile, t, gradient is not None)
            if gradient:
                self._add_products(tile, t, 1.0)
            return
        k = self.kernel.of(self.distances.squared(batch, rows, columns, t), batch, tile.own)
        self._values(tile, k)
        if self.wanted.weights:
            self._of_weights(tile, k.less)
        for s, by_h in enumerate(k.by_h):
            weighted = self._weigh(tile, by_h, self._gamma(tile))
            self.by_h[batch, s] += weighted.sum(-1).sum(-1, dtype=self.wide)
        if gradient:
            gamma = self._gamma(tile)
            factor = gamma if isinstance(gamma, float) else 1.0
            slope = self._weigh(tile, k.slope, 1.0 if isinstance(gamma, float) else gamma)
            self.slopes[batch, rows] += slope.sum(-1).mul_(factor)
            self.slopes[batch, columns] += slope.sum(-2).mul_(factor)
            self._add_products(tile, slope, factor)

    def _prepare_fused(self, ratios: list[float | Tensor], widest: float | Tensor) -> None:
        z, squares = self.points
        of_item = [ratio.flatten(1) for ratio in ratios if isinstance(ratio, Tensor)]
        if of_item:
            self.ratios = torch.cat(of_item, 1)
        else:
            numbers = tuple(ratio for ratio in ratios if isinstance(ratio, float))
            self.ratios = constants(numbers, z.dtype, z.device)
        weights = tuple(self.problem.kernel_weights)
        self.kernel_weights = constants(weights, z.dtype, z.device)
        self.far_apart = too_wide(squares, widest, z.shape[-1]).to(torch.int32).view(1)
        rounded = z.dtype == torch.float32 and tf32_allowed()
        vanishes = FAMILIES[self.problem.kernel].vanishes
        self.way = self.fused.Way(self.problem.kernel, vanishes, self.exact, rounded)

    def _visit_fused(self, tile: Tile, t: Tensor, gradient: bool) -> None:
        """By a kernel of Triton's that has all of the elementwise work."""
        b, g = tile.batch, tile.group
        z, squares = self.points.z[b], self.points.squares[b]
        relation = self._relation(g).squeeze(1)
        if not self.exact:
            torch.bmm(z[:, tile.rows], z[:, tile.columns].mT, out=t)
        sums = self.fused.Sums(
            self.small[b, g], self.near[b, :, g], None if self.far is None else self.far[b, :, g],
            self.slopes[b] if gradient else None,
            self.inside[b] if self.wanted.weights else None,
            self.by_h[b] if self.wanted.variance else None,
        )  # fmt: skip
        given = self.fused.Operands(
            z, squares, self.far_apart,
            self.ratios[b] if self.ratios.dim() == 2 else self.ratios, self.kernel_weights,
            None if self.weights is None else self.weights[b],
            relation[b] if len(relation) > 1 else relation,
        )  # fmt: skip
        self.fused.visit(t, tile.rows, tile.columns, given, sums, self.way)

    def _values(self, tile: Tile, k: TileOfPairs) -> None:
        b, g, columns = tile.batch, tile.group, tile.columns
        if self.weights is None:
            self.small[b, g, columns] += k.small.sum(-2)
            for s, near in enumerate(k.near):
                if near.dtype == torch.bool:
                    self.near[b, s, g, columns] += near.view(torch.uint8).sum(-2, dtype=torch.int32)
                else:
                    self.near[b, s, g, columns] += near.sum(-2)
            return
        w = self.weights[b, tile.rows].unsqueeze(2)
        assert self.far is not None
        self.small[b, g, columns] += (w * k.small).sum(-2)
        for s, near in enumerate(k.near):
            far = ~near if near.dtype == torch.bool else 1 - near
            if tile.own:
                far[..., : far.shape[-2]].triu_(1)
            self.near[b, s, g, columns] += (w * near).sum(-2)
            self.far[b, s, g, columns] += (w * far).sum(-2)

    def _of_weights(self, tile: Tile, less: Tensor) -> None:
        b = tile.batch
        related = less * self._gamma(tile)
        self.inside[b, tile.rows] += self._times(related, tile.columns, b, 1).sum(-1)
        self.inside[b, tile.columns] += self._times(related, tile.rows, b, 2).sum(-2)

    def _times(self, value: Tensor, rows: slice, batch: slice, dim: int) -> Tensor:
        """Times the weights of rows that lie along the dimension that is not `dim`."""
        return value if self.weights is None else value * self.weights[batch, rows].unsqueeze(dim)

    def _gamma(self, tile: Tile) -> float | Tensor:
        if self.gammas is not None and tile.of_group is not None:
            return self.gammas[tile.group][tile.of_group]
        relation = self._relation(tile.group)
        return (relation[tile.batch] if len(relation) > 1 else relation)[..., tile.columns]

    def _weigh(self, tile: Tile, value: Tensor, gamma: float | Tensor) -> Tensor:
        """Times Γ w_i w_j, in place."""
        if not isinstance(gamma, float) or gamma != 1:
            value.mul_(gamma)
        if self.weights is not None:
            value.mul_(self.weights[tile.batch, tile.columns].unsqueeze(1))
            value.mul_(self.weights[tile.batch, tile.rows].unsqueeze(2))
        return value

    def _add_products(self, tile: Tile, weights: Tensor, factor: float) -> None:
        """Σ_j c_ij slope_ij z_j of the tile's rows, and the same of its columns."""
        begin, end = self.wanted.row_begin, self.wanted.row_end
        sides = (tile.rows, tile.columns, weights), (tile.columns, tile.rows, weights.mT)
        for rows, others, of_rows in sides:
            keep = _within(rows, begin, end)
            if keep is not None:
                first = rows.start - begin
                out = self.sums[tile.batch, first + keep.start : first + keep.stop]
                z = self.points.z[tile.batch, others]
                add_product(out, of_rows[:, keep], z, factor)

    def value(self) -> Value:
        """What they come to."""
        problem, wanted, wide = self.problem, self.wanted, self.wide
        sizes, dtype = problem.sizes, self.points.z.dtype
        small, near, far = self.small, self.near, self.far
        masses = pair_masses(problem, wide)
        if self.weights is not None:
            w = self.weights.to(wide)[:, None]
            small, near = small * w, near * w[:, None]
            far = None if far is None else far * w[:, None]
        small, near = (_both_orders(by_group(value, sizes)) for value in (small, near))
        of_far = masses[:, None] - near if far is None else _both_orders(by_group(far, sizes))
        sums_of = PairSums(small, near, of_far)
        loss, block_sums = sums_of.close(problem, relation_of(problem, wide), masses)
        twice = 2 * self.largest  # or [b or 1, 1]
        grad_variance = None
        if wanted.variance:
            h = _variances(problem, wide, problem.x)
            grad_variance = (twice * self.by_h / h).to(dtype)
        return Value(
            loss.to(dtype),
            self._gradient_of_rows() if wanted.row_end > wanted.row_begin else None,
            (twice * self.inside).to(dtype) if wanted.weights else None,
            block_sums if wanted.relation else None,
            grad_variance,
        )

    def _gradient_of_rows(self) -> Tensor:
        """−(2/h) (S_i z_i − V_i), in the caller's units."""
        rows = slice(self.wanted.row_begin, self.wanted.row_end)
        slopes = self.slopes[:, rows].to(self.sums.dtype).unsqueeze(2)
        factor = -((8 / self.h) ** 0.5) * self._largest(2)
        if isinstance(factor, Tensor):
            factor = factor.to(self.sums.dtype)
        return self.sums.neg_().addcmul_(slopes, self.points.z[:, rows]).mul_(factor)


def _fused(device: torch.device) -> Any:
    """Triton's kernel for tiles, where there is one."""
    if kernels_for(device) is None:
        return None
    return import_module("cgm_fast.ops.mmd.triton_tiles")


def _within(rows: slice, begin: int, end: int) -> slice | None:
    """Which of some rows lie in [begin, end), counted from the first of them; None if none do."""
    first, last = max(rows.start, begin), min(rows.stop, end)
    return slice(first - rows.start, last - rows.start) if first < last else None


def _both_orders(sums: Tensor) -> Tensor:
    """Sums over i < j by pair of groups, for all pairs."""
    return sums + sums.mT


def _variances(problem: Problem, dtype: torch.dtype, like: Tensor) -> Tensor:
    """h [b, s]."""
    if problem.variance is not None:
        return problem.variance.to(dtype)
    return constants(tuple(problem.variances), dtype, like.device)


def _bandwidths(
    problem: Problem, dtype: torch.dtype
) -> tuple[float | Tensor, list[float | Tensor], float | Tensor]:
    """The first bandwidth's variance, and what it is to each and to the least."""
    if problem.variance is None:
        h = list(problem.variances)
        return h[0], [h[0] / some for some in h], h[0] / min(h)
    of_item = problem.variance.to(dtype).expand(problem.x.shape[0], -1)
    first = of_item[:, :1]
    ratios = [ratio[:, None, None] for ratio in (first / of_item).unbind(1)]
    return first[:, :, None], list(ratios), (first / of_item).amax()


@batched
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """L and its derivatives: see `Value`."""
    with no_autocast(problem.x.device.type):
        run = Pass(problem, wanted)
        for tile in tiles(problem.x.shape[0], problem.sizes, problem.x.device):
            run.visit(tile)
        return run.value()


class PlainRows:
    """Rows whose distances are taken as this file's."""

    def __init__(self, problem: Problem) -> None:
        samples = together(problem.x, problem.y)
        points = points_of(samples, mean_of(samples), 1.0)
        h, _, widest = _bandwidths(problem, points.z.dtype)
        self.z = points.z
        exact = FAMILIES[problem.kernel].order < 2
        self.distances = Distances(points, points, widest * 0.5 / h, exact)

    def squared(self, batch: slice, i: slice) -> Tensor:
        """[b, c, M]"""
        z = self.z[batch]
        out = z.new_empty((len(z), i.stop - i.start, z.shape[1]))
        return self.distances.squared(batch, i, slice(0, z.shape[1]), out)


@batched
def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian of L applied to a tangent: see `Product`."""
    return chunked.hvp(problem, tangent, wanted, PlainRows(problem))
