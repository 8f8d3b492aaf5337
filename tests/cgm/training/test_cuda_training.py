"""Training on a GPU."""

import warnings

import pytest
import torch
from tiny import KINDS, metrics, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU"),
]


@pytest.mark.parametrize("kind", ["cgm1", "cgm2", "bf16", "cvae"])
def test_replayed_steps_are_the_others(tmp_path, kind):
    """Up to rounding: the optimizer's differs, and a GPU adds up in no order."""
    run(tmp_path, device="cuda", cuda_graph=True, **KINDS[kind])
    run(tmp_path, device="cuda", out=str(tmp_path / "other"), **KINDS[kind])
    tolerance = 0.1 if kind == "bf16" else 1e-2
    for found, expected in zip(metrics(tmp_path), metrics(tmp_path, "other"), strict=True):
        loss, wanted = float(found["loss"]), float(expected["loss"])
        assert loss == pytest.approx(wanted, rel=tolerance), found["step"]


@pytest.mark.parametrize("supervised", [True, False])
def test_a_step_waits_for_the_gpu_once(tmp_path, supervised):
    """To see that the step is finite; torch warns each time that the processor waits.

    A run of one epoch, one checkpoint and one row: beginning or writing these waits too.
    """
    once = {"batch_size": 4, "max_steps": 9, "log_every": 9, "checkpoint_every": 9}

    def report(step, total, latest):
        torch.cuda.set_sync_debug_mode("warn" if 2 <= step < 7 else "default")

    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            run(tmp_path, report, device="cuda", supervised=supervised, **once)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Not torch's note that this mode is a prototype, which speaks of synchronizing too.
    found = [text for each in waits if "called a synchronizing" in (text := str(each.message))]
    assert len(found) == 5, found
