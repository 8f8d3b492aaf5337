"""The examples run, and do what they say."""

import importlib.util
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def _module(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sequences(tmp_path):
    sequences = _module("sequences")
    model, error = sequences.train(100)
    assert error < 0.4  # of four shapes, after a part of its steps
    sequences.draw(model, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        picture.verify()
