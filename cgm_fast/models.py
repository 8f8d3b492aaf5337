"""The paper's model under its short name: `from cgm_fast.models import CGM`.

An alias of `cgm_fast.cgm.models`: the same names, the same objects, imported when one of them is
first asked for. It is the one door from the library to the model and belongs to the model's layer:
nothing in the library imports it (tests/test_imports.py). Modules of the package, such as
`cgm_fast.cgm.models.likelihoods`, have their long names only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgm_fast.cgm.models import *  # noqa: F403


def __getattr__(name: str) -> Any:
    models = None if _is_private(name) else import_module("cgm_fast.cgm.models")
    if models is not None and name in ("__all__", *models.__all__):
        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=None)


def __dir__() -> list[str]:
    return [*globals(), *import_module("cgm_fast.cgm.models").__all__]


def _is_private(name: str) -> bool:
    """Whether Python asks for itself, as an import does for `__path__`."""
    return name.startswith("_") and name != "__all__"
