"""Encoders and decoders; any `nn.Module` of the same shapes serves as well."""

from cgm_fast.cgm.models.networks.dcgan import DCGANDecoder, DCGANEncoder

__all__ = ["DCGANDecoder", "DCGANEncoder"]
