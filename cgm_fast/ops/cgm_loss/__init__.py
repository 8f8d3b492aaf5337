"""The CGM latent objective in one op; README.md has the derivation."""

from cgm_fast.ops.cgm_loss.api import CGMLossResult, cgm_loss

__all__ = ["CGMLossResult", "cgm_loss"]
