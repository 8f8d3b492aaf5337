"""Whole processes to train in, that signals, limits and faults can be tried on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

# Imports once, then forks a process per request: no second is spent on each child's imports.
SERVER = """
import json, os, signal, sys, time
import safetensors.torch, sklearn.cluster, torch._dynamo, torch.utils.tensorboard
from cgm_fast.cgm.cli import main
for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        end, pid, status = time.monotonic() + request["seconds"], 0, 0
        while pid == 0:
            time.sleep(0.002)
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            if pid == 0 and time.monotonic() > end:
                os.kill(request["wait"], signal.SIGKILL)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(request["environment"])
        exec(request["first"])
        sys.exit(main(request["arguments"]))
    print(pid, flush=True)
"""


@dataclass
class Child:
    """A process that runs `cgm-fast` with some arguments."""

    pid: int
    log: Path
    server: subprocess.Popen
    ended: bool = False

    def signal(self, number):
        os.kill(self.pid, number)

    def wait(self, seconds=60) -> int:
        """Its exit code; minus the number of the signal that killed it, if only after a while."""
        self.ended = True
        return int(_ask(self.server, {"wait": self.pid, "seconds": seconds}))

    def until(self, condition, seconds=60):
        """Wait for something that it brings about."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.005)


def _ask(server, request):
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return server.stdout.readline()


@pytest.fixture(scope="session", autouse=True)
def no_nohup():
    """Under nohup these tests and their processes would ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def server(no_nohup):
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()
        process.wait(timeout=60)


@pytest.fixture
def launch(server, tmp_path):
    """Start `cgm-fast` in a process of its own, after running some Python first."""
    children = []

    def start(*arguments, first="", **environment) -> Child:
        log = tmp_path / f"{len(children)}.log"
        request = {
            "arguments": [str(each) for each in arguments],
            "log": str(log),
            "first": first,
            "environment": environment,
        }
        children.append(Child(int(_ask(server, request)), log, server))
        return children[-1]

    yield start
    for child in children:
        if not child.ended:  # the test failed before it could wait
            child.wait(0)
