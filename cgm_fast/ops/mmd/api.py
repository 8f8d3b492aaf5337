"""The public function `mmd`: checks its arguments, resolves the bandwidth, calls the op."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from cgm_fast.ops.backends import AUTO, check_name
from cgm_fast.ops.checks import (
    bounds,
    cached,
    check_all_finite,
    check_choice,
    check_float_tensor,
    check_number,
    compute_dtype,
    match,
)
from cgm_fast.ops.mmd.autograd import MMD
from cgm_fast.ops.mmd.blind import Seen, seen_before, warn_if_blind
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.mmd.ops import mmd_fwd, sums_dtype
from cgm_fast.ops.mmd.problem import NOTHING, Problem
from cgm_fast.ops.watching import differentiates_itself, distinct

Bandwidth = str | float | Sequence[float] | Sequence[Tensor] | Tensor

BANDWIDTHS = ("paper", "infovae")
ESTIMATORS = ("biased", "unbiased")
KERNEL_AGGS = ("mean", "sum")
KERNELS = tuple(FAMILIES)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: Bandwidth = "paper",
    kernel: str = "gaussian",
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    kernel_agg: str = "mean",
    check_finite: bool = False,
    backend: str = AUTO,
) -> Tensor:
    """Squared maximum mean discrepancy of two samples, with a radial kernel (eq. 5 and 7).

    L = Σ_ij w_i w_j k(x_i, x_j) − 2 Σ_ij w_i v_j k(x_i, y_j) + Σ_ij v_i v_j k(y_i, y_j) with
    k(a, b) = exp(−|a − b|² / 2σ²), w = 1/n and v = 1/m. Value and gradient come from one pass
    over the pairs of rows; memory is O((n + m) d).

    Other kernels of r = |a − b|, by name:

        "laplacian", "matern12"  exp(−r / σ)
        "matern32"               (1 + √3 r / σ) exp(−√3 r / σ)
        "matern52"               (1 + √5 r / σ + 5 r² / 3σ²) exp(−√5 r / σ)
        "rational_quadratic"     1 / (1 + r² / 2σ²)
        "imq"                    1 / √(1 + r² / σ²)
        "energy"                 −r / σ; σ = 1, as "paper" means here: L is the energy distance

    "laplacian" and "energy" have a kink where rows coincide: such rows do not pull each other, and
    there is no second derivative.

    The bandwidth has to fit the data. "paper" is for features of unit variance, whose distances
    are about √(2d); on data of another scale k is 0 or 1 everywhere, and the loss has no gradient
    (`BandwidthWarning` says so, on the CPU). Scale the data, or take σ from it:

        sigma = torch.pdist(torch.cat((x, y))[:1000]).median()  # once; several: sigma * [.5, 1, 2]
        loss = cgm_fast.mmd(x, y, bandwidth=float(sigma))

    Args:
        x: [n, d], or [b, n, d] for b discrepancies, each between x[i] and y[i]; float16, bfloat16,
            float32 or float64. Rows that are images or sequences: x.flatten(1).
        y: [m, d] or [b, m, d], of the same dtype and device (under autocast, dtypes may differ).
        bandwidth: σ, in units of the data: a number, a sequence or array of numbers, or a tensor of
            shape [], [s] or [b, s] (which may require a gradient); several are averaged or added.
            "paper": σ² = d (eq. 7). "infovae": 2σ² = d².
        kernel: One of those above.
        estimator: "biased" (V-statistic, eq. 5, never negative) or "unbiased" (U-statistic:
            pairs i = j left out, n and m at least 2).
        x_weights: [n] or [b, n], in place of 1/n. Used as they are: a probability sums to one.
        y_weights: [m] or [b, m], in place of 1/m.
        kernel_agg: "mean" or "sum" over several bandwidths.
        check_finite: Raise if an input holds NaN or infinity (synchronises with a GPU; compiled
            code raises RuntimeError).
        backend: "auto", or the name of an implementation, which then runs or raises.

    Returns:
        [] or [b], float32 (float64 for float64 inputs). Differentiable twice in x, y, both
        weights and a tensor bandwidth, also under `torch.func`, vmap and in forward mode.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or dtypes differ.
        ValueError: shapes or devices do not match, n, m or d is 0, a bandwidth is not positive,
            weights leave the unbiased estimator one row, an option is unknown, an input is not
            finite (with `check_finite`).
        RuntimeError: the implementation asked for cannot run here, or a third derivative is asked
            for, or a second one that the kernel does not have.
    """
    x, y = check_samples(x, y)
    if backend != AUTO:
        check_name(backend)
    if check_finite:
        for name, value in (("x", x), ("y", y), ("x_weights", x_weights), ("y_weights", y_weights)):
            if value is not None:
                check_all_finite(name, value)
    n, d = x.shape[-2:]
    m = y.shape[-2]
    variance: Tensor | None = None
    if not isinstance(bandwidth, (str, float, int)):
        bandwidth, variance = numbers_or_variance(bandwidth, x)
    equal = x_weights is None, y_weights is None
    static, seen = cached(
        _static, bandwidth, kernel, estimator, kernel_agg, (n, m), equal, d, x.dtype
    )
    if variance is None and seen is not None and seen.due():
        warn_if_blind(x, y, static[VARIANCES], seen)
    weights = relation = difference = None
    if x_weights is not None or y_weights is not None:
        of_x = _Weights("x_weights", x_weights, x)
        of_y = _Weights("y_weights", y_weights, y)
        weights = torch.cat((of_x.rows, of_y.rows), -1)
        if estimator == "unbiased":
            relation = _unbiased_relation(of_x, of_y)
        difference = of_x.mass - of_y.mass
    inputs = (x, y, weights, relation, variance)
    if (
        torch.is_grad_enabled()
        and (
            x.requires_grad
            or y.requires_grad
            or (weights is not None and weights.requires_grad)
            or (variance is not None and variance.requires_grad)
        )
        and differentiates_itself()
    ):
        (loss,) = MMD.apply(static, backend, None, *distinct(inputs))
    else:
        loss = mmd_fwd(Problem(*inputs, *static), NOTHING, backend).loss
    if difference is not None:
        # The op sums k - k(0); what that leaves out vanishes when both samples have the same mass.
        at_zero = FAMILIES[kernel].at_zero * sum(static[KERNEL_WEIGHTS])
        loss = torch.addcmul(loss, difference, difference, value=at_zero)
        if estimator == "biased" and FAMILIES[kernel].vanishes:
            # As the op does without weights: up to zero, with the gradient that it has. Of the
            # energy and unequal masses less is no rounding.
            loss = loss - loss.detach().clamp_max(0) if loss.requires_grad else loss.clamp_min(0)
    return loss


# Where they stand among what a problem holds besides tensors.
VARIANCES, KERNEL_WEIGHTS = 2, 3


@functools.lru_cache(maxsize=1024, typed=True)
def _static(
    bandwidth: str | float | tuple[float, ...],
    kernel: str,
    estimator: str,
    kernel_agg: str,
    sizes: tuple[int, int],
    equal: tuple[bool, bool],
    d: int,
    dtype: torch.dtype,
) -> tuple[tuple[Any, ...], Seen | None]:
    """A problem's fields behind its tensors, and how often the bandwidth has been met.

    Of the two samples, with `sizes` rows, those that are `equal` have no weights of their own.
    """
    if isinstance(bandwidth, (float, int)):
        check_number("bandwidth", bandwidth, above=0)
    check_choice("kernel", kernel, KERNELS)
    if kernel == "energy" and bandwidth == "paper":
        bandwidth = 1.0
    variances = cached(_variances, bandwidth, d, dtype)
    check_choice("estimator", estimator, ESTIMATORS)
    weights = kernel_weights(kernel_agg, len(variances))
    seen = None
    if kernel == "gaussian" and not is_compiling():
        seen = seen_before(variances, d)
    relations = _relations(estimator, sizes, equal)
    nonnegative = estimator == "biased" and all(equal)
    if torch.jit.is_tracing():  # where sizes are tensors
        sizes = int(sizes[0]), int(sizes[1])
    return (sizes, relations, variances, weights, kernel, nonnegative), seen


def _relations(
    estimator: str, sizes: tuple[int, int], equal: tuple[bool, bool]
) -> tuple[float, float, float, float]:
    """Γ of rows that weigh 1, or of given weights (README.md).

    w_i w_j Γ[g_i, g_j] is the estimator's coefficient. The unbiased one leaves out i = j and
    divides by what remains.
    """
    n, m = sizes
    biased = estimator == "biased"
    if not biased and (n < 2 or m < 2):
        raise ValueError(f"estimator='unbiased' needs n and m of at least 2, got n={n}, m={m}")
    x_scale, y_scale = 1.0 / n if equal[0] else 1.0, 1.0 / m if equal[1] else 1.0
    return (
        x_scale * x_scale if biased or not equal[0] else 1.0 / (n * (n - 1)),
        -x_scale * y_scale,
        -x_scale * y_scale,
        y_scale * y_scale if biased or not equal[1] else 1.0 / (m * (m - 1)),
    )


def kernel_weights(kernel_agg: str, scales: int) -> tuple[float, ...]:
    """ω [s], what each of several bandwidths' kernels weighs."""
    check_choice("kernel_agg", kernel_agg, KERNEL_AGGS)
    return (1.0 / scales if kernel_agg == "mean" else 1.0,) * scales


def check_samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, d] and y [m, d], or with a batch, of one dtype."""
    check_float_tensor("x", x)
    check_float_tensor("y", y)
    of_x, of_y = x.shape, y.shape
    if len(of_x) not in (2, 3) or len(of_x) != len(of_y):
        more = "; x.flatten(1) makes a row of each image" if max(len(of_x), len(of_y)) > 3 else ""
        raise ValueError(
            "x and y must be [n, d] and [m, d], or [b, n, d] and [b, m, d], "
            f"got {list(of_x)} and {list(of_y)}{more}"
        )
    if of_x[-1] != of_y[-1]:
        raise ValueError(
            f"x and y must have the same number of features d, got {of_x[-1]} and {of_y[-1]}"
        )
    if len(of_x) == 3 and of_x[0] != of_y[0]:
        raise ValueError(f"x and y must have the same batch size b, got {of_x[0]} and {of_y[0]}")
    if x.numel() == 0 or y.numel() == 0:
        name, value = ("y", y) if x.numel() else ("x", x)
        raise ValueError(f"{name} must not be empty, got shape {list(value.shape)}")
    return match(("x", "y"), x, y)


def resolve_variances(bandwidth: Any, d: int, dtype: torch.dtype) -> tuple[float, ...]:
    """σ² [s] as plain numbers, of a bandwidth that is not a tensor."""
    if not isinstance(bandwidth, str):
        bandwidth = as_numbers(bandwidth)
        if isinstance(bandwidth, Tensor):
            raise TypeError(
                f"bandwidth must be {takes_bandwidth(tensors=False)} here, got a tensor"
            )
    return cached(_variances, bandwidth, d, dtype)


def takes_bandwidth(*, tensors: bool = True) -> str:
    """What a bandwidth may be, for errors."""
    names = ", ".join(map(repr, BANDWIDTHS))
    end = ", or a tensor of shape [], [s] or [b, s]" if tensors else ""
    return f"{names}, a number, or a sequence or 1-dimensional array of numbers{end}"


def as_numbers(bandwidth: Any, like: Tensor | None = None) -> float | tuple[float, ...] | Tensor:
    """Bandwidths that are no string, as a number, numbers, or a tensor where one of them is one.

    Args:
        bandwidth: A number, a sequence or a NumPy array of numbers, a tensor, or a sequence with
            tensors of shape [] in it.
        like: A tensor on the device where a bandwidth with tensors is to be; None for their own.

    Raises:
        TypeError: it is none of these.
        ValueError: it is empty, or a number is not positive.
    """
    if isinstance(bandwidth, Tensor):
        return bandwidth
    kind = type(bandwidth).__name__
    if hasattr(bandwidth, "__array__") and hasattr(bandwidth, "tolist"):  # of NumPy, or a number
        if getattr(bandwidth, "ndim", 0) > 1:
            raise ValueError(
                f"bandwidth must be {takes_bandwidth()}, got an array of shape "
                f"{list(bandwidth.shape)}"
            )
        bandwidth = bandwidth.tolist()
    if isinstance(bandwidth, Sequence) and not isinstance(bandwidth, (str, bytes)):
        if not len(bandwidth):
            raise ValueError("bandwidth must hold at least one number, got an empty sequence")
        if any(isinstance(sigma, Tensor) for sigma in bandwidth):
            return _stacked(bandwidth, like)
        return tuple(check_number("bandwidth", sigma, above=0) for sigma in bandwidth)
    if isinstance(bandwidth, bool) or not isinstance(bandwidth, Real):
        raise TypeError(f"bandwidth must be {takes_bandwidth()}, got {kind}")
    return check_number("bandwidth", bandwidth, above=0)


def _stacked(bandwidth: Sequence[Any], like: Tensor | None) -> Tensor:
    first = next(sigma for sigma in bandwidth if isinstance(sigma, Tensor))
    like = first if like is None else like
    dtype = compute_dtype(like.dtype) if like.is_floating_point() else torch.get_default_dtype()
    parts = []
    for sigma in bandwidth:
        if not isinstance(sigma, Tensor):
            sigma = like.new_tensor(check_number("bandwidth", sigma, above=0), dtype=dtype)
        elif sigma.numel() != 1:
            raise ValueError(
                "bandwidth must be a sequence of numbers or tensors of shape [], got one of shape "
                f"{list(sigma.shape)}"
            )
        parts.append(sigma.reshape(()).to(dtype))
    return torch.stack(parts)


@functools.lru_cache(maxsize=1024, typed=True)
def _variances(
    bandwidth: str | float | tuple[float, ...], d: int, dtype: torch.dtype
) -> tuple[float, ...]:
    dtype = compute_dtype(dtype)
    if isinstance(bandwidth, str):
        check_choice("bandwidth", bandwidth, BANDWIDTHS)
        return (float(d) if bandwidth == "paper" else 0.5 * d * d,)
    if isinstance(bandwidth, tuple):
        if not bandwidth:
            raise ValueError("bandwidth must hold at least one number, got an empty sequence")
        return tuple(_variance(sigma, dtype) for sigma in bandwidth)
    return (_variance(bandwidth, dtype),)


def numbers_or_variance(
    bandwidth: Any, x: Tensor
) -> tuple[float | tuple[float, ...], Tensor | None]:
    """A bandwidth that is no plain number, as numbers; or, of a tensor, as many ones and σ²."""
    bandwidth = as_numbers(bandwidth, x)
    if not isinstance(bandwidth, Tensor):
        return bandwidth, None
    variance = _tensor_variance(bandwidth, x)
    return (1.0,) * variance.shape[-1], variance


def _tensor_variance(bandwidth: Tensor, x: Tensor) -> Tensor:
    """σ² of a bandwidth tensor, [s], or [b, s] beside samples with a batch."""
    if bandwidth.dtype in INTEGERS:
        bandwidth = bandwidth.to(compute_dtype(x.dtype))
    check_float_tensor("bandwidth", bandwidth)
    if bandwidth.device != x.device:
        raise ValueError(
            f"bandwidth must be on the samples' device {x.device}, got {bandwidth.device}"
        )
    batch = x.shape[:-2]
    b = batch[0] if batch else 1
    fits = bandwidth.dim() < 2 or (bandwidth.dim() == 2 and bandwidth.shape[0] == b)
    if not fits or bandwidth.numel() == 0:
        raise ValueError(
            f"bandwidth must have shape [], [s] or [b, s] with b={b}, got {list(bandwidth.shape)}"
        )
    dtype = compute_dtype(x.dtype)
    for bound in bounds(bandwidth) or ():
        _variance(bound, dtype)
    sigma = bandwidth.to(dtype)
    if not batch:
        sigma = sigma.reshape(-1)
    elif sigma.dim() < 2:
        sigma = sigma.reshape(1, -1).expand(b, -1)
    return sigma * sigma


def _variance(sigma: Any, dtype: torch.dtype) -> float:
    """σ²; raise unless σ is a positive number and σ² one that `dtype` holds."""
    if sigma == 0:
        raise ValueError(
            "bandwidth must be a finite number > 0, got 0; a median of distances is 0 where most "
            "rows coincide: clamp it, bandwidth.clamp(min=1e-3)"
        )
    sigma = check_number("bandwidth", sigma, above=0)
    variance = sigma * sigma
    if not torch.finfo(dtype).tiny <= variance <= torch.finfo(dtype).max:
        raise ValueError(f"bandwidth squared must be representable in {dtype}, got {sigma}")
    return variance


class _Weights:
    """A sample's weights, given or not."""

    def __init__(self, name: str, given: Tensor | None, sample: Tensor) -> None:
        self.name, self.given = name, given is not None
        self.size, dtype = sample.shape[-2], compute_dtype(sample.dtype)
        if given is None:
            self.rows = sample.new_ones(sample.shape[:-1], dtype=dtype)
            self.mass: Any = 1.0  # of 1/n for each of n rows
        else:
            self.rows = _check_weights(name, given, sample, dtype)
            self.mass = self.rows.sum(-1)

    def within(self) -> Any:
        """Γ of the sample with itself, for the unbiased estimator: float64 [b], or a number.

        It leaves out i = j and divides by the mass that remains: Γ grows by W² / (W² − Q), W = Σw,
        Q = Σw².
        """
        if not self.given:
            return 1.0 / (self.size * (self.size - 1))
        exact = self.rows.to(sums_dtype(self.rows))
        square = exact.sum(-1).square()
        rest = square - torch.linalg.vecdot(exact, exact)
        least = bounds(rest)
        if least is not None and not least[0] > 0:
            raise ValueError(
                f"{self.name} must leave at least two rows with a weight for "
                f"estimator='unbiased', got (Σw)² - Σw² = {least[0]:g}"
            )
        return square / rest

    @property
    def scale(self) -> float:
        """What makes an average of the rows: 1/n, and 1 of given weights."""
        return 1.0 if self.given else 1.0 / self.size


def _check_weights(name: str, weights: Tensor, sample: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights [n], or [b, n] beside samples with a batch."""
    check_float_tensor(name, weights)
    n, batch = sample.shape[-2], sample.shape[:-2]
    b = batch[0] if batch else 1
    if list(weights.shape) not in ([n], [b, n]):
        raise ValueError(f"{name} must have shape [{n}] or [{b}, {n}], got {list(weights.shape)}")
    if weights.device != sample.device:
        raise ValueError(
            f"{name} must be on the samples' device {sample.device}, got {weights.device}"
        )
    weights = weights.to(dtype)
    if batch:
        return weights if weights.dim() == 2 else weights.unsqueeze(0).expand(b, n)
    return weights.reshape(n)


def _unbiased_relation(x: _Weights, y: _Weights) -> Tensor:
    """Γ [b, 2, 2] of the unbiased estimator, where at least one sample has weights."""
    within = [x.within(), y.within()]
    like = within[0] if x.given else within[1]
    across = torch.full_like(like, -x.scale * y.scale)
    of_x, of_y = (v if isinstance(v, Tensor) else torch.full_like(like, v) for v in within)
    return torch.stack((of_x, across, across, of_y), -1).unflatten(-1, (2, 2))
