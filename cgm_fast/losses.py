"""The losses as modules: each holds its options and calls one public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cgm_fast.ops.backends import AUTO, check_name, last_backend
from cgm_fast.ops.cgm_loss.api import CGMLossResult, cgm_loss
from cgm_fast.ops.checks import check_choice, check_float_tensor, check_number
from cgm_fast.ops.mmd.api import (
    BANDWIDTHS,
    ESTIMATORS,
    INTEGERS,
    KERNEL_AGGS,
    KERNELS,
    Bandwidth,
    as_numbers,
    mmd,
    takes_bandwidth,
)
from cgm_fast.ops.prototype_margin.api import NEGATIVES, REDUCTIONS, prototype_margin


class MMDLoss(nn.Module):
    """Squared maximum mean discrepancy with a radial kernel; see `cgm_fast.mmd`.

    The bandwidth has to fit the data: the default is for features of unit variance. On others take
    it from the data, once, and warnings of class `BandwidthWarning` say where to:

        loss = cgm_fast.MMDLoss(bandwidth=torch.pdist(sample).median())

    Args:
        bandwidth: σ: a number, a sequence or array of numbers, a tensor (kept as a buffer; a
            Parameter is trained), "paper" (σ² = d, eq. 7) or "infovae" (2σ² = d²).
        kernel: "gaussian", or another that `cgm_fast.mmd` names.
        estimator: "biased" or "unbiased".
        kernel_agg: "mean" or "sum" over several bandwidths.
        check_finite: Raise if an input holds NaN or infinity.
        backend: "auto", or the name of an implementation, which then runs or raises.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an option is unknown or a bandwidth is not positive.
    """

    bandwidth: str | float | tuple[float, ...] | Tensor

    def __init__(
        self,
        bandwidth: Bandwidth = "paper",
        *,
        kernel: str = "gaussian",
        estimator: str = "biased",
        kernel_agg: str = "mean",
        check_finite: bool = False,
        backend: str = AUTO,
    ) -> None:
        super().__init__()
        if not isinstance(bandwidth, str):
            if isinstance(bandwidth, Sequence) and any(map(_trained, bandwidth)):
                raise TypeError("bandwidth must be one Parameter where it is trained, not several")
            bandwidth = as_numbers(bandwidth)
        if isinstance(bandwidth, Tensor):
            if bandwidth.dtype in INTEGERS:
                bandwidth = bandwidth.to(torch.get_default_dtype())
            check_float_tensor("bandwidth", bandwidth)
            if bandwidth.device.type == "cpu" and bandwidth.numel():
                check_number("bandwidth", float(bandwidth.detach().min()), above=0)
            if isinstance(bandwidth, nn.Parameter):
                self.bandwidth = bandwidth
            else:
                self.register_buffer("bandwidth", bandwidth.detach().clone())
        else:
            self.bandwidth = _known(bandwidth)
        self.kernel = check_choice("kernel", kernel, KERNELS)
        self.estimator = check_choice("estimator", estimator, ESTIMATORS)
        self.kernel_agg = check_choice("kernel_agg", kernel_agg, KERNEL_AGGS)
        self.check_finite = check_finite
        self.backend = check_name(backend)

    @property
    def last_backend(self) -> str | None:
        """Name of the implementation that last ran the op in this process."""
        return last_backend("mmd")

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *labels: Any,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
    ) -> Tensor:
        """MMD² of x [n, d] and y [m, d], [], or of [b, n, d] and [b, m, d], [b].

        Weights have names, so that a third argument, which other losses take for labels, is not
        taken for weights.
        """
        if labels:
            raise TypeError(
                f"MMDLoss takes two samples, got {2 + len(labels)} arguments; it has no labels, "
                "and weights are given by name: x_weights=, y_weights="
            )
        return mmd(
            x,
            y,
            bandwidth=self.bandwidth,
            kernel=self.kernel,
            estimator=self.estimator,
            x_weights=x_weights,
            y_weights=y_weights,
            kernel_agg=self.kernel_agg,
            check_finite=self.check_finite,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The options, for `print(loss)`."""
        return _options(
            self, "bandwidth", "kernel", "estimator", "kernel_agg", "check_finite", "backend"
        )


def _trained(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _known(bandwidth: str | float | tuple[float, ...]) -> str | float | tuple[float, ...]:
    """Check a bandwidth that is no tensor, as far as that goes without the data."""
    if isinstance(bandwidth, str):
        check_choice("bandwidth", bandwidth, BANDWIDTHS)
    return bandwidth


def _options(module: nn.Module, *names: str) -> str:
    """`name=value` of every option; of a tensor its shape."""

    def shown(value: object) -> str:
        return f"tensor{list(value.shape)}" if isinstance(value, Tensor) else str(value)

    return ", ".join(f"{name}={shown(getattr(module, name))}" for name in names)


class PrototypeLoss(nn.Module):
    """Nearest-prototype margin loss (eq. 8); see `cgm_fast.prototype_margin`.

    Args:
        margin: On the squared distance.
        negatives: "sum" over the other prototypes (eq. 8), or their "mean".
        reduction: "mean" or "sum" over the samples.
        normalize: Scale samples and prototypes to unit length first.
        check_finite: Raise if an input holds NaN or infinity.
        backend: "auto", or the name of an implementation, which then runs or raises.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an option is unknown or the margin is negative.
    """

    def __init__(
        self,
        margin: float = 1.0,
        *,
        negatives: str = "sum",
        reduction: str = "mean",
        normalize: bool = False,
        check_finite: bool = False,
        backend: str = AUTO,
    ) -> None:
        super().__init__()
        self.margin = check_number("margin", margin, at_least=0)
        self.negatives = check_choice("negatives", negatives, NEGATIVES)
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)
        self.normalize = normalize
        self.check_finite = check_finite
        self.backend = check_name(backend)

    @property
    def last_backend(self) -> str | None:
        """Name of the implementation that last ran the op in this process."""
        return last_backend("prototype_margin")

    def forward(self, r: Tensor, g: Tensor, labels: Tensor | None = None) -> Tensor:
        """Loss [] of samples r [B, d], prototypes g [K, d] and labels [B], or the nearest."""
        if self.normalize:
            r = nn.functional.normalize(r, dim=-1)
            g = nn.functional.normalize(g, dim=-1)
        return prototype_margin(
            r,
            g,
            labels,
            margin=self.margin,
            negatives=self.negatives,
            reduction=self.reduction,
            check_finite=self.check_finite,
            backend=self.backend,
        ).loss

    def extra_repr(self) -> str:
        """The options, for `print(loss)`."""
        return _options(
            self, "margin", "negatives", "reduction", "normalize", "check_finite", "backend"
        )


class CGMLoss(nn.Module):
    """λ·MMD² + β·margin loss with noisy latents (eq. 6 less its first term); see `cgm_loss`.

    Args:
        sigma2: Variance of the encoder's noise.
        prior_sigma2: Variance of a prior component; None for `sigma2`.
        mmd_weight: λ.
        margin_weight: β.
        margin: On the squared distance.
        bandwidth: Of the kernel: "paper", "infovae", a number or a sequence or array of numbers.
        kernel_agg: "mean" or "sum" over several bandwidths.
        negatives: "sum" or "mean" over the other prototypes.
        detach_prior: Keep the MMD from moving the prototypes.
        check_finite: Raise if an input holds NaN or infinity.
        backend: "auto", or the name of an implementation, which then runs or raises.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an option is unknown or a number is out of range.
    """

    def __init__(
        self,
        sigma2: float = 0.02,
        *,
        prior_sigma2: float | None = None,
        mmd_weight: float = 1000.0,
        margin_weight: float = 1.0,
        margin: float = 1.0,
        bandwidth: str | float | Sequence[float] = "paper",
        kernel_agg: str = "mean",
        negatives: str = "sum",
        detach_prior: bool = False,
        check_finite: bool = False,
        backend: str = AUTO,
    ) -> None:
        super().__init__()
        self.sigma2 = check_number("sigma2", sigma2, at_least=0)
        self.prior_sigma2 = (
            None if prior_sigma2 is None else check_number("prior_sigma2", prior_sigma2, at_least=0)
        )
        self.mmd_weight = check_number("mmd_weight", mmd_weight, at_least=0)
        self.margin_weight = check_number("margin_weight", margin_weight, at_least=0)
        self.margin = check_number("margin", margin, at_least=0)
        numbers = bandwidth if isinstance(bandwidth, str) else as_numbers(bandwidth)
        if isinstance(numbers, Tensor):
            raise TypeError(f"bandwidth must be {takes_bandwidth(tensors=False)} here, got Tensor")
        self.bandwidth = _known(numbers)
        self.kernel_agg = check_choice("kernel_agg", kernel_agg, KERNEL_AGGS)
        self.negatives = check_choice("negatives", negatives, NEGATIVES)
        self.detach_prior = detach_prior
        self.check_finite = check_finite
        self.backend = check_name(backend)

    @property
    def last_backend(self) -> str | None:
        """Name of the implementation that last ran the op in this process."""
        return last_backend("cgm_loss")

    def forward(
        self,
        r: Tensor,
        g: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> CGMLossResult:
        """Loss, its terms, assignment and latents of r [B, d], prototypes g [K, d]."""
        return cgm_loss(
            r,
            g,
            labels,
            sigma2=self.sigma2,
            prior_sigma2=self.prior_sigma2,
            mmd_weight=self.mmd_weight,
            margin_weight=self.margin_weight,
            margin=self.margin,
            bandwidth=self.bandwidth,
            kernel_agg=self.kernel_agg,
            negatives=self.negatives,
            detach_prior=self.detach_prior,
            noise=noise,
            generator=generator,
            check_finite=self.check_finite,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The options, for `print(loss)`."""
        return _options(
            self, "sigma2", "prior_sigma2", "mmd_weight", "margin_weight", "margin", "bandwidth",
            "kernel_agg", "negatives", "detach_prior", "check_finite", "backend",
        )  # fmt: skip
