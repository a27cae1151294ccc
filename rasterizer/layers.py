"""Several faces a pixel: layers from the nearest on, and their soft blend in colour.

Layers are peeled: each is what one more pass over the work list finds behind the one
before (Everitt, Interactive Order-Independent Transparency, NVIDIA 2001), in the order
that `rasterize` has, ties included.

The blend is that of `rasterizer.soft` with colours c in place of depths: with
D = sigmoid(d / sigma), d the signed distance to a face's outline, and z its depth,

    A = 1 - prod (1 - D),    w = D exp(-z / gamma),
    colour = A sum(w c) / sum(w) + (1 - A) background,

after Liu et al., Soft Rasterizer, ICCV 2019 (Equations 2 to 4), with d instead of its
square, and with what A leaves over for the background.
"""

from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from . import mesh as mesh_lib
from . import soft, worklist
from .batching import alike, flatten_lead, fold_vmap, like
from .coverage import SampleGrid
from .engines import LIST
from .options import Drawing, FragmentOptions, make_drawing
from .rasterize import as_perspective, barycentrics_of
from .sums import gather_rows
from .types import Fragments
from .visibility import mesh_primitives

_INT32_MAX = 2**31 - 1


def rasterize_layers(
    vertices: jax.Array,
    faces: jax.Array | np.ndarray,
    size: tuple[int, int],
    layers: int,
    *,
    sigma: float = 0.0,
    **options: Unpack[FragmentOptions],
) -> Fragments:
    """The `layers` nearest faces at each pixel centre, from near to far.

    Without sigma a face counts at the pixel centres that it covers, by the rules of
    `rasterize`: the first layer is what that gives, and the others follow in the same
    order, of two depths that tie the smaller face index first.

    With sigma a face also counts where its outline is within 10 sigma, as in soft
    drawing, and its depth is that of its nearest point. This is decided in floating
    point, from vertices that are not snapped, so that it may differ in a rare pixel
    between compilers.

    Gradients: as of `rasterize`, exact for the face of each layer; zero for which it
    is.

    The work list of XLA does this on all platforms, in one pass a layer, whatever
    `backend` says: there are no loops and no kernels for it.

    Args:
        vertices, faces, size: as for `rasterize`.
        layers: how many, at least 1; static.
        sigma: softness of edges, pixels; 0 for hard; static.
        **options: see `FragmentOptions`.

    Returns:
        Fragments with leading axes (..., layers, height, width): -1, 0 and infinity
        where a pixel has fewer faces.

    Raises:
        TypeError: for an unknown option.
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    vertices = mesh_lib.check_vertices(vertices)
    faces = mesh_lib.check_faces(faces, vertices.shape[-2])
    if int(layers) != layers or layers < 1:
        raise ValueError(f"layers must be an integer >= 1, got {layers!r}.")
    drawing = make_drawing(
        *("rasterize_layers", size, options, FragmentOptions),
        dtype=vertices.dtype,
        sigma=sigma,
    )
    return _rasterize_layers(vertices, faces, int(layers), drawing)


@partial(jax.jit, static_argnames=("layers", "drawing"))
def _rasterize_layers(vertices, faces, layers: int, drawing: Drawing):
    vertices, faces = alike(vertices, faces)
    grid, parallel = drawing.grid, drawing.parallel
    lead = vertices.shape[:-2]
    flat = jax.lax.stop_gradient(flatten_lead(vertices, 2))
    if parallel:
        flat, drawing = as_perspective(flat, drawing)
    shared = jnp.broadcast_to(faces, (flat.shape[0], *faces.shape))
    index = _peel(flat, shared, layers, drawing)
    index = index.reshape(*lead, layers, grid.rows, grid.columns)
    vertices = vertices[..., None, :, :]
    where = barycentrics_of(vertices, faces, index, grid, parallel=parallel)
    return Fragments(index, *where)


def _peel(vertices, faces, layers: int, drawing: Drawing):
    """(B, V, 3) and (B, F, 3) to the faces of each layer, (B, layers, samples)."""
    grid, rules = drawing.grid, drawing.rules

    @fold_vmap
    def peel(vertices, faces):
        batch = vertices.shape[0]
        if 0 in (batch, vertices.shape[1], faces.shape[1]):
            return jnp.full((batch, layers, grid.samples), -1, jnp.int32)
        if drawing.sigma > 0.0:
            boxes, test = _soft_test(vertices, faces, drawing)
        else:
            primitives, boxes = mesh_primitives(
                vertices, faces, grid=grid, rules=rules, engine=LIST
            )
            test = worklist.key_of_items(primitives, worklist.MESH, grid, rules.facing)

        def next_layer(shown, _):
            shown = worklist.nearest_items(
                boxes, test, batch=batch, grid=grid, shown=shown
            )
            return shown, jnp.where(shown[0] > 0, shown[1], -1)

        samples = batch * grid.samples
        nothing = (
            jnp.full(samples, _INT32_MAX, jnp.int32),
            jnp.full(samples, -1, jnp.int32),
        )
        nothing = like(nothing, boxes)
        _, found = jax.lax.scan(next_layer, nothing, length=layers)
        return jnp.swapaxes(found.reshape(layers, batch, grid.samples), 0, 1)

    return peel(vertices, faces)


def _soft_test(vertices, faces, drawing: Drawing):
    """Boxes as wide as sigma reaches, and the keys of items within its reach."""
    boxes, corners = soft.lay_out(vertices, faces, drawing)

    def test(items):
        (_, depth, _), reaches = soft.at_sample(
            *soft.relative(items, corners, drawing.grid),
            sigma=drawing.sigma,
            grid=drawing.grid,
        )
        # Ties as in hard drawing: equal to a millionth.
        inverse = jax.lax.reduce_precision(1.0 / depth, 8, 20).astype(jnp.float32)
        key = jax.lax.bitcast_convert_type(inverse, jnp.int32)
        return jnp.where(items.live & reaches, key, 0)

    return boxes, test


def blend_layers(
    colours: jax.Array,
    fragments: Fragments,
    vertices: jax.Array,
    faces: jax.Array | np.ndarray,
    *,
    sigma: float,
    gamma: float,
    background: jax.Array | float = 0.0,
    pixel_offset: tuple[float, float] = (0.0, 0.0),
) -> jax.Array:
    """One image of several layers: the soft blend of this module, of the faces given.

    A channel that is 1 everywhere, on a background of 0, becomes the coverage A.

    Gradients are exact, with respect to colours, background, the vertices' x and y by
    the distances, and all that depth depends on by `fragments.depth`. What is not among
    the layers is not seen: take enough of them, and draw them with the same sigma.

    Args:
        colours: (..., K, H, W, C) float, one value a fragment.
        fragments: from `rasterize_layers` of the same vertices, faces, sigma and
            pixel_offset; (..., K, H, W).
        vertices: (..., V, 3), as for `rasterize`.
        faces: (F, 3) integers.
        sigma: softness of edges, pixels, > 0; static.
        gamma: how far behind the nearest a face still shows, in units of depth, > 0;
            static.
        background: a number, or (C,).

    Returns:
        (..., H, W, C).

    Raises:
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    colours = jnp.asarray(colours)
    vertices = mesh_lib.check_vertices(vertices)
    faces = mesh_lib.check_faces(faces, vertices.shape[-2])
    index = mesh_lib.check_index(fragments.face_index)
    if colours.ndim < 4 or colours.shape[:-1] != index.shape:
        raise ValueError(
            f"colours must be (..., K, H, W, C) with fragments {index.shape}, got "
            f"{colours.shape}."
        )
    if vertices.shape[:-2] != index.shape[:-3]:
        raise ValueError(
            f"leading axes of vertices {vertices.shape} and of fragments {index.shape} "
            "differ."
        )
    drawing = make_drawing(
        "blend_layers",
        index.shape[-2:],
        {"pixel_offset": pixel_offset},
        dtype=vertices.dtype,
        sigma=sigma,
        gamma=gamma,
    )
    if drawing.sigma == 0.0 or drawing.gamma == 0.0:
        raise ValueError(f"sigma and gamma must be positive, got {sigma=}, {gamma=}.")
    background = jnp.asarray(background, colours.dtype)
    if background.shape not in ((), colours.shape[-1:]):
        raise ValueError(
            f"background must be a number or (C,) as in colours {colours.shape}, got "
            f"{background.shape}."
        )
    if colours.size == 0 or faces.shape[0] == 0 or vertices.shape[-2] == 0:
        shape = (*colours.shape[:-4], *colours.shape[-3:])
        return jnp.broadcast_to(background, shape)
    return _blend(colours, index, fragments.depth, vertices, faces, background, drawing)


@partial(jax.jit, static_argnames="drawing")
def _blend(colours, index, depth, vertices, faces, background, drawing: Drawing):
    drawn = index >= 0
    distance = _distances(vertices, faces, index, drawing.grid) / drawing.sigma
    log_miss = jnp.where(drawn, -jax.nn.softplus(distance), 0.0)
    cover = -jnp.expm1(jnp.sum(log_miss, axis=-3))
    some = jnp.any(drawn, axis=-3)
    # Weights relative to the nearest do not vanish; their ratios do not know of it.
    nearest = jnp.min(jnp.where(drawn, depth, jnp.inf), axis=-3)
    nearest = jax.lax.stop_gradient(jnp.where(some, nearest, 0.0))[..., None, :, :]
    behind = jnp.where(drawn, depth, nearest) - nearest
    weight = jnp.exp(-jax.nn.softplus(-distance) - behind / drawing.gamma)
    weight = jnp.where(drawn, weight, 0.0)
    total = jnp.where(some, jnp.sum(weight, axis=-3), 1.0)
    share = (weight * (cover / total)[..., None, :, :]).astype(colours.dtype)
    # Where nothing is drawn a colour may be NaN.
    shown = jnp.where(drawn[..., None], colours, 0.0)
    blended = jnp.sum(share[..., None] * shown, axis=-4)
    return blended + (1.0 - cover)[..., None].astype(colours.dtype) * background


def _distances(vertices, faces, index, grid: SampleGrid):
    """Pixels from each pixel's centre to the outline of its face, positive inside."""
    lead, pixels = index.shape[:-3], index.shape[-3:]
    drawn = index >= 0
    ids = faces[jnp.where(drawn, index, 0)].reshape(*lead, -1)
    corners = gather_rows(flatten_lead(vertices, 2), flatten_lead(ids, 1))
    corners = corners.reshape(*lead, *pixels, 3, 3)
    x, y = grid.positions(vertices.dtype)
    # A face that is not drawn may hold NaN.
    harmless = jnp.array([[0.0, 0, 1], [1, 0, 1], [0, 1, 1]], vertices.dtype)
    relative = jnp.where(
        drawn[..., None],
        jnp.stack([corners[..., 0] - x[:, None], corners[..., 1] - y[:, None, None]]),
        jnp.stack([harmless[:, 0], harmless[:, 1]])[
            (slice(None), *(None,) * index.ndim)
        ],
    )
    xs, ys = (tuple(v[..., k] for k in range(3)) for v in relative)
    return soft.signed_distance(xs, ys)
