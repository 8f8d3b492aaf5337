"""`python -m cgm_fast`, the form that torchrun can start, and where `cgm-fast` begins."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C while its modules are imported ends it without a traceback."""
    try:
        from cgm_fast.cgm import cli
    except KeyboardInterrupt:
        print("cgm-fast: interrupted", file=sys.stderr)
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
