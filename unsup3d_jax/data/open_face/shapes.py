"""Which heads there are: random sliders and expressions, and their components.

The distributions are chosen by hand and not measured on people. Displacements are
in decimetres, in the frame of `hm08`; `project` takes the name of a target to what it
does to the head, (v, 3). Here v counts the two eye centres, which come last.
"""

import re

import numpy as np

from unsup3d_jax.data.open_face.hm08 import ANCESTRIES, Source
from unsup3d_jax.data.open_face.model import EXPRESSIONS

NUM_SAMPLES = 2500

# Standard deviation of slider weights; the first pattern that matches decides.
# Twice these values gives caricatures: many sliders add up on one nose.
SLIDER_SIGMA = [
    (r"^nose", 0.17),
    (r"^mouth", 0.15),
    (r"cheek", 0.24),
    (r"^forehead", 0.22),
    (r"^eyebrows", 0.25),
    (r"^head-age", 0.35),
    (r"^head-scale-(horiz|vert)", 0.22),
    (r"^head-scale-depth", 0.15),
    (r"ear-shape", 0.15),
    (r"", 0.20),
]
SLIDER_EXCLUDED = re.compile(  # pose-like, or not symmetric
    r"^head-trans|^head-angle|^head-back-scale|^neck-trans|^measure-neck"
    r"|^neck-scale-(vert|depth)|^neck-back-scale|^mouth-trans-in|^nose-trans-in"
    r"|^forehead-trans|eye-push1"
)
SLIDER_FOLDERS = "cheek chin ears eyebrows eyes forehead head mouth neck nose".split()
SUFFIX_PAIRS = [
    *(("decr", "incr"), ("down", "up"), ("in", "out"), ("backward", "forward")),
    *(("concave", "convex"), ("compress", "uncompress")),
]


def read_sliders(source: Source, project) -> dict[str, tuple]:
    """Signed sliders: name -> (negative or None, positive) displacements (v, 3)."""
    files = [t for folder in SLIDER_FOLDERS for t in source.targets(folder)]
    sliders, used = {}, set()
    for path in files:
        stem = path.split("/")[1]
        for low, high in SUFFIX_PAIRS:
            partner = path[: -len(low)] + high
            if stem.endswith("-" + low) and partner in files:
                name = f"{stem.removesuffix('-' + low)}-{low}/{high}"
                sliders[name] = (path, partner)
                used |= {path, partner}
    for path in files:
        if path not in used:
            sliders[path.split("/")[1]] = (None, path)
    if len(sliders) != 153:
        raise ValueError(f"{len(sliders)} sliders, expected 153.")
    kept = {k: v for k, v in sliders.items() if not SLIDER_EXCLUDED.search(k)}
    if len(kept) != 135:
        raise ValueError(f"{len(kept)} sliders used, expected 135.")
    return {
        name: tuple(None if p is None else project(p) for p in pair)
        for name, pair in sorted(kept.items())
    }


def sample_shapes(source: Source, project, neutral, align, rng):
    """Draws NUM_SAMPLES heads.

    Args:
        source: names the targets there are.
        project: target name -> displacements (v, 3).
        neutral: (v, 3) the head without any target.
        align: takes (v, 3) to the same head in the common place and size.
        rng: a numpy `Generator`.

    Returns:
        aligned heads (n, v, 3), and attributes (n, 8): gender, old, child, the three
        ancestries, muscle, weight; each 0 to 1.
    """
    sliders = read_sliders(source, project)
    asym = sorted(
        n.removesuffix("-l") for n in source.targets("asym") if n.endswith("-l")
    )
    asym = [n for n in asym if "asymm-" not in n]
    asym = [(project(n + "-l"), project(n + "-r")) for n in asym]
    if len(asym) != 29:
        raise ValueError(f"{len(asym)} asymmetry pairs, expected 29.")
    macro = {
        n.split("/")[1]: project(n)
        for n in source.targets("macrodetails")
        if "baby" not in n
    }
    # Left and right share a draw.
    groups: dict[str, list[str]] = {}
    for name in sliders:
        groups.setdefault(re.sub(r"^[lr]-", "", name), []).append(name)
    if len(groups) != 102:
        raise ValueError(f"{len(groups)} independent sliders, expected 102.")

    shapes = np.empty((NUM_SAMPLES, *neutral.shape), np.float32)
    attributes = np.empty((NUM_SAMPLES, 8))
    for i in range(NUM_SAMPLES):
        shape = neutral.copy()
        for group, names in groups.items():
            sigma = next(s for p, s in SLIDER_SIGMA if re.search(p, group))
            shared = rng.normal(0.0, sigma)
            one_sided = sliders[names[0]][0] is None
            if one_sided:
                shared = abs(shared) * (rng.random() < 0.5)
            for name in names:
                noise = rng.normal(0.0, 0.05) if len(names) == 2 and shared else 0.0
                w = float(np.clip(shared + noise, -1.0, 1.0))
                low, high = sliders[name]
                if w >= 0:
                    shape += w * high
                elif not one_sided:
                    shape += -w * low
        for left, right in asym:
            w = rng.normal(0.0, 0.12)
            shape += abs(w) * (left if w > 0 else right)

        gender = rng.beta(0.6, 0.6)
        old, child = rng.beta(1.1, 2.2), 0.0
        if rng.random() < 0.08:
            old, child = 0.0, rng.uniform(0.1, 0.45)
        ancestry = rng.dirichlet((0.6, 0.6, 0.6))
        muscle = np.clip(rng.normal(0.5, 0.20), 0.0, 1.0)
        weight = np.clip(rng.normal(0.5, 0.22), 0.0, 1.0)
        genders = {"female": 1.0 - gender, "male": gender}
        ages = {"young": 1.0 - old - child, "old": old, "child": child}
        for sex, p_sex in genders.items():
            for age, p_age in ages.items():
                if p_age <= 0:
                    continue
                for name, p in zip(ANCESTRIES, ancestry, strict=True):
                    shape += p * p_sex * p_age * macro[f"{name}-{sex}-{age}"]
                for m, p_m in tents(muscle).items():
                    for w, p_w in tents(weight).items():
                        name = f"universal-{sex}-{age}-{m}muscle-{w}weight"
                        shape += p_sex * p_age * p_m * p_w * macro[name]
        shapes[i] = align(shape)
        attributes[i] = (gender, old, child, *ancestry, muscle, weight)
    return shapes, attributes


def tents(x: float) -> dict[str, float]:
    """Weights, summing to one, of the levels of a macro target at x from 0 to 1."""
    nodes = {"min": 0.0, "average": 0.5, "max": 1.0}
    return {k: w for k, n in nodes.items() if (w := max(0.0, 1 - abs(x - n) / 0.5)) > 0}


def principal_components(samples: np.ndarray, weights: np.ndarray, keep: int):
    """PCA without centring by the Gram matrix.

    Args:
        samples: (n, v, 3) displacements.
        weights: (v,) share of each vertex in the squared error.
        keep: components.

    Returns:
        components (keep, v, 3) times their standard deviation, coefficients
        (n, keep) of the samples, and the shares of variance of all components.
    """
    n = len(samples)
    flat = samples.reshape(n, -1)
    scaled = flat * np.sqrt(np.repeat(weights, 3)).astype(np.float32)
    values, vectors = np.linalg.eigh((scaled @ scaled.T).astype(np.float64))
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    coefficients = vectors[:, :keep] * np.sqrt(n)  # unit variance
    components = coefficients.T @ flat / n
    return components.reshape(keep, -1, 3), coefficients, values / values.sum()


def draw_expressions(units: list[str], rng) -> np.ndarray:
    """Weights (NUM_SAMPLES, units), 0 or more, of heads that do show an expression."""
    weights = np.zeros((NUM_SAMPLES, len(units)))
    for row in weights:
        for name, (largest, probability) in EXPRESSIONS.items():
            if rng.random() >= probability:
                continue
            shared = rng.uniform(0.0, largest)
            spread = 0.3 if name.startswith("eyebrows") else 0.15
            for i in unit_columns(units, name):
                paired = len(unit_columns(units, name)) == 2
                row[i] = shared * (1 + (rng.normal(0, spread) if paired else 0))
    return weights.clip(0)


def unit_columns(units: list[str], name: str) -> list[int]:
    """Where the units of a name stand: one index, or one a side."""
    return [i for i, u in enumerate(units) if re.sub("-(left|right)", "", u) == name]
