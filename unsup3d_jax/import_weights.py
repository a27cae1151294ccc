"""The former command for what is now a mode: `main.py --mode=import`.

python -m unsup3d_jax.import_weights --input=FILE.pth --config=... --workdir=...
"""

import sys

from unsup3d_jax import cli


def main(argv: list[str]) -> int:
    """Runs mode import with the flags of the former command."""
    if not {"-h", "--help"} & set(argv[1:]):
        print(
            "this command is now: unsup3d --mode=import ... (or python main.py)",
            file=sys.stderr,
        )
    return cli.main([argv[0], "--mode=import", *argv[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
