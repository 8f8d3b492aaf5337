"""Training runs: settings, loop, run folders."""
