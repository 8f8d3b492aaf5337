"""Bad input to the ops: each error names the argument, what it takes and what it got."""

import warnings

import numpy as np
import pytest
import torch

from cgm_fast import cgm_loss, mmd, prototype_margin

NAN, INF = float("nan"), float("inf")


def ones(*shape, **how):
    return torch.ones(shape, **how)


def holding(value, *shape):
    out = torch.ones(shape)
    out.view(-1)[0] = value
    return out


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its prototype
        return torch.nested.nested_tensor([ones(4, 3), ones(2, 3)])


X, Y = ones(4, 3), ones(5, 3)
META = ones(4, 3, device="meta")

# Arguments that replace the good ones, and the error.
MMD = {
    "no_tensor": ({"x": [[1.0]]}, TypeError, r"x must be a torch.Tensor, got list"),
    "vector": ({"x": ones(4)}, ValueError, r"x and y must be \[n, d\].*got \[4\] and \[5, 3\]"),
    "four_dims": (
        {"x": ones(1, 1, 4, 3), "y": ones(1, 1, 4, 3)},
        ValueError,
        r"\[b, n, d\].*got \[1, 1, 4, 3\]",
    ),
    "batch_and_none": ({"x": ones(1, 4, 3)}, ValueError, r"got \[1, 4, 3\] and \[5, 3\]"),
    "features": (
        {"y": ones(5, 2)},
        ValueError,
        r"x and y .* same number of features d, got 3 and 2",
    ),
    "batches": (
        {"x": ones(2, 4, 3), "y": ones(3, 4, 3)},
        ValueError,
        r"x and y .* same batch size b, got 2 and 3",
    ),
    "no_rows_of_x": ({"x": ones(0, 3)}, ValueError, r"x must not be empty, got shape \[0, 3\]"),
    "no_rows_of_y": ({"y": ones(0, 3)}, ValueError, r"y must not be empty, got shape \[0, 3\]"),
    "no_features": (
        {"x": ones(4, 0), "y": ones(5, 0)},
        ValueError,
        r"x must not be empty, got shape \[4, 0\]",
    ),
    "no_batch": (
        {"x": ones(0, 4, 3), "y": ones(0, 4, 3)},
        ValueError,
        r"x must not be empty, got shape \[0, 4, 3\]",
    ),
    "images": (
        {"x": ones(4, 1, 8, 8), "y": ones(4, 1, 8, 8)},
        ValueError,
        r"got \[4, 1, 8, 8\] .*x.flatten\(1\) makes a row of each image",
    ),
    "sparse": ({"x": X.to_sparse()}, TypeError, r"x must be dense, got layout torch.sparse_coo"),
    "nested": ({"y": nested()}, TypeError, r"y must be dense, got a nested tensor"),
    "jagged": (
        {"y": torch.nested.nested_tensor([X, Y], layout=torch.jagged)},
        TypeError,
        r"y must be dense, got a nested tensor",
    ),
    "mkldnn": (
        {"y": Y.to_mkldnn()},
        TypeError,
        r"y must be dense, got layout torch._mkldnn",
    ),
    "sparse_weights": (
        {"x_weights": ones(4).to_sparse()},
        TypeError,
        r"x_weights must be dense, got layout torch.sparse_coo",
    ),
    "integers": ({"x": X.long()}, TypeError, r"x must have dtype float16, .*got torch.int64"),
    "complex": ({"y": Y.cfloat()}, TypeError, r"y must have dtype .*float64, got torch.complex64"),
    "dtypes": ({"y": Y.double()}, TypeError, r"x and y .* one dtype, got .*float32 and .*float64"),
    "devices": ({"x": META}, ValueError, r"x and y must be on one device, got meta and cpu"),
    "nan": (
        {"x": holding(NAN, 4, 3), "check_finite": True},
        ValueError,
        r"x must be finite, got 1 NaN or infinite of 12 values",
    ),
    "infinity": (
        {"y": holding(-INF, 5, 3), "check_finite": True},
        ValueError,
        r"y must be finite, got 1 NaN or infinite of 15",
    ),
    "nan_weight": (
        {"x_weights": holding(NAN, 4), "check_finite": True},
        ValueError,
        r"x_weights must be finite",
    ),
    "infinite_weight": (
        {"y_weights": holding(INF, 5), "check_finite": True},
        ValueError,
        r"y_weights must be finite",
    ),
    "weights_shape": (
        {"x_weights": ones(5)},
        ValueError,
        r"x_weights must have shape \[4\] or \[1, 4\], got \[5\]",
    ),
    "weights_of_integers": ({"y_weights": ones(5).long()}, TypeError, r"y_weights .*torch.int64"),
    "weights_device": (
        {"x_weights": ones(4, device="meta")},
        ValueError,
        r"x_weights .* samples' device cpu, got meta",
    ),
    "estimator": (
        {"estimator": "linear"},
        ValueError,
        r"estimator must be one of 'biased', 'unbiased', got 'linear'",
    ),
    "unbiased_of_one": (
        {"estimator": "unbiased", "x": ones(1, 3)},
        ValueError,
        r"'unbiased' needs n and m of at least 2, got n=1, m=5",
    ),
    "unbiased_of_one_weight": (
        {"estimator": "unbiased", "x_weights": torch.tensor([1.0, 0.0, 0.0, 0.0])},
        ValueError,
        r"x_weights must leave at least two rows .*'unbiased', got \(Σw\)² - Σw² = 0",
    ),
    "unbiased_of_one_weight_in_a_batch": (
        {
            "estimator": "unbiased",
            "x": ones(2, 4, 3),
            "y": ones(2, 5, 3),
            "y_weights": torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 0.0, 2.0, 0.0]]),
        },
        ValueError,
        r"y_weights must leave at least two rows",
    ),
    "kernel_agg": ({"kernel_agg": "max"}, ValueError, r"kernel_agg .*'mean', 'sum', got 'max'"),
    "backend": (
        {"backend": "fast"},
        ValueError,
        r"backend must be one of 'auto', .*'native', .*'reference'.*, got 'fast'",
    ),
}

TAKES = (
    r"bandwidth must be 'paper', 'infovae', a number, or a sequence or 1-dimensional array of "
    r"numbers, or a tensor of shape \[\], \[s\] or \[b, s\], got "
)
BANDWIDTHS = {
    "zero": (0.0, ValueError, r"bandwidth must be a finite number > 0, got 0"),
    "negative": (-1, ValueError, r"bandwidth .* > 0, got -1"),
    "nan": (NAN, ValueError, r"bandwidth .* > 0, got nan"),
    "infinite": (INF, ValueError, r"bandwidth .* finite .*got inf"),
    "too_large_to_square": (1e30, ValueError, r"bandwidth squared .*float32, got 1e\+30"),
    "too_small_to_square": (1e-30, ValueError, r"bandwidth squared .*float32, got 1e-30"),
    "beyond_float64": (1e300, ValueError, r"bandwidth squared .*float32, got 1e\+300"),
    "unknown": ("median", ValueError, r"bandwidth must be one of 'paper', 'infovae', got 'median'"),
    "no_number": (None, TypeError, TAKES + "NoneType"),
    "boolean": (True, TypeError, r"bandwidth must be a number, got bool"),
    "empty": ([], ValueError, r"bandwidth must hold at least one number, got an empty sequence"),
    "negative_in_list": ([1.0, -2.0], ValueError, r"bandwidth .* > 0, got -2"),
    "zero_in_tensor": (torch.tensor([1.0, 0.0]), ValueError, r"bandwidth .* > 0, got 0"),
    "nan_in_tensor": (torch.tensor([1.0, NAN]), ValueError, r"bandwidth .* > 0, got nan"),
    "infinity_in_tensor": (torch.tensor([1.0, INF]), ValueError, r"bandwidth .* finite .*got inf"),
    "small_in_tensor": (torch.tensor([1.0, 1e-30]), ValueError, r"bandwidth squared .*float32"),
    "empty_tensor": (ones(0), ValueError, r"bandwidth must have shape \[\].*got \[0\]"),
    "batch_of_tensor": (ones(2, 2), ValueError, r"bandwidth .*\[b, s\] with b=1, got \[2, 2\]"),
    "tensor_of_three_dims": (ones(1, 1, 1), ValueError, r"bandwidth .*got \[1, 1, 1\]"),
    "tensor_of_booleans": (torch.tensor(True), TypeError, r"bandwidth .*float32.*got torch.bool"),
    "tensor_of_zero": (torch.tensor(0.0), ValueError, r"> 0, got 0; a median .* is 0 .*clamp it"),
    "array_of_zero": (np.zeros(2), ValueError, r"bandwidth .* > 0, got 0"),
    "matrix": (np.ones((2, 2)), ValueError, TAKES + r"an array of shape \[2, 2\]"),
    "array_of_booleans": (np.array([True]), TypeError, r"bandwidth must be a number, got bool"),
    "array_of_names": (np.array(["paper"]), TypeError, r"bandwidth must be a number, got str"),
    "empty_array": (np.zeros(0), ValueError, r"bandwidth must hold at least one number"),
    "list_of_vectors": ([ones(2), 1.0], ValueError, r"tensors of shape \[\], got one .*\[2\]"),
    "negative_beside_a_tensor": (
        [torch.tensor(1.0), -1.0],
        ValueError,
        r"bandwidth .* > 0, got -1",
    ),
    "negative_tensor_in_list": ([torch.tensor(-1.0), 1.0], ValueError, r"bandwidth .* > 0, got -1"),
    "complex": (1j, TypeError, TAKES + "complex"),
    "set": ({1.0}, TypeError, TAKES + "set"),
    "tensor_elsewhere": (META, ValueError, r"bandwidth .* samples' device cpu, got meta"),
}

R, G = ones(4, 3), ones(6, 3)
PROTOTYPES = {
    "no_tensor": ({"g": None}, TypeError, r"g must be a torch.Tensor, got NoneType"),
    "vector": ({"r": ones(4)}, ValueError, r"r and g .*\[B, d\] and \[K, d\], got \[4\]"),
    "three_dims": ({"g": ones(1, 6, 3)}, ValueError, r"\[K, d\], got \[4, 3\] and \[1, 6, 3\]"),
    "features": ({"g": ones(6, 2)}, ValueError, r"r and g .*got \[4, 3\] and \[6, 2\]"),
    "no_samples": ({"r": ones(0, 3)}, ValueError, r"r must not be empty, got shape \[0, 3\]"),
    "no_features": ({"r": ones(4, 0), "g": ones(6, 0)}, ValueError, r"r must not be empty"),
    "one_prototype": ({"g": ones(1, 3)}, ValueError, r"g .* at least 2 prototypes, got K=1"),
    "no_prototype": ({"g": ones(0, 3)}, ValueError, r"g .* at least 2 prototypes, got K=0"),
    "integers": ({"r": R.int()}, TypeError, r"r must have dtype float16, .*got torch.int32"),
    "complex": ({"g": G.cdouble()}, TypeError, r"g must have dtype .*got torch.complex128"),
    "dtypes": ({"r": R.half()}, TypeError, r"r and g .* one dtype, got .*float16 and .*float32"),
    "devices": ({"r": META}, ValueError, r"r and g must be on one device, got meta and cpu"),
    "nan": (
        {"r": holding(NAN, 4, 3), "check_finite": True},
        ValueError,
        r"r must be finite, got 1",
    ),
    "infinity": ({"g": holding(INF, 6, 3), "check_finite": True}, ValueError, r"g must be finite"),
    "sparse": ({"r": R.to_sparse()}, TypeError, r"r must be dense, got layout torch.sparse_coo"),
    "nested": ({"g": nested()}, TypeError, r"g must be dense, got a nested tensor"),
    "sparse_labels": (
        {"labels": torch.zeros(4, dtype=torch.long).to_sparse()},
        TypeError,
        r"labels must be dense",
    ),
    "labels_no_tensor": (
        {"labels": [0] * 4},
        TypeError,
        r"labels must be a torch.Tensor, got list",
    ),
    "labels_shape": (
        {"labels": torch.zeros(5, dtype=torch.long)},
        ValueError,
        r"labels must have shape \[4\], got \[5\]",
    ),
    "labels_one_hot": (
        {"labels": torch.zeros(4, 6, dtype=torch.long)},
        ValueError,
        r"labels must have shape \[4\], got \[4, 6\]",
    ),
    "labels_of_floats": ({"labels": ones(4)}, TypeError, r"labels .*integer dtype, got .*float32"),
    "labels_of_bools": ({"labels": ones(4).bool()}, TypeError, r"labels .*integer.*torch.bool"),
    "labels_elsewhere": (
        {"labels": torch.zeros(4, dtype=torch.long, device="meta")},
        ValueError,
        r"labels must be on the samples' device cpu, got meta",
    ),
    "label_too_large": (
        {"labels": torch.tensor([0, 1, 6, 2])},
        ValueError,
        r"labels must lie in \[0, 6\), got values from 0 to 6",
    ),
    "label_negative": (
        {"labels": torch.tensor([0, -1, 1, 2])},
        ValueError,
        r"labels must lie in \[0, 6\), got values from -1 to 2",
    ),
    "margin_negative": ({"margin": -0.5}, ValueError, r"margin .*finite number >= 0, got -0.5"),
    "margin_nan": ({"margin": NAN}, ValueError, r"margin .*finite number >= 0, got nan"),
    "margin_no_number": ({"margin": "1"}, TypeError, r"margin must be a number, got str"),
    "negatives": ({"negatives": "max"}, ValueError, r"negatives .*'sum', 'mean', got 'max'"),
    "backend": ({"backend": "fast"}, ValueError, r"backend must be one of 'auto', .*got 'fast'"),
}

REDUCTION = {
    "reduction": ({"reduction": "none"}, ValueError, r"reduction .*'mean', 'sum', got 'none'")
}

CGM_LOSS = {
    "sigma2": ({"sigma2": -0.1}, ValueError, r"sigma2 must be a finite number >= 0, got -0.1"),
    "prior_sigma2": ({"prior_sigma2": INF}, ValueError, r"prior_sigma2 .*finite .*got inf"),
    "mmd_weight": ({"mmd_weight": NAN}, ValueError, r"mmd_weight .* >= 0, got nan"),
    "margin_weight": ({"margin_weight": -1}, ValueError, r"margin_weight .* >= 0, got -1"),
    "weight_no_number": ({"mmd_weight": "1"}, TypeError, r"mmd_weight .* number, got str"),
    "kernel_agg": ({"kernel_agg": "max"}, ValueError, r"kernel_agg .*'mean', 'sum', got 'max'"),
    "bandwidth": ({"bandwidth": 0.0}, ValueError, r"bandwidth .* > 0, got 0"),
    "bandwidths": ({"bandwidth": []}, ValueError, r"bandwidth .* at least one number"),
    "bandwidth_name": ({"bandwidth": "x"}, ValueError, r"bandwidth .*'paper', 'infovae', got 'x'"),
    "bandwidth_tensor": (
        {"bandwidth": ones(1)},
        TypeError,
        r"bandwidth must be 'paper', 'infovae', a number, or a sequence .* here, got a tensor",
    ),
    "noise_shape": (
        {"noise": ones(4, 3)},
        ValueError,
        r"noise must have shape \[2, 4, 3\], got \[4, 3\]",
    ),
    "noise_dtype": ({"noise": ones(2, 4, 3).int()}, TypeError, r"noise .*got torch.int32"),
    "noise_elsewhere": (
        {"noise": ones(2, 4, 3, device="meta")},
        ValueError,
        r"noise must be on the samples' device cpu, got meta",
    ),
    "noise_with_a_gradient": (
        {"noise": ones(2, 4, 3, requires_grad=True)},
        ValueError,
        r"noise must not require a gradient",
    ),
    "bandwidth_tensors": (
        {"bandwidth": [torch.tensor(1.0)]},
        TypeError,
        r"bandwidth must be .*a tensor",
    ),
    "noise_nan": (
        {"noise": holding(NAN, 2, 4, 3), "check_finite": True},
        ValueError,
        r"noise must be finite",
    ),
}


def table(cases):
    return pytest.mark.parametrize(
        ("arguments", "error", "message"), list(cases.values()), ids=list(cases)
    )


@table(MMD)
def test_mmd(arguments, error, message):
    with pytest.raises(error, match=message):
        mmd(**({"x": X, "y": Y} | arguments))


@table(BANDWIDTHS)
def test_bandwidth(arguments, error, message):
    with pytest.raises(error, match=message):
        mmd(X, Y, bandwidth=arguments)


@table(PROTOTYPES | REDUCTION)
def test_prototype_margin(arguments, error, message):
    with pytest.raises(error, match=message):
        prototype_margin(**({"r": R, "g": G} | arguments))


@table(PROTOTYPES | CGM_LOSS)
def test_cgm_loss(arguments, error, message):
    with pytest.raises(error, match=message):
        cgm_loss(**({"r": R, "g": G} | arguments))


def keeps_assertions(compiler):
    """Whether it does not drop an assertion of torch's own, as the Inductor of torch 2.6 does."""
    torch.compiler.reset()

    def check(x):
        torch._assert_async(x.isfinite().all(), "no")
        return x + 1

    try:
        torch.compile(check, fullgraph=True, backend=compiler)(torch.tensor(NAN))
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("op", ["mmd", "cgm_loss"])
def test_compiled_code_checks_for_nan_when_it_runs(op, compiler):
    if not keeps_assertions(compiler):
        pytest.skip(f"{compiler} of torch {torch.__version__} drops assertions")
    torch.compiler.reset()
    call = {
        "mmd": lambda x, y: mmd(x, y, check_finite=True),
        "cgm_loss": lambda x, y: cgm_loss(x, y, check_finite=True).loss,
    }[op]
    compiled = torch.compile(call, fullgraph=True, backend=compiler)
    assert compiled(X, Y).isfinite()
    with pytest.raises(RuntimeError, match="must be finite"):
        compiled(X, holding(NAN, 5, 3))


def test_what_vmap_maps_is_checked_too():
    x = torch.stack((X, holding(INF, 4, 3)))
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN or infinite of 24 values"):
        torch.vmap(lambda x: mmd(x, Y, check_finite=True))(x)
    with pytest.raises(ValueError, match=r"bandwidth .* > 0, got 0"):
        torch.vmap(lambda sigma: mmd(X, Y, bandwidth=sigma))(torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("function", [mmd, prototype_margin, cgm_loss])
def test_mixed_dtypes_are_an_error_again_after_autocast(function):
    with torch.autocast("cpu", torch.bfloat16):
        function(X.bfloat16(), G)
    with pytest.raises(TypeError, match="one dtype"):
        function(X.bfloat16(), G)


LABELLED = {
    "prototype_margin": lambda r, g, labels, backend: (
        prototype_margin(r, g, labels, backend=backend).loss
    ),
    "cgm_loss": lambda r, g, labels, backend: cgm_loss(r, g, labels, backend=backend).loss,
}


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("label", [-(2**62), -1, 6, 2**62])
@pytest.mark.parametrize("op", LABELLED)
def test_a_wrong_label_that_compiled_code_cannot_check_gives_nan(op, label, backend, device):
    torch.compiler.reset()
    call = torch.compile(LABELLED[op], fullgraph=True, backend="aot_eager")
    r, g = (z.to(device).requires_grad_() for z in (R, G))
    labels = torch.tensor([0, label, 1, 2], device=device)
    loss = call(r, g, labels, backend)
    assert loss.isnan()
    torch.autograd.grad(loss, (r, g))  # no crash
    assert not call(r, g, labels.clamp(0, 5), backend).isnan()


def test_a_bandwidth_that_compiled_code_cannot_check_gives_no_crash(backend, device):
    torch.compiler.reset()
    call = torch.compile(
        lambda x, y, s: mmd(x, y, bandwidth=s, backend=backend), fullgraph=True, backend="aot_eager"
    )
    bandwidth = torch.zeros((), device=device)
    assert call(X.to(device), Y.to(device) + 1, bandwidth).shape == ()
