"""Gives a morphable model a UV layout, and draws it.

    python -m unsup3d_jax.stn3dmm.uv MODEL.npz

MODEL is anything `morphable.load_model` reads. The largest piece of its mesh becomes
a disc (holes are closed) and is laid out on the unit square; the result is written as
.npz, a file of that kind in place, and a picture beside it. Landmarks, where the model
has none, come from a text file with a vertex number (from 0) a line, 68 or 21 of them.
"""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from unsup3d_jax.data.landmark_files import SCHEMES
from unsup3d_jax.errors import UserError, one_line, refusing, writing
from unsup3d_jax.files import replacing
from unsup3d_jax.nets.file_guard import existing
from unsup3d_jax.stn3dmm import embedding, morphable, parts, surface
from unsup3d_jax.stn3dmm.types import MorphableModel

_MOST_BYTES = 10_000  # of a file of landmarks
_LIGHT = np.array([0.1, 0.3, 0.95])  # towards it, model frame
_OVERSAMPLED = 2


def laid_out(
    model: MorphableModel, *, weights: str = "cotangent"
) -> tuple[MorphableModel, str]:
    """The model with a UV layout, its mesh made a disc first; see `embedding.embed`.

    Returns:
        It, and the weights that were used.

    Raises:
        ValueError: if it cannot be laid out.
    """
    disc = parts.as_disc(model)
    try:
        uv, kind = embedding.embed(disc.mean, disc.faces, disc.mirror, weights=weights)
    except ValueError as error:
        raise ValueError(f"{model.name}: {error}") from None
    return dataclasses.replace(disc, uv=uv), kind


def layout_picture(
    model: MorphableModel, *, size: int = 1024
) -> UInt8[np.ndarray, "s s 3"]:
    """The mesh in its UV plane, v upwards: shaded as the mean face, edges, landmarks.

    Args:
        model: with `uv`.
        size: pixels a side.

    Raises:
        ValueError: if it has no `uv`.
    """
    if model.uv is None:
        raise ValueError(f"{model.name}: has no UV layout.")
    side = size * _OVERSAMPLED
    normal = surface.normals(model.mean, model.faces)
    length = np.linalg.norm(normal, axis=1).clip(np.finfo(np.float64).tiny)
    shade = 60.0 + 180.0 * (normal @ _LIGHT / length).clip(0.0)
    at = model.uv.astype(np.float64) * [1.0, -1.0] + [0.0, 1.0]
    at *= side - 1
    image = Image.new("RGB", (side, side), (20, 20, 28))
    draw = ImageDraw.Draw(image)
    fine = len(model.faces) < side * side / 400  # else edges are all there is
    for corners, level in zip(at[model.faces].tolist(), shade.tolist(), strict=True):
        grey = int(level)
        edge = (grey // 2, grey // 2, grey // 2) if fine else None
        draw.polygon([tuple(c) for c in corners], (grey, grey, grey), edge)
    flat = np.concatenate([at, np.zeros((len(at), 1))], axis=1)
    for name, points in model.landmarks.items():
        colour = (230, 60, 50) if name == "ibug68" else (60, 150, 250)
        radius = side / (220 if name == "ibug68" else 340)
        for x, y, _ in points.of(flat).tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    small = image.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, np.uint8)


def _read_landmarks(path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    path = existing(path)
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path}: too long for 68 or 21 numbers.")
    words = path.read_text(encoding="utf-8", errors="replace").split()
    if len(words) not in SCHEMES:
        raise UserError(f"{path}: has {len(words)} words; expected 68 or 21 numbers.")
    try:
        ids = np.array([int(word) for word in words])
    except ValueError:
        raise UserError(f"{path}: expected whole numbers, vertices from 0.") from None
    name, flip = SCHEMES[len(words)]
    return name, ids, np.array(flip)


def run(args: argparse.Namespace) -> str:
    """Does what the command line says; returns the line to print.

    Raises:
        UserError: if the model cannot be read, laid out or written.
    """
    shipped = args.model in morphable.SHIPPED
    source = Path(args.model).expanduser()
    model = morphable.load_model(args.model)
    if shipped and not args.output:
        output = None  # it has its layout
    else:
        output = args.output or source.with_suffix(".npz")
    with refusing():
        if args.landmarks is not None:
            model = parts.with_landmarks(model, *_read_landmarks(args.landmarks))
        done = "as it ships"
        if output is not None:
            model, kind = laid_out(model, weights=args.weights)
            done = f"{kind} weights"
    if output is not None:
        morphable.save_model(output, model)
    picture = args.picture or Path(f"{output or source}").with_suffix(".uv.png")
    with writing(picture), replacing(picture) as file:
        Image.fromarray(layout_picture(model)).save(file, format="PNG")
    area = surface.areas(model.uv, model.faces)  # pyright: ignore[reportArgumentType]
    mirror = "mirrored halves" if model.mirror is not None else "no mirror known"
    return (
        f"{output or model.name}: {len(model.mean):,} vertices, {len(area):,} "
        f"triangles, {done}, {mirror}, least area {area.min():.1e}; {picture}"
    )


def main(argv: list[str] | None = None) -> int:
    """Writes the model and the picture; 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        prog="python -m unsup3d_jax.stn3dmm.uv",
    )
    parser.add_argument("model", metavar="MODEL", help="file, folder or name")
    parser.add_argument("--output", type=Path, help="the .npz to write")
    parser.add_argument("--picture", type=Path, help="the .png to write")
    parser.add_argument(
        "--weights", choices=embedding.WEIGHTS, default=embedding.WEIGHTS[0]
    )
    parser.add_argument("--landmarks", type=Path, help="68 or 21 vertex numbers")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    try:
        print(run(args))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
