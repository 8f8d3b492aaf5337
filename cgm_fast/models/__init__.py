"""The CGM model (figure 1 of the paper) and its parts."""

from cgm_fast.models.cgm import CGM, CGMOutput
from cgm_fast.models.descriptor import Descriptor, make_descriptor
from cgm_fast.models.likelihoods import Likelihood, make_likelihood
from cgm_fast.models.networks.dcgan import DCGANDecoder, DCGANEncoder
from cgm_fast.models.prior import MixturePrior

__all__ = [
    "CGM",
    "CGMOutput",
    "DCGANDecoder",
    "DCGANEncoder",
    "Descriptor",
    "Likelihood",
    "MixturePrior",
    "make_descriptor",
    "make_likelihood",
]
