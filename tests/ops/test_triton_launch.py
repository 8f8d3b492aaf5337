"""Triton kernels launched by the short way: the compiled kernel that Triton would take, with the
arguments that it would give it. Through Triton's own driver over one that does nothing."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from cgm_fast.ops.triton import remembered

KIT = Path(__file__).parents[2] / "tools" / "gpu"


def run(text, tmp_path):
    """In a process of its own, where nothing is interpreted; Triton wants kernels' source."""
    script = tmp_path / "script.py"
    script.write_text(PRELUDE.format(kit=str(KIT), folder=str(tmp_path)) + text)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


PRELUDE = """
import sys
from pathlib import Path
sys.path.insert(0, {kit!r})
import torch
torch.ones(1, requires_grad=True).sum().backward()  # looks for GPUs before the stub is there
import triton_cache
triton_cache.install_stub(triton_cache.compile_stub(Path({folder!r})))

from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction
from cgm_fast.ops.triton.remembered import Remembering
launches, slow = [], []

def recorded(of):
    def run(grid_0, grid_1, grid_2, stream, function, packed, metadata, enter, leave, *args):
        plain = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args]
        launches.append((of.hash, (grid_0, grid_1, grid_2), stream, packed, plain))
    return run

init = CompiledKernel._init_handles
def handles(self):
    init(self)
    setattr(self, "run" if "run" in vars(self) else "_run", recorded(self))  # before 3.5: run
CompiledKernel._init_handles = handles
run = JITFunction.run
def slowly(self, *args, **given):
    slow.append(self.__name__)
    return run(self, *args, **given)
JITFunction.run = slowly
"""

KEYS = """
import triton, triton.language as tl
from cgm_fast.ops.triton.remembered import jit

def add(x, y, out, n, size, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK) + size
    value = tl.load(x + i, mask=i < n, other=0.0) * FACTOR
    if y is not None:
        value += tl.load(y + i, mask=i < n, other=0.0)
    tl.store(out + i, value, mask=i < n)
add.__module__ = "__main__"
add = jit(add, do_not_specialize=["n"])
assert isinstance(add, Remembering)

x, half = torch.zeros(64), torch.zeros(64, dtype=torch.float16)
base = dict(x=x, y=x, out=x, n=7, size=16, FACTOR=2, BLOCK=64, num_warps=4)
cases = [base] + [base | change for change in (
    dict(n=8), dict(n=16), dict(n=1), dict(n=2**40), dict(size=1), dict(size=5), dict(size=32),
    dict(y=None), dict(x=half), dict(x=x[1:]), dict(out=x[4:]), dict(FACTOR=3), dict(FACTOR=True),
    dict(FACTOR=1), dict(FACTOR=1.0), dict(num_warps=8), dict(size=2**40),
)]
for once in (0, 1):  # and then by the short way
    for case in cases:
        del launches[:]
        run(add, grid=(3,), warmup=False, **case)
        del slow[:]
        add[(3,)](**case)
        asked, given = launches
        assert asked == given, case
        assert once == 0 or not slow, case
names = list(base)[:7]
add[(3,)](*[base[name] for name in names], num_warps=4)  # by position
assert launches[-1][4] == [
    base[n].data_ptr() if isinstance(base[n], torch.Tensor) else base[n] for n in names
]

from cgm_fast.ops.triton import remembered
remembered.KNOWN = False  # another Triton launches as it does
assert type(jit(add.fn, [])) is JITFunction
"""


def missing():
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        return "no backend for NVIDIA"
    if not remembered.KNOWN:
        return "this Triton goes its own way"
    return None


needed = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@needed
def test_what_triton_compiles_anew_for_is_told_apart(tmp_path):
    """Every kind of argument, launched by Triton's own way and by the short one."""
    run(KEYS, tmp_path)


OPS = """
import cgm_fast
from cgm_fast.testing import prototypes, samples
triton_cache.serve_the_cpu()
x, y = (v.requires_grad_() for v in samples(60, 40, 10))
r, g, labels = prototypes(64, 10, 10)
r, g, noise = r.requires_grad_(), g.requires_grad_(), torch.randn(2, 64, 10)
calls = [
    lambda: cgm_fast.mmd(x, y, backend="triton"),
    lambda: cgm_fast.prototype_margin(r, g, labels, backend="triton").loss,
    lambda: cgm_fast.cgm_loss(r, g, labels, noise=noise, backend="triton").loss,
]
for call in calls:
    call()
    assert slow
    del slow[:], launches[:]
    call().backward()
    assert not slow and len(launches) >= 3, (slow, len(launches))
"""


@needed
@pytest.mark.slow
def test_the_second_call_of_an_op_launches_by_the_short_way(tmp_path):
    run(OPS, tmp_path)
