"""Who may import whom, and what importing the package needs.

Two layers: the library, and the model of the paper on top of it, `cgm_fast.cgm`. The library never
imports the model.
"""

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

OP = r"cgm_fast\.ops\.(?P<op>mmd|prototype_margin|cgm_loss|kernel_product)"

# Layer: its modules, and the layers that they may import; the first pattern that fits decides.
# A layer that is a package may import itself.
LIBRARY = {
    "package": (r"cgm_fast", {"losses", "api", "backends", "blind"}),
    "compiled": (r"cgm_fast\._native", set()),
    "doctor": (
        r"cgm_fast\.doctor",
        {"backends", "compiled", "regimes_of_all", "verification"},
    ),
    "losses": (r"cgm_fast\.losses", {"api", "checks", "backends"}),
    "testing": (r"cgm_fast\.testing(\..+)?", {"testing"}),
    "ops": (r"cgm_fast\.ops", set()),
    "backends": (
        r"cgm_fast\.ops\.backends",
        {"compiled", "crossovers", "cuda", "gpu", "records", "regimes_of_all", "verification"},
    ),
    "crossovers": (r"cgm_fast\.ops\.crossovers", set()),
    "verification": (r"cgm_fast\.ops\.verification", {"gpu"}),
    "regimes_of_all": (r"cgm_fast\.ops\.regimes", set()),
    "watching": (r"cgm_fast\.ops\.watching", set()),
    "checks": (r"cgm_fast\.ops\.checks", {"watching"}),
    "records": (r"cgm_fast\.ops\.records", set()),
    "registration": (r"cgm_fast\.ops\.registration", {"backends", "memory", "records", "watching"}),
    "formulas": (r"cgm_fast\.ops\.formulas", {"registration"}),
    "fused": (r"cgm_fast\.ops\.autograd", {"formulas", "watching"}),
    "derivatives": (
        r"cgm_fast\.ops\.derivatives",
        {"formulas", "records", "registration", "watching"},
    ),
    "memory": (r"cgm_fast\.ops\.memory", set()),
    "chunks": (r"cgm_fast\.ops\.chunks", set()),
    "products": (r"cgm_fast\.ops\.products", {"chunks", "gpu", "triton"}),
    "forks": (r"cgm_fast\.ops\.forks", set()),
    "gpu": (r"cgm_fast\.ops\.gpu", {"memory", "records"}),
    "cuda": (r"cgm_fast\.ops\.cuda(\.launch)?", {"compiled", "gpu"}),
    "triton": (
        r"cgm_fast\.ops\.triton(\.(distances|launch|math|radial|remembered|tiles))?",
        {"triton", "gpu"},
    ),
    "pack": (r"cgm_fast\.ops\.triton\.pack", {"triton", "gpu"}),
    "op": (OP, {"api"}),
    "api": (
        OP + r"\.api",
        {
            "api",
            "autograd",
            "blind",
            "problem",
            "radial",
            "definition",
            "checks",
            "backends",
            "watching",
        },
    ),
    "autograd": (
        OP + r"\.autograd",
        {"definition", "problem", "formulas", "fused", "derivatives", "records", "watching"},
    ),
    "definition": (OP + r"\.ops", {"problem", "radial", "registration"}),
    "problem": (OP + r"\.problem", {"problem"}),
    "radial": (OP + r"\.kernels", set()),
    "regimes": (OP + r"\.regimes", {"problem", "radial", "regimes", "regimes_of_all"}),
    "plans": (OP + r"\.plans", {"plans", "problem", "memory"}),
    "common": (OP + r"\.common", {"gpu", "problem"}),
    "blind": (OP + r"\.blind", {"forks", "watching"}),
    "kernels": (OP + r"\.triton_(kernels|hvp|tiles)", {"kernels", "triton"}),
    # What several implementations are but for their distances, and what one does with a tile.
    "chunked": (OP + r"\.(chunked|matmul_tile)", {"problem", "radial", "common", "chunks", "gpu"}),
    # reference, native, and whatever implementations come.
    "implementation": (
        OP + r"\.(?P<name>\w+)",
        {
            "implementation",
            "plans",
            "problem",
            "radial",
            "common",
            "compiled",
            "memory",
            "chunked",
            "chunks",
            "products",
            "kernels",
            "gpu",
            "cuda",
            "triton",
            "pack",
        },
    ),
}

# The model of the paper. Two of its modules lie among the library's, as its doors: the alias
# `cgm_fast.models` for Python, `cgm_fast.__main__` for the shell. Of the library it takes public
# names, the checks of arguments, the names of backends, and `doctor`.
MODEL = {
    "main": (r"cgm_fast\.__main__", {"cli"}),
    "alias": (r"cgm_fast\.models", {"models"}),
    "second": (r"cgm_fast\.cgm", set()),
    "cli": (
        r"cgm_fast\.cgm\.cli(_\w+)?",
        {"package", "doctor", "cli", "experiments", "training", "data", "extras", "files"},
    ),
    "experiments": (
        r"cgm_fast\.cgm\.experiments(\..+)?",
        {
            "experiments",
            "training",
            "evaluation",
            "models",
            "figures",
            "data",
            "extras",
            "files",
        },
    ),
    "training": (
        r"cgm_fast\.cgm\.training(\..+)?",
        {
            "package",
            "checks",
            "backends",
            "training",
            "evaluation",
            "models",
            "figures",
            "data",
            "extras",
            "files",
        },
    ),
    "evaluation": (
        r"cgm_fast\.cgm\.evaluation(\..+)?",
        {"package", "evaluation", "models", "data", "extras"},
    ),
    "models": (r"cgm_fast\.cgm\.models(\..+)?", {"package", "checks", "models"}),
    "figures": (r"cgm_fast\.cgm\.figures", {"extras", "files"}),
    "data": (r"cgm_fast\.cgm\.data(\..+)?", {"data", "extras"}),
    "extras": (r"cgm_fast\.cgm\.extras", set()),
    "files": (r"cgm_fast\.cgm\.files", set()),
}

LAYERS = LIBRARY | MODEL
SHARED_BY_KERNELS = ("radial", "definition", "problem", "common")


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
    elif target in ("problem", "plans", "regimes") and own.get("op") == "cgm_loss":
        return None  # it is made of the other two
    elif target == "radial" and layer == "regimes":
        return None  # names of kernels
    elif target in SHARED_BY_KERNELS and own.get("op") == "kernel_product":
        return None  # it has mmd's kernels, and second derivatives of its
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


def test_every_arrow_of_the_table_is_used():
    unused = {layer: set(targets) for layer, (_, targets) in LAYERS.items()}
    for name, path in MODULES.items():
        for imported in imports_of(name, ast.parse(path.read_text(encoding="utf-8"))):
            if imported != name:
                unused[layer_of(name)[0]].discard(layer_of(imported)[0])
    assert not {layer: targets for layer, targets in unused.items() if targets}


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
        ("cgm_fast.cgm.models.cgm", "cgm_fast.cgm.training.trainer"),
        ("cgm_fast.cgm.models.cgm", "cgm_fast.ops.mmd.reference"),
        ("cgm_fast.cgm.evaluation.nll", "cgm_fast.cgm.training.trainer"),
        ("cgm_fast.cgm.training.trainer", "cgm_fast.cgm.cli"),
        ("cgm_fast.cgm.data", "cgm_fast.cgm.models"),
        ("cgm_fast.cgm.data.npz", "cgm_fast.cgm.training.config"),
        ("cgm_fast.cgm.models.cgm", "cgm_fast.losses"),
        ("cgm_fast.cgm.models.cgm", "cgm_fast.models"),
        ("cgm_fast.testing", "cgm_fast.ops.mmd.api"),
        ("cgm_fast.testing.formulas", "cgm_fast.ops.mmd.api"),
        ("cgm_fast", "cgm_fast.models"),
        ("cgm_fast.losses", "cgm_fast.cgm.models"),
        ("cgm_fast.doctor", "cgm_fast.cgm.extras"),
        ("cgm_fast.doctor", "cgm_fast.__main__"),
    ],
)
def test_the_rules_forbid(importer, imported):
    assert why_not(importer, imported)


def test_no_arrow_leads_from_the_library_to_the_model():
    assert not {layer for layer, (_, targets) in LIBRARY.items() if targets & set(MODEL)}
    assert {layer for layer in MODEL if LAYERS[layer][1] & {"losses", "api", "autograd"}} == set()


LIBRARY_MODULES = [name for name in MODULES if layer_of(name)[0] in LIBRARY]
NEVER = ("cgm_fast.cgm", "cgm_fast.models", "cgm_fast.__main__")


@pytest.mark.parametrize("name", LIBRARY_MODULES)
def test_the_library_does_not_name_the_model(name):
    """Not even to `import_module`."""
    text = MODULES[name].read_text(encoding="utf-8")
    assert not [never for never in NEVER if re.search(re.escape(never) + r"\b", text)]


def test_a_module_without_a_layer_is_noticed():
    with pytest.raises(pytest.fail.Exception, match=r"cgm_fast\.novelty has no layer"):
        layer_of("cgm_fast.novelty")


# Functions whose options users name; each has a default.
PUBLIC = {"mmd", "cgm_loss"}
TRITON = {"kernel", "triton.jit", "varied"}  # decorators


def long_signatures(tree):
    """Functions of more than eight parameters that are not Triton's, which take pointers."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            given, marks = node.args, getattr(node, "decorator_list", ())
            every = (*given.posonlyargs, *given.args, *given.kwonlyargs)
            if len(every) > 8 and TRITON.isdisjoint(map(ast.unparse, marks)):
                yield getattr(node, "name", "lambda")


def test_signatures_of_the_ops_have_eight_parameters_at_most():
    """What belongs together goes by name, in a record (ops/records.py)."""
    found = [
        f"{module}.{name}"
        for module, path in MODULES.items()
        if module.startswith("cgm_fast.ops.")
        for name in long_signatures(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert sorted(found) == [f"cgm_fast.ops.{name}.api.{name}" for name in sorted(PUBLIC)]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f(a, b, c, d, /, e, f, *, g, h): ...", []),
        ("def f(a, b, c, d, /, e, f, *, g, h, i): ...", ["f"]),
        ("class A:\n    async def f(self, a, b, c, d, e, f, g, h): ...", ["f"]),
        ("lambda a, b, c, d, e, f, g, h, i: 0", ["lambda"]),
        ("@triton.jit\ndef f(a, b, c, d, e, f, g, h, i): ...", []),
    ],
)
def test_a_long_signature_is_noticed(code, found):
    assert list(long_signatures(ast.parse(code))) == found


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

THE_LIBRARY = """
import importlib, sys
import torch
import cgm_fast
from cgm_fast.doctor import report

absent = tuple(name for name, reason in cgm_fast.availability().items() if reason)
for name in {modules!r}:
    if not any(part.startswith(absent) for part in name.split(".")):
        importlib.import_module(name)
x, y = torch.randn(33, 5, requires_grad=True), torch.randn(31, 5)
cgm_fast.CGMLoss()(x, y).loss.backward()
assert "implementations" in report()
assert not [name for name in sys.modules if name.startswith({never!r})]
"""

THE_ALIAS = """
import sys
import cgm_fast.models

assert "cgm_fast.cgm" not in sys.modules
from cgm_fast.models import CGM, DCGANDecoder
from cgm_fast.cgm import models

assert CGM is models.CGM is cgm_fast.models.CGM
assert CGM.__module__ == "cgm_fast.cgm.models.cgm"
assert sorted(cgm_fast.models.__all__) == sorted(models.__all__)
assert set(models.__all__) <= set(dir(cgm_fast.models))
for name in models.__all__:
    assert getattr(cgm_fast.models, name) is getattr(models, name)
every = {{}}
exec("from cgm_fast.models import *", every)
assert set(models.__all__) <= set(every)
for wrong in ("cgm", "torch", "CGN", "__path__"):  # what the package holds besides its names
    assert not hasattr(cgm_fast.models, wrong), wrong
try:
    import cgm_fast.models.cgm
except ModuleNotFoundError as error:
    assert "'cgm_fast.models' is not a package" in str(error)
else:
    raise AssertionError("a second copy of the model's modules")
"""

NO_NATIVE = """
import torch
import cgm_fast

x, y = torch.randn(33, 5, requires_grad=True), torch.randn(31, 5)
cgm_fast.CGMLoss()(x, y).loss.backward()
assert cgm_fast.last_backend("cgm_loss") == "matmul"
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


def test_the_library_runs_without_the_model():
    script = THE_LIBRARY.format(modules=LIBRARY_MODULES, never=NEVER)
    done = run_without((*EXTRAS, "triton", *NEVER), script)
    assert done.returncode == 0, done.stderr


def test_the_alias_gives_the_same_objects_and_is_lazy():
    done = run_without(("triton",), THE_ALIAS.format())
    assert done.returncode == 0, done.stderr


def test_every_module_imports_with_torch_and_numpy_alone():
    done = run_without((*EXTRAS, "triton"), IMPORT_ALL)
    assert done.returncode == 0, done.stderr


def test_without_the_compiled_module_products_run_and_native_says_why():
    done = run_without(("cgm_fast._native",), NO_NATIVE)
    assert done.returncode == 0, done.stderr
