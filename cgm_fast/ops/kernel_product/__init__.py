"""K(x, y) V for a radial kernel; README.md has the derivation."""

from cgm_fast.ops.kernel_product.api import kernel_product

__all__ = ["kernel_product"]
