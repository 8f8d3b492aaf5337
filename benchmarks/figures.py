"""Two figures of a run: time against n, and the share of the machine's limit against d."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, PercentFormatter

D = 10
N = 4096

Row = dict[str, Any]
Points = list[tuple[float, float]]

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "font.size": 9,
    "legend.frameon": False,
    "figure.dpi": 160,
}
OURS = "#c1272d"
GREYS_AND_BLUES = ("#1f4e79", "#2e86ab", "#5fa8a0", "#8d6a9f", "#b08d57", "#6b705c", "#9aa5b1",
                   "#3d405b", "#7f9c4f")  # fmt: skip
MARKERS = "osD^v<>Px"


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Draw the figures of every device for which there are points; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    mmd = [row for row in rows if row["op"] == "mmd" and row["precision"] == "highest"]
    devices = list(dict.fromkeys(row["device"] for row in mmd))
    for device in devices:
        here = [row for row in mmd if row["device"] == device]
        ending = "" if len(devices) == 1 else f"-{here[0]['device_type']}"
        for name, plot in (("time", time_against_n), ("limit", share_against_d)):
            with plt.rc_context(STYLE):
                figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
                if plot(axes, here):
                    paths.append(folder / f"mmd-{name}{ending}.png")
                    figure.savefig(paths[-1])
                plt.close(figure)
    return paths


def series(rows: list[Row], x: str, y: Callable[[Row], float | None]) -> dict[str, Points]:
    """Points (size, value) of each peer, in the order of the sizes."""
    found: dict[str, Points] = {}
    for row in rows:
        if (value := y(row)) is not None:
            found.setdefault(row["peer"], []).append((row["sizes"][x], value))
    return {peer: sorted(points) for peer, points in found.items()}


def best_of_ours(rows: list[Row]) -> set[str]:
    """The peers that are ours, less the reference where there is something faster."""
    ours = {row["peer"] for row in rows if row["ours"]}
    return ours - {"reference"} or ours


def plot_series(axes: Axes, lines: dict[str, Points], ours: set[str]) -> None:
    """Ours in front and in red, the others thinner; in the legend as they end, from the top."""
    others = 0
    for peer, points in sorted(lines.items(), key=lambda line: -line[1][-1][1]):
        x, y = zip(*points, strict=True)
        if peer in ours:
            axes.plot(x, y, "o-", color=OURS, lw=2.2, ms=5, zorder=5, label=f"cgm_fast, {peer}")
        else:
            colour = GREYS_AND_BLUES[others % len(GREYS_AND_BLUES)]
            marker = MARKERS[others % len(MARKERS)]
            label = "cgm_fast, reference" if peer == "reference" else peer
            axes.plot(x, y, marker=marker, color=colour, lw=1.1, ms=3.5, label=label)
            others += 1


def caption(axes: Axes, row: Row) -> None:
    """What it was measured on, under the axes."""
    words = [row["device"]]
    if row["threads"] is not None:
        words.append(f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}")
    axes.figure.supxlabel(", ".join((*words, row["date"])), fontsize=7, color="#777777")


def time_against_n(axes: Axes, rows: list[Row]) -> bool:
    """All peers at d = D, and the limit of the full-matrix algorithm; False if nothing to show."""
    rows = [row for row in rows if row["sizes"]["d"] == D]
    lines = series(rows, "n", lambda row: row["median_ms"])
    if not any(len(points) > 1 for points in lines.values()):
        return False
    plot_series(axes, lines, best_of_ours(rows))
    floor = sorted({(r["sizes"]["n"], r["floor_ms"]) for r in rows if r["floor_ms"] is not None})
    if floor:
        x, y = zip(*floor, strict=True)
        axes.plot(x, y, "--", color="#222222", lw=1, label="limit, full matrix")
    sizes = sorted({row["sizes"]["n"] for row in rows})
    axes.set(xscale="log", yscale="log", xlabel="n = m", ylabel="milliseconds")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(f"MMD² and both gradients, d = {D}, float32", fontsize=10, loc="left")
    axes.legend(fontsize=7, ncols=2)
    caption(axes, rows[0])
    return True


def share_against_d(axes: Axes, rows: list[Row]) -> bool:
    """Those measured at many d, at n = N; False if there is no limit to compare with."""
    rows = [row for row in rows if row["sizes"]["n"] == N]
    lines = series(rows, "d", lambda row: row["limit_share"])
    most = max(map(len, lines.values()), default=0)
    if most < 2:
        return False
    ours = best_of_ours(rows)
    lines = {peer: points for peer, points in lines.items() if len(points) == most or peer in ours}
    plot_series(axes, lines, ours)
    axes.axhline(1, color="#222222", lw=1, ls="--")
    sizes = sorted({row["sizes"]["d"] for row in rows})
    axes.set(xscale="log", xlabel="d", ylabel="share of the machine's limit")
    axes.set_ylim(0, None)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title(
        f"Limit of the full-matrix algorithm over time, n = m = {N}", fontsize=10, loc="left"
    )
    axes.legend(fontsize=7)
    caption(axes, rows[0])
    return True
