"""`python -m launch`, the `pretrain` command where nothing is installed on the path."""

import sys

from launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
