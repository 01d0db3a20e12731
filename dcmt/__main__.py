"""``python -m dcmt``: the command line."""

import sys

from dcmt.cli import main

if __name__ == "__main__":
    sys.exit(main())
