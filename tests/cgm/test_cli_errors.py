"""Every error that a user can make or meet is one line, and leaves nothing behind."""

import builtins
import errno
import io
import json
import os
import re
import sys

import pytest
import torch
from test_imports import EXTRAS, run_without
from tiny import arguments, run, write_npz

from cgm_fast.cgm.cli import COMMANDS, main
from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.training.runs import read_config


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
        (["train", "--data", "fashionmnist"], r"\(did you mean fashion-mnist\?\)"),
        (["train", "--sigma2", "1e-320"], "sigma2 must lie in what float32 holds"),
        (["train", "--latent-dim", "1" + "0" * 20], "latent_dim must be at most 2147483647"),
        (["train", "--seed", "1" + "0" * 20], "seed must be at most 4294967295"),
        (["train", "--out", "a\0b"], "out must be a path without null characters"),
        (["evaluate", "a\0b"], "run must be a path without null characters"),
        (
            ["generate", "{run}", "--out", "\ud800.png"],
            "out must be a path that the file system can",
        ),
        (["generate", "{run}", "--seed", "-1"], r"seed must lie in \[0, 4294967295\], got -1"),
        (["generate", "{run}", "--seed", "9" * 30], r"seed must lie in \[0, 4294967295\]"),
        (["generate", "{run}", "--count", "9" * 30, "--category", "1"], "count must be at most 21"),
        (
            ["generate", "{run}", "--category", "1", "--count", "50000"],
            r"generated\.png of 50000 images would be .* pixels",
        ),
        (["reconstruct", "{run}", "--count", "9" * 30], "count must be at most 2147483647"),
        (["denoise", "{run}", "--variance", "1e308"], "variance must lie in what float32 holds"),
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


def test_doctor_and_version_need_torch_and_numpy_alone():
    for word, shown in (("doctor", "implementations"), ("--version", "cgm-fast ")):
        script = f"""
import runpy, sys
sys.argv = ["cgm-fast", {word!r}]
runpy.run_module("cgm_fast", run_name="__main__")
"""
        done = run_without((*EXTRAS, "triton"), script)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_without_the_extras_says_which_is_missing(monkeypatch, capsys, word):
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(SystemExit) as left:
        main([word])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in COMMANDS)
    assert "All commands but doctor need the extra train: pip install 'cgm-fast[train]'" in shown
    assert "Here the command line needs tyro" in shown


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_of_any_encoding(folder, monkeypatch, encoding):
    """Redirected on Windows, or under LC_ALL=C: what it lacks is replaced."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as left:
        main(["train", "--help"])
    assert left.value.code == 0
    out.flush()
    text = out.buffer.getvalue().decode(encoding)
    assert "--mmd-weight" in text
    assert "?, the weight of MMD" in text  # λ


def test_a_reader_that_has_gone(folder, monkeypatch):
    """`cgm-fast evaluate RUN | head -1`: no traceback, and SIGPIPE's exit code."""
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w"))
    assert main(["evaluate", str(folder / "run"), "--device", "cpu"]) == 128 + 13
    sys.stdout.close()  # its content goes nowhere, without an error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory: a smaller batch_size, width or count takes less"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines"),
            r"out of memory \(CUDA out of memory\. Tried to allocate 2 GiB\.\): a smaller",
        ),
        (
            RuntimeError("[enforce fail at x.cpp:1] . DefaultCPUAllocator: can't allocate memory"),
            r"out of memory \(.*DefaultCPUAllocator.*\): a smaller",
        ),
    ],
)
def test_out_of_memory_is_one_line(monkeypatch, capsys, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("cgm_fast.cgm.training.pipeline.train", fail)
    assert main(["train"]) == 1
    _assert_one_line(capsys, message)


def test_another_error_is_not_hidden(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("cgm_fast.cgm.training.pipeline.train", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(["train"])


def test_an_evaluation_that_cannot_be_written_is_printed(folder, monkeypatch, capsys):
    before = (folder / "run" / "config.json").read_bytes()

    def full(path, value):
        raise RunError(f"{path} could not be written: no space left; the old one stands")

    monkeypatch.setattr("cgm_fast.cgm.training.runs.write_json", full)
    assert main(["evaluate", str(folder / "run"), "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert "prior_paper" in json.loads(printed.out)["nats_per_image"]
    assert printed.err.startswith("cgm-fast: ")
    assert "evaluation.json could not be written" in printed.err
    assert (folder / "run" / "config.json").read_bytes() == before


def test_a_folder_that_cannot_be_written_to_is_met_before_the_work(folder, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    monkeypatch.setattr("cgm_fast.cgm.training.pipeline.evaluate", None)
    assert main(["evaluate", str(folder / "run"), "--device", "cpu"]) == 1
    _assert_one_line(capsys, "run could not be made or written to: Permission denied")


def test_a_variable_that_would_be_ignored(folder, monkeypatch, capsys):
    monkeypatch.setenv("CGM_FAST_ISA", "foo")
    assert main(["evaluate", str(folder / "run")]) == 1
    _assert_one_line(capsys, "CGM_FAST_ISA must be one of baseline, avx2, avx512, got 'foo'")
    assert main(["doctor"]) == 0
    assert "CGM_FAST_ISA must be one of" in capsys.readouterr().out


def test_control_c_while_modules_are_imported(monkeypatch, capsys):
    imported = builtins.__import__

    def interrupt(name, *args, **kwargs):
        if name == "cgm_fast.cgm" and args[2] == ("cli",):
            raise KeyboardInterrupt
        return imported(name, *args, **kwargs)

    from cgm_fast import __main__

    monkeypatch.setattr(builtins, "__import__", interrupt)
    assert __main__.main() == 130
    assert capsys.readouterr().err == "cgm-fast: interrupted\n"


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
        patch.setattr("cgm_fast.cgm.training.pipeline.evaluate", interrupt)
        assert main(arguments(tmp_path, evaluate=True)) == 130
    assert capsys.readouterr().err.endswith("cgm-fast: interrupted\n")
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert main(["evaluate", str(tmp_path / "run")]) == 0  # what was trained is there
    assert read_config(tmp_path / "run").max_steps == 9
