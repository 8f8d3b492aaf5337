"""Gaussian-kernel MMD and nearest-prototype margin losses for PyTorch, and the CGM on them."""

from importlib.metadata import PackageNotFoundError, version

from cgm_fast.losses import CGMLoss, MMDLoss, PrototypeLoss
from cgm_fast.ops.backends import BackendWarning, availability, last_backend
from cgm_fast.ops.cgm_loss.api import CGMLossResult, cgm_loss
from cgm_fast.ops.kernel_product.api import kernel_product
from cgm_fast.ops.mmd.api import mmd
from cgm_fast.ops.mmd.blind import BandwidthWarning
from cgm_fast.ops.prototype_margin.api import PrototypeMarginResult, prototype_margin

try:
    __version__ = version("cgm-fast")
except PackageNotFoundError:  # a source tree on the path, not an installed package
    __version__ = "0+unknown"

__all__ = [
    "BackendWarning",
    "BandwidthWarning",
    "CGMLoss",
    "CGMLossResult",
    "MMDLoss",
    "PrototypeLoss",
    "PrototypeMarginResult",
    "__version__",
    "availability",
    "cgm_loss",
    "kernel_product",
    "last_backend",
    "mmd",
    "prototype_margin",
]
