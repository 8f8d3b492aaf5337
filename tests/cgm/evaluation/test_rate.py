import math

import pytest
import torch

from cgm_fast.cgm.evaluation.rate import monte_carlo_rate, rates

SIGMA2 = 0.2


def _gaussian_codes(n, variances, seed):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor(variances, dtype=torch.float64).sqrt()
    return scale * torch.randn(n, len(variances), dtype=torch.float64, generator=generator)


def test_a_gaussian_code():
    """I = ½ Σ log2(1 + v/σ²), by the bound and, where log2 n is far above, by Monte Carlo."""
    variances, n = [1.0, 0.3], 1300
    exact = 0.5 * sum(math.log2(1 + v / SIGMA2) for v in variances)
    assert math.log2(n) > exact + 8
    found = [rates(_gaussian_codes(n, variances, seed), SIGMA2, seed + 99) for seed in range(16)]
    for name in ("gaussian_bound", "monte_carlo"):
        values = torch.tensor([each[name] for each in found], dtype=torch.float64)
        error = 3 * float(values.std()) / len(values) ** 0.5
        # Of n images as a source, an image's own density is 2^I/n of the mixture's in excess.
        assert abs(float(values.mean()) - exact) < error + 2 * 2**exact / n


def test_separated_codes_attain_the_ceiling():
    r = 10 * torch.arange(700, dtype=torch.float32).unsqueeze(1).repeat(1, 3)
    found = rates(r, 0.02)
    assert found["monte_carlo_ceiling"] == math.log2(700)
    # Squared distances are differences of numbers up to 1e8 in float64, over σ² = 0.02.
    assert found["monte_carlo"] == pytest.approx(math.log2(700), abs=1e8 * 1e-15 / 0.02)
    assert found["gaussian_bound"] > found["monte_carlo"]


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equal_codes_carry_nothing(offset):
    assert monte_carlo_rate(torch.full((600, 4), offset), 0.02) == pytest.approx(0, abs=1e-9)


def test_codes_in_pairs_carry_one_bit_less():
    r = 10 * torch.arange(256, dtype=torch.float32).repeat(2).unsqueeze(1)
    assert monte_carlo_rate(r, 0.02) == pytest.approx(math.log2(256), abs=1e7 * 1e-15 / 0.02)


def test_noise_that_each_image_has_of_its_own():
    """Two kinds of images in places of their own: the mean of what each kind carries, and a bit."""
    generator = torch.Generator().manual_seed(99)  # not the noise's
    r = torch.randn(1000, 2, dtype=torch.float64, generator=generator)
    r[500:] += 1e3
    noise = torch.full((1000, 2), 0.5, dtype=torch.float64)
    noise[500:] = 0.1
    found = rates(r, noise)
    apart = [monte_carlo_rate(r[:500], 0.5), monte_carlo_rate(r[500:], 0.1)]
    assert found["monte_carlo"] == pytest.approx(1 + sum(apart) / 2, abs=0.1)
    assert "nominal" not in found
    assert found["gaussian_bound"] > found["monte_carlo"]
    same = torch.full((1000, 2), 0.3, dtype=torch.float64)
    for name in ("monte_carlo", "gaussian_bound"):
        assert rates(r, same)[name] == pytest.approx(rates(r, 0.3)[name], rel=1e-6)


def test_nominal_rate_and_seed():
    r = _gaussian_codes(50, [1.0] * 4, 0)
    assert rates(r, 0.0625)["nominal"] == 8
    assert rates(r, 0.0625, 1) == rates(r, 0.0625, 1) != rates(r, 0.0625, 2)
