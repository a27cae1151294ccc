"""Trains and uses the methods of unsup3d_jax: see `python main.py --help`."""

import sys

from unsup3d_jax import cli

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv))
