"""The CGM latent objective by matrix products: its two parts'."""

from functools import partial

from cgm_fast.ops.cgm_loss import common
from cgm_fast.ops.mmd import matmul as mmd
from cgm_fast.ops.prototype_margin import matmul as prototype_margin

fwd = partial(common.fwd, mmd, prototype_margin)
hvp = partial(common.hvp, mmd, prototype_margin)
