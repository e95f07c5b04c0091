"""`python -m qinco` is the `qinco` command."""

import sys

from qinco.cli import main

if __name__ == "__main__":
    sys.exit(main())
