"""Whether an implementation is right on this device: small problems, beside float64 on the CPU.

Kernels for GPUs are the automatic choice where they have passed. A problem's regime says what of it
decides which of an implementation's kernels run (`regimes.py` of each op); of each regime that a
process meets one small example is computed, once, by the implementation and in float64 by the
reference on the CPU. `cgm-fast doctor --verify` does so with all regimes.
"""

from __future__ import annotations

import threading
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.gpu import capturing, outside_graphs, tf32_allowed

# Ten times what the ops' READMEs promise: an error of a kernel shows as a wrong digit in front, and
# a device whose rounding nobody has measured yet is no reason for a slower implementation.
_DOUBLE = {"value": 1e-10, "gradient": 1e-10, "product": 1e-9}
_SINGLE = {"value": 1e-4, "gradient": 1e-4, "product": 1e-3}
_TF32 = {"value": 2e-3, "gradient": 2e-2, "product": 5e-2}
_TF32_FLIPS = 0.01
"""Of integers, which share may differ where distances have tf32's error."""
_VALUES = ("loss", "terms")


class Outcome(NamedTuple):
    """What came of a check."""

    errors: dict[str, float]
    """Of each result, ‖value − exact‖ / ‖exact‖; of integers, the share that differs."""
    reason: str | None
    """Why it has not passed; None if it has."""
    declined: bool = False
    """Whether the implementation says itself that it does not take such a problem."""


class NotNowError(Exception):
    """A CUDA graph is being captured, in which nothing is checked."""


_LOCK = threading.Lock()
_outcomes: dict[tuple[Any, ...], Outcome] = {}


def regimes(op: str) -> Any:
    """The module with the regimes of an op."""
    return import_module(f"cgm_fast.ops.{op}.regimes")


def outcome(
    op: str, step: str, name: str, device: torch.device, records: tuple[Any, ...]
) -> Outcome:
    """Of the check of an implementation in the regime of a problem; made at the first call.

    On a GPU another thread makes it, on a stream of its own: modes, transforms and memory pools of
    this one do not reach it, and nothing of the user's is waited for.

    Args:
        op: Its name.
        step: "fwd" or "hvp".
        name: The implementation's name.
        device: Where to run it.
        records: What the op's step is given.

    Raises:
        NotNowError: the check is not made yet, and a CUDA graph is being captured.
    """
    regime = regimes(op).regime_of(step, *records)
    key = op, step, name, device, tf32_allowed(), regime
    found = _outcomes.get(key)
    if found is None:
        if capturing(device):
            raise NotNowError
        with _LOCK:
            found = _outcomes.get(key)
            if found is None:
                found = outside_graphs(lambda: check(op, step, name, device, regime), device)
                _outcomes[key] = found
    return found


def check(op: str, step: str, name: str, device: torch.device, regime: Any) -> Outcome:
    """Run an implementation on the regime's example, here and now."""
    with torch.no_grad():
        records = regimes(op).example(regime)
        exact = _step(op, step, "reference")(*_each(records, _double))
        try:
            results = _step(op, step, name)(*_each(records, lambda value: _moved(value, device)))
            (found,) = _each((results,), Tensor.cpu)
        except torch.OutOfMemoryError:
            raise
        except NotImplementedError as error:
            return Outcome({}, str(error), declined=True)
        except Exception as error:  # whatever compilers and drivers come up with
            first = str(error).strip().partition("\n")[0]
            return Outcome({}, f"{type(error).__name__}: {first}")
        return _compared(step, found, exact, records[0][0].dtype)


def _step(op: str, step: str, name: str) -> Any:
    return getattr(import_module(f"cgm_fast.ops.{op}.{name}"), step)


def _each(records: Any, change: Any) -> list[Any]:
    return [
        type(record)(*(change(v) if isinstance(v, Tensor) else v for v in record))
        for record in records
    ]


def _moved(value: Tensor, device: torch.device) -> Tensor:
    if device.type == "mps" and value.dtype == torch.float64:  # which it has not
        value = value.float()
    return value.to(device)


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _compared(step: str, found: Any, exact: Any, dtype: torch.dtype) -> Outcome:
    bounds = _DOUBLE if dtype == torch.float64 else _TF32 if tf32_allowed() else _SINGLE
    errors, bad = {}, []
    for name, value, wanted in zip(found._fields, found, exact, strict=True):
        if value is None and wanted is None:
            continue
        if value is None or wanted is None or value.shape != wanted.shape:
            shapes = (None if v is None else list(v.shape) for v in (value, wanted))
            bad.append("{} has shape {}, not {}".format(name, *shapes))
            continue
        if value.is_floating_point():
            errors[name] = _relative(value, wanted)
            of_loss = step == "fwd" and name in _VALUES
            bound = bounds["value" if of_loss else "gradient" if step == "fwd" else "product"]
            bound += torch.finfo(value.dtype).eps if value.dtype.itemsize == 2 else 0.0
        else:
            errors[name] = float((value != wanted).double().mean())
            bound = _TF32_FLIPS if bounds is _TF32 else 0.0
        if not errors[name] <= bound:  # a NaN does not pass
            bad.append(f"{name} is off by {errors[name]:.1e}, allowed {bound:.0e}")
    return Outcome(errors, "; ".join(bad) or None)


def _relative(value: Tensor, exact: Tensor) -> float:
    error = float((value.double() - exact.double()).norm())
    return error / float(exact.double().norm()) if error else 0.0
