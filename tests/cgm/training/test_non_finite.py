"""NaN and infinity stop a run, with the state before the step saved and finite."""

import math

import pytest
from tiny import KINDS, checkpoint, run, same

from cgm_fast.cgm.models import CGM
from cgm_fast.cgm.models.likelihoods import Bernoulli
from cgm_fast.cgm.training.trainer import NonFiniteError


def _spoil(monkeypatch, at, what):
    """Make the reconstruction term NaN at the given call, in value or in its gradient alone."""
    original, calls = Bernoulli.log_prob, []

    def spoilt(self, params, x):
        calls.append(None)
        value = original(self, params, x)
        if len(calls) != at:
            return value
        if what == "value":
            return value * math.nan
        value.register_hook(lambda grad: grad * math.inf)
        return value

    monkeypatch.setattr(Bernoulli, "log_prob", spoilt)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("value", "step 5: the reconstruction term is nan; the step was not applied"),
        ("gradient", "step 5: the gradient's norm is (nan|inf); the step was not applied"),
    ],
)
@pytest.mark.parametrize("kind", ["cgm1", "ema", "batch_mean"])
def test_a_non_finite_step_is_not_applied(tmp_path, monkeypatch, what, message, kind):
    run(tmp_path, max_steps=4, out=str(tmp_path / "four"), **KINDS[kind])
    run(tmp_path, max_steps=9, out=str(tmp_path / "nine"), **KINDS[kind])
    with monkeypatch.context() as patch:
        _spoil(patch, 5, what)
        with pytest.raises(NonFiniteError, match=message):
            run(tmp_path, **KINDS[kind])
    found, four = checkpoint(tmp_path), checkpoint(tmp_path, "four")
    for part in ("step", "model", "optimizer", "random"):
        assert same(found[part], four[part])
    assert not (tmp_path / "run" / "model.safetensors").exists()
    run(tmp_path, resume=True, **KINDS[kind])  # the fault is gone; so is its trace
    assert same(checkpoint(tmp_path)["model"], checkpoint(tmp_path, "nine")["model"])


def test_networks_that_overflow_leave_a_finite_checkpoint(tmp_path, monkeypatch):
    """NaN inside a network reaches the running statistics of its normalisations, too."""
    encode, calls = CGM.encode, []

    def spoilt(self, x):
        calls.append(None)
        return encode(self, x * math.inf if len(calls) == 3 else x)

    with monkeypatch.context() as patch:
        patch.setattr(CGM, "encode", spoilt)
        with pytest.raises(NonFiniteError, match=r"step 3: .* is nan"):
            run(tmp_path, prototype_init="xavier")
    model = checkpoint(tmp_path)["model"]
    assert all(value.isfinite().all() for value in model.values())
    assert any("running_var" in name for name in model)


@pytest.mark.parametrize(
    ("term", "name"), [("mmd", "the MMD term"), ("margin", "the margin term"), ("loss", "the loss")]
)
def test_the_term_is_named(tmp_path, monkeypatch, term, name):
    forward = CGM.forward

    def spoilt(self, *args):
        output = forward(self, *args)
        return output._replace(**{term: getattr(output, term) + math.inf})

    monkeypatch.setattr(CGM, "forward", spoilt)
    with pytest.raises(NonFiniteError, match=f"step 1: {name} is inf"):
        run(tmp_path)
