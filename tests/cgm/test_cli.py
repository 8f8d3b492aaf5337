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
from tiny import arguments, checkpoint, listed

from cgm_fast.cgm import cli
from cgm_fast.cgm.cli import COMMANDS, main
from cgm_fast.cgm.cli_output import PlainProgress
from cgm_fast.cgm.data import load
from cgm_fast.cgm.models import LatentModel


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
    for owner in filter(dataclasses.is_dataclass, kind.__mro__):
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
    assert _bare("All commands but doctor need the extra train") in shown


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


@pytest.mark.parametrize(("word", "meant"), [("trian", "train"), ("evalute", "evaluate")])
def test_a_command_that_is_nearly_one(capsys, word, meant):
    with pytest.raises(SystemExit) as left:
        main([word])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"cgm-fast: no command '{word}'; did you mean {meant}? There are train, "
    )


@pytest.mark.parametrize(
    "words", [["--descriptor", "lerned"], ["--epohcs", "3"], ["--epochs", "x"]]
)
def test_errors_fit_a_narrow_terminal(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit):
        main(["train", *words])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 40


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"cgm-fast \d+\.\d+\S*\n", capsys.readouterr().out)


def test_what_was_given_is_known_whatever_its_value():
    words = ["train", "--seed=0", "--data_root", "x", "--no-evaluate", "--lr", "1"]
    assert {"seed", "data_root", "evaluate", "lr"} <= cli._given(words)
    assert not {"out", "data"} & cli._given(words)


def test_resume_knows_an_option_by_its_being_given(tmp_path, capsys):
    assert main([*arguments(tmp_path, max_steps=2), "--seed", "4"]) == 0
    words = ["train", "--out", str(tmp_path / "run"), "--resume"]
    assert main([*words, "--max-steps", "3", "--seed", "4"]) == 0
    capsys.readouterr()
    assert main([*words, "--seed", "0"]) == 1  # which is its default
    assert "seed must stay 4 with resume, got 0" in capsys.readouterr().err
    assert checkpoint(tmp_path)["step"] == 3


# Every command


def test_train(folder):
    assert listed(folder / "run") == [
        "checkpoint.pt", "config.json", "evaluation.json", "events", "latents.png", "metrics.csv",
        "model.safetensors", "reconstructions.png", "samples.png",
    ]  # fmt: skip
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
    for i, words in enumerate(
        ([], ["--category", "2"], ["--mixing", "uniform"], ["--prior", "fitted"])
    ):
        out = tmp_path / f"{i}.png"
        assert main(["generate", str(folder / "run"), *words, "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"{out}\n"
    three_rows, ten_rows, mixed, fitted = (_picture(tmp_path / f"{i}.png")[1] for i in range(4))
    # A row per category, and 100 images in rows of ten.
    assert three_rows == fitted < ten_rows == mixed


def test_generate_arrays(folder, tmp_path):
    found = {}
    for name, words in {
        "category": ["--category", "1"],
        "again": ["--category", "1"],
        "seed": ["--category", "1", "--seed", "4"],
        "mixed": ["--mixing", "empirical"],
        "default": [],
        "fitted": ["--category", "1", "--prior", "fitted"],
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
    assert (found["fitted"]["labels"] == 1).all()
    assert not np.array_equal(found["category"]["images"], found["fitted"]["images"])
    assert len(set(found["mixed"]["labels"].tolist())) > 1
    assert np.array_equal(found["category"]["images"], found["again"]["images"])
    assert not np.array_equal(found["category"]["images"], found["seed"]["images"])
    assert np.array_equal(found["mixed"]["images"], found["default"]["images"])


def test_many_images_are_generated_in_batches(folder, tmp_path, monkeypatch):
    generate, sizes = LatentModel.generate, []

    def counted(model, count, **options):
        sizes.append(count)
        return generate(model, count, **options)

    monkeypatch.setattr(LatentModel, "generate", counted)
    out = str(tmp_path / "a.npz")
    assert main(["generate", str(folder / "run"), "--count", "1300", "--out", out]) == 0
    assert sizes == [512, 512, 276]
    with np.load(out) as arrays:
        assert arrays["images"].shape == (1300, 8, 8, 1)
        assert arrays["labels"].shape == (1300,)
        assert len(np.unique(arrays["images"].reshape(1300, -1), axis=0)) > 1200  # none is repeated


@pytest.mark.parametrize("words", [["reconstruct", "--count", "1100"], ["denoise"]])
def test_many_images_are_reconstructed_in_batches(folder, tmp_path, monkeypatch, words):
    reconstruct, sizes = LatentModel.reconstruct, []

    def counted(model, x, *given, **options):
        sizes.append(len(x))
        return reconstruct(model, x, *given, **options)

    def many(*_):
        data = load(str(folder / "tiny.npz"))
        return dataclasses.replace(data, test=data.test.repeat(300, 1, 1, 1))

    monkeypatch.setattr(LatentModel, "reconstruct", counted)
    monkeypatch.setattr("cgm_fast.cgm.training.pipeline.load_run_data", many)
    out = str(tmp_path / "a.png")
    assert main([words[0], str(folder / "run"), *words[1:], "--out", out]) == 0
    assert max(sizes) <= 512
    assert sum(sizes) == (1100 if words[0] == "reconstruct" else 1000)


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
    note = "note: the run was trained with noise of none, not variance 0.25 on [0, 1], not clipped"
    assert note in printed
    noisy = float(re.search(r"over 4 images, noise of .*: noisy (\S+) dB", printed)[1])
    # 4 · 64 draws: the mean square is 0.25 within 4 · 0.25 √(2/256), a factor of 1.42 either way.
    assert abs(noisy + 10 * np.log10(0.25)) < 10 * np.log10(1.55)
    assert min(_picture(out)) > 100
    more = ["--range", "signed", "--clip"]
    assert main(["denoise", str(folder / "run"), "--out", str(out), *more]) == 0
    assert "noise of variance 0.5 on [-1, 1], clipped: noisy" in capsys.readouterr().out


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


def test_plain_progress_ends_with_the_last_step(capsys):
    progress = PlainProgress()
    latest = dict.fromkeys(
        ("reconstruction", "mmd_weighted", "margin_weighted", "rate_bits", "images_per_second"), 1.0
    )
    for step in range(1, 301):
        progress(step, 300, latest)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 1/300 ")
    assert lines[-1].startswith("step 300/300 ")
    assert 20 <= len(lines) <= 22
    progress = PlainProgress()
    progress(7, 7, latest)
    assert capsys.readouterr().err.startswith("step 7/7 ")


def test_progress_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(arguments(tmp_path, max_steps=2)) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    # 80 columns wide: the count and the time are whole, and the terms go on in a second line.
    assert re.search(r"2/2 0:00:00 L_E \S+ +λ·MMD² \S+ +β·L_D \S+ nats +rate \S+ bit", shown)
    assert re.search(r"img/s", shown)
