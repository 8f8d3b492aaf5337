"""PixelCNN and PixelSNAIL: above all, that no pixel sees itself or a later one."""

import pytest
import torch
from torch import nn

from cgm_fast.cgm.models.networks.autoregressive import (
    AutoregressiveDecoder,
    CausalConv2d,
    shift_down,
    shift_right,
)
from cgm_fast.cgm.models.networks.pixelcnn import GatedPixelCNN
from cgm_fast.cgm.models.networks.pixelsnail import GatedResidual, PixelSNAIL, causal_attention


def pixelcnn(shape, out=2, **options):
    return GatedPixelCNN(3, shape, out, **{"width": 6, "layers": 4, **options})


def pixelsnail(shape, out=2, **options):
    options = {"width": 6, "heads": 2, "attention_width": 4, **options}
    return PixelSNAIL(3, shape, out, **options)


both = pytest.mark.parametrize("make", [pixelcnn, pixelsnail])
SHAPES = [(1, 8, 8), (2, 9, 13), (1, 28, 28), (3, 32, 32)]


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pixel_changes_later_parameters_alone(make, shape):
    torch.manual_seed(1)
    decoder = make(shape, 5).eval()
    assert decoder.image_shape == shape
    z, x = torch.randn(1, 3), torch.rand(1, *shape)
    before = decoder(z, x).flatten(2)
    assert decoder(z, x).shape == (1, 5, *shape[1:])
    pixels = shape[1] * shape[2]
    for p in (0, 1, shape[2] - 1, shape[2], pixels // 2, pixels - 2, pixels - 1):
        for channel in {0, shape[0] - 1}:
            changed = x.clone()
            changed[0, channel].view(-1)[p] += 0.5
            after = decoder(z, changed).flatten(2)
            assert torch.equal(after[..., : p + 1], before[..., : p + 1])
            assert p == pixels - 1 or not torch.equal(after[..., p + 1 :], before[..., p + 1 :])


@both
@pytest.mark.parametrize("position", [(0, 0), (0, 5), (4, 0), (5, 3), (7, 7)], ids=str)
def test_parameters_see_every_pixel_before(make, position):
    torch.manual_seed(2)
    row, column = position
    decoder = make((2, 8, 8)).double()
    z, x = torch.randn(4, 3).double(), torch.rand(4, 2, 8, 8).double().requires_grad_()
    decoder(z, x)[:, :, row, column].sum().backward()
    seen = x.grad.ne(0).any(0).flatten(1)
    earlier = torch.arange(64) < 8 * row + column
    assert torch.equal(seen, earlier.expand(2, 64))


def test_reach_of_pixelcnn():
    # The rows and columns that the docstring promises, and none beyond.
    torch.manual_seed(3)
    decoder = pixelcnn((1, 9, 20), layers=2, kernel=5).double()
    x = torch.rand(1, 1, 9, 20).double().requires_grad_()
    decoder(torch.zeros(1, 3).double(), x)[0, :, 8, 10].sum().backward()
    rows, columns = x.grad[0, 0].nonzero().unbind(1)
    assert (rows.min(), rows.max()) == (8 - 7, 8)
    assert (columns.min(), columns.max()) == (10 - 7, 10 + 6)  # one more to the left, in its row
    assert columns[rows < 8].min() == 10 - 6


@both
def test_latents_reach_every_pixel_of_their_own_image(make):
    torch.manual_seed(4)
    decoder = make((1, 9, 13), width=16).eval()
    z, x = torch.randn(2, 3), torch.rand(1, 1, 9, 13).expand(2, -1, -1, -1)
    before = decoder(z, x)
    after = decoder(torch.stack([z[0], z[1] + 1]), x)
    assert torch.equal(after[0], before[0])
    assert (after[1] != before[1]).any(0).all()


@both
def test_every_channel_of_every_convolution_counts(make):
    torch.manual_seed(5)
    decoder = make((1, 8, 8)).double()
    decoder(torch.randn(4, 3).double(), torch.rand(4, 1, 8, 8).double()).square().sum().backward()
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Conv2d):
            used = module.weight.grad.ne(0).any(-1).any(-1)
            assert used.any(0).all(), name
            # What the last vertical stack would hand on, nobody reads.
            idle = 12 if name == "layers.3.condition" else 0
            assert used.any(1).tolist() == [False] * idle + [True] * (len(used) - idle), name


@both
def test_black_and_white_are_unlike_what_lies_outside(make):
    decoder, seen = make((1, 8, 8)), []
    first = next(m for m in decoder.modules() if isinstance(m, CausalConv2d))
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    decoder(torch.zeros(2, 3), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(-1, -1, 8, 8))
    assert (seen[0][:, 0, 0] == 0).all()
    assert seen[0][:, 0, 1:].flatten(1).unique(dim=1).tolist() == [[-1], [1]]


@both
def test_prediction_from_the_map_of_z(make):
    decoder = make((1, 8, 9)).eval()
    z, x = torch.randn(2, 3), torch.rand(2, 1, 8, 9)
    whole = decoder(z, x)
    context = decoder.context(z)
    assert torch.equal(decoder.predict(context, x), whole)
    for rows in (1, 5):
        upper = decoder.predict(context[:, :, :rows], x[:, :, :rows])
        torch.testing.assert_close(upper, whole[:, :, :rows], rtol=1e-5, atol=1e-6)


def test_a_base_class_predicts_nothing():
    decoder = AutoregressiveDecoder(3, (1, 8, 8), 1, 4)
    with pytest.raises(NotImplementedError):
        decoder(torch.zeros(2, 3), torch.zeros(2, 1, 8, 8))


def test_shifts():
    x = torch.arange(1.0, 7).view(1, 1, 2, 3)
    assert shift_down(x)[0, 0].tolist() == [[0, 0, 0], [1, 2, 3]]
    assert shift_right(x)[0, 0].tolist() == [[0, 1, 2], [0, 4, 5]]


@pytest.mark.parametrize(("kernel", "ahead"), [((2, 3), 1), ((1, 3), 0), ((2, 2), 0)], ids=str)
def test_causal_convolution_sees_its_kernel(kernel, ahead):
    convolution = CausalConv2d(1, 1, kernel, ahead)
    nn.init.ones_(convolution.weight)
    x = torch.zeros(1, 1, 7, 7, requires_grad=True)
    convolution(x)[0, 0, 4, 3].backward()
    expected = torch.zeros(7, 7)
    expected[5 - kernel[0] : 5, 4 + ahead - kernel[1] : 4 + ahead] = 1
    assert torch.equal(x.grad[0, 0], expected)


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_a_softmax_over_the_pixels_before(heads):
    torch.manual_seed(6)
    query, key, value = torch.randn(3, 2, 6, 3, 4).double()
    result = causal_attention(query, key, value, heads)
    assert result.shape == (2, 6, 3, 4)
    each = 6 // heads
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        q, k, v, got = (t[:, part].flatten(2) for t in (query, key, value, result))
        for p in range(1, 12):
            scores = torch.einsum("bc,bcj->bj", q[..., p], k[..., :p]) / each**0.5
            wanted = torch.einsum("bj,bcj->bc", scores.softmax(1), v[..., :p])
            torch.testing.assert_close(got[..., p], wanted)
        assert not got[..., 0].any()


def test_attention_at_the_first_pixel_has_no_nan_in_its_gradient():
    maps = torch.randn(3, 2, 4, 8, 8, requires_grad=True)
    causal_attention(*maps, 2).square().sum().backward()
    assert maps.grad.isfinite().all()
    assert not maps.grad[0, :, :, 0, 0].any()


def test_dropout_is_inside_the_residual_blocks_and_in_training_alone():
    decoder = pixelsnail((1, 8, 8), dropout=0.5)
    layers = [m.dropout.p for m in decoder.modules() if isinstance(m, GatedResidual)]
    assert layers == [0.5] * 6
    z, x = torch.randn(2, 3), torch.rand(2, 1, 8, 8)
    assert not torch.equal(decoder(z, x), decoder(z, x))
    decoder.eval()
    assert torch.equal(decoder(z, x), decoder(z, x))


@both
def test_xavier_weights_and_zero_biases(make):
    decoder = make((1, 16, 16), width=16)
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            weight = module.weight.detach()
            bound = (6 / ((len(weight) + weight.shape[1]) * weight[0, 0].numel())) ** 0.5
            # Of n uniform draws, all stay under 1 − 20/n of the bound with probability e^−20.
            assert bound * (1 - 20 / weight.numel()) < weight.abs().max() <= bound
            assert module.bias is None or not module.bias.any()


@both
def test_errors_of_both(make):
    with pytest.raises(ValueError, match="at least 8 x 8 pixels, got 7 x 12"):
        make((1, 7, 12))
    for name in ("width", "layers"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            make((1, 8, 8), **{name: 0})
    with pytest.raises(ValueError, match="out_channels must be at least 1, got 0"):
        make((1, 8, 8), 0)
    for shape in ((2, 1, 8, 9), (3, 1, 8, 8), (2, 2, 8, 8), (2, 8, 8)):
        with pytest.raises(ValueError, match=r"x must be \[2, 1, 8, 8\], got"):
            make((1, 8, 8))(torch.zeros(2, 3), torch.zeros(shape))


def test_errors_of_one():
    for kernel in (1, 4):
        with pytest.raises(ValueError, match=f"kernel must be an odd number above 1, got {kernel}"):
            pixelcnn((1, 8, 8), kernel=kernel)
    with pytest.raises(ValueError, match="attention_width must be a multiple of heads, got 4 and "):
        pixelsnail((1, 8, 8), heads=3)
    for name in ("blocks", "heads", "attention_width"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            pixelsnail((1, 8, 8), **{name: 0})
    with pytest.raises(ValueError, match="dropout"):
        pixelsnail((1, 8, 8), dropout=1.5)


def fit(decoder, z, x, steps):
    optimiser = torch.optim.Adam(decoder.parameters(), 1e-2)
    losses = []
    for _ in range(steps):
        loss = nn.functional.binary_cross_entropy_with_logits(decoder(z, x), x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@both
@pytest.mark.slow
def test_a_tiny_model_fits_random_images_through_z(make):
    torch.manual_seed(7)
    x = torch.rand(4, 1, 8, 8).round()
    losses = fit(make((1, 8, 8), 1, width=12, layers=1), torch.eye(4)[:, :3], x, 80)
    assert losses[0] > 0.6
    assert losses[-1] < 0.35


@both
@pytest.mark.slow
def test_a_tiny_model_learns_a_rule_of_pixels_before(make):
    # Every row is the one above it with black and white exchanged: only the first is a surprise.
    torch.manual_seed(8)
    first = torch.rand(16, 1, 1, 8).round()
    x = torch.where(torch.arange(8).view(8, 1) % 2 == 0, first, 1 - first)
    losses = fit(make((1, 8, 8), 1, width=8, layers=1), torch.zeros(16, 3), x, 80)
    assert losses[0] > 0.6
    assert losses[-1] < 0.25  # ln 2 / 8 = 0.09 of it is the first row's


@both
def test_bfloat16_autocast(make):
    torch.manual_seed(9)
    decoder = make((1, 9, 13)).eval()
    z, x = torch.randn(2, 3), torch.rand(2, 1, 9, 13)
    with torch.autocast("cpu", torch.bfloat16):
        params = decoder(z, x)
    assert params.dtype == torch.bfloat16
    exact = decoder(z, x)
    assert (params - exact).norm() < 0.05 * exact.norm()
    params.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())
