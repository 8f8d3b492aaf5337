"""The CPU kernels, forks and signals: what a call does to its process, and the other way round."""

import signal
import subprocess
import sys
import time

import pytest

from cgm_fast.ops import backends

reason = backends.availability()["native"]
pytestmark = [
    pytest.mark.skipif(reason is not None, reason=f"native: {reason}"),
    pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGINT are Unix's"),
]

# A child of a process whose OpenMP run-time has threads; they do not come along, and the run-time
# waits for them for ever. `call` runs on several threads.
FORK = """
import os, sys, signal
import torch

def parallel():
    torch.set_num_threads(2)
    torch.randn(2000, 2000) @ torch.randn(2000, 2000)
    torch.randn(1 << 22).exp_().sum()

def call():
    import cgm_fast
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1500, 10, generator=generator) for _ in range(2))
    return cgm_fast.mmd(x, y, backend="native").item()

def fork(then):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        then()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, "the child hung or failed"

{body}
print(call())
"""
ORDERS = {
    "first_call_in_the_child": "import cgm_fast; parallel(); fork(call)",
    "module_loaded_in_the_child": "parallel(); fork(call)",
    "called_before": "call(); parallel(); fork(call)",
    "grandchild": "parallel(); fork(lambda: fork(call))",
    "child_after_its_own_call": "parallel(); call(); fork(lambda: (call(), fork(call)))",
    "no_parallel_work_before": "fork(call)",
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_forked_child_computes(order):
    script = FORK.format(body=ORDERS[order])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


# Seconds of work, interrupted soon after it begins.
LONG = """
import signal, sys, time
import torch
import cgm_fast

torch.set_num_threads({threads})
{setup}
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a shell's & has left ignored
print("begun", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
    # The module goes on working.
    x = torch.randn(300, 10)
    assert 0 < float(cgm_fast.mmd(x, x + 1, backend="native")) < 2
    print("works", flush=True)
"""
CALLS = {
    "mmd": ("x = torch.randn(200_000, 10)", "cgm_fast.mmd(x, x + 1, backend='native')"),
    "mmd_of_a_batch": (
        "x = torch.randn(4, 100_000, 10)",
        "cgm_fast.mmd(x, x + 1, backend='native')",
    ),
    "mmd_hvp": (
        "x = torch.randn(60_000, 10); n = len(x)",
        "torch.ops.cgm_fast.mmd_hvp(x, x + 1, None, None, None, [n, n], [1 / n**2] * 4, [10.0],"
        " [1.0], 'gaussian', False, torch.randn(2 * n, 10), None, None, None, 0, 2 * n, False,"
        " False, False, 'native')",
    ),
    "prototype_margin": (
        "r, g = torch.randn(400_000, 64), torch.randn(5_000, 64)",
        "cgm_fast.prototype_margin(r, g, backend='native')",
    ),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", CALLS)
def test_a_long_call_is_interrupted(call, threads):
    setup, long_call = CALLS[call]
    script = LONG.format(threads=threads, setup=setup, call=long_call)
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        interrupt(child)


def interrupt(child):
    try:
        assert child.stdout.readline() == "begun\n", child.stderr.read()
        time.sleep(0.5)
        assert child.poll() is None, "the work was too little"
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted\n", child.stderr.read()
        assert time.monotonic() - sent < 5  # a twentieth of a second, on an idle machine
        assert child.stdout.readline() == "works\n", child.stderr.read()
        assert child.wait(timeout=60) == 0
    finally:
        child.kill()


def test_a_signal_whose_handler_returns_changes_nothing():
    script = """
import signal, torch, cgm_fast
calls = []
signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
generator = torch.Generator().manual_seed(0)
x, y = (torch.randn(8000, 10, generator=generator) for _ in range(2))
expected = cgm_fast.mmd(x, y, backend="native")
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
again = cgm_fast.mmd(x, y, backend="native")
signal.setitimer(signal.ITIMER_REAL, 0)
assert calls and torch.equal(again, expected)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
