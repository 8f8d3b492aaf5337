"""For testing kernels, ours or yours: inputs, formulas in float64, error budgets, poisoned memory.

Nothing here calls the rest of the package.
"""

from cgm_fast.testing.budgets import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    assert_error_budget,
    assert_gradient_close,
    assert_loss_close,
    cosine,
    relative_l2,
    rounding,
)
from cgm_fast.testing.formulas import (
    cgm_formula,
    derivatives,
    mmd_formula,
    mmd_magnitude,
    mmd_total,
    prototype_margin_formula,
)
from cgm_fast.testing.inputs import LAYOUTS, prototypes, sample_weights, samples
from cgm_fast.testing.poison import poisoned_memory

__all__ = [
    "GRADIENT_TOLERANCE",
    "LAYOUTS",
    "LOSS_TOLERANCE",
    "assert_error_budget",
    "assert_gradient_close",
    "assert_loss_close",
    "cgm_formula",
    "cosine",
    "derivatives",
    "mmd_formula",
    "mmd_magnitude",
    "mmd_total",
    "poisoned_memory",
    "prototype_margin_formula",
    "prototypes",
    "relative_l2",
    "rounding",
    "sample_weights",
    "samples",
]
