import pytest
import torch
from torch import nn

from cgm_fast.cgm.models.networks.resnet import PreActivationBlock, ResNetDecoder, ResNetEncoder

SHAPES = [(1, 8, 8), (1, 9, 13), (3, 15, 17), (1, 28, 28), (3, 32, 32), (2, 33, 50)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("blocks", [1, 2])
def test_shapes(shape, blocks):
    encoder = ResNetEncoder(shape, 5, width=4, blocks=blocks)
    decoder = ResNetDecoder(5, shape, width=4, blocks=blocks)
    r = encoder(torch.rand(2, *shape))
    assert r.shape == (2, 5)
    assert decoder(r).shape == (2, *shape)


@pytest.mark.parametrize("shape", [(1, 9, 13), (1, 11, 8)], ids=str)
def test_every_pixel_is_seen_and_every_pixel_is_drawn(shape):
    torch.manual_seed(0)
    x = torch.rand(1, *shape, requires_grad=True)
    ResNetEncoder(shape, 5, width=8).eval()(x).sum().backward()
    assert (x.grad != 0).all()  # halving drops no odd row or column
    z = torch.randn(2, 5)
    a, b = ResNetDecoder(5, shape, width=8).eval()(z)
    assert (a != b).all()


@pytest.mark.parametrize(("side", "halvings"), [(8, 2), (15, 2), (16, 3), (32, 4), (64, 4)])
def test_channels_double_at_every_halving(side, halvings):
    encoder, decoder = ResNetEncoder((1, side, side), 5, 4), ResNetDecoder(5, (1, side, side), 4)
    for network, order in ((encoder, 1), (decoder, -1)):
        blocks = [m for m in network if isinstance(m, PreActivationBlock)][::order]
        ends = [(b.activation[0].num_features, b.residual[0].out_channels)[::order] for b in blocks]
        steps = [(max(4, 2 << level), 4 << level) for level in range(halvings)]
        assert ends == [pair for step in steps for pair in (step, (step[1], step[1]))]


def test_a_block_of_one_shape_adds_to_its_input():
    block = PreActivationBlock(3, 3)
    nn.init.zeros_(block.residual[-1].weight)
    x = torch.randn(2, 3, 5, 6)
    assert torch.equal(block(x), x)


def test_activation_comes_first():
    # BatchNorm with these gives −1 everywhere, and the ReLU then 0.
    block = PreActivationBlock(3, 6, halve=True).eval()
    nn.init.zeros_(block.activation[0].weight)
    nn.init.constant_(block.activation[0].bias, -1)
    x = torch.randn(2, 3, 5, 7)
    assert block(x).shape == (2, 6, 2, 3)
    assert not block(x).any()
    nn.init.ones_(block.activation[0].bias)
    assert block(x).any()


MAKERS = [
    lambda shape, *rest: ResNetEncoder(shape, 5, *rest),
    lambda shape, *rest: ResNetDecoder(5, shape, *rest),
]
both = pytest.mark.parametrize("make", MAKERS, ids=["encoder", "decoder"])


@both
def test_xavier_weights_and_one_zero_bias(make):
    biases = []
    for module in make((1, 16, 16), 8).modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        weight = module.weight.detach()
        area = weight.shape[2] * weight.shape[3]
        bound = (6 / ((weight.shape[0] + weight.shape[1]) * area)) ** 0.5
        # Of n uniform draws, all stay under 1 − 20/n of the bound with probability e^−20.
        assert bound * (1 - 20 / weight.numel()) < weight.abs().max() <= bound
        biases += [] if module.bias is None else [module.bias]
    assert len(biases) == 1  # of the layer that no normalisation follows
    assert not biases[0].any()


@both
def test_errors(make):
    with pytest.raises(ValueError, match="at least 8 x 8 pixels, got 7 x 12"):
        make((1, 7, 12))
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        make((1, 8, 8), 4, 0)


def test_a_tiny_autoencoder_fits():
    torch.manual_seed(0)
    x = torch.rand(4, 1, 9, 8).round()
    network = nn.Sequential(ResNetEncoder((1, 9, 8), 4, 8, 1), ResNetDecoder(4, (1, 9, 8), 8, 1))
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = nn.functional.binary_cross_entropy_with_logits(network(x), x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.6
    assert losses[-1] < 0.2


def test_bfloat16_autocast():
    torch.manual_seed(0)
    encoder, decoder = ResNetEncoder((1, 9, 13), 5, 8), ResNetDecoder(5, (1, 9, 13), 8)
    x = torch.rand(4, 1, 9, 13)
    with torch.autocast("cpu", torch.bfloat16):
        r = encoder(x)
        params = decoder(r)
    assert r.dtype == params.dtype == torch.bfloat16
    params.float().square().sum().backward()
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        assert parameter.grad.isfinite().all()
