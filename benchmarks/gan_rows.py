"""Rows of GAN2Shape's tables and its controls: the same recipe with one thing changed.

    python -m benchmarks.gan_rows --folder=runs/gan_rows \
        --output=benchmarks/results/gan2shape_rows_cpu.json --rows=ours,flat,no_gan \
        --seeds=0,1,2 --images=16

Each row is a run of `main.py` (configs/gan2shape/faces.py, or unsup3d's quickstart) on
the same images; arguments behind `--` go to every run of GAN2Shape. A row that is
finished is not run again, one that was stopped goes on. A run of GAN2Shape scores
"constant", "average", the prior and every stage besides, so that one gives several
lines of a table.

All rows: SIDE and MAD on the eroded true mask within the predicted one (the valid mask
of the reconstruction), a mean over the images; the images are the first `--images` of
the test split, people on whom neither the generator nor unsup3d was trained, without a
crop. GAN2Shape's prior is fitted to the true mask (`prior.mask=true`); the row
"fixed_ellipse" goes without.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.stn3dmm_rows import run, scores_of

OURS, UNSUP3D = "configs/gan2shape/faces.py", "configs/quickstart.py"
_FACES = ("data.pose=natural", "data.background=plain")  # as `faces` has them
# Of other methods: (config, keys).
OTHERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unsup3d": (UNSUP3D, _FACES),
    "unsup3d_no_symmetry": (
        UNSUP3D,
        (
            *_FACES,
            "model.albedo_flip=False",
            "model.depth_flip=False",
            "loss.flip=0",
            "loss.flip_start=0",
        ),
    ),
}
ROWS: dict[str, tuple[str, ...]] = {
    # Table 1.
    "ours": (),
    "symmetric": ("stages.flip_all=True",),
    "unregularised": ("projection.regularised=False",),
    "oracle": ("projection.kind=oracle",),
    # Table 2.
    "asymmetric": ("prior.shape=asymmetric",),
    "shift6": ("prior.shape=shift6",),
    "shift4": ("prior.shape=shift4",),
    "weak": ("prior.shape=weak",),
    "flat": ("prior.shape=flat",),
    "fixed_ellipse": ("prior.mask=ellipse",),
    # What must hurt, or the generator is not being used.
    "no_gan": ("projection.kind=none",),
    "frozen_encoder": ("broken.encoder=True",),
    "shuffled_latents": ("broken.latents=True",),
    "no_light": (
        "sampling.light_x_min=0",
        "sampling.light_x_max=0",
        "sampling.light_y_min=0",
        "sampling.light_y_max=0",
        "sampling.diffuse_min=0",
        "sampling.diffuse_max=0",
    ),
}


def arguments_of(
    name: str, seed: int, images: int, workdir: Path, common: list[str]
) -> list[str]:
    """The command line of one row, without the program."""
    config, keys = OTHERS.get(name, (OURS, ROWS.get(name, ())))
    return [
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.seed={seed}",
        f"--config.eval.max_images={images}",
        *(common if config == OURS else ()),
        *(f"--config.{key}" for key in keys),
    ]


def row_of(
    name: str, seed: int, images: int, folder: Path, common: list[str]
) -> dict[str, Any]:
    """Runs one row unless that is done already, and reads its scores.

    Raises:
        SystemExit: if it fails, or was stopped.
    """
    workdir, record = folder / f"{name}-{seed}", folder / f"{name}-{seed}.json"
    if record.exists():
        return json.loads(record.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    arguments = arguments_of(name, seed, images, workdir, common)
    log = folder / f"{name}-{seed}.log"
    seconds, cpu = run(arguments, log)
    if not (workdir / "eval" / "test.json").exists():
        sys.exit(
            f"{name}, seed {seed} was stopped; the same command goes on. See {log}"
        )
    row: dict[str, Any] = {
        "row": name,
        "seed": seed,
        "images": images,
        "arguments": arguments,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "load_average": os.getloadavg()[0],
        "scores": scores_of(workdir),
    }
    if name in ROWS and name not in ("oracle", "no_gan"):
        row["view_control"] = view_control(arguments)
    record.write_text(json.dumps(row, indent=1) + "\n")
    return row


def view_control(arguments: list[str]) -> dict[str, float]:
    """Of a finished run; see `gan2shape.view_control`."""
    import dataclasses

    from unsup3d_jax import cli, flags
    from unsup3d_jax.gan2shape.view_control import of_run

    args = flags.parse(["main.py", *arguments], cli.METHODS)
    return dataclasses.asdict(of_run(args))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: SIDE and MAD of each row, mean over the seeds (least, largest)."""
    lines = [
        "| row | SIDE x10^-2 | MAD deg | MAD authors' code | seeds |",
        "|---|---|---|---|---|",
    ]
    named: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        named.setdefault(row["row"], []).append(row["scores"])
    first = named.get("ours", [])
    for name in first[0]["baselines"] if first else ():
        found = [scores["baselines"][name] for scores in first]
        lines.append(_line(f"{name} (of ours)", found))
    lines += [_line(name, found) for name, found in named.items()]
    return "\n".join(lines) + "\n"


def _line(name: str, found: list[dict[str, Any]]) -> str:
    cells = []
    for key, scale, digits in (
        ("side", 100.0, 3),
        ("mad_deg", 1.0, 2),
        ("mad_authors_deg", 1.0, 2),
    ):
        values = [scale * scores[key]["mean"] for scores in found if key in scores]
        if not values:
            cells.append("-")
            continue
        mean = sum(values) / len(values)
        limits = f" ({min(values):.{digits}f}, {max(values):.{digits}f})"
        cells.append(f"{mean:.{digits}f}{limits if len(values) > 1 else ''}")
    return f"| {name} | {' | '.join(cells)} | {len(found)} |"


def main() -> None:
    """Runs the rows that are asked for; see above."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    own, common = sys.argv[1:cut], sys.argv[cut + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", default="ours")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--images", type=int, default=16)
    args = parser.parse_args(own)
    names = args.rows.split(",")
    if unknown := set(names) - ROWS.keys() - OTHERS.keys():
        known = ", ".join([*ROWS, *OTHERS])
        sys.exit(f"--rows: {', '.join(sorted(unknown))}: expected some of {known}.")
    record = {"machine": machine.describe("flax", "optax"), "common": common}
    rows = []
    for name in names:
        for seed in map(int, args.seeds.split(",")):
            rows.append(row_of(name, seed, args.images, args.folder, common))
            text = json.dumps(record | {"rows": rows}, indent=1)
            args.output.write_text(text + "\n")
            print(f"{name}, seed {seed}: done", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
