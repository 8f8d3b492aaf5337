"""`python -m cgm_fast`, the form that torchrun can start."""

import sys

from cgm_fast.cli import main

sys.exit(main())
