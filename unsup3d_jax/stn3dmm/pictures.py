"""What a person looks at: the mesh over the photo, the flattened face, its mask."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from unsup3d_jax.data.tiles import to_bytes
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.show import pictures
from unsup3d_jax.stn3dmm import textures

# Pixels: smaller photos are enlarged by a whole factor before drawing.
_LEAST_SIDE = 192
_LINES = 16  # of the grid, each way
_FINER = 2  # lines are drawn so many times larger, for smooth edges
_SEEN_LINE, _HIDDEN_LINE = (90, 235, 255, 200), (255, 90, 60, 70)
_LANDMARK, _TRUTH = (255, 225, 60, 255), (90, 255, 120, 255)
# What mirrored and guessed texels are tinted with, and how strongly.
_TINTS = {textures.MIRRORED: (0.25, 0.5, 1.0), textures.GUESSED: (1.0, 0.35, 0.25)}
_TINT = 0.35

_Picture = Float[np.ndarray, "H W 3"]


def mesh_overlay(
    photo: Float[AnyArray, "h w 3"],
    pixels: Float[AnyArray, "n 2"],
    visibility: Float[AnyArray, "g g"],
) -> _Picture:
    """Every few lines of the grid over the photo: blue where seen, faint red where not.

    Args:
        photo: square, [0, 1]; small ones are enlarged.
        pixels: (u, v) of the g * g vertices in the photo.
        visibility: in [0, 1].
    """
    grid = len(visibility)
    places = np.asarray(pixels).reshape(grid, grid, 2)
    seen = np.asarray(visibility) > 0.5
    kept = np.unique(np.rint(np.linspace(0, grid - 1, min(_LINES, grid))).astype(int))
    # What is hidden is drawn first, so that no faint line crosses a bright one.
    strokes: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for line, shown in (
        *((places[i], seen[i]) for i in kept),
        *((places[:, j], seen[:, j]) for j in kept),
    ):
        for k in range(grid - 1):
            if np.isfinite(line[k : k + 2]).all():
                strokes[bool(shown[k] and shown[k + 1])].append(line[k : k + 2])
    canvas = _Canvas(photo)
    for bright in (False, True):
        colour = _SEEN_LINE if bright else _HIDDEN_LINE
        for stroke in strokes[bright]:
            canvas.line(stroke, colour)
    return canvas.picture()


def landmarks_picture(
    photo: Float[AnyArray, "h w 3"],
    landmarks: Float[AnyArray, "l 2"],
    truth: Float[AnyArray, "l 2"] | None = None,
) -> _Picture:
    """Landmarks as yellow dots over the photo; known ones as green rings.

    Args:
        photo: square, [0, 1]; small ones are enlarged.
        landmarks: (u, v) in the photo; what is not finite is left out.
        truth: the same of known landmarks.
    """
    canvas = _Canvas(photo)
    if truth is not None:
        canvas.dots(truth, _TRUTH, ring=True)
    canvas.dots(landmarks, _LANDMARK)
    return canvas.picture()


class _Canvas:
    """A photo, enlarged, and what is drawn over it, smoothed and blended."""

    def __init__(self, photo: Float[AnyArray, "h w 3"]):
        small = Image.fromarray(to_bytes(photo))
        self._scale = max(1, -(-_LEAST_SIDE // small.width))
        size = (self._scale * small.width, self._scale * small.height)
        self._photo = small.resize(size, Image.Resampling.BICUBIC)
        fine = (_FINER * size[0], _FINER * size[1])
        self._layer = Image.new("RGBA", fine, (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self._layer)
        self._width = max(1, round(_FINER * size[0] / 300))

    def _place(self, points: AnyArray) -> np.ndarray:
        # Pixel centres lie on integers; a picture's own begin half a pixel before.
        places = (np.asarray(points, np.float64) + 0.5) * (self._scale * _FINER)
        # PIL cannot draw what is far outside.
        return np.clip(places, -1e4, 1e4)

    def line(self, ends: AnyArray, colour: tuple[int, int, int, int]) -> None:
        (a, b), (c, d) = self._place(ends).tolist()
        self._draw.line([(a, b), (c, d)], colour, self._width)

    def dots(
        self, points: AnyArray, colour: tuple[int, int, int, int], *, ring: bool = False
    ) -> None:
        radius = (4.0 if ring else 2.5) * self._width
        places = self._place(points)
        for x, y in places[np.isfinite(places).all(-1)].tolist():
            box = (x - radius, y - radius, x + radius, y + radius)
            if ring:
                self._draw.ellipse(box, outline=colour, width=self._width)
            else:
                self._draw.ellipse(box, fill=colour, outline=(0, 0, 0, 255))

    def picture(self) -> _Picture:
        layer = self._layer.resize(self._photo.size, Image.Resampling.BOX)
        drawn = Image.alpha_composite(self._photo.convert("RGBA"), layer)
        return np.asarray(drawn.convert("RGB"), np.float32) / 255.0


def masked(
    flattened: Float[AnyArray, "*n g g 3"], visibility: Float[AnyArray, "*n g g"]
) -> Float[np.ndarray, "*n g g 3"]:
    """The flattened face times its mask: the output of the method."""
    return np.asarray(flattened) * np.asarray(visibility)[..., None]


def marked(
    picture: Float[AnyArray, "h w 3"], source: Float[AnyArray, "h w 3"]
) -> Float[np.ndarray, "h w 3"]:
    """A completed texture, or a view of it, tinted where the photo did not show it.

    Args:
        picture: [0, 1].
        source: share of each pixel that is SEEN, MIRRORED (blue) and GUESSED (red).
    """
    shares = np.asarray(source)
    result = np.asarray(picture).copy()
    for kind, tint in _TINTS.items():
        share = _TINT * shares[..., kind, None]
        result += share * (np.asarray(tint, np.float32) - result)
    return np.clip(result, 0.0, 1.0)


def source_shares(source: Int[AnyArray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """The source of each texel as channels that can be drawn and blended."""
    return np.eye(3, dtype=np.float32)[np.asarray(source)]


def labelled(
    rows: Mapping[str, list[AnyArray]], *, side: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Columns of pictures of any size, [0, 1], under their names.

    Args:
        rows: name -> the pictures of this column, from the top.
        side: pixels that all are scaled to.
    """
    return pictures.labelled_rows(
        {
            name: np.stack([_scaled(picture, side) for picture in column])
            for name, column in rows.items()
        }
    )


def _scaled(picture: AnyArray, side: int) -> _Picture:
    array = np.asarray(picture)
    if array.ndim == 2:
        array = pictures.grey_picture(array)
    # Few pixels are shown as they are, not as a smooth picture that nobody computed.
    few = 2 * len(array) <= side
    way = Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS
    scaled = Image.fromarray(to_bytes(array)).resize((side, side), way)
    return np.asarray(scaled, np.float32) / 255.0


def training_panel(
    images: Float[AnyArray, "b h w 3"],
    pixels: Float[AnyArray, "b n 2"],
    landmarks: Float[AnyArray, "b l 2"],
    flattened: Float[AnyArray, "b g g 3"],
    visibility: Float[AnyArray, "b g g"],
    *,
    truth: Float[AnyArray, "b l 2"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """A row for each photo: landmarks, mesh, flattened face, mask, and both together.

    Args:
        images: [0, 1].
        pixels, landmarks: (u, v) in the images.
        flattened, visibility: not masked; in [0, 1].
        truth: known landmarks, NaN where they are not.
    """
    columns: dict[str, list[AnyArray]] = {
        name: []
        for name in ("photo", "landmarks", "mesh", "flattened", "visible", "masked")
    }
    for i, image in enumerate(np.asarray(images)):
        known = None if truth is None else np.asarray(truth)[i]
        shown = {
            "photo": image,
            "landmarks": landmarks_picture(image, np.asarray(landmarks)[i], known),
            "mesh": mesh_overlay(image, np.asarray(pixels)[i], visibility[i]),
            "flattened": np.asarray(flattened)[i],
            "visible": np.asarray(visibility)[i],
            "masked": masked(np.asarray(flattened)[i], visibility[i]),
        }
        for name, picture in shown.items():
            columns[name].append(picture)
    return labelled(columns, side=_LEAST_SIDE)
