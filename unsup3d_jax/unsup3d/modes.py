"""What the command line can ask of this method; light: no JAX until a mode runs."""

from pathlib import Path
from typing import Any

from unsup3d_jax.configs import default
from unsup3d_jax.configuration import Keys
from unsup3d_jax.engine import serving
from unsup3d_jax.errors import UserError
from unsup3d_jax.flags import CLUSTER, Arguments, Mode
from unsup3d_jax.unsup3d.outputs import OUTPUTS

KEYS = Keys(default.get_config, default.RANGES, default.YOUNGER)
# What ships, by the name that --weights has for it; `shipped` makes such files.
WEIGHTS = {"faces": Path(__file__).with_name("weights") / "faces.npz"}


def run_train(args: Arguments, interrupts: Any) -> None:
    """Trains or resumes, then prints the table of the final scores."""
    from unsup3d_jax.engine import scored
    from unsup3d_jax.engine.task import Session
    from unsup3d_jax.unsup3d import score, task

    config = args.config
    task.check_config(config)
    session = Session(config, task.lazy_splits(config), interrupts, args.profile)
    scored.train(args, session, task.plan(session), score.SCORING)


def run_eval(args: Arguments, interrupts: Any) -> None:
    """Scores one checkpoint on one split."""
    from unsup3d_jax.engine import scored
    from unsup3d_jax.engine.task import Session
    from unsup3d_jax.unsup3d import score, task

    found = load_params(args)
    session = Session(args.config, task.lazy_splits(args.config), interrupts)
    origin = str(args.weights) if args.weights else scored.origin(args)
    scored.evaluate(args, session, found, score.SCORING, origin=origin)


def run_reconstruct(args: Arguments, interrupts: Any) -> None:
    """Decomposes the user's photos."""
    assert args.input is not None and args.output is not None  # `flags` has checked
    if not args.input.exists():
        raise UserError(f"--input: {args.input} does not exist.")
    from unsup3d_jax.engine.log import say
    from unsup3d_jax.unsup3d import belief, reconstruct_files
    from unsup3d_jax.unsup3d.options import loss_weights

    params, step = load_params(args)
    place = args.weights or args.checkpoint or args.workdir
    usual = belief.find(place, step)
    if usual is None:
        remedy = "" if args.weights else "; --mode=eval measures it"
        say(
            "what error is usual for photos of the model's kind is not known of "
            f"{place}{remedy}: no photo will be doubted."
        )
    reconstruct_files.reconstruct_folder(
        args.config,
        params,
        args.input,
        args.output,
        view_range=loss_weights(args.config, step).view_range,
        usual=usual,
        outputs=args.outputs,
    )


def run_serve(args: Arguments, interrupts: Any) -> None:
    """Shows photos in a browser on this computer, and the run they are explained by."""
    serving.need_packages()
    from unsup3d_jax.engine.log import say
    from unsup3d_jax.engine.workdir import newest_step

    # Weights from elsewhere are of no run that is here.
    workdir = None if args.weights else serving.run_in(args.workdir)
    if args.checkpoint is None and workdir and newest_step(workdir) is None:
        say(f"no checkpoint in {workdir} yet: the run's page alone, without photos.")
        serving.serve_run(args, interrupts)
        return
    from unsup3d_jax.unsup3d import serve
    from unsup3d_jax.unsup3d.options import loss_weights

    params, step = load_params(args)
    serve.serve(
        args.config,
        params,
        view_range=loss_weights(args.config, step).view_range,
        workdir=workdir,
        port=args.port,
        opens_browser=not args.no_browser,
    )


def run_data(args: Arguments, interrupts: Any) -> int:
    """Checks the data set and says what it holds; 1 if it is not fit to train on."""
    from unsup3d_jax.data import report

    output = args.output or args.workdir / "data"
    text, fit = report.examine(args.config, output)
    print(text, flush=True)
    return 0 if fit else 1


def run_import(args: Arguments, interrupts: Any) -> None:
    """Turns a checkpoint of the authors' code into step 0 of a workdir."""
    assert args.input is not None  # `flags` has checked
    from unsup3d_jax.unsup3d import import_weights

    print(import_weights.import_checkpoint(args.config, args.input, args.workdir))


def load_params(args: Arguments) -> tuple[Any, int]:
    """Parameters and step of --weights, of --checkpoint, or of the workdir's newest.

    Raises:
        UserError: if there is none, or it is not of a model like the config's.
    """
    import jax

    from unsup3d_jax.engine import scored
    from unsup3d_jax.unsup3d import shipped, task

    task.check_config(args.config)
    if args.weights is not None:
        return shipped.load(args.config, args.weights)
    return scored.load_params(
        args,
        task.IDENTITY,
        lambda: jax.eval_shape(lambda: task.initial_params(args.config)),
    )


MODES = {
    "train": Mode(
        "train, or resume; evaluates on schedule and at the end (default)",
        run_train,
        flags=("dry_run", "profile", *CLUSTER),
    ),
    "eval": Mode(
        "score the newest checkpoint, or --checkpoint, on config.eval.split",
        run_eval,
        flags=("checkpoint", "weights"),
        of_run=True,
    ),
    "reconstruct": Mode(
        "decompose the photos of --input into --output",
        run_reconstruct,
        flags=("checkpoint", "weights", "input", "output", "outputs", "detect"),
        required=("input", "output"),
        of_run=True,
        outputs=OUTPUTS,
    ),
    "serve": Mode(
        "drop photos into a page on this computer and turn what comes out; curves and "
        "panels of the run, live",
        run_serve,
        flags=("checkpoint", "weights", "port", "no_browser"),
        of_run=True,
    ),
    "data": Mode(
        "check the data set: what is broken, odd or twice, how it looks, a verdict",
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
