import ast
import contextlib
import dataclasses
import inspect
import io
import json
import re
import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import arguments, checkpoint, write_npz

from cgm_fast import cli
from cgm_fast.cli import COMMANDS, main
from cgm_fast.training.runs import read_config


def _picture(path):
    with Image.open(path) as image:
        image.verify()
        return image.size


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished run in it, which tests leave as it is."""
    folder = tmp_path_factory.mktemp("cli")
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main(arguments(folder, evaluate=True)) == 0
    (folder / "printed").write_text(out.getvalue())
    return folder


# Help


def _help_texts(kind):
    """The string under each field of a dataclass and of those it inherits from."""
    texts = {}
    for owner in kind.__mro__[:-1]:
        body = ast.parse(inspect.cleandoc(inspect.getsource(owner))).body[0].body
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts.setdefault(field.target.id, text.value.value)
    return texts


def _bare(text):
    return re.sub(r"[\s│]", "", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_option(capsys, command):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = _bare(capsys.readouterr().out)
    kind = COMMANDS[command]
    assert _bare(kind.__doc__.splitlines()[0]) in shown
    texts = _help_texts(kind)
    for field in dataclasses.fields(kind):
        flag = "--no-" if field.default is True else "--"
        option = "run" if field.name == "run" else flag + field.name.replace("_", "-")
        assert option.lower() in shown.lower()
        assert _bare(texts[field.name]) in shown


def test_help_tells_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = _bare(capsys.readouterr().out)
    for name, kind in COMMANDS.items():
        assert _bare(f"• {name} {kind.__doc__.splitlines()[0]}") in shown


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--bandwidth", "2.5"], "bandwidth", 2.5),
        (["--bandwidth", "3"], "bandwidth", 3.0),
        (["--bandwidth", "infovae"], "bandwidth", "infovae"),
        (["--supervised"], "supervised", True),
        (["--no-evaluate"], "evaluate", False),
        (["--rate-bits", "15"], "rate_bits", 15.0),
        (["--likelihood", "gaussian-fixed"], "likelihood", "gaussian-fixed"),
        ([], "sigma2", None),
    ],
)
def test_options_are_read(words, field, value):
    found = getattr(cli._parse(["train", *words]), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "words",
    [[], ["paint"], ["train", "--bandwidth", "wide"], ["train", "--colour", "red"], ["generate"],
     ["train", "--epochs", "many"]],
)  # fmt: skip
def test_unreadable_options_exit_with_two(capsys, words):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert capsys.readouterr().out == ""


# Every command


def test_train(folder):
    assert {path.name for path in (folder / "run").iterdir()} == {
        "checkpoint.pt", "config.json", "evaluation.json", "events", "latents.png", "metrics.csv",
        "model.safetensors", "reconstructions.png", "samples.png",
    }  # fmt: skip
    printed = (folder / "printed").read_text()
    for part in ("prior paper: NLL", "prior fitted: NLL", "S = 4", "rate: nominal", "linear probe"):
        assert part in printed
    assert printed.endswith(f"run folder: {folder / 'run'}\n")
    for name in ("reconstructions", "samples", "latents"):
        assert min(_picture(folder / "run" / f"{name}.png")) > 100


def test_evaluate(folder, capsys):
    before = json.loads((folder / "run" / "evaluation.json").read_text())
    assert main(["evaluate", str(folder / "run"), "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "run" / "evaluation.json").read_text()) == before
    assert main(["evaluate", str(folder / "run"), "--nll-samples", "6", "--nll-images", "2"]) == 0
    part = json.loads(capsys.readouterr().out)["nats_per_image"]["prior_paper"]
    assert (part["samples"], part["images"]) == (6, 2)


def test_generate_pictures(folder, tmp_path, capsys):
    for i, words in enumerate(([], ["--category", "2"], ["--mixing", "uniform"])):
        out = tmp_path / f"{i}.png"
        assert main(["generate", str(folder / "run"), *words, "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"{out}\n"
    three_rows, ten_rows, mixed = (_picture(tmp_path / f"{i}.png")[1] for i in range(3))
    assert three_rows < ten_rows == mixed  # a row per category, and 100 images in rows of ten


def test_generate_arrays(folder, tmp_path):
    found = {}
    for name, words in {
        "category": ["--category", "1"],
        "again": ["--category", "1"],
        "seed": ["--category", "1", "--seed", "4"],
        "mixed": ["--mixing", "empirical"],
        "default": [],
    }.items():
        out = str(tmp_path / f"{name}.npz")
        assert main(["generate", str(folder / "run"), *words, "--count", "30", "--out", out]) == 0
        with np.load(out) as arrays:
            found[name] = dict(arrays)
    for arrays in found.values():
        assert arrays["images"].shape == (30, 8, 8, 1)
        assert arrays["images"].dtype == np.uint8
        assert arrays["labels"].shape == (30,)
    assert (found["category"]["labels"] == 1).all()
    assert len(set(found["mixed"]["labels"].tolist())) > 1
    assert np.array_equal(found["category"]["images"], found["again"]["images"])
    assert not np.array_equal(found["category"]["images"], found["seed"]["images"])
    assert np.array_equal(found["mixed"]["images"], found["default"]["images"])


@pytest.mark.parametrize("count", [3, 14, 50])
def test_reconstruct(folder, tmp_path, count):
    out = tmp_path / "a.png"
    data = str(folder / "tiny.npz")
    words = ["--count", str(count), "--data", data, "--out", str(out)]
    assert main(["reconstruct", str(folder / "run"), *words]) == 0
    pairs = min(4, -(-count // 10))  # of the 40 images in rows of ten
    assert abs(_picture(out)[1] - (2 * pairs * 9 + 1) * 6 - 60) <= 1
    assert main(["reconstruct", str(folder / "run"), "--out", str(out)]) == 0


def test_denoise(folder, tmp_path, capsys):
    out = tmp_path / "a.png"
    assert main(["denoise", str(folder / "run"), "--variance", "0.25", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "note: the run was trained with denoise_variance 0, not 0.25" in printed
    noisy = float(re.search(r"over 4 images .*: noisy (\S+) dB", printed)[1])
    # 4 · 64 draws: the mean square is 0.25 within 4 · 0.25 √(2/256), a factor of 1.42 either way.
    assert abs(noisy + 10 * np.log10(0.25)) < 10 * np.log10(1.55)
    assert min(_picture(out)) > 100


def test_latents(folder, tmp_path):
    assert main(["latents", str(folder / "run"), "--out", str(tmp_path / "a.png")]) == 0
    assert _picture(tmp_path / "a.png") == (704, 572)
    assert main(["latents", str(folder / "run"), "--out", str(tmp_path / "a.npz")]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        shapes = {name: arrays[name].shape for name in arrays}
        distances = ((arrays["r"][:, None] - arrays["prototypes"]) ** 2).sum(2)
        assert (distances.argmin(1) == arrays["assignment"]).all()
    assert shapes == {"r": (4, 3), "labels": (4,), "assignment": (4,), "prototypes": (3, 3)}


def test_doctor(capsys, monkeypatch):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for part in ("cgm-fast", torch.__version__, "tyro", "cpu", "reference", "usable", "automatic"):
        assert part in printed
    monkeypatch.setenv("CGM_FAST_BACKEND", "fpga")
    assert main(["doctor"]) == 0
    assert "got 'fpga'" in capsys.readouterr().out


def test_the_installed_program(tmp_path):
    program = Path(sysconfig.get_path("scripts")) / "cgm-fast"
    done = subprocess.run(
        [program, *arguments(tmp_path, max_steps=2)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"run folder: {tmp_path / 'run'}\n"
    assert "step 2/2  L_E" in done.stderr
    assert checkpoint(tmp_path)["step"] == 2
    done = subprocess.run(
        [sys.executable, "-m", "cgm_fast", "evaluate", tmp_path / "gone"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"cgm-fast: {tmp_path / 'gone'} holds no run: there is no config.json\n"


def test_progress_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(arguments(tmp_path, max_steps=2)) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"2/2 L_E \S+ +λ·MMD² \S+ +β·L_D \S+ nats +rate \S+ bit", shown)


# Errors


def _assert_one_line(capsys, message, code=1):
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("cgm-fast: ")
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "gone"], "gone holds no run: there is no config.json"),
        (["evaluate", "{run}", "--nll-samples", "1"], "nll_samples must be .* >= 2, got 1"),
        (["evaluate", "{run}", "--device", "gpu"], "device must be auto, cpu, .* got 'gpu'"),
        (["generate", "{run}", "--category", "3"], r"category must lie in \[0, 3\), got 3"),
        (["generate", "{run}", "--category", "1", "--mixing", "uniform"], "category or mixing"),
        (["generate", "{run}", "--count", "0"], "count must be at least 1, got 0"),
        (["generate", "{run}", "--out", "a.jpg"], r"out must end in \.png or \.npz, got 'a.jpg'"),
        (["generate", "{run}", "--out", "gone/a.png"], "out must be in an existing folder"),
        (["generate", "{run}", "--out", "folder.png"], "Is a directory"),
        (["reconstruct", "{run}", "--out", "a.npz"], r"out must end in \.png, got 'a.npz'"),
        (["reconstruct", "{run}", "--count", "-2"], "count must be at least 1, got -2"),
        (
            ["reconstruct", "{run}", "--data", "large.npz"],
            r"run's shape \[1, 8, 8\], got \[1, 9, 9\]",
        ),
        (["denoise", "{run}", "--variance", "0"], "variance must be a finite number > 0, got 0"),
        (["denoise", "{run}", "--variance", "inf"], "variance must be a finite number > 0"),
        (["denoise", "{run}", "--count", "0"], "count must be at least 1, got 0"),
        (["train", "--data", "imagenet"], "data must be one of digits"),
        (["train", "--data", "digits", "--test-data", "large.npz"], "test images of its own"),
        (["train", "--device", "cuda:99"], "device 'cuda:99' is not available here"),
        (["train", "--sigma2", "1", "--rate-bits", "1"], "sigma2 or rate_bits, not both"),
        (["train", "--resume"], "runs/digits-cgm1 holds no run to resume"),
    ],
)
def test_errors_are_one_line(folder, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "large.npz", side=9)
    (tmp_path / "folder.png").mkdir()
    assert main([word.format(run=folder / "run") for word in words]) == 1
    _assert_one_line(capsys, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "large.npz"]


@pytest.mark.parametrize(
    ("module", "words", "purpose"),
    [
        ("tyro", ["doctor"], "the command line needs tyro"),
        ("matplotlib.figure", ["generate", "{run}", "--out", "a.png"], "pictures needs matplotlib"),
        ("safetensors", ["generate", "{run}", "--out", "a.npz"], "needs safetensors"),
        ("rich.progress", ["train"], "the progress bar needs rich"),
        ("sklearn.datasets", ["train"], "the digits data set needs sklearn"),
    ],
)
def test_missing_packages_name_the_extra(
    folder, tmp_path, monkeypatch, capsys, module, words, purpose
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([word.format(run=folder / "run") for word in words]) == 1
    _assert_one_line(capsys, purpose + r": pip install 'cgm-fast\[train\]'")
    assert not any(tmp_path.iterdir())


def test_data_that_changed_since_training(tmp_path, capsys):
    assert main(arguments(tmp_path, max_steps=1)) == 0
    capsys.readouterr()
    write_npz(tmp_path / "tiny.npz", side=9)
    for command in ("evaluate", "reconstruct", "denoise", "latents"):
        assert main([command, str(tmp_path / "run")]) == 1
        _assert_one_line(capsys, r"run's shape \[1, 8, 8\], got \[1, 9, 9\]")


def test_control_c_while_evaluating(tmp_path, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cgm_fast.experiments.run.evaluate", interrupt)
        assert main(arguments(tmp_path, evaluate=True)) == 130
    assert capsys.readouterr().err.endswith("cgm-fast: interrupted\n")
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert main(["evaluate", str(tmp_path / "run")]) == 0  # what was trained is there
    assert read_config(tmp_path / "run").max_steps == 9
