"""What emulation cannot show of how blocks share numbers: fences, loads, registers, by nvcc."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))

try:
    from tools.kernels import cuda_binary, sharing

    cuda_binary.module()
except (ImportError, RuntimeError) as error:
    pytest.skip(str(error), allow_module_level=True)

RECORDED = "nvcc 13.0.88"
"""What thresholds are of; another compiler's registers are its own affair."""
COUNTED = ("cgm_loss_", "kernel_product_", "mmd_", "prototype_")
"""Whose blocks add up what other blocks left."""
INPUTS_BEHIND = {"mmd_hvp_": 2, "mmd_": 10}
"""Weak loads of the last block, most of any kernel: of the groups' sizes and relation, which are
inputs. `make races` shows that no others' results are among them."""
WIDE = {
    "cgm_loss_": 0.12,
    "kernel_product_kernel<double": 0.5,
    "mmd_": 0.015,
    "mmd_hvp_": 0.05,
    "mmd_wide_": 0.06,
    "prototype_rows_kernel<float": 0.08,
    "prototype_rows_kernel<double": 0.2,
    "prototype_differences_kernel<float": 0.08,
    "prototype_differences_kernel<double": 0.2,
}
"""Of instructions that load or copy what is there before the launch, those of 16 bytes, at least.
Most stand in the other ways to read, for samples that lie otherwise: what runs is more."""
BLOCKS = {
    **{f"mmd_rows_kernel<float, {d}, false>": 2 for d in (4, 8, 10, 16)},
    "mmd_rows_kernel<float, 4, true>": 2,
    "mmd_rows_kernel<float, 8, true>": 2,
    "mmd_hvp_kernel<float": 2,
    "mmd_wide_kernel<float": 2,
    "mmd_tensor_kernel<16": 2,
    "mmd_tensor_kernel<32": 2,
    "kernel_product_kernel<float": 2,
    "cgm_loss_kernel<float, 8>": 2,
    "cgm_loss_kernel<float, 16>": 2,
    "prototype_rows_kernel<float, true>": 3,
    "prototype_rows_kernel<float, false>": 4,
    "prototype_rows_kernel<double": 2,
    "prototype_differences_kernel<float": 4,
    "prototype_differences_kernel<double": 2,
}
"""On a multiprocessor, by registers, at least; of any other kernel one."""
SPILLED = {("mmd_tensor_kernel<32, tf32x3, true>", "sm_80")}


def of_kernel(table, name, default):
    """The entry of a kernel: of the longest beginning of its name."""
    found = [beginning for beginning in table if name.startswith(beginning)]
    return table[max(found, key=len)] if found else default


@pytest.fixture(scope="module")
def kernels():
    return cuda_binary.kernels()


@pytest.fixture(scope="module")
def flows(kernels):
    """Every kernel's machine code, by name and architecture."""
    return {
        (kernel.name, kernel.architecture): sharing.Flow(
            cuda_binary.listings(kernel.architecture)[kernel.name]
        )
        for kernel in kernels
    }


@pytest.fixture
def recorded():
    from cgm_fast import _native

    compiler = _native.build_info()["cuda_compiler"]
    if compiler != RECORDED:
        pytest.skip(f"thresholds are of {RECORDED}, this is {compiler}")


def test_no_store_is_left_without_a_fence_before_blocks_are_counted(flows):
    counting = {name for (name, _), flow in flows.items() if flow.counts}
    assert {name for name, _ in flows if name.startswith(COUNTED)} <= counting
    assert [key for key, flow in flows.items() if flow.unfenced_counts()] == []
    assert [key for key, flow in flows.items() if flow.unfenced_behind()] == []


def test_what_others_left_is_loaded_past_l1_and_behind_the_count(flows):
    for key, flow in flows.items():
        if flow.counts:
            assert flow.strong_loads, key
            assert set(flow.strong_loads) <= flow.behind_counts(), key


def test_no_other_load_is_behind_the_count(flows, recorded):
    found = {key: len(flow.weak_loads_behind_counts()) for key, flow in flows.items()}
    most = {key: of_kernel(INPUTS_BEHIND, key[0], 0) for key in found}
    assert {key: number for key, number in found.items() if number > most[key]} == {}


def test_loads_are_wide(flows, recorded):
    shares = {key: flow.wide_share() for key, flow in flows.items()}
    assert {k: share for k, share in shares.items() if share < of_kernel(WIDE, k[0], 0)} == {}


def test_enough_blocks_share_a_multiprocessor(kernels, recorded):
    assert [kernel for kernel in kernels if kernel.blocks < of_kernel(BLOCKS, kernel.name, 1)] == []


def test_no_kernel_uses_local_memory(flows, recorded):
    found = {key for key, flow in flows.items() if any(of.local for of in flow.code)}
    assert found <= SPILLED
