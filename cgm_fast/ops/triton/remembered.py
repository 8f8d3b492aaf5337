"""Kernels that remember what they were compiled to: a launch takes 5 µs of the host, not 20.

Triton's own way from arguments to a compiled kernel binds and classifies each of them anew. The
short way asks of an argument only what Triton may compile anew for, and launches the compiled
kernel, which is a public object: `compiled[grid](arguments in order)`.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.runtime import driver
from triton.runtime.jit import JITFunction

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
# Of Triton, between which it is known what kernels are compiled anew for, and that a compiled one
# takes all arguments. Others go their own way, as AMD's backend does, which looks at sizes too.
KNOWN = (3, 3) <= VERSION <= (3, 9) and not torch.version.hip
_MOST = 4096


class Remembering(JITFunction):
    """A kernel whose launches with arguments of a known kind go straight to the compiled one."""

    def __init__(self, function: Any, do_not_specialize: list[str]) -> None:
        super().__init__(function, do_not_specialize=do_not_specialize)
        self._short = _binder(function, frozenset(do_not_specialize))
        self._compiled: dict[Any, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        """A function of the kernel's arguments, which launches it."""
        return functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **given: Any) -> Any:
        try:
            key, values = self._short(*args, **given)
            compiled = self._compiled.get(key)
        except (TypeError, AttributeError):  # other types of arguments than ours
            return self.run(*args, grid=grid, warmup=False, **given)
        if compiled is None:
            compiled = self.run(*args, grid=grid, warmup=False, **given)
            if isinstance(compiled, triton.compiler.CompiledKernel):
                if len(self._compiled) >= _MOST:
                    self._compiled.clear()
                self._compiled[key] = compiled
            return compiled
        compiled[(*grid, 1, 1)[:3]](*values)
        return compiled


def _binder(function: Any, free: frozenset[str]) -> Callable[..., Any]:
    """A function of a kernel's arguments that returns a key, and the arguments in their order.

    Equal keys have equal compiled kernels: they hold the values of constants and options; of
    tensors the dtype, and the address modulo 16; of numbers the value, or whether it takes 32 bits
    where the kernel is not compiled for values.
    """
    key, names, heads = [], [], []
    defaults = {}
    for name, parameter in inspect.signature(function).parameters.items():
        names.append(name)
        heads.append(name)
        if parameter.default is not inspect.Parameter.empty:
            heads[-1] = f"{name}=defaults[{name!r}]"
            defaults[name] = parameter.default
        if "constexpr" in str(parameter.annotation):
            key.append(f"({name}, {name}.__class__)")  # 1 is True, and 1.0
            continue
        number = f"{name} >> 31" if name in free else name
        tensor = f"({name}.dtype, {name}.data_ptr() % 16)"
        key.append(f"{number} if {name}.__class__ is int else None if {name} is None else {tensor}")
    source = (
        f"def bind({', '.join(heads)}, **options):\n"
        f"    return (device(), *options.items(), {', '.join(key)}), ({', '.join(names)},)\n"
    )
    made: dict[str, Any] = {"defaults": defaults, "device": _device}
    exec(source, made)
    bind: Callable[..., Any] = made["bind"]
    return bind


def _device() -> int:
    """Kernels are compiled for each."""
    return int(driver.active.get_current_device())


def jit(function: Any, do_not_specialize: list[str]) -> Any:
    """`triton.jit` of a kernel that launches by itself, remembering where that is known to do."""
    if KNOWN and os.environ.get("TRITON_INTERPRET") != "1":
        return Remembering(function, do_not_specialize)
    return triton.jit(function, do_not_specialize=do_not_specialize)
