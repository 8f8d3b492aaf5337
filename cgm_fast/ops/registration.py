"""How each op is registered with torch, and called where torch has nothing to add.

torch's dispatcher serves torch.compile, tracing, fake tensors and profilers. A plain call
gains nothing from it, and it costs more than a small batch's arithmetic: such a call goes straight
to the implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library
from torch.compiler import is_compiling

from cgm_fast.ops.backends import implementation

# Whether anything watches the dispatcher. Not public; without one of them every call goes through.
_WATCHERS = tuple(
    getattr(owner, name, lambda: True)
    for owner, name in (
        (torch._C, "_len_torch_dispatch_stack"),
        (torch._C, "_len_torch_function_stack"),
        (torch._C, "_are_functorch_transforms_active"),
        (torch.autograd, "_profiler_enabled"),
    )
)
_modes, _function_modes, _transforms, _profiler = _WATCHERS


def register(
    op: str, step: str, schema: str, fake: Callable[..., Any]
) -> Callable[..., tuple[Tensor, ...]]:
    """Define `cgm_fast::<op>_<step>`, run by whichever implementation is chosen on real tensors.

    Args:
        op: "mmd", "prototype_margin" or "cgm_step".
        step: "fwd" or "bwd"; implementations have a function `<op>_<step>`.
        schema: Arguments and results; the first argument is a tensor, the last `str backend`.
        fake: Shapes and dtypes of the results.
    """
    function = f"{op}_{step}"
    name = f"cgm_fast::{function}"

    def run(first: Tensor, *args: Any) -> tuple[Tensor, ...]:
        return getattr(implementation(op, args[-1], first.device), function)(first, *args[:-1])

    library.define(name, schema)
    library.impl(name, "CompositeExplicitAutograd")(run)
    library.register_fake(name)(fake)
    dispatched = getattr(torch.ops.cgm_fast, function).default

    def call(first: Tensor, *args: Any) -> tuple[Tensor, ...]:
        if (
            is_compiling()
            or type(first) is not Tensor
            or _modes()
            or _function_modes()
            or _transforms()
            or _profiler()
        ):
            return dispatched(first, *args)
        return run(first, *args)

    return call
