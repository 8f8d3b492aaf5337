"""How each op is registered with torch, and called where torch has nothing to add.

torch's dispatcher serves torch.compile, tracing, torch.func, fake and meta tensors, subclasses of
Tensor and profilers. A plain call gains nothing from it, and it costs more than a small batch's
arithmetic: such a call goes straight to the implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from cgm_fast.ops import watching
from cgm_fast.ops.backends import implementation
from cgm_fast.ops.memory import NoMemory
from cgm_fast.ops.watching import PLAIN

# Names of this module: what a small call has looked up is what it waits for.
_modes, _function_modes = watching.modes, watching.function_modes
_transforms, _profiler, _tracing = watching.transforms, watching.profiler, watching.tracing

# Registrations, kept beside the ops themselves: a module that is imported anew finds those of its
# former self, and replaces them.
_LIBRARIES: dict[str, library.Library] = vars(torch.ops.cgm_fast).setdefault("_libraries", {})


def register(
    op: str,
    step: str,
    schema: str,
    fake: Callable[..., Any],
    finish: Callable[..., None] | None = None,
) -> Callable[..., tuple[Tensor, ...]]:
    """Define `cgm_fast::<op>_<step>`, run by whichever implementation is chosen on real tensors.

    Args:
        op: "mmd", "prototype_margin" or "cgm_loss".
        step: "fwd", or "hvp" for the Hessian-vector product; implementations have a function
            `<op>_<step>`.
        schema: Arguments and results; the first argument is a tensor, the last `str backend`.
        fake: Shapes and dtypes of the results.
        finish: Given the results and then the arguments, changes the results in place, whichever
            implementation computed them; derivatives do not see it.
    """
    function = f"{op}_{step}"
    name = f"cgm_fast::{function}"

    def run(first: Tensor, *args: Any) -> tuple[Tensor, ...]:
        module = implementation(op, args[-1], first.device)
        results: tuple[Tensor, ...] = getattr(module, function)(first, *args[:-1])
        if finish is not None:
            finish(results, first, *args)
        return results

    if function in _LIBRARIES:
        _LIBRARIES.pop(function)._destroy()
    lib = _LIBRARIES[function] = library.Library("cgm_fast", "FRAGMENT")
    library.define(name, schema, lib=lib)
    library.impl(name, "CompositeExplicitAutograd", lib=lib)(run)
    library.register_fake(name, lib=lib)(fake)

    def dispatched(*args: Any) -> tuple[Tensor, ...]:
        # Looked up again each time: a module that is imported anew has replaced the op, and the
        # handle of the former one would dangle.
        results: tuple[Tensor, ...] = getattr(torch.ops.cgm_fast, function).default(*args)
        return results

    # Nothing but the vectors of a Hessian-vector product comes in that form.
    hidden = watching.legacy_batch if step == "hvp" else _no

    # A forward op has its tensors first: so many behind the first of them.
    schema_of_op = getattr(torch.ops.cgm_fast, function).default._schema
    arguments = ["Tensor" in str(arg.type) for arg in schema_of_op.arguments]
    leading = arguments.index(False) - 1
    if any(arguments[leading + 1 :]):
        leading = len(arguments)

    def call(first: Tensor, *args: Any) -> tuple[Tensor, ...]:
        if (
            is_compiling()
            or _modes()
            or _function_modes()
            or _transforms()
            or _profiler()
            or _tracing()
            or forward_ad._current_level >= 0
            or type(first) not in PLAIN
            or first.is_meta
            or first.is_neg()
        ):
            return dispatched(first, *args)
        for arg in args[:leading]:
            # What has no address of its own, or not the address of its values, is dispatched.
            if isinstance(arg, Tensor) and (type(arg) not in PLAIN or arg.is_neg() or hidden(arg)):
                return dispatched(first, *args)
        try:
            return run(first, *args)
        except NoMemory:
            return dispatched(first, *args)

    return call


def _no(_: Tensor) -> bool:
    return False


def registered(function: str) -> tuple[Any, library.Library]:
    """The registered op `cgm_fast::<function>`, and the library to register more of it with."""
    return getattr(torch.ops.cgm_fast, function).default, _LIBRARIES[function]
