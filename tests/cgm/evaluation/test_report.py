import dataclasses
import json
import math
from dataclasses import fields

import pytest
import torch
from tiny import CLASSES, linear_model, pixels

from cgm_fast.cgm.data import ImageData
from cgm_fast.cgm.evaluation import report as report_module
from cgm_fast.cgm.evaluation.clustering import clustering_scores
from cgm_fast.cgm.evaluation.codes import encode_images
from cgm_fast.cgm.evaluation.report import evaluate
from cgm_fast.cgm.models import FullMixturePrior, MixturePrior


def _data(labels=True, classes=CLASSES):
    images = torch.from_numpy(pixels(60)).permute(0, 3, 1, 2).contiguous()
    given = torch.arange(60) % classes
    train, test = (given[:40], given[40:]) if labels else (None, None)
    names = tuple(str(i) for i in range(classes)) if labels else ()
    return ImageData("tiny", images[:40], train, images[40:], test, names)


def _evaluate(model=None, data=None, **options):
    defaults = {"supervised": False, "nll_images": 6, "nll_samples": 4}
    model = (linear_model() if model is None else model).eval()
    return evaluate(model, _data() if data is None else data, "none", **{**defaults, **options})


def test_what_it_holds():
    model = linear_model()
    report = _evaluate(model)
    json.dumps(report, allow_nan=False)
    assert (report["train_images"], report["test_images"]) == (40, 20)
    assert set(report["nats_per_image"]) == {"prior_paper", "prior_fitted", "prior_full"}
    for part in report["nats_per_image"].values():
        assert (part["images"], part["samples"]) == (6, 4)
        assert "bits_per_dim" not in part  # a Bernoulli likelihood is no density
    x = _data().test.float() / 255
    expected = float((model.reconstruct(x) - x).square().mean())
    assert report["mean_squared_error"] == pytest.approx(expected, rel=1e-6)
    assert (
        report["test_usage"] == torch.bincount(model.assign(model.encode(x)), minlength=3).tolist()
    )
    assert report["rate_bits"]["monte_carlo_ceiling"] == math.log2(40)
    assert set(report["probe_error"]) == {"linear_r", "linear_z", "mlp_r", "mlp_z"}
    assert "nearest_prototype_error" not in report
    assert _evaluate(model) == report


def test_variance_within_categories():
    model = linear_model()
    report = _evaluate(model)
    r = model.encode(_data().test.float() / 255).double()
    own = model.assign(r.float())
    for k, found in enumerate(report["within_variance"]):
        if (own == k).sum() < 2:
            assert found is None
        else:
            expected = r[own == k].var(0, correction=0).mean().item()
            assert found == pytest.approx(expected, rel=1e-6)
    assert any(report["within_variance"])


@pytest.mark.parametrize(("scale", "warned"), [(1e-3, True), (30.0, False)])
def test_a_warning_where_codes_tell_little_more_than_the_category(scale, warned):
    model = linear_model()
    with torch.no_grad():
        model.encoder[1].weight.mul_(scale)
    report = _evaluate(model)
    assert (report["rate_bits"]["monte_carlo"] < math.log2(3) + 1) == warned
    assert bool(report["warnings"]) == warned
    if warned:
        assert "hardly more than its category does (at most log2 3 = 1.6)" in report["warnings"][0]


def test_likelihoods_given_the_label_where_categories_are_labels():
    for supervised in (True, False):
        report = _evaluate(supervised=supervised)
        for part in report["nats_per_image"].values():
            assert ("nll_given_category" in part) == supervised
    report = _evaluate(data=_data(classes=4), supervised=True)  # of which the model has three
    assert "nll_given_category" not in report["nats_per_image"]["prior_full"]


def test_bits_per_dim_of_densities():
    report = _evaluate(linear_model(likelihood="gaussian"))
    for part in report["nats_per_image"].values():
        assert part["bits_per_dim"] == pytest.approx(part["nll"] / (64 * math.log(2)) + 8)


def test_the_supervised_error_is_of_the_nearest_prototype():
    model, data = linear_model(), _data()
    report = _evaluate(model, data, supervised=True)
    wrong = model.assign(encode_images(model, data.test, "none")) != data.test_labels
    assert report["nearest_prototype_error"] == pytest.approx(
        float(wrong.double().mean()), rel=1e-6
    )


def test_priors_are_the_models_own_and_those_fitted_on_training_images(monkeypatch):
    seen = []
    original = report_module.likelihoods

    def recorded(model, images, binarization, prior, **options):
        seen.append(prior)
        return original(model, images, binarization, prior, **options)

    monkeypatch.setattr(report_module, "likelihoods", recorded)
    model, data = linear_model(prior_sigma2=0.5, mapper=torch.nn.Linear(3, 3)), _data()
    model.usage.copy_(torch.tensor([0.1, 0.2, 0.7]))  # of batches; the priors do not use it
    _evaluate(model, data)
    r = encode_images(model, data.train, "none")
    means = model.mapper(model.prototypes)
    fitted = MixturePrior.fitted(means, model.mapper(r), model.assign(r), model.sigma2)
    full = FullMixturePrior.fitted(
        means, model.mapper(r), model.assign(r), torch.full((3,), model.sigma2)
    )
    expected = MixturePrior.paper(means, 0.5), fitted, full
    for found, prior in zip(seen, expected, strict=True):
        assert type(found) is type(prior)
        for field in fields(prior):
            torch.testing.assert_close(getattr(found, field.name), getattr(prior, field.name))


def test_likelihoods_are_of_images_drawn_at_random_the_same_for_every_seed(monkeypatch):
    seen = []
    original = report_module.likelihoods

    def recorded(model, images, *rest, **options):
        seen.append(images)
        return original(model, images, *rest, **options)

    monkeypatch.setattr(report_module, "likelihoods", recorded)
    test = _data().test
    for seed in (0, 1):
        _evaluate(seed=seed)
    for found in seen:
        assert torch.equal(found, seen[0])
        assert not torch.equal(found, test[:6])
        matches = (found[:, None] == test).flatten(2).all(2)
        assert (matches.sum(1) == 1).all()  # each is a test image
        assert (matches.sum(0) <= 1).all()  # no image twice
    seen.clear()
    _evaluate(nll_images=1000)
    assert torch.equal(seen[0], test)  # all of them, in their order


def test_without_labels():
    report = _evaluate(data=_data(labels=False), supervised=False)
    assert not {"probe_error", "clustering", "nearest_prototype_error"} & set(report)


def test_one_class_leaves_nothing_to_probe():
    report = _evaluate(data=_data(classes=1))
    assert "probe_error" not in report
    assert 0 < report["clustering"]["accuracy"] <= 1


def test_images_without_a_label_are_left_out_where_labels_count():
    data, model = _data(), linear_model()
    some = dataclasses.replace(
        data,
        train_labels=data.train_labels.where(torch.arange(40) % 4 > 0, -1),
        test_labels=data.test_labels.where(torch.arange(20) % 5 > 0, -1),
    )
    report = _evaluate(model, some, supervised=True)
    kept = some.test_labels >= 0
    found = model.assign(model.encode(some.test.float() / 255))[kept]
    wrong = (found != some.test_labels[kept]).float().mean().item()
    assert report["nearest_prototype_error"] == pytest.approx(wrong)
    assert report["clustering"] == clustering_scores(found, some.test_labels[kept])
    assert 0 <= report["probe_error"]["linear_r"] <= 1
