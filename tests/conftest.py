"""Fixtures for all tests: every implementation, every device, memory that starts as NaN."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Before anything imports triton: its kernels then run on the CPU, one number after another.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def emulate_cuda():
    """Without a GPU: CUDA kernels compiled for the CPU, once for all processes of a test run."""
    if torch.cuda.is_available() or "CGM_FAST_CUDA_EMULATION" in os.environ:
        return
    sys.path.append(str(Path(__file__).parent / "emulation"))
    import emulated_cuda

    try:
        os.environ["CGM_FAST_CUDA_EMULATION"] = str(emulated_cuda.build())
    except emulated_cuda.Missing as error:
        print(f"CUDA kernels are not emulated: {error}")


emulate_cuda()


def gpu():
    """The type of device that GPUs' tests use: "cuda", a stand-in on request, or None."""
    if torch.cuda.is_available():
        return "cuda"
    if (wanted := os.environ.get("CGM_FAST_TEST_DEVICE")) is None:
        return None
    sys.path.append(str(Path(__file__).parent / "standin"))
    import standin

    if wanted != standin.NAME:
        raise pytest.UsageError(f"CGM_FAST_TEST_DEVICE={wanted!r}: only {standin.NAME!r} is known")
    return standin.register()


GPU = gpu()

from cgm_fast.ops import backends  # noqa: E402
from cgm_fast.testing import poisoned_memory  # noqa: E402

# The same examples on every run: a failure in CI is a failure everywhere.
settings.register_profile("cgm_fast", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("cgm_fast")


@pytest.fixture(scope="session", autouse=True)
def poison():
    """An output that an implementation did not write shows as NaN."""
    with poisoned_memory("cgm_fast"):
        yield


@pytest.fixture(scope="session", autouse=True)
def interpreter():
    if os.environ.get("TRITON_INTERPRET") == "1" and backends.availability()["triton"] is None:
        import fast_interpreter

        fast_interpreter.install()


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """Child processes import the package that is installed, not a source tree they start in."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=["cpu", *([GPU] if GPU else [])])
def device(request):
    return request.param


@pytest.fixture(scope="session")
def kernels_device():
    """Where the backends "cuda" and "triton" run: a GPU, or the CPU that stands in for one."""
    return GPU or "cpu"


@pytest.fixture(scope="module", params=list(backends.BACKENDS))
def backend(request, device):
    """Name of an implementation that can run here; the others are skipped, with the reason."""
    name = request.param
    reason = backends.availability()[name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    if not backends.BACKENDS[name].serves(device):
        pytest.skip(f"{name} does not serve {device}")
    return name


@pytest.fixture
def interpreted(backend, device):
    """Whether the kernels run in Triton's interpreter, which is slow."""
    return backend == "triton" and device != "cuda"


@pytest.fixture
def emulated(backend, device):
    """Whether the CUDA kernels run on the CPU, a fiber for each thread."""
    return backend == "cuda" and device != "cuda"


@pytest.fixture
def fast():
    """The user allows tf32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def tensor_cores(monkeypatch):
    """In the interpreter, products rounded as tensor cores do; slower, so not everywhere."""
    if os.environ.get("TRITON_INTERPRET") == "1" and backends.availability()["triton"] is None:
        import tensor_cores

        tensor_cores.emulate(monkeypatch)


@pytest.fixture
def pessimistic_tensor_cores(monkeypatch):
    """The same in both emulations, with addends cut where they are aligned: slower still."""
    if os.environ.get("TRITON_INTERPRET") == "1" and backends.availability()["triton"] is None:
        import tensor_cores

        tensor_cores.emulate(monkeypatch, pessimistic=True)
    if backends.availability()["cuda"] is None and not torch.cuda.is_available():
        from cgm_fast.ops.cuda import launch

        launch.kernels().add_aligned(True)
        yield
        launch.kernels().add_aligned(False)
    else:
        yield


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: runs on a GPU, where there is one")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """What a Triton before 3.5 cannot do is no failure, wherever a test has float64."""
    try:
        return (yield)
    except NotImplementedError as error:
        launch = sys.modules.get("cgm_fast.ops.triton.launch")
        if launch is None or launch.DOUBLES or not isinstance(error, launch.NoDoubles):
            raise
        pytest.skip(str(error))


def pytest_collection_modifyitems(config, items):
    """With a GPU only pairs of implementation and device that can be; the longest first.

    So processes that share the tests end together. What takes Triton's interpreter long is slow.
    """
    kept, left_out = [], []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        backend, device = backends.BACKENDS.get(params.get("backend")), params.get("device")
        cannot_be = GPU and backend and device and not backend.serves(device)
        (left_out if cannot_be else kept).append(item)
        # A test of Triton's kernels alone has no parameter for it.
        interpreted = params.get("backend", "triton") == "triton" and (device or GPU) != "cuda"
        if interpreted and item.get_closest_marker("slow_interpreted"):
            item.add_marker("slow")
        if GPU and (device == GPU or {"kernels_device", "gpu_backend"} & set(item.fixturenames)):
            item.add_marker("gpu")
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    items[:] = sorted(kept, key=lambda item: item.get_closest_marker("slow") is None)
