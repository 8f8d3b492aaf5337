"""Signals, kill -9 and a full disk, met by processes of their own."""

import os
import signal
import time

import pytest
from tiny import arguments, checkpoint, listed, metrics, run, same

from cgm_fast.cgm.training import trainer
from cgm_fast.cgm.training.signals import BROKEN_PIPE, NUMBERS, StopSignals

ENDLESS = {"epochs": 10**6, "max_steps": 10**6}


def _assert_resumes(folder, **options):
    """Going on for three steps gives what a run without interruption gives."""
    started = (folder / "run" / "checkpoint.pt").exists()
    step = checkpoint(folder)["step"] if started else 0
    options = {**ENDLESS, **options, "max_steps": step + 3}
    assert run(folder, resume=True, **options).stopped_by is None
    run(folder, out=str(folder / "whole"), **options)
    assert same(checkpoint(folder), checkpoint(folder, "whole"))
    assert metrics(folder) == metrics(folder, "whole")
    assert listed(folder / "run") == listed(folder / "whole")


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_a_signal_ends_the_step_saves_and_exits(tmp_path, launch, number):
    options = {**ENDLESS, "log_every": 2, "checkpoint_every": 10**6}
    child = launch(*arguments(tmp_path, **options))
    child.until(lambda: (tmp_path / "run" / "metrics.csv").exists())
    child.until(lambda: len(metrics(tmp_path)) > 2)
    child.signal(number)
    assert child.wait() == 128 + number
    assert f"stopped by signal {int(number)} after saving" in child.log.read_text()
    assert "Traceback" not in child.log.read_text()
    assert checkpoint(tmp_path)["step"] >= 6
    _assert_resumes(tmp_path, **options)


@pytest.mark.parametrize("moment", ["create", "save_model"])
def test_a_signal_before_the_first_or_after_the_last_step(tmp_path, monkeypatch, moment):
    original = getattr(trainer, moment)

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, moment, signalled)
        stopped = run(tmp_path, evaluate=True)
    assert stopped.stopped_by == signal.SIGTERM
    assert stopped.evaluation is None
    assert checkpoint(tmp_path)["step"] == (1 if moment == "create" else 9)
    assert run(tmp_path, resume=True, evaluate=True).evaluation is not None


@pytest.mark.parametrize("wait_for", ["run", "run/config.json", "run/checkpoint.pt"])
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.1])
def test_kill_at_any_moment(tmp_path, launch, wait_for, delay):
    options = {**ENDLESS, "log_every": 1, "checkpoint_every": 1}
    child = launch(*arguments(tmp_path, **options))
    child.until(lambda: (tmp_path / wait_for).exists())
    time.sleep(delay)
    child.signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    if not (tmp_path / "run" / "config.json").exists():  # there is no run yet
        run(tmp_path, **{**options, "max_steps": 1})
    _assert_resumes(tmp_path, **options)


LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


def test_files_that_may_not_grow(tmp_path, launch):
    """What a quota or a full disk does, by a limit on a file's size."""
    run(tmp_path, max_steps=6)
    file = tmp_path / "run" / "checkpoint.pt"
    before = file.read_bytes()
    limit = len(before) // 2
    assert (tmp_path / "run" / "config.json").stat().st_size < limit
    child = launch(*arguments(tmp_path, resume=True), first=LIMIT.format(limit))
    assert child.wait() == 1
    assert child.log.read_text().splitlines()[-1].startswith("cgm-fast: ")
    assert "checkpoint.pt could not be written: no space left" in child.log.read_text()
    assert "Traceback" not in child.log.read_text()
    assert file.read_bytes() == before
    assert not [name for name in os.listdir(tmp_path / "run") if name.endswith(".tmp")]
    assert run(tmp_path, resume=True).stopped_by is None


def test_no_room_for_a_start(tmp_path, launch):
    child = launch(*arguments(tmp_path), first=LIMIT.format(600))
    assert child.wait() == 1
    assert "config.json could not be written: no space left" in child.log.read_text()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: a shell's background jobs begin with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_is_obeyed():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        assert signals.received == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopSignals():
        for number, handler in zip(NUMBERS, before, strict=True):
            assert signal.getsignal(number) != handler
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_progress_that_nobody_reads_ends_the_run_after_saving(tmp_path, launch):
    """`cgm-fast train 2>&1 | head -3`: the pipe breaks, and the work is kept."""
    broken = """
read, write = os.pipe()
os.dup2(write, 1), os.dup2(write, 2), os.close(read), os.close(write)
signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it from its start
"""
    options = {**ENDLESS, "log_every": 2, "checkpoint_every": 10**6}
    child = launch(*arguments(tmp_path, **options), first=broken)
    assert child.wait() == 128 + BROKEN_PIPE
    assert checkpoint(tmp_path)["step"] >= 2
    _assert_resumes(tmp_path, **options)


def test_a_handler_that_is_not_pythons_is_left_where_it_is(monkeypatch):
    """As `signal.signal` says of one that a program in C has set: None."""
    real = signal.signal
    monkeypatch.setattr(signal, "signal", lambda number, handler: real(number, handler) and None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with StopSignals():
            pass
    finally:
        real(signal.SIGTERM, before)
