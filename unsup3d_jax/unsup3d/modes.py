"""What the command line can ask of this method; light: no JAX until a mode runs."""

from typing import Any

from configs import default
from unsup3d_jax.configuration import Keys
from unsup3d_jax.errors import UserError
from unsup3d_jax.flags import CLUSTER, Arguments, Mode, command

KEYS = Keys(default.get_config, default.RANGES, default.YOUNGER)


def run_train(args: Arguments, interrupts: Any) -> None:
    """Trains or resumes, then prints the table of the final scores."""
    from unsup3d_jax.engine import hosts, workdir
    from unsup3d_jax.engine.log import say
    from unsup3d_jax.engine.task import Session
    from unsup3d_jax.unsup3d import score, task

    config, split = args.config, args.config.eval.split
    task.check_config(config)
    splits = task.lazy_splits(config)
    if args.dry_run:
        from unsup3d_jax.engine import dry_run

        start = task.read_start(config) if config.train.init_from else None
        the_task = task.model_task(config, splits)
        print(dry_run.report(config, the_task, start=start), flush=True)
        return
    # Before any data are loaded.
    workdir.check_workdir(args.workdir, config, task.IDENTITY)
    session = Session(config, splits, interrupts, args.profile)
    processes = hosts.Hosts()

    def look() -> None:
        # The run, if it begins, reads it again; what is wrong with it is said now.
        if config.train.init_from and workdir.newest_step(args.workdir) is None:
            task.read_start(config)

    processes.from_first(look)
    if (workdir.newest_step(args.workdir) or 0) < config.train.steps:
        score.check_data(session)
    params, step = task.train(session, args.workdir)
    if step < config.train.steps:
        if processes.first:
            say(
                f"stopped at step {step} of {config.train.steps}; the checkpoint is "
                f"saved. To resume: {command()}"
            )
        return

    def finish() -> None:
        table = score.recorded_table(session, args.workdir, step, split)
        if table is None:
            table = score.score_run(
                session,
                args.workdir,
                score.Scored(params, step),
                split,
                # They train with all processes, or none.
                train_baselines=processes.count == 1,
            )
        score.log_scores(session, args.workdir, step, split)
        print(table, flush=True)
        if config.log.picture_every:
            say(f"pictures: {args.workdir / 'pictures'}")

    processes.from_first(finish)


def run_eval(args: Arguments, interrupts: Any) -> None:
    """Scores one checkpoint on one split."""
    from unsup3d_jax.engine.task import Session
    from unsup3d_jax.unsup3d import score, task

    config = args.config
    task.check_config(config)
    params, step = load_params(args)
    table = score.score_run(
        Session(config, task.lazy_splits(config), interrupts),
        args.workdir,
        score.Scored(params, step, _origin(args) or score.THIS_RUN),
        config.eval.split,
        train_baselines=False,
    )
    print(table, flush=True)


def run_reconstruct(args: Arguments, interrupts: Any) -> None:
    """Decomposes the user's photos."""
    assert args.input is not None and args.output is not None  # `flags` has checked
    if not args.input.exists():
        raise UserError(f"--input: {args.input} does not exist.")
    from unsup3d_jax.unsup3d import reconstruct_files
    from unsup3d_jax.unsup3d.options import loss_weights

    params, step = load_params(args)
    reconstruct_files.reconstruct_folder(
        args.config,
        params,
        args.input,
        args.output,
        view_range=loss_weights(args.config, step).view_range,
    )


def run_data(args: Arguments, interrupts: Any) -> None:
    """Checks the data set and prints what it holds."""
    from unsup3d_jax.data import report

    output = args.output or args.workdir / "data"
    print(report.data_report(args.config, output), flush=True)


def run_import(args: Arguments, interrupts: Any) -> None:
    """Turns a checkpoint of the authors' code into step 0 of a workdir."""
    assert args.input is not None  # `flags` has checked
    from unsup3d_jax.unsup3d import import_weights

    print(import_weights.import_checkpoint(args.config, args.input, args.workdir))


def load_params(args: Arguments) -> tuple[Any, int]:
    """Parameters and step of --checkpoint, or of the workdir's newest.

    Raises:
        UserError: if there is none, or it is not of a model like the config's.
    """
    import jax

    from unsup3d_jax.engine import checkpoint, packing, workdir
    from unsup3d_jax.unsup3d import task

    task.check_config(args.config)
    place = args.checkpoint or args.workdir
    found, step = checkpoint.load_parts(place)
    workdir.check_meaning(args.config, place, task.IDENTITY)
    expected = jax.eval_shape(lambda: task.initial_params(args.config))
    packing.check_shapes(found["params"], expected, f"the checkpoint in {place}")
    return found["params"], step


def _origin(args: Arguments) -> str | None:
    """The checkpoint to score, unless it is one of the workdir's own."""
    if args.checkpoint is None:
        return None
    place, own = args.checkpoint.resolve(), args.workdir.resolve()
    return None if place == own or place.parent == own / "checkpoints" else str(place)


MODES = {
    "train": Mode(
        "train, or resume; evaluates on schedule and at the end (default)",
        run_train,
        flags=("dry_run", "profile", *CLUSTER),
    ),
    "eval": Mode(
        "score the newest checkpoint, or --checkpoint, on config.eval.split",
        run_eval,
        flags=("checkpoint",),
        of_run=True,
    ),
    "reconstruct": Mode(
        "decompose the photos of --input into --output",
        run_reconstruct,
        flags=("checkpoint", "input", "output"),
        required=("input", "output"),
        of_run=True,
    ),
    "data": Mode(
        "check the data set: counts, broken files, spread, a contact sheet",
        run_data,
        flags=("output",),
        keeps_compiled=False,
    ),
    "import": Mode(
        "turn a checkpoint of the authors' PyTorch code, --input, into a workdir",
        run_import,
        flags=("input",),
        required=("input",),
    ),
}
