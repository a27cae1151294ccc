"""The former command for what is now a mode: `main.py --mode=keypoints`.

python -m unsup3d_jax.keypoints --config=... --input=FOLDER --layout=csv
"""

import sys

from unsup3d_jax import cli
from unsup3d_jax.data.keypoint_files import find, read_csv

__all__ = ["find", "main", "read_csv"]


def main(argv: list[str]) -> int:
    """Runs mode keypoints with the flags of the former command."""
    if not {"-h", "--help"} & set(argv[1:]):
        text = "this command is now: unsup3d --mode=keypoints ... (or python main.py)"
        print(text, file=sys.stderr)
    return cli.main([argv[0], "--mode=keypoints", *argv[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
