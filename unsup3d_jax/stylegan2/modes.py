"""What the command line can ask of this method; light: no JAX until a mode runs."""

from typing import Any

from unsup3d_jax.configs.gan2shape import gan_default
from unsup3d_jax.configuration import Keys
from unsup3d_jax.engine import serving
from unsup3d_jax.flags import CLUSTER, Arguments, Mode

KEYS = Keys(gan_default.get_config, gan_default.RANGES, gan_default.YOUNGER)


def run_train(args: Arguments, interrupts: Any) -> None:
    """Trains or resumes, then prints the gate's table."""
    from unsup3d_jax.engine import scored
    from unsup3d_jax.stylegan2 import score, task

    session = _session(args, interrupts)
    scored.train(args, session, task.plan(session), score.SCORING)


def run_eval(args: Arguments, interrupts: Any) -> None:
    """The gate, on one checkpoint and one split."""
    from unsup3d_jax.engine import scored
    from unsup3d_jax.stylegan2 import score

    session = _session(args, interrupts)
    found, origin = load_parts(args), scored.origin(args)
    scored.evaluate(args, session, found, score.SCORING, origin=origin)


def run_sample(args: Arguments, interrupts: Any) -> None:
    """Grids of samples."""
    from unsup3d_jax.engine.log import say
    from unsup3d_jax.engine.workdir import newest_step
    from unsup3d_jax.stylegan2 import options, sample, shipped

    assert args.output is not None  # `flags` has checked
    config = args.config
    options.check_config(config)
    if args.checkpoint is None and newest_step(args.workdir) is None:
        parts = shipped.load(config)
        say(f"no run in {args.workdir}: the generator that ships.")
    else:
        parts, _ = load_parts(args)
    for path in sample.write(parts, config, args.output):
        say(str(path))


def load_parts(args: Arguments) -> tuple[Any, int]:
    """The parts that a run is wanted for, and the step, of --checkpoint or the workdir.

    Raises:
        UserError: if there is none, or it is not of a generator like the config's.
    """
    from unsup3d_jax.engine import scored
    from unsup3d_jax.stylegan2 import task

    return scored.load_params(
        args,
        task.IDENTITY,
        lambda: task.shapes_of_results(args.config),
        results=task.RESULTS,
    )


def _session(args: Arguments, interrupts: Any) -> Any:
    import jax

    from unsup3d_jax.data.load import lazy_splits
    from unsup3d_jax.engine.log import say
    from unsup3d_jax.engine.task import Session
    from unsup3d_jax.stylegan2 import options

    options.check_config(args.config)
    tell = say if jax.process_index() == 0 else None
    splits = lazy_splits(args.config, tell)
    return Session(args.config, splits, interrupts, args.profile)


MODES = {
    "train": Mode(
        "train the generator, or resume; passes the gate at the end",
        run_train,
        flags=("dry_run", "profile", *CLUSTER),
    ),
    "eval": Mode(
        "the gate: spread of view and light, distance from images, copies",
        run_eval,
        flags=("checkpoint",),
        of_run=True,
    ),
    "sample": Mode(
        "grids of samples, into the folder --output",
        run_sample,
        flags=("checkpoint", "output"),
        required=("output",),
        of_run=True,
    ),
    "serve": serving.RUN_PAGE,
}
