"""Several processes that train together, by gloo on the CPU."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from tiny import arguments, checkpoint, metrics, run, same, settings

from cgm_fast.cgm.cli import main
from cgm_fast.cgm.experiments.catalogue import Experiment, run_experiment
from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.training.config import ConfigError
from cgm_fast.cgm.training.pipeline import train
from cgm_fast.cgm.training.states import load_checkpoint
from cgm_fast.cgm.training.workers import Group, Workers, pick_device, read_group


@pytest.fixture
def launch_two(launch, tmp_path):
    """Start both processes, as torchrun would; `first` runs in each before it."""

    def start(*arguments, first=""):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        first = "import torch; torch.set_num_threads(1)\n" + first  # torchrun's own default
        ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        return [launch(*arguments, first=first, **environment) for environment in ranks]

    return start


# After `fit`, each process writes what its model holds to a file of its own.
KEEP = """
import torch
from cgm_fast.cgm.training.trainer import Trainer
fit = Trainer.fit
def kept(self):
    try:
        return fit(self)
    finally:
        torch.save(dict(self.model.state_dict()), {folder!r} + os.environ["RANK"] + ".pt")
Trainer.fit = kept
"""

NAN_ON_THE_SECOND = """
import math
from cgm_fast.cgm.models.likelihoods import Bernoulli
log_prob, calls = Bernoulli.log_prob, []
def spoilt(self, params, x):
    calls.append(None)
    bad = os.environ["RANK"] == "1" and len(calls) == 3
    return log_prob(self, params, x) * (math.nan if bad else 1)
Bernoulli.log_prob = spoilt
"""


def _kept(folder):
    """Both processes' models, but for running statistics: the first one's count."""
    states = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return [{k: v for k, v in state.items() if ".running_" not in k} for state in states]


@pytest.mark.parametrize(
    "options",
    [
        {"descriptor": "ema", "num_prototypes": 9, "reseed_dead": 1, "power": "unit"},
        {"num_prototypes": 9, "reseed_dead": 2, "denoise_variance": 0.1},
    ],
    ids=["ema", "learned"],
)
def test_both_processes_hold_the_same_model(tmp_path, launch_two, options):
    children = launch_two(*arguments(tmp_path, **options), first=KEEP.format(folder=f"{tmp_path}/"))
    assert [child.wait() for child in children] == [0, 0], children[0].log.read_text()
    assert same(*_kept(tmp_path))
    assert same(dict(checkpoint(tmp_path)["model"]), torch.load(tmp_path / "0.pt"))
    assert len(load_checkpoint(tmp_path / "run")["random"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0.log", "0.pt", "1.log", "1.pt", "run", "tiny.npz",
    ]  # fmt: skip
    assert "run folder" in children[0].log.read_text()
    assert "run folder" not in children[1].log.read_text()
    # Two batches of 8 in each step: 2 steps make an epoch of 36 images.
    assert [row["epoch"] for row in metrics(tmp_path)] == ["0", "1", "2", "3", "4"]


def test_a_signal_to_one_process_stops_both_and_they_resume(tmp_path, launch_two):
    options = {"reseed_dead": 1, "num_prototypes": 9, "epochs": 10**6, "max_steps": 10**6}
    children = launch_two(*arguments(tmp_path, **options))
    children[0].until(lambda: (tmp_path / "run" / "metrics.csv").exists())
    children[0].until(lambda: len(metrics(tmp_path)) > 1)
    children[1].signal(signal.SIGTERM)
    assert [child.wait() for child in children] == [128 + signal.SIGTERM] * 2
    assert "Traceback" not in "".join(child.log.read_text() for child in children)
    options["max_steps"] = checkpoint(tmp_path)["step"] + 3
    for name, resume in (("run", True), ("whole", False)):
        out = str(tmp_path / name)
        children = launch_two(*arguments(tmp_path, out=out, resume=resume, **options))
        assert [child.wait() for child in children] == [0, 0]
    assert same(checkpoint(tmp_path), checkpoint(tmp_path, "whole"))
    # One process can go on alone, with draws of its own, and a word.
    options["max_steps"] += 2
    texts = []
    train(settings(tmp_path, resume=True, **options), warn=texts.append)
    assert checkpoint(tmp_path)["step"] == options["max_steps"]
    assert texts == [
        "the run was of 2 processes and goes on with 1: a step is now of 8 images instead of 16, "
        "and an epoch of 4 steps"
    ]


def test_nan_in_one_process_stops_both(tmp_path, launch_two):
    first = NAN_ON_THE_SECOND + KEEP.format(folder=f"{tmp_path}/")
    children = launch_two(*arguments(tmp_path, max_steps=9), first=first)
    assert [child.wait() for child in children] == [1, 1]
    messages = [child.log.read_text().splitlines()[-1] for child in children]
    assert "step 3: another process met a value that is not finite" in messages[0]
    assert "step 3: the reconstruction term is nan" in messages[1]
    assert "Traceback" not in "".join(child.log.read_text() for child in children)
    found = checkpoint(tmp_path)
    assert found["step"] == 2
    assert all(value.isfinite().all() for value in found["model"].values())
    assert same(*_kept(tmp_path))


def test_errors_before_training_come_from_both(tmp_path, launch_two):
    run(tmp_path, max_steps=2)
    for changes, message in (
        ({"batch_size": 30, "overwrite": True}, "batch_size 30 times 2 processes exceeds the 36"),
        ({}, "already holds a run"),
    ):
        children = launch_two(*arguments(tmp_path, **changes))
        assert [child.wait() for child in children] == [1, 1]
        for child in children:
            assert message in child.log.read_text()
            assert "Traceback" not in child.log.read_text()
    assert checkpoint(tmp_path)["step"] == 2


@pytest.mark.slow
def test_torchrun(tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *words, "-m", "cgm_fast", *arguments(tmp_path, max_steps=4)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    assert checkpoint(tmp_path)["step"] == 4


def test_a_process_alone():
    workers = Workers("cpu")
    value, module = torch.arange(3), torch.nn.Linear(1, 1)
    assert (workers.count, workers.rank, workers.first) == (1, 0, True)
    assert workers.wrap(module) is module
    assert workers.concatenate(value) is value
    assert workers.any(5) == 5
    assert workers.gather({"a": value}) == [{"a": value}]
    workers.share(value)
    workers.barrier()
    workers.close()


GROUP = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
VARIABLES = (*GROUP, "LOCAL_RANK")


@pytest.fixture
def environment(monkeypatch):
    """Set exactly these of torchrun's variables."""

    def use(**values):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return use


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"RANK": "1"},  # of an array of jobs
        {"RANK": "many", "LOCAL_RANK": "3"},
        {"WORLD_SIZE": "", "RANK": "1"},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": "1", "RANK": "7"},
    ],
)
def test_a_rank_without_a_group_is_a_process_alone(environment, values):
    environment(**values)
    assert read_group() == Group(1, 0, None)


def test_an_array_job_leaves_its_run(environment, tmp_path):
    environment(RANK="1")
    assert run(tmp_path, max_steps=2, evaluate=True).evaluation is not None
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_group(environment):
    environment(**GROUP)
    assert read_group() == Group(2, 1, None)
    environment(**GROUP, LOCAL_RANK="0")
    assert read_group() == Group(2, 1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be an integer >= 1, got 'two'"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE must be an integer >= 1, got '-2'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be an integer >= 1, got '0'"),
        ({"RANK": ""}, "WORLD_SIZE is 2 and RANK must be set too, as torchrun does"),
        ({"RANK": "2"}, r"RANK must be an integer in \[0, 2\), got '2'"),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE is 2 and MASTER_ADDR must be set too"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR and MASTER_PORT must be set too"),
        ({"MASTER_PORT": "x"}, r"MASTER_PORT must be an integer in \[1, 65536\), got 'x'"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK must be an integer >= 0, got '1.5'"),
    ],
)
def test_half_a_group_is_refused(environment, tmp_path, capsys, changes, message):
    environment(**{**GROUP, **changes})
    with pytest.raises(ConfigError, match=message):
        Workers("cpu")
    assert main(arguments(tmp_path)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cgm-fast: ")
    assert not (tmp_path / "run").exists()


def test_an_experiment_is_for_one_process(environment, tmp_path):
    environment(**GROUP)
    with pytest.raises(ConfigError, match="runs in one process, got WORLD_SIZE 2"):
        run_experiment(Experiment("fig2", out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_pick_device():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("", "gpu", "meta", "xla", "cuda:x", "cuda:-1", "cpu:0:0"):
        with pytest.raises(ConfigError, match="device must be auto, cpu, cuda, cuda:N or mps"):
            pick_device(name)
    for name in ("cpu:1", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device '{name}' is not available here"):
            pick_device(name)


def test_run_errors_are_no_value_errors():
    """A caller can tell settings to be changed from folders to be looked at."""
    assert not issubclass(RunError, ValueError)
    assert issubclass(ConfigError, ValueError)
