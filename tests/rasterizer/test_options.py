"""The options that all functions that draw share."""

import math
from functools import partial

import numpy as np
import pytest

import rasterizer
from rasterizer import options

VERTICES = np.array([[0, 0, 1], [4, 0, 1], [0, 4, 1], [4, 4, 2]], np.float32)
FACES = rasterizer.grid_faces(2, 2)
DRAW = {
    "rasterize": partial(rasterizer.rasterize, VERTICES, FACES, (4, 4)),
    "render_depth": partial(
        rasterizer.render_depth, VERTICES, FACES, (4, 4), background=1.0
    ),
    "render_silhouette": partial(
        rasterizer.render_silhouette, VERTICES, FACES, (4, 4), sigma=0.0
    ),
    "render_grid_depth": partial(
        rasterizer.render_grid_depth,
        VERTICES.reshape(2, 2, 3),
        (4, 4),
        background=1.0,
    ),
}


@pytest.mark.parametrize("name", DRAW)
def test_an_unknown_option_is_named(name):
    with pytest.raises(TypeError, match=rf"{name}\(\) got .* 'samples'.* pixel_offset"):
        DRAW[name](samples=2)


def test_fragments_have_one_sample_a_pixel():
    with pytest.raises(TypeError, match="'supersample'"):
        DRAW["rasterize"](supersample=2)


@pytest.mark.parametrize("name", DRAW)
def test_options_default_to_what_is_documented(name):
    documented = {"near": 0.0, "far": math.inf, "cull": "none"}
    documented |= {"pixel_offset": (0.0, 0.0), "backend": "auto"}
    if name == "rasterize":
        documented["parallel"] = False
    else:
        documented["supersample"] = 1
    for ours, theirs in zip(DRAW[name](), DRAW[name](**documented), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("near", "close"),
        ("far", None),
        ("cull", "both"),
        ("pixel_offset", (0.0, 1e4)),
        ("backend", "cuda"),
        ("supersample", 1.5),
    ],
)
def test_a_bad_option_is_named(name, value):
    for function, draw in DRAW.items():
        if function != "rasterize" or name != "supersample":
            with pytest.raises(ValueError, match=name):
                draw(**{name: value})


def test_every_option_has_a_default():
    assert set(options._DEFAULTS) == set(options.ImageOptions.__annotations__) | set(
        options.FragmentOptions.__annotations__
    )


def test_equal_options_are_one_static_argument():
    one, other = (options.make_drawing("f", (3, n), {"near": 0}) for n in (4, 4.0))
    assert one == other and hash(one) == hash(other)
