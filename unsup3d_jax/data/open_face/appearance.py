"""Albedo of a face: a function of where on the resting head a point lies.

Features are painted in `rest` coordinates (decimetres; x to the subject's left,
y up, z out of the face), so that they are sharp at any resolution and move with
expressions. Colours are display values in [0, 1]; shading multiplies them as
they are, as Wu et al. do.

`sample_appearance` draws the numbers (numpy), `paint` evaluates one face (JAX).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unsup3d_jax.data.open_face.model import Attributes, Draws, FaceModel

# Skin in linear RGB: SKIN * exp(-melanin * MELANIN - haemoglobin * HAEMOGLOBIN).
SKIN = np.asarray([0.90, 0.82, 0.66], np.float32)
MELANIN = np.asarray([0.82, 1.10, 1.42], np.float32)
HAEMOGLOBIN = np.asarray([0.08, 0.70, 0.50], np.float32)

HAIR = np.asarray(
    [
        *((0.09, 0.075, 0.07), (0.17, 0.12, 0.09)),  # black, dark
        *((0.30, 0.20, 0.13), (0.45, 0.32, 0.20)),  # brown, light
        *((0.68, 0.53, 0.34), (0.50, 0.24, 0.12)),  # blond, red
        *((0.58, 0.57, 0.55), (0.80, 0.79, 0.77)),  # grey, white
    ],
    np.float32,
)
IRIS = np.asarray(
    [
        *((0.16, 0.09, 0.05), (0.24, 0.14, 0.07), (0.34, 0.21, 0.10)),
        *((0.38, 0.30, 0.14), (0.30, 0.36, 0.22), (0.28, 0.40, 0.52)),
        (0.42, 0.47, 0.50),
    ],
    np.float32,
)
LIPSTICK = np.asarray(
    [
        *((0.62, 0.08, 0.10), (0.74, 0.22, 0.22), (0.48, 0.08, 0.16)),
        *((0.78, 0.36, 0.36), (0.60, 0.26, 0.22)),
    ],
    np.float32,
)
EYE_SHADOW = np.asarray(
    [(0.32, 0.24, 0.22), (0.36, 0.26, 0.36), (0.24, 0.28, 0.38), (0.46, 0.32, 0.22)],
    np.float32,
)
SCLERA = np.asarray([0.88, 0.86, 0.83], np.float32)
MOUTH = np.asarray([0.20, 0.06, 0.06], np.float32)
TEETH = np.asarray([0.80, 0.76, 0.68], np.float32)

# Height of the hairline over the angle from the front about the vertical, degrees.
HAIRLINE = np.asarray(
    [
        *((0, 8.02), (20, 8.00), (40, 7.93), (55, 7.82), (65, 7.66), (75, 7.42)),
        *((82, 7.22), (92, 7.20), (102, 6.95), (115, 6.75), (140, 6.50), (180, 6.40)),
    ],
    np.float32,
).reshape(-1, 2)
NUM_MOLES = 4
NOISE_PERIOD = 32


Numbers = Array | np.ndarray  # drawn by numpy, painted by JAX


class Appearance(NamedTuple):
    """One face, or a batch of them by a leading axis; float32 throughout.

    Lengths in decimetres of `rest` unless said; opacities in [0, 1].
    """

    melanin: Numbers
    haemoglobin: Numbers
    blush: Numbers
    under_eye: Numbers  # darkness below the eyes
    freckles: Numbers
    texture: Numbers  # amplitude of fine brightness noise
    noise_offset: Numbers  # (3,) where in the noise table this face lies
    mirror_noise: Numbers  # 1 to fold noise over x = 0
    hair_color: Numbers  # (3,)
    scalp: Numbers  # opacity of the hair
    hair_volume: Numbers  # metres
    hairline_front: Numbers  # raise of the hairline
    hairline_temples: Numbers
    hairline_peak: Numbers
    hairline_shift: Numbers  # of its centre, along x
    parting: Numbers  # opacity
    parting_x: Numbers
    brow_color: Numbers  # (3,)
    brow_strength: Numbers
    brow_width: Numbers
    brow_height: Numbers
    brow_arch: Numbers
    beard: Numbers
    beard_top: Numbers
    moustache: Numbers
    lips: Numbers  # haemoglobin
    lipstick: Numbers  # opacity
    lipstick_color: Numbers  # (3,)
    eye_shadow: Numbers  # opacity
    eye_shadow_color: Numbers  # (3,)
    lashes: Numbers
    iris_color: Numbers  # (3,)
    iris_radius: Numbers  # metres
    pupil_radius: Numbers  # metres
    gaze: Numbers  # (2,) metres along x and y on the eye's surface
    mole_position: Numbers  # (NUM_MOLES, 3)
    mole_radius: Numbers
    mole_strength: Numbers
    birthmark_position: Numbers  # (3,)
    birthmark_radius: Numbers
    birthmark: Numbers
    occlusion_power: Numbers


class Surface(NamedTuple):
    """What `paint` must know of each of p points of the surface."""

    rest: Float[Array, "p 3"]
    eye_offset: Float[Array, "p 2"]  # metres from the nearer eye's centre, x and y
    label: Int[Array, "p"]  # 0 skin, 1 or 2 eye, 3 inside the mouth
    lips: Float[Array, "p"]
    eyelids: Float[Array, "p"]
    ears: Float[Array, "p"]
    occlusion: Float[Array, "p"]
    lash: Float[Array, "p"]
    membrane: Float[Array, "p"]
    broad_noise: Float[Array, "p"]  # of `broad_noise`, evaluated at the vertices


def sample_appearance(
    model: FaceModel, seeds: np.ndarray, who: Attributes, *, asymmetry: float
) -> Appearance:
    """Draws skin, hair, eyes, make-up and marks that go with a shape."""
    d = Draws(seeds, "paint", 120)
    n = len(seeds)

    def pick(palette: np.ndarray) -> np.ndarray:
        return palette[d.choice(len(palette))]

    melanin = 1.8 * who.african + 0.55 * who.asian + 0.30 * who.caucasian
    melanin = melanin + d.normal(0.0, 0.2) * (1 + who.african)
    melanin = melanin.clip(0.14, 2.7)

    only_dark = d.chance(who.african + 0.9 * who.asian) | (melanin > 0.95)
    any_color = np.array([0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5])[d.choice(11)]
    hair = np.where(only_dark, d.choice(2), any_color)
    grey = d.chance(0.56) & (who.old > 0.6)
    hair = np.where(grey, 6 + d.choice(2), hair)
    hair_color = HAIR[hair] * np.exp(d.normal(0, 0.12))[:, None]

    style = d.unit()
    short = np.where(who.male > 0.5, 0.64, 0.88)
    receding = np.where(who.male > 0.5, 0.18, 0.0)
    is_short, is_bald = style < short, style >= short + receding
    is_receding = ~is_short & ~is_bald
    scalp = np.where(is_bald, d.uniform(0, 0.25), d.uniform(0.75, 1.0))
    volume = d.uniform(0.001, 0.008) * (d.chance(0.7) & ~is_bald)

    male, lady = who.male > 0.5, who.male < 0.45
    bearded = (who.male > 0.55) & d.chance(0.55) & (who.child < 0.2)
    made_up = lady & d.chance(0.55) & (who.child < 0.2)
    beard = bearded * d.uniform(0.1, 0.95)
    blush = d.uniform(0.0, 0.5) + 0.5 * made_up * d.unit()

    # Marks lie on vertices of the skin of the face, away from eyes and lips.
    rest, masks = model.rest, model.masks
    free = (masks[:, 3] > 0.5) & (masks[:, :3].max(1) < 0.2) & (rest[:, 2] > 0.85)
    free &= (np.abs(rest[:, 1] - 7.284) > 0.12) & (rest[:, 1] < 7.95)
    free = np.nonzero(free)[0]
    mole_count = np.searchsorted([0.5, 0.77, 0.90, 0.97], d.unit(), side="right")
    mole_at = [rest[free[d.choice(len(free))]] for _ in range(NUM_MOLES)]
    mole_here = np.arange(NUM_MOLES) < mole_count[:, None]
    marks = min(asymmetry, 1.0)

    values = Appearance(
        melanin=melanin,
        haemoglobin=d.normal(0.38, 0.12).clip(0.1, 0.8),
        blush=blush,
        under_eye=d.uniform(0.0, 0.35) + 0.25 * who.old,
        freckles=d.chance(0.3 * who.caucasian) * 0.45 * d.uniform(0.3, 1.0),
        texture=d.uniform(0.015, 0.05),
        noise_offset=d.uniform(0.0, NOISE_PERIOD, 3),
        mirror_noise=np.full(n, asymmetry == 0.0),
        hair_color=hair_color,
        scalp=scalp,
        hair_volume=volume,
        hairline_front=d.normal(0.0, 0.07) + 0.2 * is_receding,
        hairline_temples=d.uniform(0.0, 0.12) + 0.3 * is_receding,
        hairline_peak=d.chance(0.3) * d.uniform(0.03, 0.12),
        hairline_shift=asymmetry * d.normal(0.0, 0.03),
        parting=marks * (is_short & d.chance(0.35)) * d.uniform(0.3, 0.7),
        parting_x=d.uniform(0.12, 0.45) * np.where(d.chance(0.5), 1, -1),
        brow_color=_at_most(hair_color * d.uniform(0.6, 0.95)[:, None], 0.42),
        brow_strength=d.normal(0.72, 0.15).clip(0.25, 1.0),
        brow_width=0.034 * d.uniform(0.75, 1.25) * np.where(male, 1.15, 0.85),
        brow_height=d.normal(0.0, 0.012),
        brow_arch=0.034 + d.normal(0.0, 0.014),
        beard=beard,
        beard_top=d.uniform(-0.06, 0.08),
        moustache=d.chance(0.8) * d.uniform(0.6, 1.0),
        lips=d.uniform(0.55, 1.0),
        lipstick=made_up * d.uniform(0.35, 0.9),
        lipstick_color=pick(LIPSTICK),
        eye_shadow=made_up * d.uniform(0.1, 0.5),
        eye_shadow_color=pick(EYE_SHADOW),
        lashes=d.uniform(0.35, 0.75),
        iris_color=_iris(d, only_dark),
        iris_radius=d.uniform(0.0062, 0.0070),
        pupil_radius=d.uniform(0.0022, 0.0032),
        gaze=np.stack(
            [0.015 * asymmetry * d.normal(0, 0.12), 0.015 * d.normal(0, 0.06)], axis=1
        ),
        mole_position=np.stack(mole_at, axis=1),
        mole_radius=d.uniform(0.012, 0.028, NUM_MOLES),
        mole_strength=marks * mole_here * d.uniform(0.5, 0.9, NUM_MOLES),
        birthmark_position=rest[free[d.choice(len(free))]],
        birthmark_radius=d.uniform(0.12, 0.30),
        birthmark=marks * d.chance(0.12) * d.uniform(0.3, 0.8),
        occlusion_power=d.uniform(0.5, 0.9),
    )
    return jax.tree.map(lambda x: np.asarray(x, np.float32), values)


def _at_most(color: np.ndarray, limit: float) -> np.ndarray:
    """Darkens colors (n, 3) above a limit, keeping their hue."""
    return color * np.minimum(1.0, limit / color.max(1, keepdims=True))


def _iris(d: Draws, only_dark: np.ndarray) -> np.ndarray:
    """Brown where hair can only be dark, else any of the seven colours."""
    index = np.where(only_dark, d.choice(3), d.choice(len(IRIS)))
    return IRIS[index] * np.exp(d.normal(0, 0.1))[:, None]


@functools.cache
def noise_table() -> np.ndarray:
    """Tileable white noise in [-1, 1], (32^3, 8): the corners of every cell.

    Corners lie side by side because one gather of a row of eight costs little
    more than a gather of one number.
    """
    generator = np.random.Generator(np.random.Philox(key=20260101))
    cube = 2 * generator.random((NOISE_PERIOD,) * 3) - 1
    corners = [
        np.roll(cube, (-i, -j, -k), axis=(0, 1, 2))
        for i in (0, 1)
        for j in (0, 1)
        for k in (0, 1)
    ]
    return np.stack(corners, axis=-1).reshape(-1, 8).astype(np.float32)


def value_noise(points: Float[Numbers, "*p 3"]) -> Float[Array, "*p"]:
    """Smoothly interpolated noise in [-1, 1] with lattice spacing 1."""
    floor = jnp.floor(points)
    t = points - floor
    t = t * t * (3 - 2 * t)
    i, j, k = ((floor % NOISE_PERIOD).astype(jnp.int32)[..., a] for a in range(3))
    row = (i * NOISE_PERIOD + j) * NOISE_PERIOD + k
    cell = jnp.asarray(noise_table()).at[row].get(mode="promise_in_bounds")
    for axis in range(3):
        near, far = jnp.split(cell, 2, axis=-1)
        cell = near + (far - near) * t[..., axis, None]
    return cell[..., 0]


def noise_points(look: Appearance, rest: Float[Array, "p 3"]) -> Float[Array, "p 3"]:
    """Where noise is looked up; folded over x = 0 for exactly symmetric faces."""
    x = jnp.where(look.mirror_noise > 0, jnp.abs(rest[..., 0]), rest[..., 0])
    return rest.at[..., 0].set(x)


def broad_noise(look: Appearance, rest: Float[Array, "v 3"]) -> Float[Array, "v"]:
    """Noise coarser than the mesh, to be evaluated at vertices and interpolated."""
    points = noise_points(look, rest)
    scale = np.asarray([2.2, 5.0], np.float32)[:, None, None]
    low, high = value_noise(scale * points + look.noise_offset)
    return 0.6 * low + 0.4 * high


def smoothstep(low, high, x):
    """0 at `low`, 1 at `high`; falls where high < low."""
    t = jnp.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def blob(x, y, centre_x: float, centre_y: float, radius_x: float, radius_y: float):
    """Gaussian spots at (+-centre_x, centre_y)."""
    dx, dy = (jnp.abs(x) - centre_x) / radius_x, (y - centre_y) / radius_y
    return jnp.exp(-(dx * dx + dy * dy))


def hairline_distance(look: Appearance, rest: Float[Array, "p 3"]) -> Float[Array, "p"]:
    """Signed height above the hairline, decimetres; positive under the hair."""
    x = rest[..., 0] - look.hairline_shift
    y, z = rest[..., 1], rest[..., 2]
    angle = jnp.degrees(jnp.abs(jnp.arctan2(x, z - 0.45)))
    # Piecewise linear as a sum of bends: interp would search for the interval.
    slopes = np.diff(HAIRLINE[:, 1]) / np.diff(HAIRLINE[:, 0])
    bends = np.diff(slopes, prepend=np.float32(0))
    line = HAIRLINE[0, 1]
    for start, bend in zip(HAIRLINE[:-1, 0], bends, strict=True):
        line = line + float(bend) * jnp.maximum(angle - float(start), 0.0)
    front = smoothstep(75.0, 25.0, angle)
    temples = smoothstep(20.0, 40.0, angle) * smoothstep(78.0, 58.0, angle)
    line = line + look.hairline_front * front + look.hairline_temples * temples
    line = line - look.hairline_peak * jnp.exp(-((x / 0.13) ** 2))
    return y - line


def hair_cover(
    look: Appearance, rest: Float[Array, "v 3"], ears: Float[Array, "v"]
) -> Float[Array, "v"]:
    """How far hair lifts the surface: 0..1 of its volume."""
    return smoothstep(-0.05, 0.35, hairline_distance(look, rest)) * (1 - ears)


def paint(look: Appearance, at: Surface) -> Float[Array, "p 3"]:
    """Albedo of the points of one face, display colours in [0, 1]."""
    x, y, z = (at.rest[..., i] for i in range(3))
    front = smoothstep(0.45, 0.8, z)
    points = noise_points(look, at.rest)
    n1 = at.broad_noise
    # Blotches, spots, and streaks that run down the scalp: one lookup for all.
    scale = np.asarray([[14, 14, 14], [36, 36, 36], [16, 4, 16]], np.float32)[:, None]
    n2, spots, streak = value_noise(scale * points + look.noise_offset)

    # Skin: two pigments.
    blood = look.haemoglobin * (1 + 0.12 * n1)
    blood += 0.8 * look.blush * blob(x, y, 0.42, 6.98, 0.20, 0.18) * front
    nose = blob(x, y, 0.0, 6.92, 0.16, 0.12) * smoothstep(1.30, 1.45, z)
    blood += 0.28 * nose + 0.25 * at.ears + 0.18 * at.eyelids * front
    blood += 0.2 * blob(x, y, 0.0, 6.3, 0.25, 0.15) * front
    lips = jnp.clip(at.lips, 0.0, 1.0)
    blood += look.lips * lips
    pigment = look.melanin * (1 + 0.10 * n1 + 0.10 * at.eyelids * front)
    pigment += 0.10 * look.under_eye * blob(x, y, 0.31, 7.15, 0.16, 0.07) * front
    band = jnp.exp(-(((y - 7.05) / 0.16) ** 2)) * smoothstep(0.75, 0.45, jnp.abs(x))
    pigment += look.freckles * band * front * smoothstep(0.2, 0.6, spots + 0.3 * n2)
    mark = _birthmark(look, at.rest, n1)
    blood, pigment = blood + 0.9 * mark, pigment + 0.25 * mark
    linear = SKIN * jnp.exp(
        -pigment[..., None] * MELANIN - blood[..., None] * HAEMOGLOBIN
    )
    color = jnp.power(linear, 1 / 2.2)
    color = color * (1 + 0.6 * look.texture * n2)[..., None]

    def cover(color, opacity, paint_color):
        return color + opacity[..., None] * (paint_color - color)

    color = cover(color, _moles(look, at.rest), 0.42 * color)
    shadow = look.eye_shadow * blob(x, y, 0.31, 7.37, 0.16, 0.05) * front
    color = cover(color, shadow, look.eye_shadow_color)
    color = cover(color, look.lipstick * lips * front, look.lipstick_color)

    hair_color = look.hair_color * (1 + 0.28 * streak)[..., None]
    beard = _beard(look, x, y, z, lips, n1) * (1 + 0.1 * n2 + 0.2 * spots)
    beard_color = look.hair_color * (0.80 + 0.10 * streak)[..., None]
    color = cover(color, jnp.clip(look.beard * beard, 0.0, 0.95), beard_color)
    height = hairline_distance(look, at.rest) + 0.035 * (n1 + streak)
    hair = look.scalp * smoothstep(-0.03, 0.09, height) * (1 - jnp.clip(at.ears, 0, 1))
    line = jnp.exp(-(((x - look.parting_x) / 0.02) ** 2)) * smoothstep(0.3, 0.8, z)
    hair = hair * (1 - look.parting * line)
    color = cover(color, hair, hair_color)
    color = cover(color, _brows(look, x, y, streak) * front, look.brow_color)

    label = at.label[..., None]
    color = jnp.where((label == 1) | (label == 2), _eyes(look, at), color)
    lash = look.lashes * smoothstep(0.35, 1.0, at.lash)
    color = cover(color, lash, 0.28 * look.hair_color)
    color = jnp.where(label == 3, _inner_mouth(at, x), color)
    # Occlusion was measured with the mouth shut: an open one lets in some light.
    open_sky = jnp.maximum(at.occlusion, jnp.where(at.label == 3, 0.35, 1e-3))
    dark = jnp.power(open_sky, look.occlusion_power) / 0.95
    return jnp.clip(color * (0.12 + 0.88 * dark)[..., None], 0.0, 1.0)


def _birthmark(look, rest, ragged):
    distance = jnp.sqrt(((rest - look.birthmark_position) ** 2).sum(-1))
    distance = distance / look.birthmark_radius + 0.35 * ragged
    return look.birthmark * smoothstep(1.0, 0.75, distance)


def _moles(look, rest):
    total = 0.0
    for i in range(NUM_MOLES):
        distance = jnp.sqrt(((rest - look.mole_position[i]) ** 2).sum(-1))
        edge = smoothstep(1.15, 0.75, distance / look.mole_radius[i])
        total = jnp.maximum(total, look.mole_strength[i] * edge)
    return total


def _brows(look, x, y, streak):
    side = jnp.abs(x)
    along = jnp.clip((side - 0.09) / 0.52, 0.0, 1.0)
    # Inner ends stay high: 4 mm lower and everybody scowls.
    line = 7.470 + look.brow_height + look.brow_arch * jnp.sin(0.78 * jnp.pi * along)
    half = look.brow_width * (1 - 0.55 * smoothstep(0.3, 0.6, side))
    weight = smoothstep(1.25, 0.55, jnp.abs(y - line) / half)
    ends = smoothstep(0.075, 0.16, side) * smoothstep(0.60, 0.50, side)
    return look.brow_strength * weight * ends * (1 + 0.15 * streak)


def _beard(look, x, y, z, lips, ragged):
    side = jnp.abs(x)
    # Bare beside the mouth, rising over the cheeks to meet the hair at the ears.
    top = 6.54 + (0.26 + look.beard_top) * smoothstep(0.16, 0.50, side)
    top = top + 0.40 * smoothstep(0.56, 0.74, side) + 0.05 * ragged
    jaw = smoothstep(top + 0.12, top - 0.12, y)
    lip = smoothstep(0.080, 0.02, jnp.abs(y - 6.785 + 0.5 * side * side))
    lip = look.moustache * lip * smoothstep(0.32, 0.18, side)
    lip = lip * smoothstep(1.2, 1.35, z)
    corner = look.moustache * smoothstep(0.10, 0.02, jnp.abs(side - 0.30))
    corner = corner * smoothstep(6.82, 6.70, y)
    region = jnp.maximum(jnp.maximum(jaw, lip), corner)
    # Thins out over the neck, which lies behind the chin at the same height.
    fade = smoothstep(6.00, 6.28, y + 0.25 * smoothstep(0.95, 1.2, z))
    fade = fade * smoothstep(0.38, 0.55, z)
    return region * fade * (1 - smoothstep(0.15, 0.6, lips))


def _eyes(look, at):
    offset = at.eye_offset - look.gaze
    radius = jnp.sqrt((offset**2).sum(-1) + 1e-12)[..., None]
    soft = 0.0004  # metres; about the width of a limbus
    corner = smoothstep(0.007, 0.0135, jnp.abs(at.eye_offset[..., 0]))[..., None]
    white = SCLERA + corner * (np.asarray([0.80, 0.60, 0.56], np.float32) - SCLERA)
    white = white * (0.62 + 0.38 * smoothstep(0.0, 0.3, at.membrane))[..., None]
    t = radius / look.iris_radius
    iris = look.iris_color * (0.70 + 0.45 * smoothstep(0.35, 0.75, t))
    iris = iris * (1 - 0.65 * smoothstep(0.78, 1.0, t))
    iris = iris * smoothstep(
        look.pupil_radius - soft, look.pupil_radius + soft, radius
    ) + np.float32(0.03)
    iris = iris * (0.7 + 0.3 * smoothstep(0.0, 0.3, at.membrane))[..., None]
    inside = smoothstep(look.iris_radius + soft, look.iris_radius - soft, radius)
    return white + inside * (iris - white)


def _inner_mouth(at, x):
    t = at.membrane
    teeth = smoothstep(0.03, 0.07, t) * smoothstep(0.45, 0.39, t)
    teeth = teeth * smoothstep(0.22, 0.14, jnp.abs(x))
    return MOUTH + teeth[..., None] * (TEETH - MOUTH)
