"""`python -m rl3d` is `rl3d`."""

import sys

from rl3d.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
