import math

import pytest
import torch

from cgm_fast.cgm.models.latent import (
    DEFAULT_SIGMA2,
    UnitPower,
    gaussian_rate_bound,
    nominal_rate,
    resolve_sigma2,
    sigma2_of_rate,
)


@pytest.mark.parametrize(
    ("rate", "latent_dim", "sigma2"),
    [
        (15, 10, 0.125),
        (0, 7, 1.0),
        (20, 10, 0.0625),
        (120, 300, 4**-0.4),
        (200, 600, 4 ** (-1 / 3)),
    ],
)
def test_sigma2_of_rate(rate, latent_dim, sigma2):
    found = sigma2_of_rate(rate, latent_dim)
    assert found == pytest.approx(sigma2, rel=1e-14)
    assert nominal_rate(found, latent_dim) == pytest.approx(rate, rel=1e-14, abs=1e-14)


def test_resolve_sigma2():
    assert resolve_sigma2(None, None, 10) == DEFAULT_SIGMA2 == 0.02
    assert resolve_sigma2(0.3, None, 10) == 0.3
    assert resolve_sigma2(None, 15, 10) == 0.125


@pytest.mark.parametrize(
    ("sigma2", "rate_bits", "message"),
    [
        (0.02, 15.0, "sigma2 or rate_bits, not both"),
        (0.0, None, "sigma2 must be a finite number > 0"),
        (-1.0, None, "sigma2 must be a finite number > 0"),
        (math.nan, None, "sigma2 must be a finite number > 0"),
        (None, -1.0, "rate_bits must be a finite number >= 0"),
        (None, math.inf, "rate_bits must be a finite number >= 0"),
        (None, 1e5, "rate_bits must leave a noise variance"),
    ],
)
def test_resolve_sigma2_refuses(sigma2, rate_bits, message):
    with pytest.raises(ValueError, match=message):
        resolve_sigma2(sigma2, rate_bits, 10)


def test_the_bound_is_the_nominal_rate_at_unit_power():
    sigma2 = 0.125
    variance = torch.full((10,), 1 - sigma2, dtype=torch.float64)
    # ½ N log2(1 + (1 − σ²)/σ²) = −½ N log2 σ²
    assert gaussian_rate_bound(variance, sigma2) == pytest.approx(nominal_rate(sigma2, 10), 1e-14)


def test_unit_power_sets_the_variance():
    sigma2 = 0.3
    x = torch.randn(500, 4, dtype=torch.float64) * torch.tensor([0.5, 1.0, 2.0, 30.0]) + 7
    head = UnitPower(4, sigma2).double()
    out = head(x)
    # Batch normalisation divides by the variance plus 1e-5: the result is that much too small.
    variance = out.var(0, correction=0) / (1 - sigma2)
    assert (variance <= 1 + 1e-12).all()
    assert (variance >= 1 - 1e-5 / x.var(0, correction=0) - 1e-12).all()
    assert out.mean(0).abs().max() < 1e-12


def test_unit_power_in_evaluation_uses_running_statistics():
    head = UnitPower(2, 0.19).eval()
    head.norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
    head.norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    out = head(torch.tensor([[3.0, -2.0]]))  # one sample: no statistics of its own
    expected = 0.9 * torch.tensor([[2.0, 0.0]]) / torch.tensor([4.0 + 1e-5, 0.25 + 1e-5]).sqrt()
    torch.testing.assert_close(out, expected)


def test_unit_power_needs_noise_of_at_most_one():
    assert UnitPower(3, 1.0)(torch.randn(8, 3)).abs().max() == 0  # no rate, no signal
    with pytest.raises(ValueError, match=r"sigma2 <= 1, got 1\.5"):
        UnitPower(3, 1.5)


def test_the_rate_of_a_learned_noise_is_on_the_codes_device():
    """Whatever the default device, for which "meta" stands here."""
    variance, noise = torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.3])
    expected = gaussian_rate_bound(variance, noise, noise.log() - 0.1)
    with torch.device("meta"):
        assert gaussian_rate_bound(variance, noise, noise.log() - 0.1) == expected
