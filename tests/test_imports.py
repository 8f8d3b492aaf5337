"""Who may import whom (DESIGN.md, section 5), and what importing the package needs."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cgm_fast

PACKAGE = Path(cgm_fast.__file__).parent
CSRC = Path(__file__).parents[1] / "csrc"

# The only modules outside torch, numpy and the standard library that may be looked for.
EXTRAS = (
    "tyro", "rich", "matplotlib", "sklearn", "scipy", "safetensors", "tensorboard", "torchmetrics",
    "torchvision", "PIL",
)  # fmt: skip

OP = r"cgm_fast\.ops\.(?P<op>mmd|prototype_margin|cgm_loss)"
MODEL_SIDE = {"losses", "api", "checks", "backends"}
TRAINING_SIDE = MODEL_SIDE | {"models", "evaluation", "figures", "data", "extras", "files"}

# Layer: its modules, and the layers that they may import; the first pattern that fits decides.
# A layer that is a package may import itself.
LAYERS = {
    "package": (r"cgm_fast", {"losses", "api", "backends", "blind"}),
    "compiled": (r"cgm_fast\._native", set()),
    "main": (r"cgm_fast\.__main__", {"cli"}),
    "cli": (r"cgm_fast\.cli(_\w+)?", TRAINING_SIDE | {"cli", "experiments", "training", "doctor"}),
    "doctor": (r"cgm_fast\.doctor", {"backends", "compiled", "extras"}),
    "experiments": (r"cgm_fast\.experiments(\..+)?", TRAINING_SIDE | {"experiments", "training"}),
    "training": (r"cgm_fast\.training(\..+)?", TRAINING_SIDE | {"training"}),
    "evaluation": (r"cgm_fast\.evaluation(\..+)?", TRAINING_SIDE),
    "models": (r"cgm_fast\.models(\..+)?", MODEL_SIDE | {"models"}),
    "losses": (r"cgm_fast\.losses", MODEL_SIDE - {"losses"}),
    "figures": (r"cgm_fast\.figures", {"extras", "files"}),
    "data": (r"cgm_fast\.data(\..+)?", {"data", "extras"}),
    "extras": (r"cgm_fast\.extras", set()),
    "files": (r"cgm_fast\.files", set()),
    "testing": (r"cgm_fast\.testing", set()),
    "ops": (r"cgm_fast\.ops", set()),
    "backends": (r"cgm_fast\.ops\.backends", {"compiled", "cuda"}),
    "watching": (r"cgm_fast\.ops\.watching", set()),
    "checks": (r"cgm_fast\.ops\.checks", {"watching"}),
    "scaling": (r"cgm_fast\.ops\.scaling", set()),
    "registration": (r"cgm_fast\.ops\.registration", {"backends", "memory", "watching"}),
    "derivatives": (r"cgm_fast\.ops\.derivatives", {"registration", "watching"}),
    "memory": (r"cgm_fast\.ops\.memory", set()),
    "chunks": (r"cgm_fast\.ops\.chunks", set()),
    "forks": (r"cgm_fast\.ops\.forks", set()),
    "gpu": (r"cgm_fast\.ops\.gpu", {"memory"}),
    "cuda": (r"cgm_fast\.ops\.cuda(\.launch)?", {"compiled", "gpu"}),
    "triton": (r"cgm_fast\.ops\.triton(\.(launch|math|tiles))?", {"gpu"}),
    "pack": (r"cgm_fast\.ops\.triton\.pack", {"triton"}),
    "op": (OP, {"api"}),
    "api": (
        OP + r"\.api",
        {"api", "autograd", "blind", "definition", "checks", "backends", "watching"},
    ),
    "autograd": (OP + r"\.autograd", {"definition", "scaling", "derivatives", "watching"}),
    "definition": (OP + r"\.ops", {"registration"}),
    "common": (OP + r"\.common", set()),
    "blind": (OP + r"\.blind", {"forks", "watching"}),
    "kernels": (OP + r"\.triton_(kernels|hvp)", {"kernels", "triton"}),
    # reference, native, and whatever implementations come.
    "implementation": (
        OP + r"\.(?P<name>\w+)",
        {
            "implementation",
            "common",
            "compiled",
            "memory",
            "chunks",
            "kernels",
            "gpu",
            "cuda",
            "triton",
            "pack",
        },
    ),
}


def layer_of(module):
    """The layer's name and the match of its pattern: op and implementation, where it has them."""
    for layer, (pattern, _) in LAYERS.items():
        if match := re.fullmatch(pattern, module):
            return layer, match.groupdict()
    pytest.fail(f"{module} has no layer: give it one in LAYERS of {Path(__file__).name}")


def why_not(importer, imported):
    """The rule that an import breaks, or None."""
    layer, own = layer_of(importer)
    target, other = layer_of(imported)
    if target not in LAYERS[layer][1]:
        return f"{layer} may import {sorted(LAYERS[layer][1])}, not {target}"
    if target == "implementation" and layer == "implementation":
        if own["op"] != "cgm_loss" or other["op"] == "cgm_loss" or own["name"] != other["name"]:
            return "only cgm_loss's implementations may import others, those of their own name"
    elif target == "kernels" and layer == "kernels":
        if own["op"] not in ("cgm_loss", other["op"]):
            return "only cgm_loss's kernels may import those of other ops"
    elif "op" in own and "op" in other and own["op"] != other["op"] and target != "api":
        return "what lies below another op's api is its own affair"
    return None


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name, tree):
    """Names of this package's modules that a module imports, at any depth of its code."""
    known = {*MODULES, "cgm_fast._native"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("cgm_fast"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; write the whole name"
            if node.module.split(".")[0] == "cgm_fast":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in known else node.module


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_the_layers(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    broken = {
        f"{name} imports {imported}: {reason}"
        for imported in imports_of(name, tree)
        if imported != name and (reason := why_not(name, imported))
    }
    assert not broken, "\n".join(sorted(broken))


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("cgm_fast.ops.mmd.native", "cgm_fast.ops.mmd.reference"),
        ("cgm_fast.ops.mmd.native", "cgm_fast.ops.prototype_margin.native"),
        ("cgm_fast.ops.cgm_loss.native", "cgm_fast.ops.mmd.reference"),
        ("cgm_fast.ops.mmd.triton_kernels", "cgm_fast.ops.mmd.triton"),
        ("cgm_fast.ops.mmd.triton_kernels", "cgm_fast.ops.prototype_margin.triton_kernels"),
        ("cgm_fast.ops.mmd.reference", "cgm_fast.ops.mmd.native"),
        ("cgm_fast.ops.cgm_loss.native", "cgm_fast.ops.cgm_loss.reference"),
        ("cgm_fast.ops.cgm_loss.api", "cgm_fast.ops.mmd.autograd"),
        ("cgm_fast.ops.mmd.reference", "cgm_fast.ops.backends"),
        ("cgm_fast.ops.mmd.api", "cgm_fast.ops.mmd.native"),
        ("cgm_fast.losses", "cgm_fast.ops.mmd.autograd"),
        ("cgm_fast.losses", "cgm_fast"),
        ("cgm_fast.models.cgm", "cgm_fast.training.trainer"),
        ("cgm_fast.models.cgm", "cgm_fast.ops.mmd.reference"),
        ("cgm_fast.evaluation.nll", "cgm_fast.training.trainer"),
        ("cgm_fast.training.trainer", "cgm_fast.cli"),
        ("cgm_fast.data", "cgm_fast.models"),
        ("cgm_fast.data.npz", "cgm_fast.training.config"),
        ("cgm_fast.testing", "cgm_fast.ops.mmd.api"),
    ],
)
def test_the_rules_forbid(importer, imported):
    assert why_not(importer, imported)


def test_a_module_without_a_layer_is_noticed():
    with pytest.raises(pytest.fail.Exception, match=r"cgm_fast\.novelty has no layer"):
        layer_of("cgm_fast.novelty")


def includes(path):
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(encoding="utf-8"), re.M)


SOURCES = [path for path in sorted(CSRC.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_only_the_bindings_see_python_and_nothing_sees_torch(path):
    seen = {name.split("/")[0] for name in includes(path)}
    assert not seen & {"torch", "ATen", "c10", "Python.h"}
    assert "pybind11" not in seen or path == CSRC / "bindings.h"


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if any(name == absent or name.startswith(absent + ".") for absent in {absent!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""

IMPORT_ALL = """
import importlib, pkgutil
import torch
import cgm_fast

def fail(name):
    raise
absent = tuple(name for name, reason in cgm_fast.availability().items() if reason)
for module in pkgutil.walk_packages(cgm_fast.__path__, "cgm_fast.", onerror=fail):
    parts = module.name.split(".")
    of_absent = any(part.startswith(absent) for part in parts)  # an implementation, or its kernels
    if parts[-1] != "__main__" and not of_absent:
        importlib.import_module(module.name)
x, y = torch.randn(33, 5, requires_grad=True), torch.randn(31, 5)
cgm_fast.mmd(x, y).backward()
cgm_fast.prototype_margin(x, y).loss.backward()
cgm_fast.cgm_loss(x, y).loss.backward()
assert x.grad.isfinite().all()
"""

NO_NATIVE = """
import torch
import cgm_fast

x, y = torch.randn(33, 5, requires_grad=True), torch.randn(31, 5)
cgm_fast.CGMLoss()(x, y).loss.backward()
assert cgm_fast.last_backend("cgm_loss") == "reference"
assert "cgm_fast._native cannot be imported" in cgm_fast.availability()["native"]
for call in (cgm_fast.mmd, cgm_fast.prototype_margin, cgm_fast.cgm_loss):
    try:
        call(x, y, backend="native")
    except RuntimeError as error:
        assert "backend='native' cannot run here" in str(error), error
        assert "cgm_fast._native cannot be imported" in str(error), error
    else:
        raise AssertionError("it fell back")
"""


def run_without(absent, script):
    """Run a script where some modules cannot be imported and no compiler can be found."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=absent) + script],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": ""},
    )


def test_every_module_imports_with_torch_and_numpy_alone():
    done = run_without((*EXTRAS, "triton"), IMPORT_ALL)
    assert done.returncode == 0, done.stderr


def test_without_the_compiled_module_the_reference_runs_and_native_says_why():
    done = run_without(("cgm_fast._native",), NO_NATIVE)
    assert done.returncode == 0, done.stderr
