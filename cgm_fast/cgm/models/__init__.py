"""The CGM model (figure 1 of the paper), its parts, and the models it is compared with."""

from cgm_fast.cgm.models.base import LatentModel, Output
from cgm_fast.cgm.models.baselines import VAE
from cgm_fast.cgm.models.cgm import CGM
from cgm_fast.cgm.models.config import CGMConfig, VAEConfig
from cgm_fast.cgm.models.descriptor import Descriptor, make_descriptor
from cgm_fast.cgm.models.likelihoods import Likelihood, make_likelihood
from cgm_fast.cgm.models.networks.autoregressive import AutoregressiveDecoder
from cgm_fast.cgm.models.networks.dcgan import DCGANDecoder, DCGANEncoder
from cgm_fast.cgm.models.networks.pixelcnn import GatedPixelCNN
from cgm_fast.cgm.models.networks.pixelsnail import PixelSNAIL
from cgm_fast.cgm.models.networks.resnet import ResNetDecoder, ResNetEncoder
from cgm_fast.cgm.models.prior import FullMixturePrior, Mixture, MixturePrior

__all__ = [
    "CGM",
    "AutoregressiveDecoder",
    "CGMConfig",
    "DCGANDecoder",
    "DCGANEncoder",
    "Descriptor",
    "FullMixturePrior",
    "GatedPixelCNN",
    "LatentModel",
    "Likelihood",
    "Mixture",
    "MixturePrior",
    "Output",
    "PixelSNAIL",
    "ResNetDecoder",
    "ResNetEncoder",
    "VAE",
    "VAEConfig",
    "make_descriptor",
    "make_likelihood",
]
