"""A warning where the kernel is flat or zero on the data, and nowhere else."""

import warnings

import pytest
import torch

import cgm_fast
from cgm_fast import BandwidthWarning, MMDLoss, mmd
from cgm_fast.ops.mmd import blind
from cgm_fast.testing import samples


@pytest.fixture(autouse=True)
def nothing_seen():
    """As in a process that has not called `mmd` yet."""
    for known in blind._seen.values():
        known.calls, known.warned = 0, False


def scaled(factor, batch=None, dtype=torch.float32):
    return [factor * z for z in samples(100, 80, 10, batch=batch, dtype=dtype)]


PIXELS = scaled(70.0)
UNIT = [torch.nn.functional.normalize(z, dim=1) / 20 for z in scaled(1.0)]
BLIND = {
    "pixels": (PIXELS, {}, r"zero \(k < 0.001\).*bandwidth 3.16 beside a median distance of 2\d\d"),
    "small": (UNIT, {}, r"flat \(k > 0.999\).*bandwidth 3.16 beside a median distance of 0.0"),
    "batch": (scaled(70.0, batch=2), {}, "zero"),
    "half": (scaled(70.0, dtype=torch.bfloat16), {}, "zero"),
    "a_number": (scaled(1.0), {"bandwidth": 0.01}, "bandwidth 0.01 beside"),
    "several": (scaled(1.0), {"bandwidth": [0.01, 0.02]}, "bandwidth 0.01 and 0.02 beside"),
    "unbiased": (PIXELS, {"estimator": "unbiased"}, "zero"),
}
SEES = {
    "unit_variance": (scaled(1.0), {}),
    "ten_times": (scaled(3.0), {}),
    "pixels_and_their_median": (PIXELS, {"bandwidth": 300.0}),
    "one_of_several": (PIXELS, {"bandwidth": [1.0, 300.0]}),
    "a_tensor_is_meant": (PIXELS, {"bandwidth": torch.tensor(1.0)}),
    "equal_rows": ([torch.ones(20, 3), torch.ones(20, 3)], {}),
    "few_rows": ([torch.zeros(1, 3), torch.full((1, 3), 100.0)], {}),
    "clusters_far_apart": ([z + shift for z, shift in zip(scaled(1.0), (0, 1e3), strict=True)], {}),
}


@pytest.mark.parametrize("case", BLIND)
def test_a_blind_kernel_is_named_with_what_to_pass(case):
    (x, y), option, message = BLIND[case]
    with pytest.warns(BandwidthWarning, match=message) as caught:
        mmd(x, y, **option)
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    sigma = float(text.rpartition("bandwidth=")[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mmd(x, y, bandwidth=sigma).isfinite().all()


@pytest.mark.parametrize("case", SEES)
def test_a_kernel_that_sees_is_left_alone(case):
    (x, y), option = SEES[case]
    mmd(x, y, **option)


def test_the_module_warns_where_it_is_called():
    with pytest.warns(BandwidthWarning) as caught:
        MMDLoss()(*PIXELS)
    assert caught[0].filename == __file__


def test_it_is_said_once():
    with pytest.warns(BandwidthWarning):
        mmd(*PIXELS)
    for _ in range(9):
        mmd(*PIXELS)
        mmd(PIXELS[0][:50], PIXELS[1])


def test_data_that_becomes_blind_is_noticed():
    for _ in range(5):
        mmd(*scaled(1.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            mmd(*PIXELS)
    assert [warning.category for warning in caught] == [BandwidthWarning]


def test_few_calls_are_looked_at(monkeypatch):
    looked = []
    monkeypatch.setattr(torch, "pdist", lambda z: looked.append(len(z)) or torch.ones(1))
    inputs = scaled(1.0)
    for _ in range(200):
        mmd(*inputs)
    assert len(looked) == 8
    assert max(looked) <= 2 * blind.ROWS


def test_transforms_and_compiled_code_do_not_look(monkeypatch):
    monkeypatch.setattr(torch, "pdist", lambda z: pytest.fail("looked"))
    x, y = PIXELS
    torch.func.grad(lambda x: mmd(x, y))(x)
    torch.vmap(mmd)(x[None], y[None])
    torch.compiler.reset()
    torch.compile(lambda x: mmd(x, y), fullgraph=True, backend="aot_eager")(x)
    mmd(x.to("meta"), y.to("meta"))


def test_the_loss_of_a_model_does_not_look(monkeypatch):
    monkeypatch.setattr(torch, "pdist", lambda z: pytest.fail("looked"))
    cgm_fast.cgm_loss(*PIXELS)
