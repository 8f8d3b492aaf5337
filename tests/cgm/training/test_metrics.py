import csv
import errno
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import linear_model, run

from cgm_fast.cgm.evaluation.rate import monte_carlo_rate
from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.training import metrics
from cgm_fast.cgm.training.metrics import COLUMNS, MetricsLog, Window, all_finite
from cgm_fast.cgm.training.states import load_checkpoint

X = torch.linspace(0, 1, 12 * 64).reshape(12, 1, 8, 8)


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_window_averages_its_steps():
    model = linear_model(mmd_weight=10.0, margin_weight=0.5)
    window = Window(model)
    outputs = [model(X) for _ in range(3)]
    for i, output in enumerate(outputs):
        window.add(model, output, grad_norm=torch.tensor(float(i)))
    row = window.row(model)
    expected = {
        "loss": sum(float(o.loss.detach()) for o in outputs) / 3,
        "reconstruction": sum(float(o.reconstruction) for o in outputs) / 3,
        "mmd_weighted": 10 * sum(float(o.mmd) for o in outputs) / 3,
        "margin_weighted": 0.5 * sum(float(o.margin) for o in outputs) / 3,
        "grad_norm": 1.0,
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-6)  # weights are applied in float32
    parts = row["reconstruction"] + row["mmd_weighted"] + row["margin_weighted"]
    assert row["loss"] == pytest.approx(parts, rel=1e-6)
    r = torch.cat([output.r for output in outputs]).double()
    rate = 0.5 * float(torch.log2(1 + r.var(0, correction=0) / model.sigma2).sum())
    assert row["rate_bits"] == pytest.approx(rate, rel=1e-6)  # variances are told in float32
    assert math.isnan(Window(model).rate_bits())
    assert row["nominal_rate_bits"] == pytest.approx(1.5 * math.log2(1 / 0.02))
    assert row["monte_carlo_rate_bits"] == monte_carlo_rate(r.float(), model.sigma2)
    assert row["monte_carlo_rate_bits"] < row["rate_bits"]


def test_a_learned_noise_has_no_nominal_rate(tmp_path):
    run(tmp_path, model="vae", max_steps=2)
    (row,) = _rows(tmp_path / "run" / "metrics.csv")
    assert row["nominal_rate_bits"] == "nan"
    assert 0 < float(row["monte_carlo_rate_bits"]) <= math.log2(16)


def test_the_latest_codes_are_kept(monkeypatch):
    monkeypatch.setattr(metrics, "RATE_CODES", 30)
    model = linear_model()
    window, outputs = Window(model), [model(X * i) for i in range(7)]
    for output in outputs:
        window.add(model, output, torch.tensor(0.0))
    assert len(window.latest) == 3  # of 12 codes each: no more than it takes
    r, variance = window.codes()
    assert torch.equal(r, torch.cat([output.r for output in outputs])[-30:])
    assert variance.shape == r.shape
    other = Window(model)
    other.load_state_dict(window.state_dict())
    for each in (window, other):
        each.add(model, outputs[0], torch.tensor(0.0))
    assert torch.equal(window.codes()[0], other.codes()[0])
    assert window.row(model) == other.row(model)


def test_held_steps_are_summed_as_if_one_by_one(monkeypatch):
    model = linear_model()
    batches = [X[: 3 + i] * (i + 1) for i in range(7)]
    outputs = [model(x) for x in batches]
    rows = []
    for held in (1, 3, 7, 64):
        monkeypatch.setattr(metrics, "STEPS_HELD", held)
        window = Window(model)
        for i, output in enumerate(outputs):
            window.add(model, output, torch.tensor(float(i)))
            assert len(window.held) == (i + 1) % held
        rows.append(window.row(model))
    assert all(row == rows[0] for row in rows)


@pytest.mark.parametrize(
    ("usage", "bits"), [((1, 1, 1), math.log2(3)), ((1, 1, 0), 1), ((1, 0, 0), 0)]
)
def test_usage_bits(usage, bits):
    model = linear_model()
    window = Window(model)
    window.add(model, model(X), torch.tensor(0.0))
    model.usage.copy_(torch.tensor(usage) / sum(usage))
    assert window.row(model)["usage_bits"] == pytest.approx(bits, abs=1e-6)


def test_within_variance_is_about_each_categorys_mean_over_the_window():
    model = linear_model()
    window = Window(model)
    outputs = [model(X, torch.arange(12) % 2 + i) for i in range(2)]  # of 3 categories
    for output in outputs:
        window.add(model, output, torch.tensor(0.0))
    r = torch.cat([output.r for output in outputs]).double()
    own = torch.cat([output.assignment for output in outputs])
    squares = [(r[own == k] - r[own == k].mean(0)).square().sum() for k in range(3)]
    expected = float(sum(squares)) / r.numel()
    assert window.row(model)["within_variance"] == pytest.approx(expected, rel=1e-9)
    assert Window(model).within_variance() == 0


def test_a_windows_state():
    model = linear_model()
    window, other = Window(model), Window(model)
    window.add(model, model(X), torch.tensor(1.0))
    other.load_state_dict(window.state_dict())
    assert other.row(model) == window.row(model)
    other.add(model, model(X), torch.tensor(2.0))
    assert window.steps == 1  # the state was copied


def test_rows_are_averages_of_log_every_steps_and_of_what_remains(tmp_path):
    run(tmp_path, max_steps=9, log_every=4)
    rows = _rows(tmp_path / "run" / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [4, 8, 9]
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert tuple(rows[0]) == COLUMNS
    run(tmp_path, max_steps=9, log_every=1, out=str(tmp_path / "every"))
    every = _rows(tmp_path / "every" / "metrics.csv")
    mean = sum(float(row["reconstruction"]) for row in every[:4]) / 4
    assert float(rows[0]["reconstruction"]) == pytest.approx(mean, rel=1e-5)  # of six digits


def test_tensorboard_gets_the_same_numbers(tmp_path):
    run(tmp_path, max_steps=4, log_every=2)
    run(tmp_path, max_steps=6, resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "events")).Reload()
    assert set(events.Tags()["scalars"]) == set(COLUMNS[2:])
    rows = _rows(tmp_path / "run" / "metrics.csv")
    for name in ("loss", "rate_bits"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [2, 4, 6]
        assert [value for _, value in found] == pytest.approx(
            [float(row[name]) for row in rows], rel=1e-5
        )


def test_a_resumed_log_drops_later_and_broken_rows(tmp_path):
    row = ["1"] * (len(COLUMNS) - 1)
    lines = [
        ",".join(COLUMNS),
        *(",".join([str(step), *row]) for step in (2, 4, 6)),
        "5,0.3",
        "\0,x",
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    log = MetricsLog(tmp_path, 4)
    log.write(dict.fromkeys(COLUMNS, 2.0) | {"step": 6, "epoch": 1})
    log.close()
    rows = _rows(tmp_path / "metrics.csv")
    assert [(row["step"], row["loss"]) for row in rows] == [("2", "1"), ("4", "1"), ("6", "2")]


@pytest.mark.parametrize(
    ("values", "finite"),
    [((1.0, 2.0), True), ((1.0, math.nan), False), ((-math.inf, 1.0), False)],
)
def test_all_finite(values, finite):
    assert bool(all_finite(*(torch.tensor(value) for value in values))) is finite


def test_events_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    with pytest.raises(RunError, match=r"run/events could not be written: no space left$"):
        run(tmp_path)
    assert load_checkpoint(tmp_path / "run")["step"] == 0
