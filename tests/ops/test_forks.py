"""That a process knows whether it was forked."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

IN_A_CHILD = """
import os, sys
{before}
if os.fork() == 0:
    from cgm_fast.ops.forks import forked
    os._exit(0 if forked() else 1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_process_that_was_started_is_not_forked():
    script = "from cgm_fast.ops.forks import forked; assert not forked()"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize(
    "before",
    [
        "from cgm_fast.ops.forks import forked; assert not forked()",
        pytest.param(
            "",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux alone keeps it"),
        ),
    ],
    ids=["imported_before", "imported_after"],
)
def test_a_child_is(before):
    script = IN_A_CHILD.format(before=before)
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
