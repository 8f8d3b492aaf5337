"""On the CPU a resumed run equals an uninterrupted one, bit for bit."""

import signal

import pytest
from tiny import KINDS, checkpoint, metrics, run, same, stop_after

from cgm_fast.cgm.training import runs


def _assert_equal(folder, one, other):
    assert same(checkpoint(folder, one), checkpoint(folder, other))
    assert metrics(folder, one) == metrics(folder, other)
    a, b = (runs.load_run(folder / name)[0].state_dict() for name in (one, other))
    assert same(dict(a), dict(b))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, kind):
    """Stopped in the middle of an epoch (of 4), a log window (of 3) and a checkpoint (of 5)."""
    options = {"log_every": 3, "checkpoint_every": 5, "max_steps": 11, **KINDS[kind]}
    whole = run(tmp_path, out=str(tmp_path / "whole"), **options)
    assert whole.stopped_by is None
    for step, number in ((1, signal.SIGINT), (6, signal.SIGTERM)):
        stopped = run(tmp_path, stop_after(step, number), resume=step > 1, **options)
        assert stopped.stopped_by == number
        assert checkpoint(tmp_path)["step"] == step + 1
        assert not (tmp_path / "run" / "model.safetensors").exists()
    assert run(tmp_path, resume=True, **options).stopped_by is None
    _assert_equal(tmp_path, "run", "whole")


def test_a_lost_step_is_made_again(tmp_path):
    """After SIGKILL metrics.csv is ahead of the checkpoint, or there is no checkpoint yet."""
    run(tmp_path, out=str(tmp_path / "whole"))
    run(tmp_path, stop_after(2))
    file = tmp_path / "run" / "checkpoint.pt"
    old = file.read_bytes()
    run(tmp_path, stop_after(5), resume=True)
    for content in (old, None):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        else:  # rows come after the first checkpoint
            (tmp_path / "run" / "metrics.csv").unlink()
            (tmp_path / "run" / "model.safetensors").unlink()
        run(tmp_path, resume=True)
        _assert_equal(tmp_path, "run", "whole")


def test_more_epochs_continue_a_finished_run(tmp_path):
    run(tmp_path, max_steps=None, epochs=3, out=str(tmp_path / "whole"))
    for epochs in (1, 3):
        run(tmp_path, max_steps=None, epochs=epochs, resume=epochs > 1)
    _assert_equal(tmp_path, "run", "whole")
    assert run(tmp_path, max_steps=None, epochs=3, resume=True).stopped_by is None  # nothing to do
    _assert_equal(tmp_path, "run", "whole")


def test_seeds(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path, seed=seed, out=str(tmp_path / name))
    assert same(checkpoint(tmp_path, "a"), checkpoint(tmp_path, "b"))
    assert not same(checkpoint(tmp_path, "a")["model"], checkpoint(tmp_path, "c")["model"])
