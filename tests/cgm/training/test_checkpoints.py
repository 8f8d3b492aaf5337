"""Checkpoints that are damaged, changed, foreign, or of before: an error in a line, or the run."""

import math
import pickle

import pytest
import torch
from tiny import checkpoint, run, same, write_npz

from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.training import states
from cgm_fast.cgm.training.states import CHECKPOINT, FORMAT


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def _bad_checkpoints(whole, touched):
    content = torch.load(whole)
    data = whole.read_bytes()
    yield "empty", b""
    yield "garbage", b"garbage" * 99
    for share in (0.2, 0.7, 0.999):
        yield f"truncated to {share}", data[: int(share * len(data))]
    yield "pickled bomb", pickle.dumps({"format": FORMAT, "model": Bomb(touched)})
    for name, foreign in {
        "a list": [1, 2],
        "a foreign dictionary": {"state_dict": {}},
        "another format": {**content, "format": FORMAT + 1},
        "a torch bomb": {**content, "model": Bomb(touched)},
        "no optimizer": {key: value for key, value in content.items() if key != "optimizer"},
        "no model": {**content, "model": None},
        "another optimizer": {**content, "optimizer": {"state": {}, "param_groups": []}},
        "no window": {**content, "window": None},
        "no random state": {**content, "random": [{}]},
    }.items():
        torch.save(foreign, whole.with_name("foreign.pt"))
        yield name, whole.with_name("foreign.pt").read_bytes()


def test_bad_checkpoints(tmp_path):
    run(tmp_path, max_steps=6)
    file, touched = tmp_path / "run" / CHECKPOINT, tmp_path / "touched"
    good = file.read_bytes()
    (tmp_path / "copy.pt").write_bytes(good)
    for name, bad in _bad_checkpoints(tmp_path / "copy.pt", str(touched)):
        file.write_bytes(bad)
        with pytest.raises(RunError, match=r"checkpoint\.pt (is|does not|lacks)"):
            run(tmp_path, resume=True, max_steps=9)
        assert file.read_bytes() == bad, name
        assert not touched.exists(), name
    file.write_bytes(good)
    assert run(tmp_path, resume=True, max_steps=9).stopped_by is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run of six steps, whose checkpoint tests put back."""
    folder = tmp_path_factory.mktemp("checkpoints")
    run(folder, max_steps=6)
    return folder


@pytest.fixture
def file(folder):
    file = folder / "run" / CHECKPOINT
    good = file.read_bytes()
    yield file
    file.write_bytes(good)


def _of_window(name, value):
    return lambda content: content["window"].__setitem__(name, value)


def _of_optimizer(change):
    return lambda content: change(content["optimizer"])


def _step(value):
    return lambda content: content.__setitem__("step", value)


CHANGES = {
    **{f"step {value!r}": (_step(value), "checkpoint.pt: step must be an integer >= 0") for value in
       (-5, 1e30, "7", math.nan, None, True, 2**64, 2.0)},
    "latest a list": (lambda c: c.__setitem__("latest", [1]), "latest must be numbers by name"),
    "latest of words": (lambda c: c.__setitem__("latest", {"a": "b"}), "latest must be numbers"),
    "random a number": (lambda c: c.__setitem__("random", 7), "random must hold tensors"),
    "random empty": (lambda c: c.__setitem__("random", []), "random must hold tensors"),
    "random short": (
        lambda c: c["random"][0].__setitem__("cpu", torch.zeros(3, dtype=torch.uint8)),
        "its random: ",
    ),
    "random floats": (lambda c: c["random"][0].__setitem__("cpu", torch.zeros(3)), "its random: "),
    "data a number": (lambda c: c.__setitem__("data", 7), "data must be a fingerprint"),
    "window's sums short": (_of_window("sums", torch.zeros(3)), r"its window: sums must be \[6\]"),
    "window's sums words": (_of_window("sums", "0"), r"its window: sums must be .* got str"),
    "window's moments": (_of_window("moments", torch.zeros(4, 9)), "its window: moments must be"),
    "window's steps": (_of_window("steps", -1), "its window: steps must be an integer >= 0"),
    "window's images": (_of_window("images", "many"), "its window: images must be an integer"),
    "window's codes": (_of_window("codes", [torch.zeros(4, 7)] * 2), "its window: "),
    "window without sums": (lambda c: c["window"].pop("sums"), "its window: 'sums'"),
    "optimizer's averages": (
        _of_optimizer(lambda o: o["state"][0].__setitem__("exp_avg", torch.zeros(2, 2))),
        "its optimizer: exp_avg must be",
    ),
    "optimizer's NaN": (
        _of_optimizer(lambda o: o["state"][0]["exp_avg"].fill_(math.nan)),
        "its optimizer: exp_avg holds NaN",
    ),
    "optimizer's steps": (
        _of_optimizer(lambda o: o["state"][0].__setitem__("step", torch.tensor(-1.0))),
        "its optimizer: step must be a number >= 0",
    ),
    "optimizer of another size": (
        _of_optimizer(lambda o: o["param_groups"][0].__setitem__("params", [0])),
        r"its optimizer: it is of \[1\] parameters",
    ),
    "optimizer a word": (lambda c: c.__setitem__("optimizer", "adam"), "its optimizer: "),
    "model of doubles": (
        lambda c: c.__setitem__("model", {k: v.double() for k, v in c["model"].items()}),
        "size or dtype of .* torch.float64",
    ),
    "model of words": (lambda c: c["model"].__setitem__("usage", "all"), "no tensors by name"),
    "model with more": (lambda c: c["model"].__setitem__("x", torch.zeros(1)), "it has x"),
    "model with less": (lambda c: c["model"].pop("usage"), "it lacks usage"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_entries_of_another_type_or_shape_are_named(folder, file, change):
    alter, message = CHANGES[change]
    content = torch.load(file)
    alter(content)
    torch.save(content, file)
    with pytest.raises(RunError, match=message) as raised:
        run(folder, resume=True)
    assert str(file) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_an_optimizer_s_options_are_the_run_s_own(folder, file):
    content = torch.load(file)
    content["optimizer"]["param_groups"][0] |= {"betas": ("a", None), "lr": "fast", "eps": -1}
    torch.save(content, file)
    assert run(folder, resume=True, max_steps=7).stopped_by is None


def test_one_flipped_bit_is_noticed_or_harmless(folder, file):
    good, before = file.read_bytes(), checkpoint(folder)
    noticed = 0
    for position in range(0, len(good), len(good) // 400):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        file.write_bytes(bad)
        try:
            after = checkpoint(folder)
        except RunError:
            noticed += 1
        else:  # in what fills a record up to its alignment
            assert same(before, after), position
    assert noticed > 100


def test_a_checkpoint_of_before_is_read(tmp_path):
    """Which had no fingerprint, and was written without a look at its checksums."""
    run(tmp_path, max_steps=6)
    run(tmp_path, out=str(tmp_path / "whole"))
    file = tmp_path / "run" / CHECKPOINT
    content = torch.load(file)
    names = ("step", "model", "optimizer", "window", "latest", "random")
    torch.save({"format": 2, **{name: content[name] for name in names}}, file)
    run(tmp_path, resume=True)
    assert same(checkpoint(tmp_path), checkpoint(tmp_path, "whole"))


def test_a_float64_run_goes_on(tmp_path):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        run(tmp_path, max_steps=5, log_every=4)  # amid a window
        run(tmp_path, max_steps=9, log_every=4, resume=True)
    finally:
        torch.set_default_dtype(before)
    assert checkpoint(tmp_path)["step"] == 9


def test_checksums_are_written_whatever_the_caller_saves_without(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        run(tmp_path, max_steps=3)
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(before)
    states.load_checkpoint(tmp_path / "run")


def test_other_images_do_not_resume(tmp_path):
    run(tmp_path, max_steps=6)
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    moved = tmp_path / "moved.npz"
    (tmp_path / "tiny.npz").rename(moved)
    write_npz(tmp_path / "tiny.npz", seed=1)
    with pytest.raises(RunError, match=r"was trained on other images than those of .*tiny\.npz"):
        run(tmp_path, resume=True)
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before
    run(tmp_path, resume=True, data=str(moved))
    assert checkpoint(tmp_path)["step"] == 9
