"""MMD² of two samples with a Gaussian kernel; README.md has the derivation."""

from cgm_fast.ops.mmd.api import mmd

__all__ = ["mmd"]
