"""The CGM latent objective in one op; README.md has the derivation."""

from cgm_fast.ops.cgm_step.api import CGMLossResult, cgm_loss

__all__ = ["CGMLossResult", "cgm_loss"]
