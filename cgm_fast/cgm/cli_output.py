"""What the command line prints: progress, summaries, and to whom it may concern that is gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cgm_fast.cgm.extras import require

Progress = Callable[[int, int, dict[str, float]], None]
BAR_COLUMNS = 110  # of a terminal that has room for a bar beside the terms


def prepare_streams() -> None:
    """Print what an encoding lacks (ASCII, cp1252) as question marks, rather than raise."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with suppress(OSError, ValueError):  # closed, or not what it was when it was opened
                stream.reconfigure(errors="replace")


def say(text: str) -> None:
    """Print a line on standard error, if anybody is there to read it."""
    with suppress(OSError, ValueError):  # ValueError: it is closed
        print(text, file=sys.stderr, flush=True)


def silence() -> None:
    """Point the streams whose readers have gone to nothing, so that Python's exit is quiet."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def progress(show: bool) -> Iterator[Progress | None]:
    """The step, the time left, the terms of eq. 6 and the rate; plain lines off a terminal."""
    if not show:
        yield None
        return
    rich = require("rich.progress", "the progress bar")
    column = require("rich.table", "the progress bar").Column
    console = require("rich.console", "the progress bar").Console(stderr=True)
    if not console.is_terminal:
        yield PlainProgress()
        return
    # Where there is little room the terms take a second line: they are cut before the count is.
    columns = [
        rich.MofNCompleteColumn(table_column=column(no_wrap=True)),
        rich.TimeRemainingColumn(table_column=column(no_wrap=True)),
        rich.TextColumn("{task.description}"),
    ]
    if console.width >= BAR_COLUMNS:
        columns.insert(0, rich.BarColumn(bar_width=24))
    bar = rich.Progress(*columns, console=console)
    bar.start()
    task = bar.add_task("starting")
    try:
        yield lambda step, total, latest: bar.update(
            task, completed=step, total=total, description=terms(latest)
        )
    finally:
        with suppress(OSError):  # a terminal that has gone: what was trained is safe
            bar.stop()


class PlainProgress:
    """About twenty lines over a run, for logs; the last step's is one of them."""

    def __init__(self) -> None:
        self.next = 0

    def __call__(self, step: int, total: int, latest: dict[str, float]) -> None:
        """Print a line if it is time for one."""
        if (step >= self.next or step == total) and latest:
            print(f"step {step}/{total}  {terms(latest)}", file=sys.stderr, flush=True)
            self.next = step + max(1, total // 20)


def terms(latest: dict[str, float]) -> str:
    """The latest row of metrics.csv in a line."""
    if not latest:
        return "starting"
    return (
        f"L_E {latest['reconstruction']:.1f}  λ·MMD² {latest['mmd_weighted']:.2f}  "
        f"β·L_D {latest['margin_weighted']:.2f} nats  rate {latest['rate_bits']:.1f} bit  "
        f"{latest['images_per_second']:.0f} img/s"
    )


def summary(evaluation: dict[str, Any]) -> str:
    """What evaluation.json says, in a few lines."""
    nats = evaluation["nats_per_image"]
    lines = [
        f"{name.replace('_', ' ')}: NLL {part['nll']:.2f} ± {part['nll_standard_error']:.2f} nats, "
        f"ELBO {part['elbo']:.2f}"
        + (
            f", given the label {part['nll_given_category']:.2f}"
            if "nll_given_category" in part
            else ""
        )
        + (f", {part['bits_per_dim']:.3f} bits/dim" if "bits_per_dim" in part else "")
        + f" ({part['images']} images, S = {part['samples']}, "
        f"ESS {part['effective_samples']:.1f})"
        for name, part in nats.items()
    ]
    rate = evaluation["rate_bits"]
    nominal = f"nominal {rate['nominal']:.1f}, " if "nominal" in rate else ""
    lines.append(f"rate: {nominal}Gaussian bound {rate['gaussian_bound']:.1f} bit")
    if "probe_error" in evaluation:
        probe = evaluation["probe_error"]
        lines += [
            f"{name} probe error {100 * probe[f'{kind}_r']:.2f} % on r, "
            f"{100 * probe[f'{kind}_z']:.2f} % on z"
            for kind, name in (("linear", "linear"), ("mlp", "MLP"))
        ]
    if "clustering" in evaluation:
        clusters = evaluation["clustering"]
        lines.append(
            f"clustering accuracy {100 * clusters['accuracy']:.1f} %, NMI {clusters['nmi']:.3f}"
        )
    if "nearest_prototype_error" in evaluation:
        error = evaluation["nearest_prototype_error"]
        lines.append(f"nearest-prototype error {100 * error:.2f} %")
    lines += [f"warning: {text}" for text in evaluation["warnings"]]
    return "\n".join(lines)
