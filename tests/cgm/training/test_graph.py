"""A train step as CUDA graphs, by a stand-in for them (fake_graphs.py)."""

import fake_graphs
import pytest
import torch
from tiny import KINDS, checkpoint, metrics, run, same, settings, stop_after

from cgm_fast.cgm.models import CGM
from cgm_fast.cgm.training import graph, pipeline
from cgm_fast.cgm.training.limits import ConfigError
from cgm_fast.cgm.training.trainer import NonFiniteError


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(pipeline, "check_graph", lambda config, workers: None)  # it refuses the CPU
    return fake_graphs.install(monkeypatch)


def never(monkeypatch):
    """Steps are as they are, with the optimizer that graphs need."""
    monkeypatch.setattr(graph, "WARM_UP", 10**9)


# Without those that reseed prototypes, and cvae, whose one_hot looks at labels, on a CPU alone.
CAPTURED = ["cgm1", "cgm2", "batch_mean", "attention", "bf16"]
CAPTURED.append(pytest.param("infovae", marks=pytest.mark.slow))


@pytest.mark.parametrize("kind", CAPTURED)
def test_replayed_steps_equal_others(tmp_path, fake, monkeypatch, kind):
    options = {"cuda_graph": True, "max_steps": 7, **KINDS[kind]}
    run(tmp_path, **options)
    first, second = fake.graphs
    assert (first.replays, second.replays) == (7 - graph.WARM_UP, 7 - graph.WARM_UP)
    never(monkeypatch)
    run(tmp_path, **options, out=str(tmp_path / "other"))
    assert len(fake.graphs) == 2
    assert same(checkpoint(tmp_path), checkpoint(tmp_path, "other"))
    assert metrics(tmp_path) == metrics(tmp_path, "other")


def test_it_is_the_training_without_graphs(tmp_path, fake):
    """Whose optimizer rounds otherwise."""
    run(tmp_path, cuda_graph=True)
    run(tmp_path, out=str(tmp_path / "other"))
    found, expected = (checkpoint(tmp_path, name)["model"] for name in ("run", "other"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_batches_are_full_whatever_the_number_of_images(tmp_path, fake):
    run(tmp_path, cuda_graph=True, batch_size=7, max_steps=12)  # of 36 images
    assert fake.graphs[0].replays == 12 - graph.WARM_UP
    assert checkpoint(tmp_path)["step"] == 12


def test_a_graphed_run_is_resumed_with_and_without(tmp_path, fake):
    options = {"lr_schedule": "cosine", "clip_grad_norm": 1.0}
    run(tmp_path, cuda_graph=True, out=str(tmp_path / "whole"), **options)
    for name, again in (("with", True), ("without", False)):
        out = str(tmp_path / name)
        run(tmp_path, stop_after(4), cuda_graph=True, out=out, **options)
        run(tmp_path, cuda_graph=again, resume=True, out=out)
    assert same(checkpoint(tmp_path, "with"), checkpoint(tmp_path, "whole"))
    found, expected = (checkpoint(tmp_path, name) for name in ("without", "whole"))
    assert found["step"] == expected["step"] == 9
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-3, atol=1e-4)


def test_a_step_that_is_not_finite_is_not_applied(tmp_path, fake, monkeypatch):
    """Replayed, too: the state before it is saved."""
    run(tmp_path, cuda_graph=True, max_steps=6, checkpoint_every=6, out=str(tmp_path / "before"))
    steps = []
    copy = graph.GraphedStep.compute

    def compute(self, images, labels):
        steps.append(len(steps) + 1)
        computed = copy(self, images, labels)
        return computed._replace(finite=torch.tensor(steps[-1] != 7))

    monkeypatch.setattr(graph.GraphedStep, "compute", compute)
    with pytest.raises(NonFiniteError, match="step 7: "):
        run(tmp_path, cuda_graph=True, checkpoint_every=9)
    found, expected = checkpoint(tmp_path), checkpoint(tmp_path, "before")
    for part in ("step", "model", "optimizer", "random"):
        assert same(found[part], expected[part]), part


def test_a_step_that_cannot_be_recorded_says_why(tmp_path, fake, monkeypatch):
    after = CGM.after_step

    def waits(self, output, decay=0.99):
        after(self, output, decay)
        float(output.r.sum())

    monkeypatch.setattr(CGM, "after_step", waits)
    with pytest.raises(ConfigError, match=r"cuda_graph must be left out: .*not permitted when"):
        run(tmp_path, cuda_graph=True)


def test_what_graphs_cannot_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cuda_graph needs a CUDA GPU, and device cpu is cpu"):
        run(tmp_path, cuda_graph=True)
    assert not (tmp_path / "run").exists()


class Gpu:
    device, count = torch.device("cuda"), 1


def test_what_a_gpu_cannot_record_is_refused(tmp_path):
    given = settings(tmp_path, cuda_graph=True)
    graph.check_graph(given, Gpu())
    several = Gpu()
    several.count = 2
    with pytest.raises(ConfigError, match="left out with 2 processes"):
        graph.check_graph(given, several)
    with pytest.raises(ConfigError, match=r"with reseed_dead.*got reseed_dead 5"):
        graph.check_graph(settings(tmp_path, cuda_graph=True, reseed_dead=5), Gpu())
