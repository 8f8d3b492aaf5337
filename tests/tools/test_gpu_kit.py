"""What tools/gpu carries, installs, checks and collects, on a machine without a GPU."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools" / "gpu"


@pytest.fixture(scope="module")
def tools():
    """A module of tools/gpu by its name; they are scripts, which find one another beside them."""
    sys.path.insert(0, str(TOOLS))
    yield importlib.import_module
    sys.path.remove(str(TOOLS))


def run(*command, env=None, cwd=ROOT):
    """A command that must succeed, and what it printed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=cwd,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


# The smoke test

OPS = ("mmd", "prototype_margin", "cgm_loss", "kernel_product")


def test_the_smoke_test_finds_every_case_right(tools):
    """By the reference, on the CPU; the long ones are left to a GPU."""
    cases = tools("cases")
    every = [case for op in OPS for case in cases.of(op, False)]
    assert len(every) >= 50
    assert {case.op for case in every} == set(OPS)
    for case in every:
        if case.sizes[0] * case.sizes[1] * case.sizes[2] < 5e5:
            found = cases.check(case, "reference", "cpu", "highest")
            assert found["ok"], (str(case), found)


@pytest.mark.parametrize("op", OPS)
def test_the_smoke_test_finds_a_result_that_is_wrong(op, tools, monkeypatch):
    cases = tools("cases")
    case = cases.of(op, small=True)[0]
    right = getattr(cgm_fast, op)

    def wrong(*args, **options):
        result = right(*args, **options)
        if isinstance(result, torch.Tensor):
            return result * 1.01
        return SimpleNamespace(loss=result.loss * 1.01)

    monkeypatch.setattr(cgm_fast, op, wrong)
    found = cases.check(case, "reference", "cpu", "highest")
    assert not found["ok"]
    assert found["repeats"]
    assert found["gradient_error"] > 5e-3


def test_the_smoke_test_finds_a_result_that_changes_and_a_nan(tools, monkeypatch):
    cases = tools("cases")
    case = cases.of("mmd", small=True)[0]
    right, calls = cgm_fast.mmd, []

    def changing(*args, **options):
        calls.append(1)
        return right(*args, **options) * (1 + 1e-9 * torch.tensor(len(calls), dtype=torch.float64))

    monkeypatch.setattr(cgm_fast, "mmd", changing)
    assert cases.check(case, "reference", "cpu", "highest")["repeats"] is False
    monkeypatch.setattr(cgm_fast, "mmd", lambda *a, **o: right(*a, **o) * torch.nan)
    found = cases.check(case, "reference", "cpu", "highest")
    assert (found["ok"], found["repeats"]) == (False, True)


def test_the_smoke_test_on_stand_ins(tmp_path):
    """Processes side by side, a file of rows, a summary; by the emulated kernels."""
    if reason := backends.availability()["cuda"]:
        pytest.skip(reason)
    rows = tmp_path / "smoke.jsonl"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = run(
        sys.executable, "-P", TOOLS / "smoke.py", "--backend", "cuda", "--op", "prototype_margin",
        "--op", "mmd", "--precision", "highest", "--small", "--device", device, "--rows", rows,
    )  # fmt: skip
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(found) == 7
    assert all(row["ok"] for row in found)
    assert "cuda mmd highest: 5 right" in out


def test_a_smoke_test_that_cannot_begin_is_a_failure(tmp_path):
    command = [
        sys.executable, "-P", TOOLS / "smoke.py", "--backend", "cuda", "--op", "mmd", "--precision",
        "high", "--small", "--device", "no-such-device", "--rows", tmp_path / "smoke.jsonl",
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 1
    assert "BAD" in done.stdout
    assert "cuda mmd high: 5 WRONG" in done.stdout


# What is carried, and installed there


def test_the_sources_of_a_kit_are_told_from_others(tools, tmp_path):
    fingerprint = tools("sources").fingerprint
    for root in ("a", "b"):
        (tmp_path / root / "cgm_fast" / "__pycache__").mkdir(parents=True)
        (tmp_path / root / "cgm_fast" / "x.py").write_text("1")
        (tmp_path / root / "csrc").mkdir()
    (tmp_path / "b" / "cgm_fast" / "__pycache__" / "x.pyc").write_bytes(b"anything")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    (tmp_path / "b" / "csrc" / "y.cu").write_text("")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_of_a_triton_cache_only_what_a_launch_needs_is_carried(tools, tmp_path):
    cache, kit = tmp_path / "cache" / "KEY", tmp_path / "kit"
    cache.mkdir(parents=True)
    kit.mkdir()
    for name in ("k.cubin", "k.ptx", "k.ttir", "k.json", "__grp__k.json", "launcher.so"):
        (cache / name).write_text(name)
    tools("pack").archive_cache(cache.parent, kit / tools("install").CACHE)
    with tarfile.open(kit / tools("install").CACHE) as tar:
        assert sorted(tar.getnames()) == [
            "KEY/__grp__k.json", "KEY/k.cubin", "KEY/k.json", "KEY/launcher.so",
        ]  # fmt: skip


def test_a_launcher_that_does_not_load_is_dropped(tools, tmp_path, capsys):
    """A library of another system; Triton would fail at it, and compiles what is missing."""
    install, kit, cache = tools("install"), tmp_path / "kit", tmp_path / "cache"
    kit.mkdir()
    source = tmp_path / "source"
    source.mkdir()
    (source / "k.cubin").write_bytes(b"")
    (source / "launcher.so").write_bytes(b"no library")
    tools("pack").archive_cache(source, kit / install.CACHE)
    install.unpack_triton(kit, cache)
    assert [path.name for path in cache.iterdir()] == ["k.cubin"]
    assert "1 kernels, 1 launchers do not load" in capsys.readouterr().out
    install.unpack_triton(tmp_path, cache)
    assert "no Triton cache" in capsys.readouterr().out


def test_what_a_kit_was_packed_for_is_compared_with_what_is_here(tools, tmp_path, capsys):
    install = tools("install")
    install.compare(tmp_path)
    assert "no kit in" in capsys.readouterr().out
    here = {"python": sys.version.split()[0], "torch": version("torch")}
    manifest = {"versions": here, "sources": tools("sources").fingerprint(ROOT)}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    install.compare(tmp_path)
    assert capsys.readouterr().out == ""
    other = {"versions": here | {"torch": "1.0", "no-such-package": "2"}, "sources": "0"}
    (tmp_path / "manifest.json").write_text(json.dumps(other))
    install.compare(tmp_path)
    out = capsys.readouterr().out
    assert "packed for torch 1.0, here is " in out
    assert "packed for no-such-package 2, here is none" in out
    assert "other sources" in out


@pytest.mark.parametrize("packed", [True, False])
def test_setup_takes_the_wheel_or_builds(packed, tools, tmp_path, monkeypatch, capsys):
    install = tools("install")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(install, "describe", lambda: None)
    (tmp_path / "kit").mkdir()
    for name in ("a.whl", "b.whl"):
        (tmp_path / "kit" / name).touch()
    calls, usable = [], [packed, True]

    def pip(site, *words, env=None):
        calls.append(words)
        assert env is None or env["PYTHONPATH"] == str(site)  # where the kit's build packages are
        return True

    monkeypatch.setattr(install, "pip", pip)
    monkeypatch.setattr(install, "works", lambda site: usable.pop(0))
    assert install.main(tmp_path / "kit", tmp_path / "site") == 0
    index, *wheels = calls[0]
    assert (index, [Path(wheel).name for wheel in wheels]) == ("--no-index", ["a.whl", "b.whl"])
    assert [words[-1] for words in calls[1:]] == ([] if packed else [str(ROOT)])


def test_a_wheel_that_does_not_fit_leaves_the_others(tools, tmp_path, monkeypatch, capsys):
    install, installed = tools("install"), []
    for name in ("a.whl", "b.whl", "c.whl"):
        (tmp_path / name).touch()

    def pip(site, *words):
        names = [Path(word).name for word in words[1:]]
        installed.extend(names if "b.whl" not in names else [])
        return "b.whl" not in names

    monkeypatch.setattr(install, "pip", pip)
    install.install_wheels(tmp_path, tmp_path)
    assert installed == ["a.whl", "c.whl"]
    assert capsys.readouterr().out == "not installed: b.whl\n"


def test_a_kit_that_is_too_large_is_refused(tools, tmp_path, capsys, monkeypatch):
    pack = tools("pack")
    (tmp_path / "a.whl").write_bytes(bytes(1000))
    assert pack.report_size(tmp_path) == 0
    monkeypatch.setattr(pack, "MOST_BYTES", 999)
    assert pack.report_size(tmp_path) == 1
    assert "0 MB, allowed 0" in capsys.readouterr().err


def test_the_stub_driver_compiles_and_launches_into_nothing(tools, tmp_path):
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler")
    import ctypes

    library = ctypes.CDLL(str(tools("triton_cache").compile_stub(tmp_path)))
    value = ctypes.c_int()
    assert library.cuDeviceGetAttribute(ctypes.byref(value), 75, 0) == 0
    assert value.value == 9
    launches = ctypes.c_long.in_dll(library, "cgm_fast_launches")
    assert library.cuLaunchKernel(None, 1, 1, 1, 1, 1, 1, 0, None, None, None) == 0
    assert launches.value == 1


# Results


def test_rows_are_there_as_soon_as_they_are_measured(tmp_path):
    """Each session says what it ran on; a session that skips all is none, and no error."""
    rows = tmp_path / "rows.jsonl"
    bench = (
        sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "benchmarks",
        "--benchmark-only", "--benchmark-max-time=0.01", "--device=cpu", f"--rows={rows}",
        "--commit=c0ffee+changes", "-k",
    )  # fmt: skip
    run(*bench, "test_a_small_call and reference-cpu", cwd=tmp_path)
    run(*bench, "test_a_small_call and trivial-cpu", "--stop-after=-1", cwd=tmp_path)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert ["machine_info" in line for line in found] == [True, False, False]
    assert found[0]["commit_info"]["dirty"] is True
    out = run(sys.executable, "-m", "benchmarks.report", rows)
    assert "commit c0ffee+changes" in out
    assert "| n=2 d=2, forward | reference |" in out


@pytest.fixture
def results(tmp_path):
    """What a run leaves, of which the last benchmark was ended amid its row."""
    header = {
        "machine_info": {"devices": {"cuda": "Some GPU"}, "versions": {}, "gpu": None},
        "commit_info": {"id": "unversioned", "dirty": False},
        "datetime": "2030-01-02T03:04:05",
    }
    info = {
        "op": "small_call", "shape": {"n": 2}, "peer": "cuda", "ours": True, "device": "cuda",
        "dtype": "float32", "threads": 4,
    }  # fmt: skip
    row = {"name": "a", "extra_info": info, "stats": {"data": [0.5]}}
    text = json.dumps(header) + "\n" + json.dumps(row) + "\n" + json.dumps(row)[:50]
    (tmp_path / "rows.jsonl").write_text(text)
    stages = [
        {"at": 0.1, "header": {"commit": "0123456789abcdef", "dirty": True}},
        {"at": 9.0, "stage": "smoke", "outcome": "exit 1 in 9 s", "status": 1},
    ]
    (tmp_path / "stages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in stages))
    cases = [{"case": "1x2x3 f32", "ok": False}, {"case": "64x64x10 f32", "ok": True}]
    (tmp_path / "smoke.jsonl").write_text("".join(json.dumps(line) + "\n" for line in cases))
    (tmp_path / "ceilings.json").write_text('{"copy_TB_s": 3.0}')
    return tmp_path


def test_what_a_run_found_becomes_rows_of_the_kits_commit(results, tools, monkeypatch, capsys):
    collect = tools("collect")
    monkeypatch.setattr(collect.report, "HERE", results)
    collect.main([str(results)])
    out = capsys.readouterr().out
    assert "smoke            exit 1 in 9 s" in out
    assert '"copy_TB_s": 3.0' in out
    assert "smoke: 1 of 2 cases right" in out
    assert "1x2x3 f32" in out
    written = (results / "results" / "some-gpu.csv").read_text().splitlines()
    assert len(written) == 2
    assert "0123456789ab+changes" in written[1]


def test_rows_of_no_known_commit_are_not_written(results, tools, monkeypatch):
    collect = tools("collect")
    monkeypatch.setattr(collect.report, "HERE", results)
    (results / "stages.jsonl").write_text('{"header": {"commit": null}}\n')
    with pytest.raises(SystemExit, match="no known commit; name it with --commit"):
        collect.main([str(results)])
    assert not (results / "results").exists()
    with pytest.raises(SystemExit, match="a commit is hexadecimal"):
        collect.main([str(results), "--commit", "main"])
    collect.main([str(results), "--commit", "c0ffee"])
    assert "c0ffee" in (results / "results" / "some-gpu.csv").read_text()


def test_a_folder_that_no_run_wrote_is_refused(tools, tmp_path):
    with pytest.raises(SystemExit, match="no run wrote it"):
        tools("collect").main([str(tmp_path)])
