"""What the command line can ask of the studies; light: no JAX until a mode runs."""

import json
from typing import Any

from unsup3d_jax.errors import UserError, writing
from unsup3d_jax.flags import Arguments, Mode


def run_tables(args: Arguments, interrupts: Any) -> None:
    """Runs what is missing of a paper's table, and prints it."""
    from unsup3d_jax.data.load import lazy_splits
    from unsup3d_jax.engine.log import say
    from unsup3d_jax.engine.task import Session
    from unsup3d_jax.experiments.tables import run

    session = Session(args.config, lazy_splits(args.config, say), interrupts)
    with writing(args.workdir):
        table = run.run_table(session, args.workdir, given=args.given)
    print(table, flush=True)
    say(f"table: {args.workdir / 'table.json'}, table.md, figure.png")


def run_rotnet(args: Arguments, interrupts: Any) -> None:
    """Trains a self-supervised VGG16 on the images of the config."""
    from unsup3d_jax.engine.task import Session
    from unsup3d_jax.experiments import rotnet
    from unsup3d_jax.unsup3d.task import lazy_splits

    output = args.output or args.workdir / "rotnet.npz"
    if output.is_dir():  # else found when hours of training are to be saved
        raise UserError(f"--output: {output} is a folder; name a file.")
    session = Session(args.config, lazy_splits(args.config), interrupts)
    with writing(output):
        rotnet.pretrain(session, output)


def run_keypoints(args: Arguments, interrupts: Any) -> None:
    """Scores the depth at keypoints of a folder of images (Table 5)."""
    from unsup3d_jax.experiments import keypoints
    from unsup3d_jax.unsup3d.modes import load_params
    from unsup3d_jax.unsup3d.task import check_config

    assert args.input is not None  # `flags` has checked
    check_config(args.config)
    job = keypoints.KeypointJob(
        input=args.input,
        layout=args.layout or "csv",
        split=args.split or "valid",
        near=args.near or "small",
        output=args.output,
        sheet=args.sheet,
    )
    result = keypoints.run(args.config, lambda: load_params(args), job)
    print(json.dumps(result, indent=2))


_TABLES = Mode("run the rows of a paper's table: --config=tables/NAME", run_tables)
OF_GAN2SHAPE = {"tables": _TABLES}
OF_UNSUP3D = {
    "tables": _TABLES,
    "rotnet": Mode(
        "train an encoder for the perceptual loss without labels: "
        "--output=.safetensors or .npz",
        run_rotnet,
        flags=("output",),
    ),
    "keypoints": Mode(
        "score depth at keypoints of a folder: --input, --layout=csv|npz|3dfaw",
        run_keypoints,
        flags=("checkpoint", "input", "output", "sheet", "layout", "split", "near"),
        required=("input",),
        of_run=True,
    ),
}
