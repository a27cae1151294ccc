"""StyleGAN2s on disk: the public PyTorch layout, and our own .safetensors.

A `.pt` file in the layout of rosinality's implementation holds the generator under
"g_ema" and the discriminator under "d"; PyTorch is not needed to read it and nothing
in it is executed. What the network is, its size, channels and style, is read off the
shapes. Our own file holds the arrays by their names, in single or half precision, and
says in its metadata what they are.
"""

import dataclasses
import importlib.resources
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Float
from numpy.typing import DTypeLike

from unsup3d_jax.errors import UserError, refusing
from unsup3d_jax.files import replacing
from unsup3d_jax.nets import (
    file_guard,
    stylegan2,
    stylegan2_layout,
    torch_files,
    weight_files,
)
from unsup3d_jax.nets.stylegan2 import GanOptions, StyleGan

logger = logging.getLogger(__name__)

# Generators that ship: their files within the package.
SHIPPED = {"open_faces": "stylegan2/weights/open_faces.safetensors"}
OPTIONS_KEY = "stylegan2"  # of the metadata: the options, as JSON
_PARTS = ("mapping", "synthesis", "discriminator")


def load_stylegan2(name_or_path: str | Path) -> StyleGan:
    """A generator that ships, by its name, or one in a file; see `read_stylegan2`.

    Raises:
        UserError: if there is no such name or file, or it cannot be read.
    """
    name = str(name_or_path)
    if name not in SHIPPED:
        if not Path(name).suffix and not Path(name).expanduser().exists():
            raise UserError(
                f"{name}: neither a generator that ships ({', '.join(SHIPPED)}) nor a "
                "file of one (.pt, .safetensors)."
            )
        return read_stylegan2(name_or_path)
    resource = importlib.resources.files("unsup3d_jax").joinpath(SHIPPED[name])
    with importlib.resources.as_file(resource) as path:
        return read_stylegan2(path)


def read_stylegan2(path: str | Path, expected: GanOptions | None = None) -> StyleGan:
    """Reads a generator with its discriminator, noise maps and mean latent.

    Args:
        path: of a file that `write_stylegan2` wrote (.safetensors), else of PyTorch's
            in rosinality's layout, of either serialisation.
        expected: what the network must be; None: what the file holds.

    Returns:
        Float32 arrays.

    Raises:
        UserError: if the file is damaged, holds something else, lacks a key, has one
            too many or of another shape, or is of another network than expected.
    """
    path = Path(path)
    read = _read_ours if path.suffix == ".safetensors" else _read_rosinality
    gan = read(path)
    if expected is not None:
        _compare(gan.options, expected, path)
    return gan


def write_stylegan2(
    path: str | Path,
    gan: StyleGan,
    dtype: DTypeLike = np.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes our own file, for `read_stylegan2`.

    Args:
        path: ends in .safetensors.
        gan: what is written.
        dtype: float32 or float16.
        metadata: what the file says about itself besides.

    Raises:
        ValueError: if the path or dtype is another, a number is none in `dtype`, or
            the metadata has the key `OPTIONS_KEY`.
        OSError: if it cannot be written.
    """
    path, dtype, about = Path(path), np.dtype(dtype), dict(metadata or {})
    if path.suffix != ".safetensors" or dtype not in (np.float32, np.float16):
        raise ValueError(
            "need a path that ends in .safetensors and float32 or float16, got "
            f"{path} and {dtype}."
        )
    if OPTIONS_KEY in about:
        raise ValueError(f"metadata must not have the key {OPTIONS_KEY!r}.")
    options = dataclasses.asdict(gan.options)
    options["mapping_rate"] = float(gan.options.mapping_rate)
    about[OPTIONS_KEY] = json.dumps(options)
    arrays = {}
    with np.errstate(over="ignore"):  # checked below
        for name, array in _flat(gan).items():
            # Not `ascontiguousarray`, which makes a number an array of one.
            arrays[name] = np.asarray(jax.device_get(array), dtype, order="C")
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} is not finite in {dtype}.")
    with replacing(path) as file:
        file.write(safetensors.numpy.save(arrays, about))


def read_latent(path: str | Path, style: int) -> Float[np.ndarray, "s"]:
    """Reads the latent w of one image, (style,) float32, from a file of PyTorch.

    Args:
        path: of a tensor (style,) or (1, style), or a dictionary that has one as
            "latent", by itself or, as rosinality's projector writes it, under the name
            of the image.
        style: numbers in w.

    Raises:
        UserError: if the file holds no such latent.
    """
    tree = torch_files.read_torch_object(path, foreign_classes=True)
    if isinstance(tree, Mapping) and "latent" not in tree and len(tree) == 1:
        (tree,) = tree.values()
    named = tree if isinstance(tree, Mapping) else {"latent": tree}
    shape = tuple(getattr(named.get("latent"), "shape", ()))
    wanted = shape if shape == (1, style) else (style,)
    found = weight_files.require_array(named, "latent", wanted, source=str(path))
    return found.reshape(style)


def read_metadata(path: str | Path) -> dict[str, str]:
    """What one of our files says about itself, without the options.

    Raises:
        UserError: if it cannot be read.
    """
    about = weight_files.safetensors_metadata(path)
    return {key: value for key, value in about.items() if key != OPTIONS_KEY}


def _compare(found: GanOptions, expected: GanOptions, path: Path) -> None:
    for field in ("image_size", "channels", "style", "mapping_layers"):
        theirs, ours = getattr(found, field), getattr(expected, field)
        if theirs != ours:
            raise UserError(
                f"{path}: a StyleGAN2 with {field} {theirs}, expected {ours}."
            )


def _single(arrays: Mapping[str, Any]) -> Any:
    """Nested, on the device, of arrays by their names."""
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}
    return traverse_util.unflatten_dict(arrays, sep="/")


# --- our own file --------------------------------------------------------------------


def _flat(gan: StyleGan) -> dict[str, Any]:
    """{name: array} of all that is not static."""
    tree: dict[str, Any] = {part: getattr(gan, part) for part in _PARTS}
    tree["noise"] = {str(n): noise for n, noise in enumerate(gan.noise)}
    tree["mean_w"] = gan.mean_w
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {str(name): array for name, array in flat.items()}


def _shapes(options: GanOptions) -> StyleGan:
    def make() -> StyleGan:
        key = jax.random.key(0)
        return StyleGan(
            **stylegan2.init_generator(key, options),
            discriminator=stylegan2.init_discriminator(key, options),
            noise=stylegan2.fixed_noise(key, options),
            mean_w=jnp.zeros(options.style),
            options=options,
        )

    return jax.eval_shape(make)


def _read_ours(path: Path) -> StyleGan:
    state = weight_files.read_safetensors(path)
    about = weight_files.safetensors_metadata(path)
    if OPTIONS_KEY not in about:
        raise UserError(
            f"{path}: metadata {OPTIONS_KEY!r} is missing; not a file of a StyleGAN2 "
            "that this package wrote."
        )
    options = _options(about[OPTIONS_KEY], path)
    arrays = {
        name: weight_files.require_array(state, name, wanted.shape, source=str(path))
        for name, wanted in _flat(_shapes(options)).items()
    }
    _refuse_unknown(set(state) - set(arrays), str(path))
    tree = _single(arrays)
    noise = tuple(tree["noise"][str(n)] for n in range(len(options.noise_sizes)))
    parts = {part: tree[part] for part in _PARTS}
    return StyleGan(**parts, noise=noise, mean_w=tree["mean_w"], options=options)


def _options(text: str, path: Path) -> GanOptions:
    kinds = {
        "image_size": int, "channels": list, "style": int, "mapping_layers": int,
        "mapping_rate": float, "noise": bool,
    }  # fmt: skip
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if (
        not isinstance(values, dict)
        or values.keys() != kinds.keys()
        or not all(type(values[k]) is kind for k, kind in kinds.items())
    ):
        raise UserError(f"{path}: metadata {OPTIONS_KEY!r} is not what we write.")
    numbers = [values[key] for key in ("image_size", "style", "mapping_layers")]
    numbers += values["channels"]
    # Shapes are made of them before any array is read.
    if not all(type(n) is int and 0 < n <= 2**14 for n in numbers):
        raise UserError(f"{path}: metadata {OPTIONS_KEY!r} has impossible numbers.")
    with refusing(f"{path}: "):
        return GanOptions(**{**values, "channels": tuple(values["channels"])})


# --- rosinality's layout -------------------------------------------------------------


def _read_rosinality(path: Path) -> StyleGan:
    tree = torch_files.read_torch_file(path, foreign_classes=True)
    generator = _network(tree, "g_ema", "input.input", path)
    discriminator = _network(tree, "d", "final_conv.0.weight", path)
    options = stylegan2_layout.infer_options(generator, f"{path}: g_ema")
    table = stylegan2_layout.generator_table(options)
    parts, maps = _tabled(generator, table, f"{path}: g_ema"), ()
    if "noise" in parts:
        noises = parts.pop("noise")
        maps = tuple(noises[str(n)] for n in range(len(noises)))
    else:
        logger.warning(
            "%s: has no noise maps; new ones are drawn, with which latents that were "
            "found for the old ones give slightly other images.",
            path,
        )
        maps = stylegan2.fixed_noise(jax.random.key(0), options)
    table = stylegan2_layout.discriminator_table(options)
    parts["discriminator"] = _tabled(discriminator, table, f"{path}: d")
    if tree.get("latent_avg") is not None:
        shape = (options.style,)
        mean = weight_files.require_array(tree, "latent_avg", shape, source=str(path))
        mean_w = jnp.asarray(mean)
    else:
        mean_w = stylegan2.mean_latent(parts["mapping"], jax.random.key(0), options)
    return StyleGan(**parts, noise=maps, mean_w=mean_w, options=options)


def _network(
    tree: Mapping[str, Any], name: str, key: str, path: Path
) -> dict[str, Any]:
    """One state dictionary, its keys without what several GPUs put before them."""
    state = tree.get(name)
    if not isinstance(state, Mapping):
        raise UserError(
            f"{path}: {name!r} is missing; expected a StyleGAN2 in rosinality's "
            "layout, with its generator 'g_ema' and discriminator 'd'; found "
            f"{file_guard.shown(sorted(map(str, tree)))}."
        )
    prefix = weight_files.prefix_of(state, key) or ""
    return {str(k).removeprefix(prefix): value for k, value in state.items()}


def _tabled(
    state: Mapping[str, Any], table: list[stylegan2_layout.Entry], source: str
) -> dict[str, Any]:
    """Arrays under our names; all keys of the file are of the table."""
    has_noise = any(key.startswith("noises.") for key in state)
    arrays = {}
    for entry in table:
        if entry.ours.startswith("noise/") and not has_noise:
            continue
        array = weight_files.require_array(state, entry.key, entry.shape, source=source)
        if entry.filter_sum is None:
            arrays[entry.ours] = entry.convert(array)
        elif not stylegan2_layout.is_the_filter(array, entry.filter_sum):
            raise UserError(
                f"{source}: {entry.key!r} is not the filter [1, 3, 3, 1] of sum "
                f"{entry.filter_sum}; other filters are not supported."
            )
    _refuse_unknown(set(state) - {entry.key for entry in table}, source)
    return _single(arrays)


def _refuse_unknown(unknown: set[str], source: str) -> None:
    if unknown:
        raise UserError(
            f"{source}: unknown key {file_guard.shown(min(unknown))}; not a StyleGAN2 "
            "of the layout that is read."
        )
