"""Pictures of a trained model, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgm_fast.cgm.extras import require
from cgm_fast.cgm.files import RunError, write_whole

PIXELS = 48  # least side of one image in a grid, on paper
MOST_PIXELS = 2**16 - 1  # of a picture's side, which matplotlib can draw


def plain(text: str) -> str:
    """Text for matplotlib that it shows as it is: no mathematics between dollars, no surrogates."""
    return text.replace("$", r"\$").encode("utf-8", "replace").decode()


def _save(figure: Any, path: Path) -> None:
    """Write a picture, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())


def _grid_pixels(count: int, columns: int, sides: Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels of a picture of images of sides (h, w), without its margins."""
    h, w = sides
    scale = max(1.0, PIXELS / w)
    return int((-(-count // columns) * (h + 1) + 1) * scale), int((columns * (w + 1) + 1) * scale)


def check_grid(path: Path, count: int, columns: int, sides: Sequence[int]) -> None:
    """Raise RunError if a picture of so many images of sides (h, w) cannot be drawn."""
    if max(_grid_pixels(count, columns, sides)) + 200 > MOST_PIXELS:
        height, width = _grid_pixels(count, columns, sides)
        raise RunError(
            f"{path} of {count} images would be {width} x {height} pixels, and a picture has at "
            f"most {MOST_PIXELS} a side: ask for fewer images, or for an .npz"
        )


def image_grid(images: Tensor, columns: int) -> np.ndarray[Any, Any]:
    """Images [n, c, h, w] in [0, 1], row by row, as one array [H, W, 3] with thin white lines."""
    n, _, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.ones((rows * (h + 1) + 1, columns * (w + 1) + 1, 3), dtype=np.float32)
    pixels = images.detach().float().clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
    for i in range(n):
        top, left = i // columns * (h + 1) + 1, i % columns * (w + 1) + 1
        canvas[top : top + h, left : left + w] = pixels[i]  # one channel spreads over three
    return canvas


def save_grid(
    path: Path,
    images: Tensor,
    columns: int,
    *,
    row_labels: Sequence[str] = (),
    title: str = "",
) -> None:
    """Write a grid of images.

    Args:
        path: The PNG file.
        images: [n, c, h, w] in [0, 1], row by row.
        columns: Images per row.
        row_labels: One per row, or none.
        title: Above the grid.

    Raises:
        RunError: images hold NaN or infinity, there are too many for a picture, or it cannot be
            written.
    """
    check_grid(path, len(images), columns, images.shape[-2:])
    if not bool(images.isfinite().all()):
        raise RunError(f"{path} was not drawn: its images hold NaN or infinity")
    figure_module = require("matplotlib.figure", "pictures")
    grid = image_grid(images, columns)
    scale = max(1.0, PIXELS / images.shape[-1]) / 100
    size = (grid.shape[1] * scale + 1.2, grid.shape[0] * scale + 0.6)
    figure = figure_module.Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(grid, interpolation="nearest")
    axes.set_xticks([])
    step = images.shape[-2] + 1
    axes.set_yticks(
        [(i + 0.5) * step for i in range(len(row_labels))], [plain(label) for label in row_labels]
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(plain(title), fontsize=10)
    _save(figure, path)


def save_latents(
    path: Path,
    r: Tensor,
    prototypes: Tensor,
    categories: Tensor,
    names: Sequence[str] = (),
    title: str = "",
) -> None:
    """Write a scatter of codes with the prototypes, in two dimensions or two principal ones.

    Args:
        path: The PNG file.
        r: [n, N] codes.
        prototypes: [K, N].
        categories: [n] integers that colour the codes; below 0 they have none.
        names: Of the categories, for the legend; without them numbers.
        title: Above the scatter.
    """
    figure_module = require("matplotlib.figure", "pictures")
    colormaps = require("matplotlib", "pictures").colormaps
    codes = r.cpu().double().numpy()
    centres = prototypes.detach().cpu().double().numpy()
    axis_name = "dimension"
    if codes.shape[1] == 1:
        codes, centres = (np.pad(a, ((0, 0), (0, 1))) for a in (codes, centres))
    elif codes.shape[1] > 2:
        fitted = codes if len(codes) > 1 else centres
        if np.ptp(fitted, axis=0).any():  # at a rate of 0 all codes are one
            pca = require("sklearn.decomposition", "pictures").PCA(2).fit(fitted)
            codes, centres = pca.transform(codes), pca.transform(centres)
            axis_name = "principal component"
        else:
            codes, centres = codes[:, :2], centres[:, :2]
    figure = figure_module.Figure(figsize=(6.4, 5.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    found = categories.cpu()
    present = torch.unique(found).tolist()
    colours = colormaps["tab10" if len(present) <= 10 else "gist_rainbow"]
    for position, category in enumerate(present):
        chosen = (found == category).numpy()
        colour = colours(position if len(present) <= 10 else position / len(present))
        label = names[category] if category < len(names) else str(category)
        if category < 0:
            colour, label = "lightgrey", "no label"
        axes.scatter(
            codes[chosen, 0], codes[chosen, 1], s=7, alpha=0.6, color=colour, linewidths=0,
            label=plain(label) if len(present) <= 20 else None,
        )  # fmt: skip
    for k, centre in enumerate(centres):
        axes.scatter(*centre, marker="X", s=90, color="black", edgecolors="white", zorder=3)
        axes.annotate(str(k), centre, xytext=(6, 4), textcoords="offset points", zorder=4)
    axes.set_xlabel(f"{axis_name} 1")
    axes.set_ylabel(f"{axis_name} 2")
    axes.set_aspect("equal", adjustable="datalim")
    if len(present) <= 20:
        axes.legend(markerscale=2, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    if title:
        axes.set_title(plain(title), fontsize=10)
    _save(figure, path)


def save_scatters(path: Path, panels: Sequence[tuple[str, Tensor, Tensor, Tensor]]) -> None:
    """Write scatters of two-dimensional codes side by side.

    Args:
        path: The PNG file.
        panels: Title, codes [n, 2], prototypes [K, 2] (K may be 0), categories [n] for each.
    """
    figure_module = require("matplotlib.figure", "pictures")
    colours = require("matplotlib", "pictures").colormaps["tab10"]
    figure = figure_module.Figure(figsize=(4.6 * len(panels), 4.6), dpi=110, layout="constrained")
    for axes, (title, codes, prototypes, categories) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        r, centres, found = (part.detach().cpu() for part in (codes, prototypes, categories))
        for category in torch.unique(found).tolist():
            chosen = r[found == category].numpy()
            axes.scatter(
                chosen[:, 0], chosen[:, 1], s=3, alpha=0.5, color=colours(category % 10),
                linewidths=0, label=str(category),
            )  # fmt: skip
        if len(centres):
            axes.scatter(
                centres[:, 0], centres[:, 1], marker="X", s=60, color="black", edgecolors="white"
            )
        axes.set_title(plain(title), fontsize=10)
        axes.set_aspect("equal", adjustable="datalim")
    axes.legend(markerscale=4, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)
