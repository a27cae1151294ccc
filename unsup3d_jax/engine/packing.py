"""A run's state as a plain tree of host arrays, which files can hold and be held to."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unsup3d_jax.engine.task import RunState
from unsup3d_jax.errors import UserError


class Damaged(Exception):
    """A checkpoint cannot be read, or is not what was written."""


def packed(state: RunState) -> dict[str, Any]:
    """{"step", "key" and the name of each part: its tree}; typed keys as numbers."""
    return {
        "step": state.step,
        **jax.tree.map(_as_numbers, state.parts),
        "key": _as_numbers(state.key),
    }


def _as_numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def zeros_like_packed(like: RunState) -> dict[str, Any]:
    """Host arrays of 0 with the shapes of a packed state; abstract arrays do."""
    return jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(packed, like)
    )


def unpacked(tree: Mapping[str, Any], like: RunState) -> RunState:
    """The state that was packed.

    Args:
        tree: of `packed`, host arrays.
        like: a state of the same structure; abstract arrays do.
    """

    def restored(leaf: Any, numbers: Any) -> Any:
        return (
            jax.random.wrap_key_data(jnp.asarray(numbers))
            if _is_key(leaf)
            else (numbers)
        )

    return RunState(
        step=jnp.asarray(tree["step"]),
        key=restored(like.key, tree["key"]),
        parts={
            name: jax.tree.map(restored, part, tree[name])
            for name, part in like.parts.items()
        },
    )


def to_host(state: RunState) -> dict[str, Any]:
    """Copies a state, packed, to numpy arrays of its own.

    On CPU `device_get` gives views of device memory. While a view lives the
    runtime refuses to donate that memory: the next step would hold the state
    twice until the save is written. Hence the copy.
    """
    return jax.tree.map(lambda x: np.array(x), jax.device_get(packed(state)))


def is_finite(tree: Any) -> bool:
    """Whether every floating-point number of a host tree is finite."""
    return all(
        np.isfinite(x).all()
        for x in jax.tree.leaves(tree)
        if np.issubdtype(x.dtype, np.floating)
    )


def checksums(tree: Mapping[str, Any]) -> dict[str, int]:
    """CRC-32 of each top-level entry of a host tree, names and shapes included."""
    result = {}
    for name, part in tree.items():
        crc = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            leaf = np.asarray(leaf)
            about = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}"
            crc = zlib.crc32(
                np.ascontiguousarray(leaf).data, zlib.crc32(about.encode(), crc)
            )
        result[name] = crc
    return result


def check_sums(tree: Mapping[str, Any], recorded: Mapping[str, int] | None) -> None:
    """Raises Damaged if an entry's checksum is not the recorded one."""
    if recorded is None:  # written before there were any
        return
    for name, found in checksums(tree).items():
        if recorded.get(name) != found:
            raise Damaged(f"the checksum of {name!r} differs")


def without_repeats(wanted: Any, saved: Any) -> Any:
    """The shapes that are to be read where a file lacks some leading axes.

    Args:
        wanted: host arrays of a packed state.
        saved: what the file says of its arrays, in containers of any kind.

    Returns:
        `wanted`, but without the leading axis where the file has exactly that.
    """
    paths = jax.tree_util.tree_leaves_with_path(saved)
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in paths
    }

    def read(path: Any, leaf: np.ndarray) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_single = leaf.ndim > 0 and shapes.get(name) == leaf.shape[1:]
        return np.asarray(leaf[0]) if is_single else leaf

    return jax.tree_util.tree_map_with_path(read, wanted)


def check_shapes(tree: Any, expected: Any, name: str) -> None:
    """Checks that a tree has the arrays, and the shapes, of another.

    What holds the arrays may differ: orbax gives dicts and lists for named tuples.

    Raises:
        UserError: naming the first array that differs.
    """

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in leaves
        }

    found, wanted = shapes(tree), shapes(expected)
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{name} does not fit this model or optimizer: {key} has shape "
                f"{found.get(key, 'none')}, expected {wanted.get(key, 'none')}. Use "
                "the config, and the version of the code and its packages, that it "
                "was written by, or start in another --workdir."
            )
