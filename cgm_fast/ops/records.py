"""Problems as values: each op's NamedTuples, and the torch schema that is derived from them.

An op is `fwd(problem, wanted)` and `hvp(problem, tangent, wanted)`. What these hold is said once,
in the op's problem.py, and goes by name from there: into the schema, to the implementations, and to
the compiled module. Tensors come first among the fields of a problem.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, get_type_hints

from torch import Tensor

Record = Any

_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    int: "SymInt",
    float: "float",
    str: "str",
    tuple[int, ...]: "SymInt[]",
    tuple[float, ...]: "float[]",
}


def schema(records: Sequence[Record], results: int) -> str:
    """Arguments and results of an op in torch's notation, with `str backend` last.

    Fields of the first record keep their names, those of others get their record's before them.
    """
    arguments = []
    for place, record in enumerate(records):
        prefix = f"{record.__name__.lower()}_" if place else ""
        for name, kind in _hints(record).items():
            arguments.append(f"{_TYPES[kind]} {prefix}{name}")
    return f"({', '.join([*arguments, 'str backend'])}) -> ({', '.join(['Tensor'] * results)})"


@functools.cache
def tensor_fields(record: Record) -> int:
    """How many fields are tensors; they stand before the others."""
    kinds = ["Tensor" in _TYPES[kind] for kind in _hints(record).values()]
    count = sum(kinds)
    if not all(kinds[:count]):
        raise TypeError(f"{record.__name__} must have its tensors first")
    return count


def rebuild(records: Sequence[Record], arguments: Sequence[Any]) -> tuple[Any, ...]:
    """The records of an op's arguments as torch passes them on: one after another, with lists."""
    out, begin = [], 0
    for record in records:
        end = begin + len(_hints(record))
        out.append(record(*(tuple(v) if isinstance(v, list) else v for v in arguments[begin:end])))
        begin = end
    return tuple(out)


def flatten(records: Sequence[tuple[Any, ...]], backend: str) -> tuple[Any, ...]:
    """An op's arguments as torch takes them."""
    return (*(value for record in records for value in record), backend)


@functools.cache
def _hints(record: Record) -> dict[str, Any]:
    return get_type_hints(record)
