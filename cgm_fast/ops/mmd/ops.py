"""Registration of `cgm_fast::mmd_fwd` and `cgm_fast::mmd_hvp` with torch.

Only torch is imported here. The implementation is chosen on real tensors, inside the op, so that
torch.compile sees one opaque op whatever runs it.

Shapes, where the batch [b] may be missing from all of them: x [b, n, d], y [b, m, d], weights
[b, n] and [b, m], cross [b], variance [b, s]; the loss is [b], the gradients [b, rows, d],
[b, n + m] and [b, s + 1].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.registration import register

_INPUTS = (
    "Tensor x, Tensor y, Tensor? x_weights, Tensor? y_weights, Tensor? cross, Tensor? variance, "
    "float[] variances, float[] kernel_weights, float x_scale, float y_scale, float cross_scale, "
    "SymInt row_begin, SymInt row_end, bool with_a, bool with_p"
)


def _shapes(x: Tensor, args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, kernel_weights = args[0], args[6]
    row_begin, row_end, with_a, with_p = args[10:14]
    *batch, n, d = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty(batch, dtype=dtype),
        x.new_empty((*batch, row_end - row_begin, d), dtype=dtype),
        x.new_empty((*batch, n + y.shape[-2]) if with_a else (0,), dtype=dtype),
        x.new_empty((*batch, len(kernel_weights) + 1) if with_p else (0,), dtype=dtype),
    )


def _mmd_fwd_fake(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _shapes(x, args)


def _mmd_hvp_fake(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _shapes(x, args)[1:]


def _not_negative(results: tuple[Tensor, ...], *args: Any) -> None:
    """What the biased estimator loses to rounding where the samples agree.

    Without weights the masses are equal, and with one factor within samples and across them L is
    the squared norm of a difference: a negative number is nothing but the kernel's rounding.
    """
    if args[2] is None and args[3] is None and args[4] is None and args[10] == 1.0:
        loss = results[0]
        if loss.is_cpu and not loss.dim():  # cheaper than an op
            if loss.item() < 0:
                loss.zero_()
        else:
            loss.relu_()


mmd_fwd = register(
    "mmd",
    "fwd",
    f"({_INPUTS}, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _mmd_fwd_fake,
    _not_negative,
)
mmd_hvp = register(
    "mmd",
    "hvp",
    f"({_INPUTS}, Tensor? tangent_z, Tensor? tangent_a, Tensor? tangent_p, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _mmd_hvp_fake,
)
