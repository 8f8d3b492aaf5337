import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from tiny import listed, run, same

from cgm_fast import files
from cgm_fast.files import RunError
from cgm_fast.training import runs
from cgm_fast.training.config import ConfigError
from cgm_fast.training.runs import CONFIG, FILES, METRICS
from cgm_fast.training.states import CHECKPOINT, FORMAT, MODEL

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


# Checkpoints


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def _bad_checkpoints(whole, touched):
    content = torch.load(whole)
    data = whole.read_bytes()
    yield "empty", b""
    yield "garbage", b"garbage" * 99
    for share in (0.2, 0.7, 0.999):
        yield f"truncated to {share}", data[: int(share * len(data))]
    yield "pickled bomb", pickle.dumps({"format": FORMAT, "model": Bomb(touched)})
    for name, foreign in {
        "a list": [1, 2],
        "a foreign dictionary": {"state_dict": {}},
        "another format": {**content, "format": FORMAT + 1},
        "a torch bomb": {**content, "model": Bomb(touched)},
        "no optimizer": {key: value for key, value in content.items() if key != "optimizer"},
        "no model": {**content, "model": None},
        "another optimizer": {**content, "optimizer": {"state": {}, "param_groups": []}},
        "no window": {**content, "window": None},
        "no random state": {**content, "random": [{}]},
    }.items():
        torch.save(foreign, whole.with_name("foreign.pt"))
        yield name, whole.with_name("foreign.pt").read_bytes()


def test_bad_checkpoints(tmp_path):
    run(tmp_path, max_steps=6)
    file, touched = tmp_path / "run" / CHECKPOINT, tmp_path / "touched"
    good = file.read_bytes()
    (tmp_path / "copy.pt").write_bytes(good)
    for name, bad in _bad_checkpoints(tmp_path / "copy.pt", str(touched)):
        file.write_bytes(bad)
        with pytest.raises(RunError, match=r"checkpoint\.pt (is|does not|lacks)"):
            run(tmp_path, resume=True, max_steps=9)
        assert file.read_bytes() == bad, name
        assert not touched.exists(), name
    file.write_bytes(good)
    assert run(tmp_path, resume=True, max_steps=9).stopped_by is None
