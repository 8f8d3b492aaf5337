import math

import pytest
import torch
from tiny import linear_model

from cgm_fast.evaluation.denoising import denoise, psnr


def test_psnr():
    clean = torch.rand(4, 1, 8, 8)
    assert psnr(clean, clean) == math.inf
    assert psnr(clean + 0.1, clean) == pytest.approx(20, rel=1e-5)  # 0.1 is rounded to float32
    assert psnr(torch.zeros(2, 3), torch.ones(2, 3)) == 0


def test_noise_is_unclipped_and_of_the_variance_asked_for():
    model, clean = linear_model().eval(), torch.rand(400, 1, 8, 8)
    noisy, cleaned = denoise(model, clean, 0.5, torch.Generator().manual_seed(0))
    noise = (noisy - clean).double()
    assert abs(float(noise.square().mean()) - 0.5) < 3 * 0.5 * (2 / noise.numel()) ** 0.5
    assert noisy.min() < 0
    assert noisy.max() > 1
    assert torch.equal(cleaned, model.reconstruct(noisy))
    again, _ = denoise(model, clean, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again)
    assert psnr(noisy, clean) == pytest.approx(-10 * math.log10(float(noise.square().mean())))
