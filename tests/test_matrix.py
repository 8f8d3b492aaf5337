"""`make matrix`: a pair that cannot be had or fails is a row of the table, and the others go on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))

from tools import matrix

RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_an_interpreter_is_one_that_runs_and_of_the_version(tmp_path, monkeypatch):
    path = matrix.interpreter(RUNNING)
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    assert subprocess.check_output([path, "-c", code], text=True).strip() == RUNNING
    shim = tmp_path / "python3.99"  # what pyenv leaves on the PATH for a version that is not active
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(matrix.Failed, match=r"no Python 3\.99 here"):
        matrix.interpreter("3.99")


def test_the_workflow_reads_the_pairs_from_the_script(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["matrix", "--list"])
    assert matrix.main() == 0
    assert json.loads(capsys.readouterr().out) == list(matrix.PAIRS)
    assert {pair.split(":")[0] for pair in matrix.PAIRS} >= {"3.10", "3.11", "3.12", "3.13"}
    assert {pair.split(":")[1] for pair in matrix.PAIRS} >= {"2.6", "2.9", "2.11", "newest"}


def run(monkeypatch, folder, *pairs):
    monkeypatch.setattr(sys, "argv", ["matrix", "--folder", str(folder), *pairs])
    return matrix.main()


def test_a_failure_is_a_row_and_the_next_pair_runs(tmp_path, monkeypatch, capsys):
    def install(pair, folder, log):
        if pair.endswith("2.6"):
            raise matrix.Failed("cannot be installed: no such release")
        return Path(sys.executable)

    def smoke(python, work, log):
        assert work.is_dir()

    monkeypatch.setattr(matrix, "install", install)
    monkeypatch.setattr(matrix, "smoke", smoke)
    monkeypatch.setattr(matrix, "tests", lambda python, log: "3 passed in 1.00s")
    assert run(monkeypatch, tmp_path, "3.10:2.6", f"{RUNNING}:newest") == 1
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0] == "| 3.10 | 2.6 |  |  | **cannot be installed: no such release** |"
    assert rows[1].startswith(f"| {RUNNING}.")
    assert rows[1].endswith("| 3 passed in 1.00s |")
    assert run(monkeypatch, tmp_path, f"{RUNNING}:newest") == 0


@pytest.mark.parametrize(
    ("body", "closing"),
    [("assert True", "1 passed in "), ("assert False", "1 failed in "), ("1 +", "1 error")],
)
def test_the_closing_line_of_the_tests_is_the_cell(body, closing, tmp_path, monkeypatch):
    test = tmp_path / "test_it.py"
    test.write_text(f"def test_it():\n    {body}\n")
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "TESTS", (str(test),))
    if "passed" in closing:
        assert matrix.tests(Path(sys.executable), tmp_path / "log").startswith(closing)
        return
    with pytest.raises(matrix.Failed) as found:
        matrix.tests(Path(sys.executable), tmp_path / "log")
    assert str(found.value).startswith(closing)
    assert "test_it.py" in (tmp_path / "log").read_text()


def test_a_pair_is_python_and_torch(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "2.9")
    assert "a pair is PYTHON:TORCH" in capsys.readouterr().err
