"""The CGM latent objective by the Triton kernels of its two parts."""

from functools import partial

from cgm_fast.ops.cgm_step import common
from cgm_fast.ops.mmd import triton as mmd
from cgm_fast.ops.prototype_margin import triton as prototype_margin

cgm_step_fwd = partial(common.cgm_step_fwd, mmd, prototype_margin)
cgm_step_bwd = partial(common.cgm_step_bwd, mmd, prototype_margin)
