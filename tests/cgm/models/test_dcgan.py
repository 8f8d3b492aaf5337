import pytest
import torch
from torch import nn

from cgm_fast.cgm.models import DCGANDecoder, DCGANEncoder

SHAPES = [(1, 8, 8), (3, 9, 8), (1, 15, 17), (1, 28, 28), (3, 32, 32), (3, 33, 50), (3, 64, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape):
    encoder, decoder = DCGANEncoder(shape, 5, width=4), DCGANDecoder(5, shape, width=4)
    r = encoder(torch.rand(2, *shape))
    assert r.shape == (2, 5)
    assert decoder(r).shape == (2, *shape)


@pytest.mark.parametrize(("side", "halvings"), [(8, 2), (15, 2), (16, 3), (32, 4), (64, 4)])
def test_channels_double_at_every_halving(side, halvings):
    convolutions = [m for m in DCGANEncoder((1, side, side), 5, 4) if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [4 << i for i in range(halvings)] + [5]


BOTH = [lambda shape: DCGANEncoder(shape, 5, 8), lambda shape: DCGANDecoder(5, shape, 8)]


@pytest.mark.parametrize("make", BOTH, ids=["encoder", "decoder"])
def test_strided_convolutions_alone(make):
    allowed = (
        nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU, nn.Flatten,
        nn.Unflatten,
    )  # fmt: skip
    assert all(isinstance(module, allowed) for module in make((3, 16, 24)))


@pytest.mark.parametrize("make", BOTH, ids=["encoder", "decoder"])
def test_xavier_weights_and_zero_biases(make):
    biases = 0
    for module in make((1, 32, 32)):
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        weight = module.weight.detach()
        area = weight.shape[2] * weight.shape[3]
        bound = (6 / ((weight.shape[0] + weight.shape[1]) * area)) ** 0.5
        assert weight.abs().max() <= bound
        # The mean square of a uniform draw is bound²/3, and its square's deviation 2 bound²/√45.
        error = 3 * 2 / 45**0.5 * bound**2 / weight.numel() ** 0.5
        assert abs(float(weight.square().mean()) - bound**2 / 3) < error
        if module.bias is not None:
            biases += 1
            assert not module.bias.any()
    assert biases == 1  # of the layer that no normalisation follows


@pytest.mark.parametrize("make", BOTH, ids=["encoder", "decoder"])
def test_small_images_are_refused(make):
    with pytest.raises(ValueError, match="at least 8 x 8 pixels, got 7 x 12"):
        make((1, 7, 12))
