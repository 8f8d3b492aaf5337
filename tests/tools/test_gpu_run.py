"""tools/gpu rehearsed: stages that fail or hang leave the others going and their results there."""

import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools" / "gpu"

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="processes are seen in /proc")


@pytest.fixture(scope="module")
def tools():
    """A module of tools/gpu by its name; they are scripts, which find one another beside them."""
    sys.path.insert(0, str(TOOLS))
    yield importlib.import_module
    sys.path.remove(str(TOOLS))


def members(group):
    """Processes of a group; one that was killed and that nobody has asked for does not count."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = path.read_text().rpartition(")")
        except OSError:  # gone meanwhile
            continue
        state, _, of_group = rest.split()[:3]
        if int(of_group) == group and state != "Z":
            found.append(path.parent.name)
    return found


def test_a_command_that_ends(tools, tmp_path):
    log = tmp_path / "log"
    found = tools("bounded").run(["sh", "-c", "echo out; echo err >&2; exit 3"], 20, log)
    assert (found.status, found.late) == (3, False)
    assert sorted(found.tail) == ["err", "out"]
    assert sorted(log.read_text().split()) == ["err", "out"]
    assert str(found) == "exit 3 in 0 s"


def test_a_command_that_is_not_there(tools, tmp_path):
    found = tools("bounded").run(["no-such-program"], 20, tmp_path / "log")
    assert found.status == 127
    assert "no-such-program" in (tmp_path / "log").read_text()


def test_a_command_that_hangs_is_stopped_with_all_that_it_started(tools, tmp_path):
    # It ignores Ctrl-C, and so does its child, which holds the pipe open.
    command = "trap '' INT; echo $$; sleep 300 & wait; sleep 300"
    start = time.monotonic()
    found = tools("bounded").run(["sh", "-c", command], 0.5, tmp_path / "log", grace=0.5)
    assert time.monotonic() - start < 10
    assert found.late
    assert found.status < 0
    assert not members(int(found.tail[0]))


def test_a_command_may_say_what_it_knows_when_interrupted(tools, tmp_path):
    command = "trap 'echo summary; exit 0' INT; while :; do sleep 0.05; done"
    found = tools("bounded").run(["sh", "-c", command], 0.5, tmp_path / "log", grace=20)
    assert found.late
    assert found.tail[-1] == "summary"


def test_a_log_has_a_limit_and_the_tail_its_end(tools, tmp_path, monkeypatch):
    bounded = tools("bounded")
    monkeypatch.setattr(bounded, "MOST_BYTES", 1000)
    found = bounded.run(["seq", "100000"], 20, tmp_path / "log")
    assert found.tail[-1] == "100000"
    assert (tmp_path / "log").stat().st_size < 1100


FAKE = """#!/bin/sh
# In place of an interpreter or a tool: as long, and with the status, that the stage is to have.
case "$*" in
{names}
esac
echo "this is $name"
echo "$name" >>"{seen}"
case " $HANGING " in *" $name "*) sleep 300 ;; esac
case " $FAILING " in *" $name "*) exit 7 ;; esac
exit 0
"""


@pytest.fixture
def rehearse(tools, tmp_path, monkeypatch):
    """Runs all stages with commands that do nothing but what they are told to; returns what came.

    Their programs are found on the PATH, as the real ones are.
    """
    run, stages = tools("run"), tools("stages")
    fakes, out = tmp_path / "bin", tmp_path / "out"
    fakes.mkdir()
    monkeypatch.setenv("PATH", f"{fakes}:{os.environ['PATH']}")
    monkeypatch.setattr(tools("bounded"), "GRACE", 0.5)
    monkeypatch.setattr(run, "LEAST", 0.5)

    def rehearsal(seconds, *arguments, failing="", hanging="", scale=0.02):
        monkeypatch.setenv("FAILING", failing)
        monkeypatch.setenv("HANGING", hanging)
        kit, site = tmp_path / "kit", tmp_path / "site"
        python = str(fakes / "python")
        plan = stages.plan(
            out=out, kit=kit, site=site, python=python, device="cuda", commit=None, scale=scale
        )
        lines = [f"{shlex.quote(' '.join(s.command[1:]))}) name={s.name} ;;" for s in plan]
        text = FAKE.format(names="\n".join(lines), seen=fakes / "seen")
        for name in ("python", "ncu", "compute-sanitizer"):
            (fakes / name).write_text(text)
            (fakes / name).chmod(0o755)
        status = run.main(
            [str(seconds), "--out", str(out), "--kit", str(kit), "--site", str(site),
             "--python", python, "--scale", str(scale), *arguments]
        )  # fmt: skip
        rows = [json.loads(line) for line in (out / "stages.jsonl").read_text().splitlines()]
        seen = fakes / "seen"
        return status, rows[1:], seen.read_text().split() if seen.exists() else []

    return rehearsal


def test_all_stages_run_in_their_order(rehearse, tools, tmp_path, capsys):
    status, rows, seen = rehearse(100)
    names = list(tools("stages").NAMES)
    assert (status, seen, [row["stage"] for row in rows]) == (0, names, names)
    assert {row["status"] for row in rows} == {0}
    assert "this is bench-mmd" in (tmp_path / "out" / "log.txt").read_text()
    assert "this is smoke" in capsys.readouterr().out


@pytest.mark.parametrize("first", [0, 1])
def test_a_stage_that_fails_leaves_the_others(first, rehearse, tools):
    names = tools("stages").NAMES
    failing = names[first::2]
    status, rows, seen = rehearse(100, failing=" ".join(failing))
    assert (status, seen) == (1, list(names))
    assert {row["stage"]: row["status"] for row in rows} == {n: 7 * (n in failing) for n in names}


def test_stages_that_hang_leave_the_others(rehearse, tools):
    hanging = ("setup", "smoke", "memcheck")
    status, rows, seen = rehearse(100, hanging=" ".join(hanging), scale=0.015)
    assert status == 1
    assert seen == list(tools("stages").NAMES)
    assert [row["stage"] for row in rows if row["late"]] == list(hanging)
    assert all(row["status"] == 0 for row in rows if not row["late"])


def test_a_run_ends_in_its_time(rehearse, monkeypatch, tools):
    monkeypatch.setattr(tools("run"), "RESERVE", 0.5)
    start = time.monotonic()
    status, rows, seen = rehearse(4, hanging="ceilings", scale=1)
    assert time.monotonic() - start < 8
    assert seen == ["setup", "ceilings"]
    assert {row["outcome"] for row in rows[2:]} == {"skipped: no time left"}
    assert status == 1


def test_a_tool_that_is_not_there_is_skipped_by_name(rehearse, tools, monkeypatch):
    monkeypatch.setattr(tools("run").shutil, "which", lambda name, path: None)
    status, rows, seen = rehearse(100)
    skipped = {row["stage"]: row["outcome"] for row in rows if row["status"] is None}
    assert skipped == {
        "counters": "skipped: no ncu here",
        "memcheck": "skipped: no compute-sanitizer here",
        "racecheck": "skipped: no compute-sanitizer here",
    }
    assert status == 0
    assert len(seen) == len(rows) - 3


def test_some_stages_only(rehearse, capsys):
    assert rehearse(100, "--stages", "tests,setup")[2] == ["setup", "tests"]
    with pytest.raises(SystemExit):
        rehearse(100, "--stages", "tests,nonsense")
    assert "no stage 'nonsense'; there are setup, ceilings" in capsys.readouterr().err


def test_a_run_that_is_told_to_end_takes_its_stage_along(tmp_path):
    """As the whole run is, when a machine's time is over."""
    started = tmp_path / "started"
    fake = tmp_path / "python"
    lines = ("#!/bin/sh", "trap '' INT", f"echo $$ >{started}.part", f"mv {started}.part {started}",
             "echo begun", "sleep 300", "")  # fmt: skip
    fake.write_text("\n".join(lines))
    fake.chmod(0o755)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, TOOLS / "run.py", "100", "--out", out, "--python", fake],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(300):
        if started.exists():
            break
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) != 0
    assert not members(int(started.read_text()))
    assert "begun" in (out / "log.txt").read_text()


# Collects for each expression what pytest would if there were a GPU.
AS_IF = """
import contextlib, io, json, sys
import pytest
from benchmarks import machine
machine.DEVICES = ("cpu", "cuda")
found = {}
for name, words in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = pytest.main([*words, "--collect-only"])
    lines = [line.rpartition("::")[2] for line in out.getvalue().splitlines() if "::" in line]
    found[name] = lines if status == 0 else out.getvalue()
print(json.dumps(found))
"""


def test_every_stage_of_benchmarks_measures_something_and_no_case_twice(tools, tmp_path):
    plan = tools("stages").plan(
        out=tmp_path, kit=tmp_path, site=tmp_path, python=sys.executable, device="cuda", commit=None
    )
    commands = {
        stage.name: stage.command[stage.command.index("pytest") + 1 :]
        for stage in plan
        if stage.name.startswith("bench")
    }
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", AS_IF, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    every = [case for cases in found.values() for case in cases]
    assert len(every) == len(set(every)), sorted({c for c in every if every.count(c) > 1})
    for name, cases in found.items():
        assert 5 <= len(cases) <= 160, (name, len(cases), cases)
        assert not [case for case in cases if "cpu" in case]
    for case in (
        "test_mmd[n64-d10-cuda-cuda]", "test_mmd[n10000-d10-triton-cuda]",
        "test_mmd[n65536-d300-cuda-cuda]",
        "test_mmd[n16384-d2048-cuda-cuda]", "test_mmd[n65536-d64-cuda-cuda]",
        "test_mmd[n16384-d64-compile-cuda]", "test_mmd[n1024-d768-eager-cuda]",
        "test_mmd[n4096-d10-reference-cuda]", "test_mmd[n16384-d10-sdpa-cuda]",
        "test_mmd_bandwidths[n16384-d64-cuda-cuda]", "test_cgm_loss[b1024-k10-d10-cuda-cuda]",
        "test_cgm_loss_collapsed[b64-k10-d10-triton-cuda]", "test_train_step[cuda-graph-cuda]",
        "test_prototype_margin[b16384-k1000-d64-flash-kmeans-cuda]",
        "test_kernel_product[n16384-d64-p64-triton-cuda]",
        "test_kernel_product[n1024-d10-p1-compile-cuda]",
        "test_prototype_margin[b65536-k100-d10-cuda-cuda]", "test_train_step[cuda-compile-cuda]",
    ):  # fmt: skip
        assert case in every
