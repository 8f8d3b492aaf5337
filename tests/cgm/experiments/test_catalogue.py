"""The paper's experiments, on tiny data: what they train, write and keep."""

import csv
import json
import math
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import write_npz

from cgm_fast.cgm.cli import main
from cgm_fast.cgm.data import ImageData
from cgm_fast.cgm.evaluation import kernel_distance
from cgm_fast.cgm.evaluation import report as evaluation
from cgm_fast.cgm.experiments import distance, rehearsal, sweeps, tables
from cgm_fast.cgm.experiments.catalogue import EXPERIMENTS, Experiment, command_of, run_experiment
from cgm_fast.cgm.experiments.study import RATES, StoppedError, Study, Trained, interval
from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.training import pipeline
from cgm_fast.cgm.training.config import ConfigError, TrainConfig

FILES = {
    "table1": {"table1.csv", "table1.md"},
    "table2": {"table2.csv", "table2.md"},
    "fig5": {"fig5.png", "fig5.md"},
    "rehearsal": {
        "rehearsal.csv",
        "rehearsal.md",
        *(
            f"{way}-0-{k}-{k + 1}.npz"
            for way in ("rehearsal", "fine-tuning")
            for k in range(0, 10, 2)
        ),
    },
    "few-shot": {"few-shot.csv", "few-shot.md", "mnist-0-to-4.npz"},
    **{name: {f"{name}.csv", f"{name}.md"} for name in EXPERIMENTS if name.startswith("sweep")},
    "fig2": {"fig2-mnist.png", "fig2-fashion-mnist.png", "fig2.md"},
    "fig3": {"fig3.png", "fig3.csv", "fig3.md"},
    "fig4": {"fig4.png", "fig4.csv", "fig4.md"},
    "fig6": {"fig6.png", "fig6.csv", "fig6.md"},
    "fig7": {"fig7.png", "fig7.csv", "fig7.md"},
}


@pytest.fixture(autouse=True)
def tiny_sets(monkeypatch):
    """Random images of 8 x 8 under the real sets' names; no probes and pictures of each run."""

    def load(name, **_):
        generator = torch.Generator().manual_seed(0)
        channels = 3 if name == "cifar10" else 1
        labels = torch.arange(500) % 10
        images = torch.randint(256, (500, channels, 8, 8), dtype=torch.uint8, generator=generator)
        names = tuple("abcdefghij")
        return ImageData(name, images[:400], labels[:400], images[400:], labels[400:], names)

    def load_or_read(name, **given):
        return read(name, **given) if name.endswith(".npz") else load(name)

    read = pipeline.load
    monkeypatch.setattr(pipeline, "load", load_or_read)
    for module in (sweeps, rehearsal):
        monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(evaluation, "probe_error", lambda kind, *_: 0.25)
    monkeypatch.setattr(pipeline, "draw", lambda *_: None)
    monkeypatch.setattr(kernel_distance, "STEPS", 2)
    monkeypatch.setattr(distance, "IMAGES", 300)


def options(folder, name, **changes):
    defaults = {
        "out": str(folder / name), "max_steps": 1, "width": 2, "nll_images": 2, "nll_samples": 2,
        "device": "cpu",
    }  # fmt: skip
    return Experiment(name, **{**defaults, **changes})


def test_every_experiment_is_tried_here():
    assert set(FILES) == set(EXPERIMENTS)
    assert get_args(get_type_hints(Experiment)["name"]) == tuple(EXPERIMENTS)  # the command line's


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("table")])
def test_an_experiment_writes_its_files(name, tmp_path):
    photographs = str(write_npz(tmp_path / "photographs.npz", n=100, channels=3))
    given = {"photographs": photographs} if name == "fig5" else {}
    check_files(run_experiment(options(tmp_path, name, **given)), name)


def check_files(out, name):
    assert {path.name for path in out.iterdir()} == {"runs", *FILES[name]}
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            picture.verify()
    for path in out.glob("*.csv"):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        text = path.with_suffix(".md").read_text()
        assert len(rows) > 1
        assert all(row[next(iter(row))] in text for row in rows)
        assert f"torch {torch.__version__}" in text
        bound, rate = (float(rows[-1][name].split()[0]) for name in list(RATES)[1:])
        assert 0 <= rate <= bound


@pytest.mark.slow
def test_table1_has_the_papers_rows_and_ours(tmp_path):
    out = run_experiment(options(tmp_path, "table1", seeds=2))
    check_files(out, "table1")
    with (out / "table1.csv").open(newline="") as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    assert rows["CGM2 (quoted)"]["NLL dynamic"] == "77.6"
    assert rows["VLAE (quoted)"]["error %"] == "1.55"
    for system in ("VAE", "InfoVAE", "InfoVAE, fixed variance", "BIR-VAE", "CGM1", "CGM2"):
        row = rows[system]
        assert row["seeds"] == "2"
        for column in ("NLL dynamic", "NLL static", "error %", "error, MLP %"):
            mean, half = (float(part) for part in row[column].split(" ± "))
            assert math.isfinite(mean)
            assert half >= 0
        for prior in ("own prior", "fitted"):
            value, error = row[f"kernel distance, {prior}"].split(" ± ")
            assert float(value) > 3 * float(error)  # random pixels are not what it generates
    assert rows["CGM2"]["nearest prototype %"]
    assert not rows["CGM1"]["nearest prototype %"]  # whose categories are no labels
    assert len(list((out / "runs").iterdir())) == 2 * 2 * 12


def test_the_full_table1_has_an_autoregressive_decoder(tmp_path, monkeypatch):
    trained = {}

    def train(study, name, **settings):
        trained[name] = replace(study.base, **settings)
        return Trained(name, tmp_path, {}, 0.0)

    monkeypatch.setattr(Study, "train", train)
    monkeypatch.setattr(tables, "Judge", lambda *_: SimpleNamespace(note=""))
    monkeypatch.setattr(tables, "_row_of_table1", lambda system, *_: {"system": system})
    monkeypatch.setattr(Trained, "data", lambda _: None)
    out = run_experiment(options(tmp_path, "table1", preset="full", max_steps=None))
    assert "CGM2, PixelCNN" in (out / "table1.md").read_text()
    run = trained["cgm2-pixelcnn-static-0"]
    assert (run.decoder, run.supervised, run.max_steps) == ("pixelcnn", True, None)


@pytest.mark.parametrize(
    ("full", "steps", "expected"),
    [(False, None, 400), (False, 7, 7), (False, 500, 400), (True, None, None), (True, 7, 7)],
)
def test_pixel_by_pixel_there_are_fewer_steps_and_latents(full, steps, expected, tmp_path):
    base = TrainConfig(max_steps=steps, nll_images=10_000, nll_samples=50)
    found = Study(tmp_path, base, full=full).pixel_by_pixel(400)
    images, samples = (1000, 50) if full else (20, 20)
    latents = {"nll_images": images, "nll_samples": samples}
    assert found == {"max_steps": expected, "pictures": full, **latents}


def test_finished_runs_are_not_made_again(tmp_path, monkeypatch):
    run_experiment(options(tmp_path, "fig6"))
    before = (tmp_path / "fig6" / "fig6.csv").read_text()
    monkeypatch.setattr(pipeline, "train", None)
    run_experiment(options(tmp_path, "fig6"))
    assert (tmp_path / "fig6" / "fig6.csv").read_text() == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_other_settings_is_refused(tmp_path, finished):
    base = TrainConfig(data="mnist", width=2, max_steps=1, nll_images=2, nll_samples=2, epochs=1)
    Study(tmp_path, base).train("a")
    notes = tmp_path / "runs" / "a" / "study.json"
    if not finished:
        notes.unlink()
    before = (tmp_path / "runs" / "a" / "config.json").read_bytes()
    for changes, text in (
        ({"width": 3}, r"runs/a was made with width 2 \(now 3\): pass --out"),
        ({"max_steps": None}, r"max_steps 1 \(now None\)"),
        ({"epochs": 2, "nll_images": 3}, r"epochs 1 \(now 2\): pass"),
        ({"epochs": None}, r"epochs 1 \(now 200\)"),  # the data set's own
        ({"data": "fashion-mnist"}, r"data mnist \(now fashion-mnist\)"),
    ):
        with pytest.raises(RunError, match=text):
            Study(tmp_path, replace(base, **changes)).train("a")
    assert (tmp_path / "runs" / "a" / "config.json").read_bytes() == before
    assert notes.exists() == finished
    moved = replace(base, data_root="elsewhere", device="cpu")
    assert Study(tmp_path, moved).train("a").evaluation


def test_a_run_is_evaluated_again_where_only_that_differs(tmp_path, monkeypatch):
    base = TrainConfig(data="mnist", width=2, max_steps=2, nll_images=2, nll_samples=2)
    steps = []
    report = lambda name, step, *_: steps.append(step)  # noqa: E731
    first = Study(tmp_path, base, report=report).train("a")
    weights = (first.path / "model.safetensors").read_bytes()
    more = Study(tmp_path, replace(base, nll_images=5), report=report)

    def ended(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", ended)
        with pytest.raises(KeyboardInterrupt):
            more.train("a")
    again = more.train("a")
    images = [run.evaluation["nats_per_image"]["prior_full"]["images"] for run in (first, again)]
    assert images == [2, 5]
    assert steps == [1, 2]
    assert (first.path / "model.safetensors").read_bytes() == weights
    assert again.seconds > first.seconds
    assert more.train("a") == again


def test_a_stopped_study_goes_on(tmp_path):
    base = TrainConfig(data="mnist", width=2, max_steps=3, nll_images=2, nll_samples=2)
    steps = []

    def report(name, step, total, latest):
        steps.append(step)
        if len(steps) == 1:
            signal.raise_signal(signal.SIGTERM)

    study = Study(tmp_path, base, report=report)
    with pytest.raises(StoppedError, match="stopped by signal 15"):
        study.train("a")
    found = study.train("a")
    assert steps == [1, 2, 2, 3] or steps == [1, 2, 3]  # the signal is looked at behind a step
    assert found.seconds > 0
    assert study.train("a") == found
    assert len(steps) <= 4


def test_seconds_count_what_an_evaluation_that_was_ended_took(tmp_path, monkeypatch):
    study = Study(tmp_path, TrainConfig(data="mnist", width=2, max_steps=1, nll_images=2))

    def ended(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", ended)
        with pytest.raises(KeyboardInterrupt):
            study.train("a")
    part = json.loads((tmp_path / "runs" / "a" / "part-study.json").read_text())["seconds"]
    assert study.train("a").seconds > part > 0
    with pytest.raises(ConfigError):  # and nothing lies where there is no run
        study.train("b", width=0)
    assert not (tmp_path / "runs" / "b").exists()


@pytest.mark.slow
def test_table2_has_photographs_where_they_are_given(tmp_path):
    photographs = write_npz(tmp_path / "photographs.npz", n=100, channels=3)
    for given in (None, str(photographs)):
        out = run_experiment(options(tmp_path, "table2", photographs=given))
        with (out / "table2.csv").open(newline="") as file:
            rows = {row["system"]: row for row in csv.DictReader(file)}
        check_files(out, "table2")
        assert ("CGM1, ResNet" in rows) == (given is not None)
        assert float(rows["CGM2, PixelSNAIL"]["CIFAR-10"]) > 0
        assert rows["CGM2, PixelSNAIL"]["steps"] == "1"
        assert rows["CGM2, PixelSNAIL"]["epochs"] == "0.25"  # 100 of 400 images
        assert rows["MAE (quoted)"]["photographs"] == ""
    assert float(rows["CGM1, PixelSNAIL"]["photographs"]) > 0


@pytest.mark.parametrize(("epochs", "expected"), [(4, [2, 8, 16]), (1, [1, 2, 4])])
def test_batches_of_any_size_get_as_many_steps(epochs, expected, tmp_path, monkeypatch):
    trained = {}

    def train(study, name, **settings):
        trained[name] = replace(study.base, **settings)
        return Trained(name, tmp_path, {}, 0.0)

    monkeypatch.setattr(Study, "train", train)
    monkeypatch.setattr(sweeps, "_row", lambda label, _: {"setting": label})
    run_experiment(options(tmp_path, "sweep-batch-size", epochs=epochs))
    runs = [trained[f"{size}-images-a-step-as-many-steps-0"] for size in (32, 128, 256)]
    assert [run.batch_size for run in runs] == [32, 128, 256]
    assert [run.epochs for run in runs] == expected
    assert trained["256-images-a-step-0"].epochs == epochs


@pytest.mark.parametrize(
    ("preset", "given", "expected"),
    [("small", None, 60), ("small", 3, 3), ("full", None, None), ("full", 3, 3)],
)
def test_photographs_are_seen_often(preset, given, expected, tmp_path, monkeypatch):
    found = []
    monkeypatch.setitem(EXPERIMENTS, "fig5", lambda study: found.append(study.of_photographs))
    run_experiment(options(tmp_path, "fig5", preset=preset, epochs=given, photographs="here.npz"))
    assert found[0]["epochs"] == expected
    assert found[0]["data"] == "here.npz"


def test_rehearsal_shows_the_model_its_old_digits(tmp_path):
    out = run_experiment(options(tmp_path, "rehearsal"))
    for way, old in (("rehearsal", True), ("fine-tuning", False)):
        with np.load(out / f"{way}-0-4-5.npz") as data:
            assert data["images"].shape[1:] == (8, 8, 1)
            found = set(data["labels"].tolist())
        assert found == ({0, 1, 2, 3, 4, 5} if old else {4, 5})
        config = json.loads((out / "runs" / f"{way}-0-4-5" / "config.json").read_text())
        assert config["init"].endswith(f"{way}-0-2-3")


class Coded:
    """A finished run whose codes are known: at the prototype of the label, or of the next one."""

    def __init__(self, wrong):
        self.wrong = wrong

    def load(self, device):
        model = SimpleNamespace(prototypes=torch.eye(10))
        return model, SimpleNamespace(binarization="none", seed=0), None


def known_codes(monkeypatch, module, run, labels):
    codes = torch.eye(10)[(labels + torch.isin(labels, torch.tensor(run.wrong)).long()) % 10]
    monkeypatch.setattr(module, "encode_images", lambda *_: codes)


def test_rehearsal_s_accuracy_is_among_digits_so_far(monkeypatch):
    labels = torch.arange(100) % 10
    whole = SimpleNamespace(test=None, test_labels=labels)
    # A 1 looks like a 2, a 3 like a 4, which is not among the first four: nearest to some other.
    run = Coded([1, 3])
    known_codes(monkeypatch, rehearsal, run, labels)
    assert rehearsal._accuracy(run, whole, 4, "cpu") == pytest.approx((0.5, 0.5))
    assert rehearsal._accuracy(run, whole, 10, "cpu") == pytest.approx((0.8, 0.5))


def test_few_shots_tell_classes_by_the_nearest_mean(monkeypatch):
    labels = torch.arange(600) % 10
    whole = SimpleNamespace(test=None, test_labels=labels)
    for wrong, expected in (([], 1.0), ([5], 0.8)):
        known_codes(monkeypatch, sweeps, Coded(wrong), labels)
        monkeypatch.setattr(sweeps, "EPISODES", 20)
        found = sweeps._episodes(Coded(wrong), whole, "cpu")
        # 5 and 6 at one place: ties go to the first of them.
        assert found == pytest.approx(dict.fromkeys(sweeps.SHOTS, expected), abs=1e-6)


def test_fig5_needs_photographs(tmp_path):
    with pytest.raises(ConfigError, match="photographs must be given for fig5"):
        run_experiment(options(tmp_path, "fig5"))


def test_notes_end_in_the_command(tmp_path):
    out = run_experiment(options(tmp_path, "fig6", epochs=2))
    expected = "cgm-fast experiment fig6 --epochs 2 --max-steps 1 --width 2 --nll-images 2"
    assert f"`{expected} --nll-samples 2` on " in (out / "fig6.md").read_text()
    given = Experiment("fig5", photographs="some/where/photographs.npz", data_root="elsewhere")
    assert command_of(given) == "cgm-fast experiment fig5 --photographs photographs.npz"


def test_an_interval():
    assert interval([1.0]) == "1.00"
    values = np.random.default_rng(0).normal(3, 2, 5)
    half = 2.776445 * values.std(ddof=1) / math.sqrt(5)  # t(0.975, 4)
    assert interval(list(values), 4) == f"{values.mean():.4f} ± {half:.4f}"


def test_the_command(tmp_path, capsys):
    words = ["experiment", "fig6", "--out", str(tmp_path / "x"), "--max-steps", "1", "--width", "2"]
    words += ["--nll-images", "2", "--nll-samples", "2", "--device", "cpu"]
    assert main(words) == 0
    assert str(tmp_path / "x" / "fig6.png") in capsys.readouterr().out
    assert main(["experiment", "fig6", "--seeds", "0", "--out", str(tmp_path / "x")]) == 1
    assert "seeds must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        run_experiment(options(tmp_path, "fig6", seeds=0))
