"""Options, where the results go, and what they were measured on."""

import sys
from pathlib import Path

import pytest

# For `import benchmarks`; at the end, so that the cgm_fast that is installed is the one measured.
ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

import torch  # noqa: E402

from benchmarks import machine  # noqa: E402
from benchmarks.measure import Limits  # noqa: E402

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


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if config.option.benchmark_json is None:
        LAST.parent.mkdir(exist_ok=True)
        config.option.benchmark_json = LAST
    if not config.option.benchmark_disable:
        machine.cpu_limits()  # before the peers' threads are there


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(machine.info())


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
