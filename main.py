"""Trains and uses unsup3d: see `python main.py --help`."""

import sys

from configs import default
from unsup3d_jax import cli

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv, default.get_config()))
