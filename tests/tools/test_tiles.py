"""`make tiles`: which tile a row of the table gets, and what becomes of the other rows."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from cgm_fast.ops import backends

if backends.availability()["triton"] is not None:
    pytest.skip(backends.availability()["triton"], allow_module_level=True)

import triton

from cgm_fast.ops.triton import tiles as triton_tiles

if not triton_tiles.PIPELINES:
    pytest.skip("triton 3.2 compiles by another interface", allow_module_level=True)

sys.path.append(str(Path(__file__).parents[2]))

from tools.kernels import tiles


@pytest.mark.parametrize("kernel", tiles.KERNELS)
def test_the_first_candidate_that_fits_is_taken(kernel, monkeypatch):
    key = triton_tiles.Key(kernel, "float32", 32, "gfx942")
    candidates = list(tiles.candidates(key))
    monkeypatch.setattr(tiles, "fits", lambda key, blocks: blocks in candidates[4:7])
    assert tiles.choose(key) == (candidates[4], "compiled")
    monkeypatch.setattr(tiles, "fits", lambda key, blocks: False)
    assert tiles.choose(key) is None


def test_rows_of_devices_that_were_not_named_are_kept(tmp_path, monkeypatch):
    table = tmp_path / "tiles.csv"
    table.write_bytes(triton_tiles.TABLE.read_bytes())
    blocks = triton_tiles.Blocks(64, 32, 16, 16, 8, 1)
    monkeypatch.setattr(tiles, "TABLE", table)
    monkeypatch.setattr(tiles, "choose", lambda key: (blocks, "compiled"))
    monkeypatch.setattr(sys, "argv", ["tiles", "90"])
    commands = []
    monkeypatch.setattr(tiles.subprocess, "run", lambda words, check: commands.append(words[1:]))
    tiles.main()
    assert commands == [["-m", "tools.kernels.compiled", "--record"]]
    with triton_tiles.TABLE.open(newline="") as before, table.open(newline="") as after:
        before, after = list(csv.DictReader(before)), list(csv.DictReader(after))
    version = ".".join(triton.__version__.split(".")[:2])

    def is_new(row):
        return row["device"] == "9.0" and row["triton"] == version

    assert [row for row in after if not is_new(row)] == [row for row in before if not is_new(row)]
    new = [row for row in after if is_new(row)]
    assert len(new) >= sum(map(is_new, before)) > 0
    tile = tuple(str(part) for part in blocks)
    assert {tuple(row[name] for name in triton_tiles.OF_TILES) for row in new} == {tile}


@pytest.mark.parametrize(
    ("version", "rows"),
    [("3.5.1", 32), ("3.6.0", 32), ("3.7.2", 32), ("3.8.0", 64), ("3.10.0", 64)],
)
def test_a_version_takes_its_rows_or_those_of_the_one_before(version, rows, tmp_path, monkeypatch):
    path = tmp_path / "tiles.csv"
    path.write_text(
        ",".join(tiles.COLUMNS) + "\n"
        "mmd_fwd,half,16,9.0,64,32,16,16,8,3,2,3.8,compiled\n"
        "mmd_fwd,half,16,9.0,32,32,16,16,4,3,1,3.6,compiled\n"
    )
    monkeypatch.setattr(triton_tiles.triton, "__version__", version)
    key = triton_tiles.Key("mmd_fwd", "half", 16, "9.0")
    assert triton_tiles.table(path)[key].rows == rows


def test_registers_are_limited_for_the_programs_that_are_counted_on(monkeypatch):
    blocks = triton_tiles.Blocks(128, 32, 16, 16, 8, 3, 2)
    monkeypatch.setattr(triton_tiles.torch.version, "hip", None)
    assert blocks.options(torch.device("cuda"))["maxnreg"] == 128
    assert "maxnreg" not in blocks.options(torch.device("cpu"))
    assert "maxnreg" not in blocks._replace(programs=1).options(torch.device("cuda"))
    assert blocks._replace(warps=4, programs=3).most_registers == 168
