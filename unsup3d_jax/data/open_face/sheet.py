"""A contact sheet of the open faces, to look at.

    python -m unsup3d_jax.data.open_face.sheet --contact_sheet out.png

With `--views 4` each person is shown four times.
"""

import argparse
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unsup3d_jax.data import tiles
from unsup3d_jax.data.dataset import SPLITS
from unsup3d_jax.data.open_face.dataset import load, load_views
from unsup3d_jax.data.open_face.scene import DEPTH_RANGE, POSES


def contact_sheet(
    faces: dict[str, np.ndarray], *, columns: int = 10, scale: int = 1
) -> UInt8[np.ndarray, "H W 3"]:
    """Images in rows; below them the layers of the first faces, near = white.

    Args:
        faces: of `dataset.load`.
        columns: pictures in a row; what does not fill a row is left out.
        scale: whole factor by which pixels are repeated.
    """
    first = {k: v[:columns] for k, v in faces.items()}
    near, far = DEPTH_RANGE
    mask, light = first["mask"][..., None], first["light"][:, None, None]
    lambert = np.einsum("nhwc,nc->nhw", first["normal"], first["light"][:, 2:])
    shading = light[..., :1] + light[..., 1:2] * np.maximum(lambert[..., None], 0)
    layers = [
        first["albedo"] / np.float32(255),
        ((far - first["depth"]) / (far - near))[..., None].repeat(3, -1),
        (first["normal"] / 2 + 0.5) * mask,
        (shading / 1.2 * mask).repeat(3, -1),
    ]
    count = len(faces["image"]) // columns * columns
    pictures = [*faces["image"][:count], *np.concatenate(layers)]
    return tiles.grid_of_images(pictures, columns=columns, scale=scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--contact_sheet", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--views", type=int, default=1, help="of each person")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pose", choices=POSES, default="mixed")
    parser.add_argument("--asymmetry", type=float, default=1.0)
    parser.add_argument("--perturb", action="store_true")
    parser.add_argument("--zoom", type=int, default=2)
    args = vars(parser.parse_args())
    path, zoom = args.pop("contact_sheet"), args.pop("zoom")
    split, views = args.pop("split"), args.pop("views")
    if views > 1:
        args["count"] = -(-args["count"] // views)
        faces = load_views(split, views=views, **args)
    else:
        faces = load(split, **args)
    Image.fromarray(contact_sheet(faces, scale=zoom)).save(path)
    print(f"{path}: {len(faces['image'])} faces, {args['image_size']} px.")


if __name__ == "__main__":
    main()
