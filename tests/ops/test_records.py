"""Problems as values: one list of fields for torch's schema, Python and C++."""

import importlib
import itertools
from typing import NamedTuple

import pytest
import torch

from cgm_fast.ops.mmd import problem as of_mmd
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.records import flatten, rebuild, schema, tensor_fields

RECORDS = [
    (op, record)
    for op in ("mmd", "prototype_margin", "cgm_loss")
    for record in ("Problem", "Value", "Tangent", "Product")
]
RECORDS += [("kernel_product", "Problem"), ("kernel_product", "Value")]


def record_of(op, name):
    return getattr(importlib.import_module(f"cgm_fast.ops.{op}.problem"), name)


def test_a_schema_has_the_fields_by_name():
    assert schema((of_mmd.Problem, of_mmd.Wanted), 5) == (
        "(Tensor x, Tensor? y, Tensor? weights, Tensor? relation, Tensor? variance, "
        "SymInt[] sizes, float[] relations, float[] variances, float[] kernel_weights, "
        "str kernel, bool nonnegative, SymInt wanted_row_begin, SymInt wanted_row_end, "
        "bool wanted_weights, bool wanted_relation, bool wanted_variance, str backend) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)"
    )


@pytest.mark.parametrize(
    ("op", "step"),
    [
        *itertools.product(("mmd", "prototype_margin", "cgm_loss"), ("fwd", "hvp")),
        ("kernel_product", "fwd"),
    ],
)
def test_torch_has_that_schema(op, step):
    registered = getattr(importlib.import_module(f"cgm_fast.ops.{op}.ops"), f"{op}_{step}")
    names = [argument.name for argument in registered.registered._schema.arguments]
    problem, *others = registered.records
    prefixed = (f"{of.__name__.lower()}_{name}" for of in others for name in of._fields)
    assert names == [*problem._fields, *prefixed, "backend"]


def test_records_come_back_from_torchs_arguments():
    problem = of_mmd.Problem(
        torch.ones(3, 2), None, None, None, None, (1, 2), (1.0,) * 4, (2.0,), (1.0,), "gaussian",
        True,
    )  # fmt: skip
    wanted = of_mmd.Wanted(0, 3, False, True, False)
    arguments = [list(v) if isinstance(v, tuple) else v for v in flatten((problem, wanted), "auto")]
    assert rebuild((of_mmd.Problem, of_mmd.Wanted), arguments) == (problem, wanted)
    assert arguments[-1] == "auto"


def test_tensors_come_first():
    assert tensor_fields(of_mmd.Problem) == 5
    with pytest.raises(TypeError, match="Late must have its tensors first"):
        tensor_fields(Late)


class Late(NamedTuple):
    number: float
    tensor: torch.Tensor


@pytest.mark.parametrize(("op", "record"), RECORDS)
def test_the_compiled_module_has_the_same_fields(op, record):
    native = pytest.importorskip("cgm_fast._native")
    found = native.fields[op].get(record)
    if found is None:
        assert (op, record) in {("cgm_loss", "Tangent"), ("cgm_loss", "Product")}  # in Python
        return
    of = record_of(op, record)
    assert tuple(found) == of._fields[: tensor_fields(of)]


def test_the_compiled_module_has_the_same_kernels():
    native = pytest.importorskip("cgm_fast._native")
    assert native.kernels == {
        name: (family.vanishes, family.order < 2) for name, family in FAMILIES.items()
    }


@pytest.mark.parametrize("count", [4, 6])
def test_the_compiled_module_refuses_another_number_of_addresses(count):
    native = pytest.importorskip("cgm_fast._native")
    plan = native.MmdPlan(
        batch=1, x_rows=1, d=1, dtype=2, x_strides=(0, 1, 1), y_strides=(0, 1, 1), float64=False,
        sizes=(1,), relations=(1.0,), variances=(1.0,), kernel_weights=(1.0,), kernel="gaussian",
        row_begin=0, row_end=0,
    )  # fmt: skip
    with pytest.raises(TypeError, match="incompatible function arguments"):
        native.mmd_fwd(plan, (0,) * count, (0,) * 5, 1)
