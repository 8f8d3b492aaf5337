"""The command line, `cgm-fast`: a dataclass per command (`cli_options`), read by tyro."""

from __future__ import annotations

import dataclasses
import difflib
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from cgm_fast import __version__
from cgm_fast.cgm.cli_actions import (
    UsageError,
    denoise_images,
    evaluate_again,
    generate,
    latents,
    reconstruct,
)
from cgm_fast.cgm.cli_options import (
    COMMANDS,
    Denoise,
    Doctor,
    Evaluate,
    Generate,
    Latents,
    Reconstruct,
)
from cgm_fast.cgm.cli_output import PlainProgress, prepare_streams, progress, say, silence, summary
from cgm_fast.cgm.data import DataError
from cgm_fast.cgm.experiments.catalogue import Experiment, run_experiment
from cgm_fast.cgm.experiments.study import StoppedError
from cgm_fast.cgm.extras import MissingExtraError, require
from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.training import pipeline
from cgm_fast.cgm.training.config import ConfigError, TrainConfig
from cgm_fast.cgm.training.limits import check_path
from cgm_fast.cgm.training.signals import BROKEN_PIPE
from cgm_fast.cgm.training.trainer import NonFiniteError
from cgm_fast.cgm.training.workers import read_group
from cgm_fast.doctor import EnvironmentVariableError, check_environment
from cgm_fast.doctor import report as doctor_report
from cgm_fast.doctor import verify as verify_all

# Errors whose message is all a user needs; of a folder or disk that refuses, too.
ERRORS = (
    ConfigError,
    DataError,
    UsageError,
    EnvironmentVariableError,
    MissingExtraError,
    RunError,
    NonFiniteError,
    OSError,
)
NEEDS = "All commands but doctor need the extra train: pip install 'cgm-fast[train]'."


def main(args: list[str] | None = None) -> int:
    """Run one command; the entry point of `cgm-fast`.

    Args:
        args: The command and its options; None for the process's own.

    Returns:
        0; 1 after an error that was printed; 128 + n after stopping for signal n, or as if for
        SIGPIPE where nobody reads what is printed.
    """
    prepare_streams()
    try:
        code = _main(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        silence()
        return 128 + BROKEN_PIPE
    except ERRORS as error:
        say(f"cgm-fast: {error}")
        return 1
    except (MemoryError, RuntimeError) as error:
        if (text := _out_of_memory(error)) is None:
            raise
        say(f"cgm-fast: {text}")
        return 1
    except KeyboardInterrupt:
        say("cgm-fast: interrupted")
        return 128 + signal.SIGINT


def _out_of_memory(error: Exception) -> str | None:
    """What to say if it is that, of a GPU or of the machine; torch has no class for the latter."""
    first = (str(error).splitlines() or [""])[0]
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if not known and "DefaultCPUAllocator" not in first and "out of memory" not in first.lower():
        return None
    said = f" ({first})" if first else ""
    return f"out of memory{said}: a smaller batch_size, width or count takes less"


def _main(args: list[str]) -> int:
    if args == ["--version"]:
        print(f"cgm-fast {__version__}")
        return 0
    if args in (["doctor"], ["doctor", "--verify"]):
        # Which must run where the command line's own needs are not met.
        return _doctor(verify="--verify" in args)
    command = _parse(args)
    check_environment()
    for field in dataclasses.fields(command):
        if isinstance(value := getattr(command, field.name), str):
            check_path(field.name, value)
    return _run(command, _given(args))


def _doctor(verify: bool) -> int:
    print(doctor_report())
    if not verify:
        return 0
    print("\nresults beside float64 on the CPU")
    return 0 if verify_all(lambda line: print(f"  {line}", flush=True)) else 1


def _parse(args: list[str]) -> Any:
    try:
        tyro = require("tyro", "the command line")
    except MissingExtraError as error:
        if args[:1] not in (["--help"], ["-h"]):
            raise
        print(_help_without_tyro(error))
        raise SystemExit(0) from None
    if args and not args[0].startswith("-") and args[0] not in COMMANDS:
        close = difflib.get_close_matches(args[0], COMMANDS, 1)
        meant = f"did you mean {close[0]}? " if close else ""
        say(f"cgm-fast: no command {args[0]!a}; {meant}There are {', '.join(COMMANDS)}")
        raise SystemExit(2)
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="cgm-fast",
        description="Train CGM models (VAEs with a mixture of prototypes as prior) and use them. "
        f"`cgm-fast --version` shows the version. {NEEDS}",
        args=args,
        config=(
            tyro.conf.PositionalRequiredArgs,
            tyro.conf.PositionalMetavarFromFieldName,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.DisallowNone,
        ),
    )


def _help_without_tyro(error: MissingExtraError) -> str:
    """The commands, and what is missing to run them."""
    lines = [f"  {name:<11} {kind.__doc__.splitlines()[0]}" for name, kind in COMMANDS.items()]
    return "\n".join(("usage: cgm-fast COMMAND [OPTIONS]", "", *lines, "", NEEDS, f"Here {error}"))


def _given(args: list[str]) -> set[str]:
    """Names of the options that stand on the command line, whatever their values."""
    names = {word[2:].partition("=")[0].replace("-", "_") for word in args if word[:2] == "--"}
    return names | {name.removeprefix("no_") for name in names}


def _run(command: Any, given: set[str]) -> int:
    if isinstance(command, TrainConfig):
        return _train(command, given)
    if isinstance(command, Doctor):
        return _doctor(command.verify)
    if isinstance(command, Experiment):
        return _experiment(command)
    actions: dict[type, Callable[[Any], None]] = {
        Evaluate: evaluate_again,
        Generate: generate,
        Reconstruct: reconstruct,
        Denoise: denoise_images,
        Latents: latents,
    }
    actions[type(command)](command)
    return 0


def _train(config: TrainConfig, given: set[str]) -> int:
    first = read_group().rank == 0
    with progress(first) as report:
        result = pipeline.train(config, report, _warn, given, note=say)
    if result.stopped_by:
        if first:
            print(f"stopped by signal {result.stopped_by} after saving; go on with --resume")
        return 128 + result.stopped_by
    if not first:
        return 0
    if result.evaluation is not None:
        print(summary(result.evaluation))
    print(f"run folder: {result.path}")
    return 0


def _warn(text: str) -> None:
    say(f"warning: {text}")


def _experiment(command: Experiment) -> int:
    lines = PlainProgress()

    def report(name: str, step: int, total: int, latest: dict[str, float]) -> None:
        if step == 1:
            print(f"{name}:", file=sys.stderr, flush=True)
            lines.next = 1
        lines(step, total, latest)

    try:
        out = run_experiment(command, report)
    except StoppedError as stopped:
        print(stopped)
        return 128 + stopped.number
    for path in sorted(file for file in out.iterdir() if file.is_file()):
        print(path)
    return 0
