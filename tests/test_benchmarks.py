"""The parts of benchmarks/ that can be wrong without anyone noticing: oracles, limits, report."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks import cases, floors, measure, report  # noqa: E402
from cgm_fast.testing import (  # noqa: E402
    derivatives,
    mmd_formula,
    mmd_total,
    prototype_margin_formula,
    relative_l2,
    samples,
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(cases, "BLOCK_BYTES", 4096)


def test_the_mmd_oracle_is_the_formula():
    x, y = samples(37, 45, 3)
    oracle = cases.mmd_oracle(x, y)
    sigma = [math.sqrt(3)]
    inputs = (x.double(), y.double())
    value, gradients, _ = derivatives(lambda x, y: mmd_formula(x, y, sigma=sigma), inputs, order=1)
    assert oracle.loss == pytest.approx(float(value), rel=1e-12)
    assert oracle.magnitude == pytest.approx(float(mmd_total(x, y, sigma=sigma)), rel=1e-12)
    for part, expected in zip(oracle.gradients, gradients, strict=True):
        assert relative_l2(part, expected) < 1e-12


def test_the_margin_oracle_is_the_formula():
    r, g = cases.clear_prototypes(61, 7, 5)
    oracle = cases.margin_oracle(r, g)
    inputs = (r.double(), g.double())
    value, gradients, _ = derivatives(
        lambda r, g: prototype_margin_formula(r, g)[0], inputs, order=1
    )
    assert oracle.loss == pytest.approx(float(value), rel=1e-12)
    assert oracle.assignment.equal(prototype_margin_formula(r, g)[1])
    for part, expected in zip(oracle.gradients, gradients, strict=True):
        assert relative_l2(part, expected) < 1e-12
    distance = torch.cdist(r.double(), g.double()).square()
    assert oracle.active == 61 + int((distance < 1).sum()) - int((distance.amin(1) < 1).sum())
    assert float((distance - 1).abs().min()) > 1e-5


def test_work_adds_up():
    assert floors.mmd(10, 3) == (2 * 3 * 400, 400, 2 * 4 * 60)
    of_bytes = 2 * 4 * (10 + 2) * 3 + 8 * 10 + 4 * 2 * 10 * 3
    assert floors.cgm_loss(10, 2, 3, 5) == (2 * 3 * 400 + 3 * (20 + 10), 400, of_bytes)
    assert floors.mmd_each_pair_once(10, 3).multiply_adds == 0.75 * floors.mmd(10, 3).multiply_adds
    assert floors.mmd(10, 3).seconds(2400, 400) == 2


def test_a_peer_is_skipped_where_it_would_be_too_slow_or_large():
    limits = measure.Limits(seconds=10, memory=1e9)
    key = ("mmd", "eager", "cpu")
    assert limits.why_skip(key, 1e6, 1e12) is None  # nothing is known
    limits.note(key, work=1e6, pairs=100, seconds=1, memory=1000)
    assert limits.why_skip(key, 9e6, 900) is None
    assert "20 s" in limits.why_skip(key, 2e7, 0)
    assert "2.0 GB" in limits.why_skip(key, 2e6, 2e8)
    assert limits.why_skip(("mmd", "other", "cpu"), 2e7, 2e8) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")
def test_peak_memory_is_that_of_the_call():
    def step():
        return float(torch.ones(25_000_000).sum())

    peak = measure.peak_memory(step, "cpu")
    if peak is None:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    assert 90e6 < peak < 130e6


def entry(peer, milliseconds, *, n=64, ours=False):
    info = {
        "op": "mmd", "shape": {"n": n, "d": 10}, "peer": peer, "ours": ours, "device": "cpu",
        "dtype": "float32", "threads": 2, "work": floors.mmd(n, 10)._asdict(),
        "errors": {"loss": 1e-7, "gradient": 2e-7}, "peak_bytes": 3_000_000,
    }  # fmt: skip
    times = [1e-3 * milliseconds * factor for factor in (0.9, 1.0, 1.1)]
    return {"name": f"test_mmd[{peer}]", "extra_info": info, "stats": {"data": times}}


def run_file(path, *entries, commit="c0ffee", limits=True):
    rates = {"multiply_adds_per_second": 1e10, "exponentials_per_second": 1e9}
    content = {
        "machine_info": {
            "devices": {"cpu": "Some CPU 9000"},
            "versions": {"torch": "2.9"},
            "compiled_module": {"instruction_set": "avx2"},
            "limits": rates if limits else None,
        },
        "commit_info": {"id": commit, "dirty": False},
        "datetime": "2030-01-02T03:04:05",
        "benchmarks": list(entries),
    }
    path.write_text(json.dumps(content))
    return path


def test_the_table_has_ratios_and_the_share_of_the_limit(tmp_path, capsys):
    path = run_file(tmp_path / "run.json", entry("native", 0.2, ours=True), entry("eager", 0.9))
    report.main([str(path)])
    out = capsys.readouterr().out
    # 128² pairs: 20 multiply-adds at 1e10 and an exponential at 1e9 per second are 0.0492 ms.
    assert "| n=64 d=10 | 0.2 (native) | 25% | 1 | 4.5 |" in out
    assert "| n=64 d=10 | 3, 2e-07 | 3, 2e-07 |" in out
    assert "## Some CPU 9000, 2 threads, avx2" in out


def test_without_a_probe_there_is_no_share(tmp_path, capsys):
    path = run_file(tmp_path / "run.json", entry("native", 0.2, ours=True), limits=False)
    report.main([str(path)])
    assert "| n=64 d=10 | 0.2 (native) |  | 1 |" in capsys.readouterr().out


def test_csv_rows_are_replaced_by_later_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "HERE", tmp_path)
    first = run_file(
        tmp_path / "1.json", entry("native", 0.2, ours=True), entry("eager", 0.9), commit="old"
    )
    second = run_file(tmp_path / "2.json", entry("native", 0.1, ours=True), commit="new")
    report.main([str(first), "--csv"])
    report.main([str(second), "--csv"])
    with (tmp_path / "results" / "some-cpu-9000.csv").open(newline="") as file:
        rows = {row["peer"]: row for row in csv.DictReader(file)}
    assert (rows["native"]["median_ms"], rows["native"]["commit"]) == ("0.1", "new")
    assert (rows["eager"]["median_ms"], rows["eager"]["commit"]) == ("0.9", "old")
    assert rows["native"]["limit_share"] == "0.4915"
    assert rows["native"]["device"] == "Some CPU 9000"


def test_figures_are_drawn_where_there_are_points(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = run_file(
        tmp_path / "run.json",
        *(entry("native", n / 1e3, n=n, ours=True) for n in (64, 256)),
        entry("eager", 0.9),
    )
    report.main([str(path), "--figures", str(tmp_path / "figures")])
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["mmd-time.png"]


def test_a_file_that_is_no_run_is_named(tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"benchmarks": []}')
    with pytest.raises(SystemExit, match=r"other\.json"):
        report.main([str(other)])
    with pytest.raises(SystemExit, match=r"absent\.json"):
        report.main([str(tmp_path / "absent.json")])
