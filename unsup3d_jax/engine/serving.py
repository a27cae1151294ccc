"""What mode `serve` is of every method; light, so that what lacks is said at once."""

from pathlib import Path
from typing import Any

from unsup3d_jax.errors import UserError
from unsup3d_jax.flags import Arguments, Mode


def need_packages() -> None:
    """Looks for the server.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--mode=serve needs starlette and uvicorn ({error}): "
            "pip install '.[serve]'."
        ) from None


def run_in(workdir: Path) -> Path | None:
    """The workdir, if it holds a run that can be shown, however young."""
    there = any((workdir / x).is_file() for x in ("config.json", "metrics.jsonl"))
    return workdir if there else None


def serve_run(args: Arguments, interrupts: Any) -> None:
    """Mode serve where no photos are taken: the page of the workdir's run, live.

    Raises:
        UserError: if there is none.
    """
    need_packages()
    workdir = run_in(args.workdir)
    if workdir is None:
        raise UserError(f"--mode=serve: there is no run in {args.workdir} to show.")
    from unsup3d_jax.engine import photo_server

    photo_server.serve(
        None, workdir=workdir, port=args.port, opens_browser=not args.no_browser
    )


# Of methods that take no photos.
RUN_PAGE = Mode(
    "curves, panels and scores of the run, live, in a page on this computer",
    serve_run,
    flags=("port", "no_browser"),
    keeps_compiled=False,
    of_run=True,
)
