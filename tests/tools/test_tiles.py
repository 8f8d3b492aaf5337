"""`make tiles`: which tile a row of the table gets, and what becomes of the other rows."""

import csv
import sys
from pathlib import Path

import pytest

from cgm_fast.ops import backends

if backends.availability()["triton"] is not None:
    pytest.skip(backends.availability()["triton"], allow_module_level=True)

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
    assert [row for row in after if row["device"] != "9.0"] == [
        row for row in before if row["device"] != "9.0"
    ]
    new = [row for row in after if row["device"] == "9.0"]
    assert len(new) >= sum(row["device"] == "9.0" for row in before)
    assert {tuple(row.values())[4:9] for row in new} == {tuple(str(part) for part in blocks)}
