"""The public function `kernel_product`: checks its arguments, calls the op."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.backends import AUTO, check_name
from cgm_fast.ops.checks import (
    cached,
    check_all_finite,
    check_choice,
    check_float_tensor,
    match,
)
from cgm_fast.ops.kernel_product.autograd import KernelProduct
from cgm_fast.ops.kernel_product.ops import kernel_product_fwd
from cgm_fast.ops.kernel_product.problem import Problem, Wanted
from cgm_fast.ops.mmd.api import (
    KERNELS,
    Bandwidth,
    check_samples,
    kernel_weights,
    numbers_or_variance,
    resolve_variances,
)
from cgm_fast.ops.watching import differentiates_itself, distinct

_PRODUCT = Wanted(True, False, False)


def kernel_product(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    *,
    bandwidth: Bandwidth = "paper",
    kernel: str = "gaussian",
    kernel_agg: str = "mean",
    check_finite: bool = False,
    backend: str = AUTO,
) -> Tensor:
    """Product K(x, y) v of a kernel matrix, which is never stored, with values of its columns.

    out_i = Σ_j k(x_i, y_j) v_j, with the radial kernels of `cgm_fast.mmd`. Memory is
    O((n + m) (d + p)), forward and backward. Kernel density estimates, witness functions, HSIC and
    permutation tests are such products:

        witness = cgm_fast.kernel_product(z, x, torch.ones(n) / n, bandwidth=2.0)
        witness -= cgm_fast.kernel_product(z, y, torch.ones(m) / m, bandwidth=2.0)

    Args:
        x: [n, d], or [b, n, d] for b products; float16, bfloat16, float32 or float64.
        y: [m, d] or [b, m, d], of the same dtype and device (under autocast, dtypes may differ).
        v: [m, p] or [m]; with a batch [b, m, p] or [b, m]; dtype and device likewise.
        bandwidth: σ, in units of the data, as `cgm_fast.mmd` takes it: a number, several, a tensor,
            "paper" (σ² = d, for features of unit variance; 1 for "energy") or "infovae".
        kernel: A name that `cgm_fast.mmd` documents.
        kernel_agg: "mean" or "sum" over several bandwidths.
        check_finite: Raise if an input holds NaN or infinity (synchronises with a GPU; compiled
            code raises RuntimeError).
        backend: "auto", or the name of an implementation, which then runs or raises.

    Returns:
        [n, p] or [n], with a batch [b, n, p] or [b, n]; float32 (float64 for float64 inputs).
        Differentiable twice in x, y, v and a tensor bandwidth, also under `torch.func` and vmap;
        forward mode goes along these once, and over a reverse pass. Second derivatives in x, y and
        bandwidth, and forward mode along these, take p passes over the pairs.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or dtypes differ.
        ValueError: shapes or devices do not match, n, m, d or p is 0, a bandwidth is not positive,
            an option is unknown, an input is not finite (with `check_finite`).
        RuntimeError: the implementation asked for cannot run here, or a third derivative is asked
            for, or a second one that the kernel does not have.
    """
    x, y = check_samples(x, y)
    y, v, single = _check_values(y, v)
    if x.dtype != y.dtype:  # under autocast
        x = x.to(y.dtype)
    check_name(backend)
    if check_finite:
        for name, value in (("x", x), ("y", y), ("v", v)):
            check_all_finite(name, value)
    variance: Tensor | None = None
    if not isinstance(bandwidth, (str, float, int)):
        bandwidth, variance = numbers_or_variance(bandwidth, x)
    static = cached(_static, bandwidth, x.shape[-1], x.dtype, kernel, kernel_agg)
    inputs = (x, y, None, v, variance)
    if (
        torch.is_grad_enabled()
        and (
            x.requires_grad
            or y.requires_grad
            or v.requires_grad
            or (variance is not None and variance.requires_grad)
        )
        and differentiates_itself()
    ):
        out = KernelProduct.apply(static, _PRODUCT, backend, *distinct(inputs))[0]
    else:
        out = kernel_product_fwd(Problem(*inputs, *static), _PRODUCT, backend).product
    assert out is not None
    return out.squeeze(-1) if single else out


@functools.lru_cache(maxsize=1024, typed=True)
def _static(
    bandwidth: Any, d: int, dtype: torch.dtype, kernel: str, kernel_agg: str
) -> tuple[Any, ...]:
    """A problem's fields behind its tensors."""
    check_choice("kernel", kernel, KERNELS)
    if kernel == "energy" and bandwidth == "paper":
        bandwidth = 1.0
    variances = resolve_variances(bandwidth, d, dtype)
    return variances, kernel_weights(kernel_agg, len(variances)), kernel


def _check_values(y: Tensor, v: Tensor) -> tuple[Tensor, Tensor, bool]:
    """y and v [b, m, p] of one dtype, and whether v came without p."""
    check_float_tensor("v", v)
    single = v.dim() == y.dim() - 1
    if v.shape[: y.dim() - 1] != y.shape[:-1] or not (single or v.dim() == y.dim()):
        takes = f"{list(y.shape[:-1])} or {[*y.shape[:-1], 'p']}".replace("'", "")
        raise ValueError(f"v must have shape {takes}, got {list(v.shape)}")
    if v.numel() == 0:
        raise ValueError(f"v must not be empty, got shape {list(v.shape)}")
    y, v = match(("y", "v"), y, v)
    return y, v.unsqueeze(-1) if single else v, single
