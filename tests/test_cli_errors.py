"""Every error that a user can make or meet is one line, and leaves nothing behind."""

import re
import sys

import pytest
from tiny import arguments, run, write_npz

from cgm_fast.cli import main
from cgm_fast.training.runs import read_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished run in it, which tests leave as it is."""
    folder = tmp_path_factory.mktemp("cli")
    run(folder)
    return folder


def _assert_one_line(capsys, message):
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
        (["generate", "{run}", "--prior", "fitted", "--mixing", "uniform"], "must be empirical"),
        (
            ["generate", "{run}", "--count", "0", "--category", "1"],
            "count must be at least 1, got 0",
        ),
        (["generate", "{run}", "--count", "9"], "count must be left out of a picture of a row per"),
        (["generate", "{run}", "--out", "a.jpg"], r"out must end in \.png or \.npz, got 'a.jpg'"),
        (["generate", "{run}", "--out", "gone/a.png"], "out must be in an existing folder"),
        (["generate", "{run}", "--out", "folder.png"], "Is a directory"),
        (["reconstruct", "{run}", "--out", "a.npz"], r"out must end in \.png, got 'a.npz'"),
        (["reconstruct", "{run}", "--count", "-2"], "count must be at least 1, got -2"),
        (
            ["reconstruct", "{run}", "--data", "large.npz"],
            r"images in large\.npz must be \[1, 8, 8\], got \[1, 9, 9\]",
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
        ("tyro", ["train"], "the command line needs tyro"),
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
