"""What all functions that draw take by keyword, and what they make of it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np

from .backends import Workers, find_workers
from .coverage import Rules, SampleGrid
from .mesh import check_size


class DrawOptions(TypedDict, total=False):
    """Which faces are drawn, where they are sampled, and by what; all static.

    Attributes:
        near, far: a face is drawn only if z of all its vertices lies strictly between;
            it is dropped, not clipped: a vertex behind the camera has no place on the
            screen, so that `clip_near` cuts before the projection. 0 and infinity
            unless given.
        cull: "none" draws both sides of a face, "back" leaves out faces whose corners
            are clockwise on the screen, "front" the others; "none" unless given.
        pixel_offset: (x, y) shift of the samples from the pixel centre, pixels; (0, 0)
            unless given.
        backend: what does the work: "xla", the work list, which serves every platform;
            "numba", loops compiled by Numba, on a CPU; "pallas", kernels compiled by
            Triton, on CUDA (on a CPU they are interpreted, which is slow: for tests);
            "auto", the best there is: Numba's loops where it is installed, and kernels
            where a GPU is; "auto" unless given.
    """

    near: float
    far: float
    cull: str
    pixel_offset: tuple[float, float]
    backend: str


class FragmentOptions(DrawOptions, total=False):
    """`DrawOptions`, of fragments.

    Attributes:
        parallel: whether z is linear on the screen, as a camera of parallel rays sees
            it (`Camera.parallel`), not 1/z; False unless given.
    """

    parallel: bool


class ImageOptions(DrawOptions, total=False):
    """`DrawOptions`, of images whose pixels are means over samples.

    Attributes:
        supersample: samples a side of each pixel, spread evenly about the pixel centre:
            at j - 1/4 and j + 1/4 for 2; 1 unless given.
    """

    supersample: int


_DEFAULTS: dict[str, Any] = {
    "near": 0.0,
    "far": math.inf,
    "cull": "none",
    "pixel_offset": (0.0, 0.0),
    "backend": "auto",
    "supersample": 1,
    "parallel": False,
}
_FACINGS = {"none": 0, "back": 1, "front": -1}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """The options of a call, checked: its one static argument.

    Attributes:
        grid, rules: where the samples lie, and which faces are drawn at all.
        workers: what does the work, by platform.
        sigma: softness of edges, pixels; 0 for hard ones.
        gamma: softness of depth, in its units; 0 without.
        parallel: whether z is linear on the screen, not 1/z.
    """

    grid: SampleGrid
    rules: Rules = Rules()
    workers: Workers = Workers()
    sigma: float = 0.0
    gamma: float = 0.0
    parallel: bool = False


def make_drawing(
    function: str,
    size,
    options: Mapping[str, Any],
    takes: type = ImageOptions,
    *,
    dtype=jnp.float32,
    sigma=0.0,
    gamma=0.0,
) -> Drawing:
    """The Drawing of a call.

    Args:
        function: its name, for errors.
        size: (height, width), pixels.
        options: its keywords.
        takes: which of `FragmentOptions` and `ImageOptions` it takes.
        dtype: of the vertices, in which sigma and gamma must be ordinary numbers.

    Raises:
        TypeError: for a keyword that the function does not take.
        ValueError: naming the argument that is out of range.
    """
    known = [name for name in _DEFAULTS if name in takes.__annotations__]
    for name in options:
        if name not in known:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}; its "
                f"options are {', '.join(known)}."
            )
    full = {**_DEFAULTS, **options}
    return Drawing(
        make_grid(size, full["supersample"], full["pixel_offset"]),
        _make_rules(full["near"], full["far"], full["cull"]),
        find_workers(full["backend"]),
        _check_softness(sigma, "sigma", dtype),
        _check_softness(gamma, "gamma", dtype),
        _check_flag(full["parallel"], "parallel"),
    )


def make_grid(size, supersample: int, pixel_offset) -> SampleGrid:
    """A SampleGrid from user arguments.

    Raises:
        ValueError: for a bad size, supersample or offset.
    """
    height, width = check_size(size, "(height, width)")
    if int(supersample) != supersample or supersample < 1:
        raise ValueError(f"supersample must be an integer >= 1, got {supersample!r}.")
    try:
        dx, dy = (float(v) for v in pixel_offset)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"pixel_offset must be (x, y), got {pixel_offset!r}."
        ) from error
    if not (abs(dx) <= 1e3 and abs(dy) <= 1e3):  # NaN neither
        raise ValueError(f"pixel_offset must be within 1000 px, got {pixel_offset!r}.")
    if max(height, width) * int(supersample) > 2**15:
        raise ValueError(
            "at most 32768 samples a side, got "
            f"{max(height, width)} px x {supersample} samples."
        )
    return SampleGrid(height, width, int(supersample), (dx, dy))


def _make_rules(near, far, cull) -> Rules:
    """Rules from user arguments.

    Raises:
        ValueError: unless near < far, neither NaN, and cull is a known word.
    """
    try:
        near, far = float(near), float(far)
    except (TypeError, ValueError) as error:
        raise ValueError(f"near and far must be Python numbers: {error}") from error
    if not near < far:
        raise ValueError(f"near must be less than far, got {near=}, {far=}.")
    if cull not in _FACINGS:
        raise ValueError(f"cull must be one of {list(_FACINGS)}, got {cull!r}.")
    return Rules(near, far, _FACINGS[cull])


def _check_flag(value, name) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def _check_softness(value, name, dtype) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a Python number, got {value!r}.") from error
    limits = jnp.finfo(dtype)
    low, high = float(limits.tiny), float(limits.max)
    if not (value == 0.0 or low <= value <= high):
        raise ValueError(
            f"{name} must be 0, or from {low:.2g} to {high:.2g}, got {value}."
        )
    return value
