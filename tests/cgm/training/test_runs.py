import errno
import json
import os
import re
import resource
from pathlib import Path

import filelock
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import arguments, checkpoint, listed, metrics, run, same

from cgm_fast.cgm import files
from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.training import runs
from cgm_fast.cgm.training.config import ConfigError
from cgm_fast.cgm.training.pipeline import evaluate_run
from cgm_fast.cgm.training.runs import CONFIG, FILES, METRICS
from cgm_fast.cgm.training.states import CHECKPOINT, MODEL

# Writing


def test_write_whole_replaces(tmp_path):
    for data in (b"old", b"newer"):
        files.write_whole(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]


def _refuse(number):
    def refusal(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return refusal


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "no space left"), (errno.EFBIG, "no space left"), (errno.EIO, "Input/output")],
)
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, where, number, reason):
    files.write_whole(tmp_path / "file", b"old")
    monkeypatch.setattr(where, _refuse(number))
    with pytest.raises(RunError, match=f"could not be written: {reason}.*; the old one stands"):
        files.write_whole(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_whole(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_json_has_no_nan(tmp_path):
    runs.write_json(tmp_path / "a.json", {"a": float("nan"), "b": {"c": float("inf"), "d": 1.5}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": {"c": None, "d": 1.5}}


def test_a_full_disk_while_training_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    run(tmp_path, max_steps=6)
    folder, replace = tmp_path / "run", Path.replace
    before, names = (folder / CHECKPOINT).read_bytes(), listed(folder)

    def replace_others(self, target):
        return _refuse(errno.ENOSPC)() if target.name == CHECKPOINT else replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_others)
    with pytest.raises(RunError, match=r"checkpoint\.pt could not be written: no space left"):
        run(tmp_path, resume=True, max_steps=20)
    monkeypatch.undo()
    assert listed(folder) == names
    assert (folder / CHECKPOINT).read_bytes() == before
    run(tmp_path, resume=True, max_steps=9)
    run(tmp_path, out=str(tmp_path / "other"))
    states = [torch.load(tmp_path / name / CHECKPOINT)["model"] for name in ("run", "other")]
    assert same(*states)


# The folder


def test_a_folder_that_holds_a_run_is_kept(tmp_path):
    run(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match=r"already holds a run: pass --resume .* --overwrite"):
        run(tmp_path, seed=1)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_refused(tmp_path, overwrite):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="exists and is not a run folder: pass --out"):
        run(tmp_path, overwrite=overwrite)
    assert os.listdir(tmp_path / "run") == ["thesis.tex"]


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "run").write_text("years of work")
    with pytest.raises(RunError, match="exists and is not a run folder"):
        run(tmp_path, overwrite=True)
    assert (tmp_path / "run").read_text() == "years of work"


def test_overwrite_removes_the_runs_own_files_alone(tmp_path):
    run(tmp_path, evaluate=True)
    folder = tmp_path / "run"
    (folder / "notes.txt").write_text("mine")
    (folder / f".{CHECKPOINT}.99999.tmp").write_bytes(b"half a checkpoint")
    run(tmp_path, overwrite=True, max_steps=2, seed=3)
    assert listed(folder) == sorted([CHECKPOINT, CONFIG, METRICS, MODEL, "events", "notes.txt"])
    assert runs.read_config(folder).seed == 3
    assert len(os.listdir(folder / "events")) == 1


def test_an_empty_folder_and_the_leftovers_of_a_killed_start_will_do(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".{CONFIG}.99999.tmp").write_bytes(b"{")
    run(tmp_path, max_steps=1)
    assert not files.leftovers(tmp_path / "run", FILES)


def test_resume_without_a_run(tmp_path):
    with pytest.raises(RunError, match=r"holds no run to resume \(config.json is not there\)"):
        run(tmp_path, resume=True)
    assert not (tmp_path / "run").exists()


def test_resume_takes_the_runs_own_settings_and_what_may_change(tmp_path):
    run(tmp_path, lr=0.005, seed=5)
    (tmp_path / "run" / f".{MODEL}.99999.tmp").write_bytes(b"half a model")
    anew = {"lr": 0.002, "lr_schedule": "cosine", "clip_grad_norm": 3.0, "log_every": 4}
    run(tmp_path, resume=True, max_steps=12, seed=5, **anew)
    config = runs.read_config(tmp_path / "run")
    assert (config.lr, config.seed, config.max_steps) == (0.002, 5, 12)
    assert (config.lr_schedule, config.clip_grad_norm, config.log_every) == ("cosine", 3.0, 4)
    assert torch.load(tmp_path / "run" / CHECKPOINT)["step"] == 12
    assert not files.leftovers(tmp_path / "run", FILES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed must stay 0 with resume, got 1: leave it out"),
        ({"batch_size": 9}, "batch_size must stay 8 with resume, got 9"),
        ({"supervised": True}, "supervised must stay false with resume, got true"),
        ({"latent_dim": 4}, "latent_dim must stay 3 with resume, got 4"),
        ({"clip_grad_norm": 1.0, "descriptor": "ema"}, "descriptor must stay learned with resume"),
        ({"sigma2": 0.5}, "sigma2 must stay 0.02 with resume, got 0.5"),
        ({"precision": "bf16"}, "precision must stay float32 with resume, got bf16"),
    ],
)
def test_resume_refuses_settings_that_make_another_run(tmp_path, changes, message):
    run(tmp_path)
    before = (tmp_path / "run" / CONFIG).read_bytes()
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, resume=True, **changes)
    assert (tmp_path / "run" / CONFIG).read_bytes() == before


def test_a_longer_run_is_not_made_shorter(tmp_path):
    run(tmp_path, max_steps=9)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(RunError, match=r"run is at step 9, and epochs or max_steps ask for 5"):
        run(tmp_path, resume=True, max_steps=5)
    assert {path: path.read_bytes() for path in before} == before


def test_resume_without_a_checkpoint_loses_nothing(tmp_path):
    run(tmp_path, evaluate=True)
    (tmp_path / "run" / CHECKPOINT).unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(RunError, match=r"no checkpoint\.pt to resume from: put it back, or pass"):
        run(tmp_path, resume=True, max_steps=20)
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "run" / MODEL).unlink()
    with pytest.raises(RunError, match=r"holds metrics\.csv, evaluation\.json but no checkpoint"):
        run(tmp_path, resume=True)


def test_paths_are_kept_whole(tmp_path, monkeypatch):
    """Or a run means other data where it is looked at from another folder."""
    monkeypatch.chdir(tmp_path)
    run(tmp_path, data="tiny.npz", data_root="sets", out="run", max_steps=2)
    config = runs.read_config(tmp_path / "run")
    assert config.data == str(tmp_path / "tiny.npz")
    assert config.data_root == str(tmp_path / "sets")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(tmp_path, data="../tiny.npz", resume=True, max_steps=3)


def test_a_run_says_what_it_was_made_with(tmp_path):
    run(tmp_path, max_steps=1)
    made_with = json.loads((tmp_path / "run" / CONFIG).read_text())["made_with"]
    assert set(made_with) == {"cgm_fast", "torch", "python", "threads", "processes"}
    assert made_with["torch"] == torch.__version__
    assert (made_with["threads"], made_with["processes"]) == (torch.get_num_threads(), 1)


def test_the_default_folder_is_named_after_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path, out=None, max_steps=1).path.as_posix() == "runs/tiny-cgm1"
    assert run(tmp_path, out=None, max_steps=1, supervised=True).path.name == "tiny-cgm2"


# Reading


def test_load_run(tmp_path):
    run(tmp_path, supervised=True, descriptor="attention", power="unit", bandwidth=3.0)
    model, config = runs.load_run(tmp_path / "run")
    assert not model.training
    assert config.image_shape == (1, 8, 8)
    assert config.bandwidth == 3.0
    assert same(dict(model.state_dict()), dict(torch.load(tmp_path / "run" / CHECKPOINT)["model"]))


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(RunError, match=r"holds no run: there is no config\.json"):
        runs.load_run(tmp_path)
    run(tmp_path)
    (tmp_path / "run" / MODEL).unlink()
    with pytest.raises(RunError, match="the run has not finished; go on with --resume"):
        runs.load_run(tmp_path / "run")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: "7",
        lambda text: text[:-30],
        lambda text: text.replace('"image_shape"', '"picture_shape"'),
        lambda text: text.replace('"width": 4', '"width": null'),
        lambda text: text.replace('"width": 4', '"width": "four"'),
        lambda text: text.replace('"mmd_weight": 100.0', '"mmd_weight": null'),
        lambda text: text.replace('"margin": ', '"margin": null, "max_steps": '),
        lambda text: text.replace('"sigma2": 0.02', '"sigma2": null'),
        lambda text: "[" * 200_000 + "]" * 200_000,
        lambda text: text.replace("tiny.npz", "\udcff"),
    ],
)
def test_a_damaged_config(tmp_path, damage):
    run(tmp_path, max_steps=1)
    file = tmp_path / "run" / CONFIG
    file.write_bytes(damage(file.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=r"config\.json is not the config of a run"):
        runs.load_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"config\.json is not the config of a run"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"garbage" * 9, lambda b: b[:-9]])
def test_a_damaged_model(tmp_path, damage):
    run(tmp_path, max_steps=1)
    file = tmp_path / "run" / MODEL
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RunError, match=r"model\.safetensors is damaged or no safetensors file"):
        runs.load_run(tmp_path / "run")


def test_a_model_of_other_settings(tmp_path):
    run(tmp_path, max_steps=1)
    file = tmp_path / "run" / CONFIG
    file.write_text(file.read_text().replace('"latent_dim": 3', '"latent_dim": 4'))
    with pytest.raises(RunError, match=r"model\.safetensors does not fit this run's config.*size"):
        runs.load_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"checkpoint\.pt does not fit this run's config.*size"):
        run(tmp_path, resume=True, latent_dim=4)


def test_weights_that_no_training_leaves(tmp_path):
    """Usage counts of nothing, and NaN: generate would draw pictures of it."""
    run(tmp_path, max_steps=1)
    file = tmp_path / "run" / MODEL
    good = load_file(file)
    name = next(name for name in good if name.startswith("decoder") and "weight" in name)
    for key, value, message in (
        (name, float("nan"), f"model.safetensors holds NaN or infinity in {name}"),
        ("usage", 0.0, r"shares of categories \(usage\) that are none"),
        ("usage", float("inf"), "holds NaN or infinity in usage"),
        ("usage", -1.0, r"shares of categories \(usage\) that are none"),
    ):
        save_file({**good, key: torch.full_like(good[key], value)}, file)
        with pytest.raises(RunError, match=message):
            runs.load_run(tmp_path / "run")
    save_file(good, file)  # as written before there was a checksum
    runs.load_run(tmp_path / "run")


def test_one_flipped_bit_in_the_weights(tmp_path):
    run(tmp_path, max_steps=1)
    file = tmp_path / "run" / MODEL
    good = file.read_bytes()
    before = runs.load_run(tmp_path / "run")[0].state_dict()
    for position in range(0, len(good), len(good) // 150):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        file.write_bytes(bad)
        try:
            after = runs.load_run(tmp_path / "run")[0].state_dict()
        except RunError:
            continue
        else:  # a space of the header, say
            assert same(dict(before), dict(after)), position


@pytest.mark.parametrize(
    "change",
    [
        {"latent_dim": 10**9},
        {"latent_dim": 10**20},
        {"width": 10**9},
        {"num_prototypes": 10**10},
        {"image_shape": [1, 10**6, 10**6]},
        {"image_shape": [10**9, 8, 8]},
        {"image_shape": [1, 8, 10**20]},
        {"sigma2": 1e-320},
        {"margin": 1e308},
        {"data": "a\0b"},
        {"data": "a\ud800b"},
    ],
    ids=str,
)
def test_a_config_of_absurd_sizes_takes_no_memory(tmp_path, change):
    run(tmp_path, max_steps=1)
    file = tmp_path / "run" / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunError, match="config"):
        runs.load_run(tmp_path / "run")
    with pytest.raises((RunError, ConfigError), match=r"config|stay|takes|at most"):
        run(tmp_path, resume=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200 * 1024  # KiB


def test_a_new_run_of_absurd_sizes_is_refused(tmp_path):
    for change, message in (
        ({"latent_dim": 10**9}, r"takes \S+ GiB to train, and this machine has"),
        ({"width": 10**7}, r"takes \S+ GiB to train, and this machine has"),
        ({"latent_dim": 10**20}, "latent_dim must be at most 2147483647"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path, **change)
    assert not (tmp_path / "run").exists()


# One process at a time


def test_a_folder_in_use_is_left_alone(tmp_path):
    run(tmp_path, max_steps=2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with files.locked(tmp_path / "run"):
        for options in ({"overwrite": True}, {"resume": True, "max_steps": 9}):
            with pytest.raises(RunError, match="run is in use by another process: wait for it, or"):
                run(tmp_path, **options)
        with pytest.raises(RunError, match="in use by another process"):
            evaluate_run(tmp_path / "run", device="cpu")
    assert {path: path.read_bytes() for path in before} == before
    run(tmp_path, resume=True, max_steps=9)


# Each process goes on when both have looked at the folder and found nothing there.
TOGETHER = """
import pathlib
from cgm_fast.cgm.training import pipeline
check, folder = pipeline.check_memory, pathlib.Path({folder!r})
def wait(config):
    (folder / f"ready-{{os.getpid()}}").touch()
    end = time.monotonic() + 60
    while len(list(folder.glob("ready-*"))) < 2 and time.monotonic() < end:
        time.sleep(0.001)
    check(config)
pipeline.check_memory = wait
"""


def test_two_that_start_at_once(tmp_path, launch):
    """One trains; the other is told so, and nothing of either is in the other's files."""
    words = {"evaluate": False, "max_steps": 40, "epochs": 40, "log_every": 1}
    first = TOGETHER.format(folder=str(tmp_path))
    children = [launch(*arguments(tmp_path, seed=seed, **words), first=first) for seed in range(2)]
    codes = [child.wait() for child in children]
    assert sorted(codes) == [0, 1], [child.log.read_text() for child in children]
    lost = children[codes.index(1)].log.read_text()
    assert re.search("in use by another process|already holds a run|changed .* while", lost)
    assert len(metrics(tmp_path)) == 40
    won = codes.index(0)
    assert runs.read_config(tmp_path / "run").seed == won
    run(tmp_path, out=str(tmp_path / "alone"), seed=won, **words)
    assert same(checkpoint(tmp_path)["model"], checkpoint(tmp_path, "alone")["model"])


def test_a_lock_leaves_no_folder_behind(tmp_path):
    with files.locked(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_a_file_system_without_locks_is_trained_on(tmp_path, monkeypatch):
    def acquire(self, *args, **options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    run(tmp_path, max_steps=2)
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_temporary_names_are_ones_own(tmp_path, monkeypatch):
    """Two machines that share a disk have processes of the same number."""
    names = []
    fsync = os.fsync
    monkeypatch.setattr("os.fsync", lambda n: (fsync(n), names.append(listed(tmp_path)))[0])
    for _ in range(2):
        files.write_whole(tmp_path / "file", b"data")
    first, second = ({name for name in each if name.endswith(".tmp")} for each in names)
    assert len(first) == len(second) == 1
    assert first != second


def test_a_file_keeps_its_permissions(tmp_path):
    files.write_whole(tmp_path / "file", b"data")
    (tmp_path / "plain").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "file").chmod(0o640)
    files.write_whole(tmp_path / "file", b"more")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_run_that_met_nan_has_ways_on(tmp_path):
    """Another rate, and --init with the weights of its checkpoint."""
    run(tmp_path, max_steps=5)
    (tmp_path / "run" / MODEL).unlink()  # as where NaN ended it
    run(tmp_path, max_steps=1, init=str(tmp_path / "run"), out=str(tmp_path / "next"), lr=1e-30)
    before, after = checkpoint(tmp_path)["model"], checkpoint(tmp_path, "next")["model"]
    name = "decoder.1.weight"
    assert torch.allclose(before[name], after[name])
    run(tmp_path, resume=True, lr=1e-5, max_steps=9)
    assert runs.read_config(tmp_path / "run").lr == 1e-5
