"""`cgm_loss` against its formula in float64 and against the two ops that it is composed of."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from cgm_fast import cgm_loss, mmd, prototype_margin
from cgm_fast.testing import (
    GRADIENT_TOLERANCE,
    LAYOUTS,
    LOSS_TOLERANCE,
    assert_gradient_close,
    assert_loss_close,
    cgm_formula,
    derivatives,
    mmd_magnitude,
    prototypes,
    rounding,
)

# Samples B, prototypes K, features d.
SHAPES = [(1, 2, 1), (31, 33, 2), (64, 10, 10), (70, 50, 63), (33, 3, 600)]
OPTIONS = {
    "paper": {},
    "wide_prior": {"prior_sigma2": 1.0},
    "no_noise": {"sigma2": 0.0},
    "detached_prior": {"detach_prior": True},
    "mmd_alone": {"margin_weight": 0.0},
    "margin_alone": {"mmd_weight": 0.0, "margin": 2.0, "negatives": "mean"},
    "several_bandwidths": {"bandwidth": (0.5, 1.0, 2.0), "kernel_agg": "sum", "mmd_weight": 2.0},
}


def shape_id(shape):
    return "x".join(map(str, shape))


def case(shape, *, dtype=torch.float32, device="cpu", labelled=False):
    r, g, labels = prototypes(*shape, dtype=dtype, device=device)
    noise = torch.randn(2, shape[0], shape[2], dtype=torch.float64).to(device, dtype)
    return r, g, labels if labelled else None, noise


def formula(r, g, labels, noise, bandwidth=None, **option):
    return cgm_formula(r, g, labels, noise, sigma=bandwidth, **option)


def magnitude(r, g, labels, noise, bandwidth=None, **option):
    """What the weighted terms are made of, before they cancel: λ Σ|c||k − 1| + β Σ|terms|."""
    r, g, noise = r.double(), g.double(), noise.double()
    k = formula(r, g, labels, noise, bandwidth, **option)[3]
    sigma2 = option.get("sigma2", 0.02)
    tau2 = option.get("prior_sigma2", sigma2)
    z, prior = r + math.sqrt(sigma2) * noise[0], g[k] + math.sqrt(tau2) * noise[1]
    of_mmd = mmd_magnitude(
        z, prior, sigma=bandwidth or [math.sqrt(r.shape[1])],
        kernel_agg=option.get("kernel_agg", "mean"),
    )  # fmt: skip
    distance = (r[:, None] - g).square().sum(2)
    own = torch.nn.functional.one_hot(k, len(g)).bool()
    margin = option.get("margin", 1.0)
    of_margin = distance[own].sum() + (margin + distance)[(distance < margin) & ~own].sum()
    weights = option.get("mmd_weight", 1000.0), option.get("margin_weight", 1.0)
    return weights[0] * of_mmd + weights[1] * of_margin / len(r)


def assert_matches(inputs, option, backend, of_loss=LOSS_TOLERANCE, of_rest=GRADIENT_TOLERANCE):
    r, g, labels, noise = inputs

    def call(r, g):
        return cgm_loss(r, g, labels, noise=noise, **option, backend=backend).loss

    def in_float64(r, g):
        return formula(r, g, labels, noise, **option)[0]

    kernel = derivatives(call, (r, g))
    oracle = derivatives(in_float64, (r.double(), g.double()))
    assert_loss_close(kernel[0], oracle[0], magnitude(*inputs, **option), of_loss)
    for parts, expected in zip(kernel[1:], oracle[1:], strict=True):
        for part, wanted in zip(parts, expected, strict=True):
            assert_gradient_close(part, wanted, of_rest)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("labelled", [False, True], ids=["nearest", "labelled"])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_loss_gradients_and_hessian_product_in_float32(shape, labelled, backend, device):
    assert_matches(case(shape, device=device, labelled=labelled), {}, backend)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_option(option, dtype, backend, device):
    inputs = case((63, 10, 5), dtype=dtype, device=device)
    tolerances = (rounding(2 * 63 + 10 + 5),) * 2 if dtype == torch.float64 else ()
    assert_matches(inputs, OPTIONS[option], backend, *tolerances)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_inputs_are_computed_in_float32(dtype, backend, device):
    inputs = case((64, 10, 10), dtype=dtype, device=device)
    assert_matches(inputs, {}, backend)
    result = cgm_loss(*inputs[:3], noise=inputs[3], backend=backend)
    assert result.loss.dtype == result.mmd.dtype == result.margin.dtype == torch.float32
    assert result.z.dtype == dtype


def test_bfloat16_at_the_papers_size_is_off_by_less_than_1e4th_of_a_nat(backend, device):
    inputs = case((64, 10, 10), dtype=torch.bfloat16, device=device)
    value = cgm_loss(*inputs[:3], noise=inputs[3], backend=backend).mmd
    assert abs(1000 * float(value) - 1000 * float(formula(*inputs)[1])) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout, backend, device):
    r, g, labels, noise = case((63, 10, 5), device=device, labelled=True)
    r, g, noise = (LAYOUTS[layout](value) for value in (r, g, noise))
    assert_matches((r, g, labels, noise), {}, backend)


@pytest.mark.parametrize("labelled", [False, True], ids=["nearest", "labelled"])
def test_equals_its_two_ops_with_the_same_noise(labelled, backend, device):
    r, g, labels, noise = case((64, 10, 10), device=device, labelled=labelled)
    r.requires_grad_()
    g.requires_grad_()
    fused = cgm_loss(r, g, labels, noise=noise, backend=backend)
    margin, assignment = prototype_margin(r, g, labels, backend=backend)
    std = math.sqrt(0.02)
    z, prior = r + std * noise[0], g[assignment] + std * noise[1]
    value = mmd(z, prior, backend=backend)
    assert torch.equal(fused.assignment, assignment)
    scale = magnitude(r.detach(), g.detach(), labels, noise)
    assert_loss_close(fused.loss.detach(), (1000 * value + margin).detach(), scale)
    assert_loss_close(fused.mmd, value.detach(), scale / 1000)
    assert_loss_close(fused.margin, margin.detach(), scale)
    assert_gradient_close(fused.z.detach(), z.detach(), torch.finfo(torch.float32).eps)
    apart = torch.autograd.grad(1000 * value + margin, (r, g))
    for part, wanted in zip(torch.autograd.grad(fused.loss, (r, g)), apart, strict=True):
        # Both sides meet the contract against the same truth.
        assert_gradient_close(part, wanted, 2 * GRADIENT_TOLERANCE)


def test_terms_are_detached_and_add_up(backend, device):
    r, g, _, noise = case((64, 10, 10), device=device)
    result = cgm_loss(
        r.requires_grad_(), g, noise=noise, mmd_weight=3.0, margin_weight=0.5, backend=backend
    )
    assert not result.mmd.requires_grad
    assert not result.margin.requires_grad
    assert not result.assignment.requires_grad
    total = 3 * result.mmd + 0.5 * result.margin
    assert float(result.loss.detach()) == pytest.approx(float(total), rel=LOSS_TOLERANCE)


def test_the_gradient_of_the_latents_reaches_the_encoder(backend, device):
    r, g, _, noise = case((31, 10, 5), device=device)
    r.requires_grad_()
    g.requires_grad_()
    along = torch.randn_like(r)
    result = cgm_loss(r, g, noise=noise, backend=backend)
    alone = torch.autograd.grad(result.z, (r, g), along, retain_graph=True, allow_unused=True)
    assert torch.equal(alone[0], along)
    assert alone[1] is None or float(alone[1].abs().max()) == 0
    of_loss = torch.autograd.grad(result.loss, r, retain_graph=True)[0]
    both = torch.autograd.grad((result.loss, result.z), r, (torch.ones_like(result.loss), along))
    assert torch.equal(both[0], of_loss + along)


def test_detach_prior_leaves_the_prototypes_to_the_margin_loss(backend, device):
    r, g, labels, noise = case((64, 10, 10), device=device, labelled=True)
    g.requires_grad_()
    cgm_loss(r, g, labels, noise=noise, detach_prior=True, backend=backend).loss.backward()
    (expected,) = torch.autograd.grad(prototype_margin(r, g, labels, backend=backend).loss, g)
    assert_gradient_close(g.grad, expected)


def test_a_seeded_generator_gives_the_same_noise(backend, device):
    r, g, _, _ = case((64, 10, 10), device=device)

    def draw(seed):
        generator = torch.Generator(device).manual_seed(seed)
        return cgm_loss(r, g, generator=generator, backend=backend)

    assert torch.equal(draw(1).loss, draw(1).loss)
    assert torch.equal(draw(1).z, draw(1).z)
    assert not torch.equal(draw(1).z, draw(2).z)


def test_the_global_seed_governs_the_noise_too(backend, device):
    r, g, _, _ = case((64, 10, 10), device=device)
    torch.manual_seed(1)
    one = cgm_loss(r, g, backend=backend).z
    torch.manual_seed(1)
    assert torch.equal(one, cgm_loss(r, g, backend=backend).z)


@pytest.mark.slow_interpreted
def test_the_noise_has_the_variance_asked_for(backend, device):
    # 200 000 squared normals: their mean has a standard error of √(2 / 200 000).
    r, g, _, _ = case((20_000, 2, 10), device=device)
    z = cgm_loss(r[:500], g, sigma2=0.02, backend=backend).z - r[:500]
    error = math.sqrt(2 / z.numel())
    assert abs(float(z.square().mean()) / 0.02 - 1) <= 4 * error


def test_without_noise_the_latents_are_the_means(backend, device):
    r, g, _, _ = case((64, 10, 10), device=device)
    assert torch.equal(cgm_loss(r, g, sigma2=0.0, backend=backend).z, r)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("wanted", ["r", "g"])
@pytest.mark.parametrize("detach_prior", [False, True], ids=["", "detached"])
def test_only_the_gradient_asked_for(wanted, detach_prior, backend, device):
    r, g, _, noise = case((31, 10, 5), device=device)
    inputs = {"r": r.requires_grad_(), "g": g.requires_grad_()}
    option = {"noise": noise, "detach_prior": detach_prior, "backend": backend}
    both = torch.autograd.grad(cgm_loss(**inputs, **option).loss, list(inputs.values()))
    alone = {name: value.detach() for name, value in inputs.items()}
    alone[wanted].requires_grad_()
    cgm_loss(**alone, **option).loss.backward()
    assert_gradient_close(alone[wanted].grad, dict(zip(inputs, both, strict=True))[wanted])


@pytest.mark.parametrize("option", ["paper", "detached_prior", "several_bandwidths"])
def test_gradcheck_of_first_and_second_derivatives(option, backend, device, interpreted, emulated):
    if interpreted:
        pytest.skip("half a minute in the interpreter; test_every_option has them all")
    r, g, _, noise = case((5, 4, 3), dtype=torch.float64, device=device)
    option = OPTIONS[option] | {"mmd_weight": 2.0}

    def call(r, g):
        result = cgm_loss(r, g, noise=noise, **option, backend=backend)
        return result.loss, result.z

    # A detached prior makes the gradient in g none of the loss's: gradcheck could not know.
    inputs = (r.requires_grad_(), g.requires_grad_(not option.get("detach_prior")))
    assert gradcheck(call, inputs, fast_mode=emulated)
    assert gradgradcheck(call, inputs, fast_mode=emulated)
