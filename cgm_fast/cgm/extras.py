"""Optional dependencies, imported where they are used, with an error that names the extra."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message says how to get it."""


def require(module: str, purpose: str, extra: str = "train") -> Any:
    """Import an optional module.

    Args:
        module: Its dotted name.
        purpose: What needs it, for the message.
        extra: The extra of this package that installs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name.split(".")[0]):
            raise  # installed, but something that it needs is not
        package = module.split(".")[0]
        raise MissingExtraError(
            f"{purpose} needs {package}: pip install 'cgm-fast[{extra}]'"
        ) from error
