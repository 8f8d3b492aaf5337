"""Builds the compiled module through CMake, or nothing at all: see CGM_FAST_PURE."""

import os

from setuptools import setup

# The kernels are written with the vector extensions of GCC and Clang, which MSVC lacks.
pure = os.environ.get("CGM_FAST_PURE", "1" if os.name == "nt" else "") not in ("", "0")
setup(**({} if pure else {"cmake_source_dir": "."}))
