"""How each op is registered with torch, and called where torch has nothing to add.

torch's dispatcher serves torch.compile, tracing, torch.func, fake and meta tensors, subclasses of
Tensor and profilers. A plain call gains nothing from it, and it costs more than a small batch's
arithmetic: such a call goes straight to the implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, library
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from cgm_fast.ops import watching
from cgm_fast.ops.backends import implementation
from cgm_fast.ops.memory import NoMemory
from cgm_fast.ops.records import Record, flatten, rebuild, schema, tensor_fields
from cgm_fast.ops.watching import PLAIN

# Names of this module: what a small call has looked up is what it waits for.
_modes, _function_modes = watching.modes, watching.function_modes
_transforms, _profiler, _tracing = watching.transforms, watching.profiler, watching.tracing

# Registrations, kept beside the ops themselves: a module that is imported anew finds those of its
# former self, and replaces them.
_LIBRARIES: dict[str, library.Library] = vars(torch.ops.cgm_fast).setdefault("_libraries", {})


class Op:
    """`cgm_fast::<op>_<step>`, run by whichever implementation is chosen on real tensors.

    Args:
        name: The op, then "_fwd" or "_hvp", the function of an implementation that runs it.
        records: What it takes: a problem, and what else there is (records.py).
        results: A NamedTuple of tensors.
        fake: Shapes and dtypes of the results, of the records.
        finish: Given the results and the problem, changes the results in place, whichever
            implementation computed them; derivatives do not see it.
        check: Given the problem, raises where no implementation can have it.
        vectors: Whether the problem holds cotangents or tangents, as a third record does: they come
            in a form of their own where a backward pass is mapped over them.
    """

    def __init__(
        self,
        name: str,
        records: tuple[Record, ...],
        results: Record,
        fake: Callable[..., Any],
        finish: Callable[..., None] | None = None,
        check: Callable[..., None] | None = None,
        vectors: bool = False,
    ) -> None:
        self.name, self.records, self.results = name, records, results
        self.op, _, self.step = name.rpartition("_")
        self.finish, self.check = finish, check
        # Tensors that a plain call looks at; nothing but vectors comes in the form that
        # `legacy_batch` finds.
        self._tensors = tensor_fields(records[0])
        self._has_tangent = len(records) > 2
        self._hidden = watching.legacy_batch if vectors or self._has_tangent else None

        def run(*args: Any) -> tuple[Any, ...]:
            return with_empty(self.run(*rebuild(records, args), args[-1]), args[0])

        def fake_of(*args: Any) -> tuple[Any, ...]:
            return with_empty(fake(*rebuild(records, args)), args[0])

        if self.name in _LIBRARIES:
            _LIBRARIES.pop(self.name)._destroy()
        self.fragment = _LIBRARIES[self.name] = library.Library("cgm_fast", "FRAGMENT")
        count = len(results.__annotations__)
        library.define(f"cgm_fast::{self.name}", schema(records, count), lib=self.fragment)
        library.impl(f"cgm_fast::{self.name}", "CompositeExplicitAutograd", lib=self.fragment)(run)
        library.register_fake(f"cgm_fast::{self.name}", lib=self.fragment)(fake_of)

    @property
    def registered(self) -> Any:
        """The op as torch has it.

        Looked up again each time: a module that is imported anew has replaced it, and the handle of
        the former one would dangle.
        """
        return getattr(torch.ops.cgm_fast, self.name).default

    def run(self, *args: Any) -> Any:
        """The implementation; args are the records and the backend's name."""
        if self.check is not None:
            self.check(args[0])
        module = implementation(self.op, self.step, args)
        results = getattr(module, self.step)(*args[:-1])
        if self.finish is not None:
            self.finish(results, args[0])
        return results

    def dispatched(self, *args: Any) -> Any:
        """Through torch's dispatcher."""
        return self.results(*without_empty(self.registered(*flatten(args[:-1], args[-1]))))

    def __call__(self, problem: Any, *rest: Any) -> Any:
        """The results of the problem, further records, and the backend's name."""
        first = problem[0]
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
            return self.dispatched(problem, *rest)
        others = problem[1 : self._tensors]
        for value in (*others, *rest[0]) if self._has_tangent else others:
            # What has no address of its own, or not the address of its values, is dispatched.
            if value is not None and (
                type(value) not in PLAIN
                or value.is_neg()
                or (self._hidden is not None and self._hidden(value))
            ):
                return self.dispatched(problem, *rest)
        try:
            return self.run(problem, *rest)
        except NoMemory:
            return self.dispatched(problem, *rest)


def with_empty(results: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """Results as torch's ops return them, which know no None: an empty tensor in its place."""
    return tuple(like.new_empty(0) if value is None else value for value in results)


def without_empty(results: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The other way."""
    return tuple(None if value.shape == (0,) else value for value in results)
