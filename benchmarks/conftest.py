"""Options, where the results go, and what they were measured on."""

import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

# For `import benchmarks`; at the end, so that the cgm_fast that is installed is the one measured.
ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

import torch  # noqa: E402

from benchmarks import cases, gpu, machine, report  # noqa: E402
from benchmarks.measure import Limits  # noqa: E402

PASSED = pytest.StashKey[bool]()
LAST = Path(__file__).parent / "results" / "last.json"


def pytest_addoption(parser):
    group = parser.getgroup("benchmark")
    group.addoption(
        "--slowest-call",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="Skip a peer where one call would take longer. Default: %(default)s",
    )
    group.addoption(
        "--most-memory",
        type=float,
        default=8.0,
        metavar="GB",
        help="Skip a peer where one call would need more. Default: %(default)s",
    )
    group.addoption(
        "--device",
        choices=["cpu", "cuda"],
        help="Measure on this type of device only. Default: every one that is there",
    )
    group.addoption(
        "--rows",
        type=Path,
        metavar="FILE.jsonl",
        help="Append each result as soon as it is there, in place of a JSON file at the end",
    )
    group.addoption(
        "--commit",
        metavar="ID",
        help="What is measured, where no repository tells; with +changes if it is not all of it",
    )
    group.addoption(
        "--stop-after",
        type=float,
        metavar="SECONDS",
        help="Skip the cases that would start later than this. Default: none",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if (device := config.option.device) and device not in machine.DEVICES:
        raise pytest.UsageError(f"--device {device}: torch finds no such device here")
    if config.option.benchmark_json is None and config.option.rows is None:
        LAST.parent.mkdir(exist_ok=True)
        config.option.benchmark_json = LAST
    if not config.option.benchmark_disable:
        machine.cpu_limits()  # before the peers' threads are there


def pytest_collection_modifyitems(config, items):
    """Only the device asked for, a clock that waits for it, the longest shapes at the end."""
    kept, left_out = [], []
    wanted = config.option.device
    for item in items:
        here = wanted is None or parameter(item, "device") in (None, wanted)
        (kept if here else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    for item in kept:
        if parameter(item, "device") == "cuda":
            item.add_marker(pytest.mark.benchmark(timer=gpu.clock))
    items[:] = sorted(kept, key=lambda item: parameter(item, "shape") in cases.MMD.gpu_last)


def parameter(item, name):
    """What a test case has for a parameter, or None."""
    return item.callspec.params.get(name) if hasattr(item, "callspec") else None


@pytest.fixture(scope="session", autouse=True)
def profiler(pytestconfig):
    options = pytestconfig.option
    if "cuda" in machine.DEVICES and options.device != "cpu" and not options.benchmark_disable:
        gpu.attach_profiler()


@pytest.fixture(scope="session")
def started():
    return time.monotonic()


@pytest.fixture(autouse=True)
def stop(pytestconfig, started):
    """Skip what starts too late: a run that must end, on a machine lent for minutes."""
    longest = pytestconfig.option.stop_after
    if longest is not None and time.monotonic() - started > longest:
        pytest.skip(f"would start after {longest:g} s (--stop-after)")


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(machine.info())


def pytest_benchmark_update_commit_info(config, commit_info):
    if commit := config.option.commit:
        commit_info.update(report.commit_info(commit))


@pytest.fixture(scope="session")
def rows(pytestconfig):
    """Appends a line of the file of --rows, the first time after what it was measured on."""
    path, hook = pytestconfig.option.rows, pytestconfig.hook
    begun = []

    def append(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            if not begun:
                machine_info = hook.pytest_benchmark_generate_machine_info(config=pytestconfig)
                hook.pytest_benchmark_update_machine_info(
                    config=pytestconfig, machine_info=machine_info
                )
                commit = hook.pytest_benchmark_generate_commit_info(config=pytestconfig)
                hook.pytest_benchmark_update_commit_info(config=pytestconfig, commit_info=commit)
                now = datetime.now(timezone.utc).isoformat()
                header = {"machine_info": machine_info, "commit_info": commit, "datetime": now}
                file.write(json.dumps(header, default=str) + "\n")
                begun.append(True)
            file.write(json.dumps(content, default=str) + "\n")

    return append


@pytest.fixture(autouse=True)
def row(request, pytestconfig, rows):
    """Write a measured case down before the next one may end the process."""
    wanted = pytestconfig.option.rows is not None and "benchmark" in request.fixturenames
    measured = request.getfixturevalue("benchmark") if wanted else None
    yield
    stats = getattr(measured, "stats", None)
    if stats is not None and not measured.has_error and request.node.stash.get(PASSED, False):
        rows(stats.as_dict())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """So that a fixture knows how its test ended."""
    result = yield
    if call.when == "call":
        item.stash[PASSED] = result.passed
    return result


@pytest.fixture(scope="session")
def limits(pytestconfig):
    return Limits(pytestconfig.option.slowest_call, 1e9 * pytestconfig.option.most_memory)


@pytest.fixture
def budget(pytestconfig):
    """Seconds for a case and its least number of rounds, from pytest-benchmark's own options."""
    options = pytestconfig.option
    return float(options.benchmark_max_time), options.benchmark_min_rounds


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
