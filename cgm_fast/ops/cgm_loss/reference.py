"""The CGM latent objective by the reference implementation of its two parts."""

from functools import partial

from cgm_fast.ops.cgm_loss import common
from cgm_fast.ops.mmd import reference as mmd
from cgm_fast.ops.prototype_margin import reference as prototype_margin

fwd = partial(common.fwd, mmd, prototype_margin)
hvp = partial(common.hvp, mmd, prototype_margin)
