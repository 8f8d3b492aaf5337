import math

import pytest
import torch
from tiny import linear_model

from cgm_fast.cgm.data import Noise
from cgm_fast.cgm.evaluation.denoising import denoise, psnr


def test_psnr():
    clean = torch.rand(4, 1, 8, 8)
    assert psnr(clean, clean) == math.inf
    assert psnr(clean + 0.1, clean) == pytest.approx(20, rel=1e-5)  # 0.1 is rounded to float32
    assert psnr(torch.zeros(2, 3), torch.ones(2, 3)) == 0


def test_noise_is_unclipped_and_of_the_variance_asked_for():
    model, clean = linear_model().eval(), torch.rand(400, 1, 8, 8)
    noisy, cleaned = denoise(model, clean, Noise(0.5), torch.Generator().manual_seed(0))
    noise = (noisy - clean).double()
    assert abs(float(noise.square().mean()) - 0.5) < 3 * 0.5 * (2 / noise.numel()) ** 0.5
    assert noisy.min() < 0
    assert noisy.max() > 1
    assert torch.equal(cleaned, model.reconstruct(noisy))
    again, _ = denoise(model, clean, Noise(0.5), torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again)
    assert psnr(noisy, clean) == pytest.approx(-10 * math.log10(float(noise.square().mean())))


@pytest.mark.parametrize("clip", [False, True])
def test_on_the_signed_range_noise_is_half_as_large(clip):
    """As if images were scaled to [-1, 1], made noisy, clipped there, and scaled back."""
    clean = torch.rand(4, 1, 8, 8)
    found = Noise(0.5, signed=True, clip=clip).add(clean, torch.Generator().manual_seed(0))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    signed = 2 * clean - 1 + 0.5**0.5 * noise
    signed = signed.clamp(-1, 1) if clip else signed
    torch.testing.assert_close(found, (signed + 1) / 2)
    assert bool((found < 0).any()) != clip


def test_noise_in_words():
    assert str(Noise(0.5)) == "variance 0.5 on [0, 1], not clipped"
    assert str(Noise(0.25, signed=True, clip=True)) == "variance 0.25 on [-1, 1], clipped"
