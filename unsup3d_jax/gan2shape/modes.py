"""What the command line can ask of this method; light: no JAX until a mode runs."""

from typing import Any

from unsup3d_jax.configs.gan2shape import default
from unsup3d_jax.configuration import Keys
from unsup3d_jax.flags import Arguments, Mode

KEYS = Keys(default.get_config, default.RANGES, default.YOUNGER)


def run_train(args: Arguments, interrupts: Any) -> None:
    """Runs the stages on the images of the data set, or resumes; prints the scores."""
    from unsup3d_jax.gan2shape import run

    run.train(args, interrupts)


def run_eval(args: Arguments, interrupts: Any) -> None:
    """Scores what the stages have found, stage by stage."""
    from unsup3d_jax.gan2shape import run

    run.evaluate(args)


def run_reconstruct(args: Arguments, interrupts: Any) -> None:
    """Finds the shapes of photos and exports them."""
    from unsup3d_jax.gan2shape import reconstruct_files

    reconstruct_files.reconstruct(args, interrupts)


MODES = {
    "train": Mode(
        "find the shape of each image of config.eval.split, or of --input, in stages; "
        "or resume",
        run_train,
        flags=("input",),
    ),
    "eval": Mode(
        "score the shapes that the stages have found, stage by stage",
        run_eval,
        of_run=True,
    ),
    "reconstruct": Mode(
        "shapes of the photos of --input: arrays, pictures, mesh; rotations and "
        "relights, also by the generator",
        run_reconstruct,
        flags=("input", "output"),
        required=("input", "output"),
    ),
}
