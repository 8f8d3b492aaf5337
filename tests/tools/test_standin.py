"""A device that stands in for a GPU: what tests would get wrong on one, they get wrong on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
]

# In a process of its own: torch has one such device, for good.
AS_ON_A_GPU = """
import sys
sys.path[:0] = [{tests!r}, {standin!r}]
import conftest, standin
import pytest, torch, cgm_fast
from cgm_fast.testing import derivatives, mmd_formula, samples

x, y = samples(50, 40, 3, device=standin.NAME)
assert str(x.device) == "standin:0"
call = lambda x, y: cgm_fast.mmd(x, y, backend="cuda")
found = derivatives(call, (x, y), order=2)
wanted = derivatives(lambda x, y: mmd_formula(x, y, sigma=[3**0.5]), (x.double(), y.double()))
for part, expected in zip([*found[1], *found[2]], [*wanted[1], *wanted[2]], strict=True):
    assert part.device == x.device
    assert float((part.double() - expected).norm() / expected.norm()) < 1e-4
assert cgm_fast.last_backend() == "cuda"

with pytest.raises(ValueError, match="runs on standin tensors, got cpu"):
    cgm_fast.mmd(*samples(50, 40, 3), backend="cuda")
with pytest.raises((ValueError, RuntimeError), match="device"):
    cgm_fast.mmd(x, y.cpu(), backend="cuda")
with pytest.raises(RuntimeError, match="same device"):
    x + y.cpu()[:1]
x[0, 0] = 7.0
assert float(x.cpu()[0, 0]) == 7 and float((x + 2.0)[0, 0]) == 9
assert x.T.contiguous().stride() == (50, 1)
out = torch.empty(0, device=x.device)
assert torch.add(x, 1, out=out).shape == out.shape == x.shape

# Autograd's thread for the device may want the interpreter while that ends, which aborts: torch's
# own race, seen once in forty runs.
import os
os._exit(0)
"""


def environment():
    return {**os.environ, "CGM_FAST_TEST_DEVICE": "standin"}


@pytest.fixture(scope="module")
def standin():
    sys.path.append(str(TESTS / "standin"))
    import standin

    try:
        standin.build()
    except standin.Missing as error:
        pytest.skip(f"no stand-in for a GPU: {error}")
    if "CGM_FAST_CUDA_EMULATION" not in os.environ:
        pytest.skip("CUDA kernels are not emulated")
    return standin


def test_tensors_of_two_devices_are_told_apart(standin):
    script = AS_ON_A_GPU.format(tests=str(TESTS), standin=str(TESTS / "standin"))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["test_cuda_kernels", "test_cuda_kernel_product", "test_triton"])
def test_tests_of_kernels_take_tensors_from_where_the_kernels_run(module, standin):
    """A test that makes its tensors elsewhere fails here as it would on a GPU.

    What it then computes is under test where it runs on the CPU, with all combinations.
    """
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "each_value_once",
        TESTS / f"ops/{module}.py", "-m", "gpu and not slow", "--tb=short",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True,
        env={**environment(), "PYTHONPATH": str(TESTS / "standin")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
