"""The cases of smoke.py: small, and every kernel, block size and option once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import cgm_fast
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.testing import (
    LAYOUTS,
    cgm_formula,
    derivatives,
    mmd_formula,
    mmd_magnitude,
    prototype_margin_formula,
    prototypes,
    relative_l2,
    sample_weights,
    samples,
)

DTYPES = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Sizes (n, m, d of samples, else b, k, d), dtype, order of derivatives, options of the op."""

    op: str
    sizes: tuple[int, int, int]
    kind: str = "f32"
    order: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    """Of cgm_fast.testing.samples; `layout`, `weights`, `values` and `labelled` besides."""

    def __str__(self) -> str:
        """Such as "64x64x10 f32 order=2 estimator='unbiased'"."""
        words = ["x".join(map(str, self.sizes)), self.kind]
        words += [f"order={self.order}"] * (self.order > 1)
        words += [f"{k}={v!r}" for k, v in {**self.options, **self.inputs}.items()]
        return " ".join(words)


def mmd(n: int, m: int, d: int, kind: str = "f32", order: int = 1, **how: Any) -> Case:
    """A case of mmd; what `samples` takes goes to the inputs."""
    names = ("batch", "offset", "apart", "layout", "weights")
    inputs = {name: how.pop(name) for name in names if name in how}
    return Case("mmd", (n, m, d), kind, order, how, inputs)


def margin(b: int, k: int, d: int, kind: str = "f32", order: int = 1, **how: Any) -> Case:
    """A case of prototype_margin."""
    inputs = {"labelled": True} if how.pop("labelled", False) else {}
    return Case("prototype_margin", (b, k, d), kind, order, how, inputs)


def cgm_loss(b: int, k: int, d: int, kind: str = "f32", **how: Any) -> Case:
    """A case of cgm_loss."""
    inputs = {"labelled": True} if how.pop("labelled", False) else {}
    return Case("cgm_loss", (b, k, d), kind, 1, how, inputs)


def kernel_product(n: int, m: int, d: int, p: int, kind: str = "f32", order: int = 1,
                   **how: Any) -> Case:  # fmt: skip
    """A case of kernel_product with p values of a column."""
    names = ("batch", "offset", "layout")
    inputs = {name: how.pop(name) for name in names if name in how}
    return Case("kernel_product", (n, m, d), kind, order, how, {"values": p, **inputs})


# Few pairs: under a sanitizer each instruction takes a thousand times longer.
SMALL = (
    mmd(64, 64, 10), mmd(70, 130, 20), mmd(60, 50, 100), mmd(50, 40, 10, order=2),
    mmd(64, 50, 12, bandwidth=[0.5, 1.0, 2.0]),
    margin(64, 10, 10), margin(100, 150, 20, order=2),
    cgm_loss(64, 10, 10), cgm_loss(40, 12, 70, labelled=True),
    kernel_product(70, 130, 10, 3), kernel_product(60, 50, 70, 70),
    kernel_product(40, 50, 6, 2, order=2, bandwidth=[1.0, 2.0], kernel="imq"),
)  # fmt: skip
REST = (
    mmd(1, 2, 1), mmd(1000, 900, 2), mmd(1000, 900, 10), mmd(513, 700, 33), mmd(2000, 1500, 64),
    mmd(300, 200, 65), mmd(300, 200, 300), mmd(130, 120, 2000),
    # Enough rows for the kernels on tensor cores, which start at some 2100 on 132 multiprocessors.
    mmd(1600, 1500, 10), mmd(1600, 1500, 20), mmd(1600, 1500, 20, layout="permuted"),
    mmd(1600, 1500, 64), mmd(1600, 1500, 16, "bf16"), mmd(1600, 1500, 40, "f16"),
    mmd(1600, 1500, 20, offset=1e3), mmd(1600, 1500, 20, apart=300.0),
    mmd(1600, 1500, 20, bandwidth=[3.0, 6.0, 12.0]), mmd(1600, 1500, 20, weights=True),
    mmd(500, 400, 100, "bf16"), mmd(500, 400, 10, "f64"), mmd(300, 200, 70, "f64"),
    mmd(500, 400, 10, estimator="unbiased"), mmd(500, 400, 10, weights=True),
    mmd(90, 80, 10, batch=3), mmd(500, 400, 10, layout="strided"), mmd(500, 400, 20, bandwidth=0.5),
    mmd(300, 200, 10, order=2), mmd(200, 150, 70, order=2), mmd(200, 150, 10, "f64", order=2),
    mmd(300, 200, 10, order=2, bandwidth=[2.0, 4.0], kernel_agg="sum"),
    margin(2048, 100, 64), margin(256, 10, 300), margin(1000, 2, 3, labelled=True),
    margin(3000, 500, 10, labelled=True, margin=5.0), margin(300, 150, 10, "f64", order=2),
    margin(500, 40, 33, "bf16"), margin(4096, 1000, 64), margin(300, 40, 10, negatives="mean"),
    cgm_loss(64, 10, 2), cgm_loss(100, 10, 300), cgm_loss(256, 100, 600),
    cgm_loss(1024, 10, 10, labelled=True), cgm_loss(1000, 100, 64), cgm_loss(2000, 10, 10),
    cgm_loss(64, 10, 10, detach_prior=True), cgm_loss(64, 10, 10, "f64"),
    cgm_loss(64, 10, 10, labelled=True), cgm_loss(1024, 100, 10),
    # Few rows, whose columns blocks share; several chunks of outputs; more rows than blocks.
    kernel_product(1, 1, 1, 1), kernel_product(3, 20000, 10, 1), kernel_product(300, 3000, 33, 17),
    kernel_product(300, 200, 200, 150), kernel_product(20000, 300, 2, 1),
    kernel_product(1000, 900, 10, 5, layout="permuted"), kernel_product(90, 80, 5, 4, batch=300),
    kernel_product(500, 400, 20, 3, "bf16"), kernel_product(500, 400, 20, 3, "f16"),
    kernel_product(300, 2000, 40, 40, "f64"), kernel_product(500, 400, 10, 2, offset=1e3),
    kernel_product(200, 150, 10, 2, order=2), kernel_product(300, 200, 10, 3, kernel="laplacian"),
    kernel_product(300, 200, 10, 3, kernel="matern52", bandwidth=[0.5, 1.0, 2.0]),
)  # fmt: skip


def of(op: str, small: bool) -> list[Case]:
    """The cases of an op."""
    return [case for case in (SMALL if small else (*SMALL, *REST)) if case.op == op]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two results are equal, NaN where NaN."""
    return all(bool(((x == y) | (x.isnan() & y.isnan())).all()) for x, y in zip(a, b, strict=True))


def check(case: Case, backend: str, device: str, precision: str) -> dict[str, Any]:
    """Errors of loss, gradient and second derivatives, and whether a second call agrees."""
    call, oracle, inputs, magnitude = functions(case, backend, device)
    value, first, second = derivatives(call, inputs, order=case.order)
    again = derivatives(call, inputs, order=case.order)
    wide = [z.double() for z in inputs]
    value64, first64, second64 = derivatives(oracle, wide, order=case.order)
    scale = value64.abs() if magnitude is None else magnitude
    pairs = (first, first64), (second, second64)
    if case.op == "mmd":  # both samples' gradients together: one alone may be nearly zero
        pairs = tuple(([torch.cat(a, -2)], [torch.cat(b, -2)]) if a else (a, b) for a, b in pairs)
    errors = [
        float(((value.double() - value64).abs() / scale).max()),
        *(max((relative_l2(a, b) for a, b in zip(*p, strict=True)), default=0.0) for p in pairs),
    ]
    repeats = same_bits([value, *first, *second], [again[0], *again[1], *again[2]])
    within = all(e <= b for e, b in zip(errors, bounds(case, precision), strict=True))  # no NaN
    names = ("loss_error", "gradient_error", "hessian_error")
    return {"ok": within and repeats, "repeats": repeats, **dict(zip(names, errors, strict=True))}


def bounds(case: Case, precision: str) -> tuple[float, float, float]:
    """What the ops' READMEs allow loss, gradient and second derivatives; halves round once more."""
    fast = precision == "high" and case.kind != "f64"
    eps = torch.finfo(DTYPES[case.kind]).eps if case.kind in ("f16", "bf16") else 0.0
    if case.op == "kernel_product":
        loss, gradient = (2e-5, 5e-4) if fast else (2e-6, 2e-5)
        return loss, gradient + eps, 10 * (gradient + eps)
    if case.op == "mmd":
        loss, gradient = (2e-5, 5e-4) if fast else (1e-6, 1e-5)
        if case.inputs.get("apart"):
            loss, gradient = 1e-4, 1e-3
        return loss, gradient + eps, 10 * (gradient + eps)
    # A pair at the margin, or between two prototypes, may fall on the other side.
    loss, gradient = (1e-3, 1e-2) if fast else (1e-4, 1e-3)
    return loss, gradient + eps, gradient + eps


def functions(case: Case, backend: str, device: str) -> tuple[Any, Any, Any, Tensor | None]:
    """The call, its float64 oracle, its inputs, and what the loss's error is over if not itself."""
    a, b, d = case.sizes
    dtype, options, how = DTYPES[case.kind], dict(case.options), dict(case.inputs)
    if case.op == "mmd":
        layout, weights = how.pop("layout", "contiguous"), how.pop("weights", False)
        x, y = map(LAYOUTS[layout], samples(a, b, d, dtype=dtype, device=device, **how))
        if weights:
            options["x_weights"] = sample_weights(a, dtype=torch.float32, device=device)
        sigma = options.pop("bandwidth", math.sqrt(d))
        sigma = sigma if isinstance(sigma, list) else [sigma]
        wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
        # Products take a d-th of the memory of differences, and near the origin float64 bears them.
        products = case.order == 1 and not ({"offset", "apart"} & how.keys())
        return (
            lambda x, y: cgm_fast.mmd(x, y, bandwidth=sigma, backend=backend, **options),
            lambda x, y: mmd_formula(x, y, sigma=sigma, by_product=products, **wide),
            (x, y),
            mmd_magnitude(x.double(), y.double(), sigma=sigma, **wide),
        )
    if case.op == "kernel_product":
        return product_functions(case, backend, device)
    r, g, labels = prototypes(a, b, d, dtype=dtype, device=device)
    given = labels if how.get("labelled") else None
    if case.op == "prototype_margin":
        return (
            lambda r, g: cgm_fast.prototype_margin(r, g, given, backend=backend, **options).loss,
            lambda r, g: prototype_margin_formula(r, g, given, **options)[0],
            (r, g),
            None,
        )
    noise = torch.randn(2, a, d, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return (
        lambda r, g: cgm_fast.cgm_loss(r, g, given, noise=noise, backend=backend, **options).loss,
        lambda r, g: cgm_formula(r, g, given, noise, **options)[0],
        (r, g),
        None,
    )


def product_functions(case: Case, backend: str, device: str) -> tuple[Any, Any, Any, Tensor]:
    """The same of a kernel product: the sum of its entries times numbers of either sign."""
    n, m, d = case.sizes
    options, how, dtype = dict(case.options), dict(case.inputs), DTYPES[case.kind]
    sigma, kernel = options.pop("bandwidth", math.sqrt(d)), options.get("kernel", "gaussian")
    sigma = sigma if isinstance(sigma, list) else [sigma]
    layout, p, batch = how.pop("layout", "contiguous"), how.pop("values"), how.get("batch")
    x, y = map(LAYOUTS[layout], samples(n, m, d, dtype=dtype, device=device, **how))
    generator, shape = torch.Generator().manual_seed(2), (batch,) if batch else ()
    v, signs = (torch.randn(*shape, size, p, generator=generator).to(device) for size in (m, n))
    v = v.to(dtype)

    def oracle(x: Tensor, y: Tensor, v: Tensor, signs: Tensor = signs) -> Tensor:
        squares = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
        matrix = sum(FAMILIES[kernel].radial(squares / (2 * s * s), 1)[1] for s in sigma)
        return (matrix / len(sigma) @ v * signs).sum()

    return (
        lambda x, y, v: (
            cgm_fast.kernel_product(x, y, v, bandwidth=sigma, backend=backend, **options).double()
            * signs
        ).sum(),
        oracle,
        (x, y, v),
        oracle(x.double(), y.double(), v.double().abs(), signs.abs()).abs(),
    )
