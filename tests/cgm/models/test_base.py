"""What all models share: images drawn pixel by pixel, and what an autoregressive decoder asks."""

import pytest
import torch
from tiny import linear_model
from torch import nn

from cgm_fast.cgm.models import CGM, AutoregressiveDecoder, LatentModel


class Echo(AutoregressiveDecoder):
    """A pixel's logit: very likely the opposite of the one to its left, in the first column z's."""

    def __init__(self):
        super().__init__(3, (1, 8, 8), 1, 1)
        self.context = nn.Unflatten(1, (3, 1, 1))
        self.seen = set()

    def predict(self, context, x):
        self.seen.add(x.shape[2])
        first = context[:, :1].expand(-1, 1, x.shape[2], 1)
        left = torch.cat((first, 1 - x[..., :-1]), 3)
        return 60 * left - 30


def model():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    return CGM(encoder, Echo(), latent_dim=3, num_prototypes=3).eval()


def test_an_autoregressive_decoders_image_is_drawn_pixel_by_pixel():
    z = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    echo = model()
    drawn = echo.image(z, torch.Generator().manual_seed(0))
    assert echo.decoder.seen == set(range(1, 9))  # the rows so far
    row = torch.tensor([1.0, 0.0] * 4)
    assert torch.equal(drawn[0, 0], row.expand(8, 8))
    assert torch.equal(drawn[1, 0], (1 - row).expand(8, 8))


def test_its_likelihood_is_of_each_pixel_given_those_before():
    z = torch.tensor([[1.0, 0.0, 0.0]])
    x = torch.tensor([1.0, 0.0] * 4).expand(1, 1, 8, 8).clone()
    right = float(model().log_prob(z, x))
    assert right == pytest.approx(0, abs=1e-9)
    x[0, 0, 3, 5] = 1 - x[0, 0, 3, 5]  # itself and the one to its right are surprises
    assert float(model().log_prob(z, x)) == pytest.approx(-60, rel=1e-6)
    with pytest.raises(ValueError, match="needs x"):
        model().decode(z)


def test_a_decoder_that_is_not_gives_expected_images():
    plain = linear_model().eval()
    z = torch.randn(4, 3)
    assert torch.equal(plain.image(z), plain.decode(z).sigmoid())


def test_what_a_model_must_say_for_itself():
    bare = LatentModel(nn.Identity(), 3, 1, "bernoulli")
    for call in (
        lambda: bare.prototypes,
        lambda: bare.encode(torch.zeros(1)),
        lambda: bare.posterior(torch.zeros(1)),
        lambda: bare.prior(),
    ):
        with pytest.raises(NotImplementedError):
            call()
    assert bare.weights == (0, 0)
