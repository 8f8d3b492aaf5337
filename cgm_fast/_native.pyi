"""The compiled module: plans and addresses in, results in the buffers given (csrc/bindings.cpp)."""

from typing import Any

class MmdPlan:
    def __init__(self, **options: Any) -> None: ...

class PrototypeMarginPlan:
    def __init__(self, **options: Any) -> None: ...

class CgmLossPlan:
    def __init__(self, **options: Any) -> None: ...

class KernelProductPlan:
    def __init__(self, **options: Any) -> None: ...

def build_info() -> dict[str, Any]: ...
def probe_float32(threads: int) -> tuple[float, float]: ...

Addresses = tuple[int, ...]

# Of each op and record, its tensors in the order of addresses.
fields: dict[str, dict[str, list[str]]]
# Names of the families of radial kernels.
kernels: list[str]

def mmd_fwd(plan: MmdPlan, problem: Addresses, value: Addresses, threads: int) -> None: ...
def mmd_hvp(
    plan: MmdPlan, problem: Addresses, tangent: Addresses, product: Addresses, threads: int
) -> None: ...
def prototype_margin_fwd(
    plan: PrototypeMarginPlan, problem: Addresses, value: Addresses, threads: int
) -> None: ...
def prototype_margin_hvp(
    plan: PrototypeMarginPlan,
    problem: Addresses,
    tangent: Addresses,
    product: Addresses,
    threads: int,
) -> None: ...
def cgm_loss_fwd(plan: CgmLossPlan, problem: Addresses, value: Addresses, threads: int) -> None: ...
def kernel_product_fwd(
    plan: KernelProductPlan, problem: Addresses, value: Addresses, threads: int
) -> None: ...
