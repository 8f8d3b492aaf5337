"""The tools start processes, which are not workers of the tests."""

import pytest


@pytest.fixture(autouse=True)
def no_worker(monkeypatch):
    """pytest-benchmark refuses to measure in a worker of xdist, which the environment tells it."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
