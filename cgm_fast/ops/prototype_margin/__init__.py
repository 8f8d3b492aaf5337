"""Nearest-prototype assignment and margin loss (eq. 8); README.md has the derivation."""

from cgm_fast.ops.prototype_margin.api import PrototypeMarginResult, prototype_margin

__all__ = ["PrototypeMarginResult", "prototype_margin"]
