"""Who has a hand in a call beside eager autograd: compilers, tracers, transforms, modes.

A plain call goes past torch's dispatcher (registration.py), which is right only if none of them is
there; and the values of a tensor can be looked at only where none of them hides or records them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

_functorch = torch._C._functorch


def _watcher(owner: Any, name: str) -> Any:
    # Not public: where one of them is missing, somebody may always be watching.
    return getattr(owner, name, lambda *_: True)


modes = _watcher(torch._C, "_len_torch_dispatch_stack")
function_modes = _watcher(torch._C, "_len_torch_function_stack")
transforms = _watcher(torch._C, "_are_functorch_transforms_active")
profiler = _watcher(torch.autograd, "_profiler_enabled")
tracing = _watcher(torch._C, "_get_tracing_state")
legacy_batch = _watcher(_functorch, "is_legacy_batchedtensor")

PLAIN = frozenset({Tensor, torch.nn.Parameter})
"""Types of tensors that are nothing but memory. A Parameter of another type keeps that type."""


def transformed() -> bool:
    """Whether something differentiates, maps or records ops that eager autograd does not see.

    torch.func's transforms, forward-mode derivatives and torch.jit.trace know registered ops and
    their derivatives (derivatives.py), and no `autograd.Function` of ours.
    """
    return bool(transforms() or tracing()) or forward_ad._current_level >= 0


def distinct(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs of an `autograd.Function`: where Dynamo traces it, no tensor twice, which it refuses.

    Outside of Dynamo the same inputs.
    """
    if not is_compiling():
        return inputs
    out: list[Any] = []
    for value in inputs:
        if value is not None and any(value is other for other in out):
            value = value.view_as(value)
        out.append(value)
    return tuple(out)


def differentiates_itself() -> bool:
    """Whether a call that requires a gradient may have an `autograd.Function` of ours for it.

    Dynamo traces one, but not within a transform of torch.func: there it sees some of the inputs
    that require a gradient, and not others.
    """
    return not _transformed_in_trace() if is_compiling() else not transformed()


def _transformed_in_trace() -> bool:
    return bool(transforms())


# As `torch.compiler.assume_constant_result`, which would import Dynamo: called while tracing.
_transformed_in_trace._dynamo_marked_constant = True  # type: ignore[attr-defined]


def composed(cotangent: Tensor | None) -> bool:
    """Whether a backward pass must be made of registered ops: see `transformed`.

    `is_grads_batched` has a vmap of its own, which shows in what it maps alone.
    """
    if is_compiling():
        return False
    return transformed() or (cotangent is not None and legacy_batch(cotangent))


def bare(value: Tensor) -> Tensor:
    """The tensor inside what torch.func's transforms wrap around it."""
    while _functorch.is_functorch_wrapped_tensor(value):
        value = _functorch.get_unwrapped(value)
    return value


def readable(value: Tensor) -> bool:
    """Whether the values of `bare(value)` can be looked at: on the CPU, real, and not recorded."""
    if is_compiling() or modes() or tracing() or not value.is_cpu:
        return False
    return type(value) in PLAIN and type(bare(value)) in PLAIN
