"""The one pattern of `autograd.Function`: for eager autograd, and for torch.compile.

What goes through torch's dispatcher has derivatives of registered ops: derivatives.py.

An op's values, differentiable twice. The gradient is computed with the value, in one pass, and
`backward` scales it. Where that is to be differentiated, the gradient is a result like the value:
the same node once more, without computing anything, with all results; its `backward` is the
Hessian-vector product.

Each op has a class of two lines for these two functions and its formula, a global of its module:
Dynamo of torch 2.6 follows neither a closure nor an attribute of the class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.formulas import THIRD, Formula
from cgm_fast.ops.watching import composed


def forward(
    formula: Formula, ctx: Any, static: Any, backend: str, known: Any, inputs: tuple[Any, ...]
) -> tuple[Tensor | None, ...]:
    """Values of a problem; or, of known results, all of them.

    Args:
        formula: The op's.
        ctx: Of the `autograd.Function`.
        static: The problem's fields that are not tensors.
        backend: The name of an implementation, or "auto".
        known: What was wanted and the results, where these are known; else None.
        inputs: The problem's tensors.
    """
    if known is None:
        problem = formula.fwd.records[0](*inputs, *static)
        wanted = formula.wanted(problem, ctx.needs_input_grad[3:])
        results = formula.fwd(problem, wanted, backend)
        results = tuple(results)  # a plain one: Dynamo of torch 2.6 cuts no other
        out = results[: formula.values]
    else:
        wanted, results = known
        out = results = tuple([None if v is None else v.detach() for v in results])
    ctx.save_for_backward(*inputs, *results[1:])  # of the loss nothing is needed
    ctx.rest = static, backend, wanted, known is not None, len(inputs)
    if len(out) > 1:
        ctx.mark_non_differentiable(*[out[i] for i in formula.constant])
        ctx.set_materialize_grads(False)  # no zeros for what nothing depends on
    return tuple(out)


def backward(formula: Formula, node: Any, ctx: Any, cotangents: tuple[Any, ...]) -> Any:
    """Derivatives in the inputs of `forward`; `node` is the op's `autograd.Function`."""
    static, backend, wanted, whole, count = ctx.rest
    saved, hvp = ctx.saved_tensors, formula.hvp
    inputs, results, problem = saved[:count], (None, *saved[count:]), None
    differentiated = torch.is_grad_enabled()
    if whole or differentiated:  # else nothing is done but scaling
        problem = formula.fwd.records[0](*inputs, *static)
    if differentiated and not whole:
        if composed(cotangents[0]):  # the gradients of a batch, together
            results = formula.fwd.dispatched(problem, wanted, backend)
        else:
            results = node.apply(static, backend, (wanted, results), *inputs)
    if whole:
        with torch.no_grad():
            parts = formula.backward(problem, wanted, backend, results, cotangents, hvp)
    else:
        parts = formula.backward(problem, wanted, backend, results, cotangents, hvp)
    out = formula.split(inputs, static, wanted, parts)
    for i, value in enumerate(out):
        if value is not None and value.dtype != inputs[i].dtype:
            out[i] = value.to(inputs[i].dtype)
    if whole and differentiated:
        out = Last.apply(len(out), *out, *saved, *cotangents)
    return (None, None, None, *out, *[None] * (count - len(out)))


class Last(torch.autograd.Function):
    """(count, values..., what they depend on...) -> the values, not differentiable further.

    `once_differentiable` does not do: it cuts the result off from the inputs, so that
    `torch.autograd.grad` passes its error by wherever another path leads to them.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Pass on the first `count` tensors."""
        return tuple(None if t is None else t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Refuse."""
        raise RuntimeError(THIRD)
