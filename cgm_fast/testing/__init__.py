"""For testing kernels, ours or yours: inputs, formulas in float64, error budgets, poisoned memory."""

from cgm_fast.testing.formulas import *  # noqa: F403
