"""Builds the compiled module through CMake, or nothing at all with CGM_FAST_PURE=1."""

import os

from setuptools import setup

pure = os.environ.get("CGM_FAST_PURE", "") not in ("", "0")
setup(**({} if pure else {"cmake_source_dir": "."}))
