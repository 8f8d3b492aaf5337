"""The old commands of `python setup.py`, passed on to pip.

`pip install .` does not read this file: what builds the package is named in pyproject.toml.
"""

import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "install": ["install", "."],
    "develop": ["install", "--editable", "."],
    "bdist_wheel": ["wheel", "--no-deps", "--wheel-dir", "dist", "."],
}


def main() -> int:
    """Run pip, and return its exit status."""
    if len(sys.argv) != 2 or sys.argv[1] not in COMMANDS:
        print(f"setup.py takes one of {', '.join(COMMANDS)}, got {sys.argv[1:]}", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "pip", *COMMANDS[sys.argv[1]]]
    return subprocess.call(command, cwd=Path(__file__).parent)


if __name__ == "__main__":
    sys.exit(main())
