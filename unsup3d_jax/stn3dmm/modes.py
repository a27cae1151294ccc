"""What the command line can ask of this method; light: no JAX until a mode runs."""

from typing import Any

from unsup3d_jax.configs.stn3dmm import default
from unsup3d_jax.configuration import Keys
from unsup3d_jax.engine import serving
from unsup3d_jax.errors import UserError
from unsup3d_jax.flags import CLUSTER, Arguments, Mode

KEYS = Keys(default.get_config, default.RANGES, default.YOUNGER)


def run_train(args: Arguments, interrupts: Any) -> None:
    """Trains or resumes, then prints the table of the final scores."""
    from unsup3d_jax.engine import scored
    from unsup3d_jax.engine.task import Session
    from unsup3d_jax.stn3dmm import options, score, task

    config = args.config
    options.check_config(config)
    session = Session(config, task.lazy_splits(config), interrupts, args.profile)
    scored.train(args, session, task.plan(session), score.SCORING)


def run_eval(args: Arguments, interrupts: Any) -> None:
    """Scores one checkpoint on one split."""
    from unsup3d_jax.engine import scored
    from unsup3d_jax.engine.task import Session
    from unsup3d_jax.stn3dmm import options, score, task

    options.check_config(args.config)
    params, step, origin = trained_or_shipped(args)
    session = Session(args.config, task.lazy_splits(args.config), interrupts)
    scored.evaluate(args, session, (params, step), score.SCORING, origin=origin)


def run_reconstruct(args: Arguments, interrupts: Any) -> None:
    """Localises, flattens and exports the user's photos."""
    assert args.input is not None and args.output is not None  # `flags` has checked
    if not args.input.exists():
        raise UserError(f"--input: {args.input} does not exist.")
    import functools

    import jax

    from unsup3d_jax.configuration import changed
    from unsup3d_jax.stn3dmm import localiser, options, reconstruct_files
    from unsup3d_jax.stn3dmm.export import ExportOptions

    config = args.config
    options.check_config(config)
    params, _, _ = trained_or_shipped(args)
    face = options.load_face(config)
    static = options.options_from_config(config, face)
    fine = options.load_face(changed(config, {"face.grid": config.export.grid}))
    reconstruct_files.reconstruct_folder(
        jax.jit(functools.partial(localiser.localise, options=static.localiser)),
        params,
        config.data.image_size,
        fine.grid,
        face.camera,
        ExportOptions(
            photo_size=config.export.photo_size,
            visibility=config.visibility.eval,
            texture_scale=config.export.texture_scale,
        ),
        args.input,
        args.output,
    )


def run_data(args: Arguments, interrupts: Any) -> int:
    """Checks the data set and says what it holds; 1 if it is not fit to train on."""
    from functools import partial

    from unsup3d_jax.data import report
    from unsup3d_jax.stn3dmm import options, people

    config = args.config
    options.check_config(config)
    load = partial(people.load_split, config, options.load_face(config))
    text, fit = report.examine(config, args.output or args.workdir / "data", load)
    print(text, flush=True)
    return 0 if fit else 1


def trained_or_shipped(args: Arguments) -> tuple[Any, int, str | None]:
    """Parameters, step, and where they are from, if not from the workdir's run.

    Without --checkpoint and without a run, the localiser that ships.

    Raises:
        UserError: as `load_params` and `shipped.load`.
    """
    from unsup3d_jax.engine import scored
    from unsup3d_jax.engine.log import say
    from unsup3d_jax.engine.workdir import newest_step
    from unsup3d_jax.stn3dmm import shipped

    if args.checkpoint is None and newest_step(args.workdir) is None:
        params, step = shipped.load(args.config)
        say(f"no run in {args.workdir}: the localiser that ships, {step} steps.")
        return params, step, shipped.ORIGIN
    return *load_params(args), scored.origin(args)


def load_params(args: Arguments) -> tuple[Any, int]:
    """Parameters and step of --checkpoint, or of the workdir's newest.

    Raises:
        UserError: if there is none, or it is not of a localiser like the config's.
    """
    from unsup3d_jax.engine import scored
    from unsup3d_jax.stn3dmm import task

    return scored.load_params(
        args, task.IDENTITY, lambda: task.shapes_of_params(args.config)
    )


MODES = {
    "train": Mode(
        "train the localiser, or resume; evaluates on schedule and at the end",
        run_train,
        flags=("dry_run", "profile", *CLUSTER),
    ),
    "eval": Mode(
        "score the newest checkpoint, --checkpoint, or, without a run, what ships",
        run_eval,
        flags=("checkpoint",),
        of_run=True,
    ),
    "reconstruct": Mode(
        "flattened face, mask, pose and textured mesh of the photos of --input",
        run_reconstruct,
        flags=("checkpoint", "input", "output"),
        required=("input", "output"),
        of_run=True,
    ),
    "data": Mode(
        "check the data set: counts, broken files, a contact sheet of its people",
        run_data,
        flags=("output",),
        keeps_compiled=False,
    ),
    "serve": serving.RUN_PAGE,
}
