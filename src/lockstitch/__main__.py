"""`python -m lockstitch` is `lockstitch`."""

import sys

from lockstitch.cli import main

if __name__ == "__main__":
    sys.exit(main())
