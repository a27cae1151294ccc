"""Data sets -> batches on the devices.

A small set lives in device memory as 8-bit pixels, and a batch is one jitted
gather; a large one is read by threads and sent ahead. Both take the same
examples in the same order with the same flips, which depend on nothing but
(seed, step), so that resuming at a step is exact.
"""

import collections
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped
from ml_collections import ConfigDict

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import folder, synface, tfds_images
from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.data.prepare import cache_root
from unsup3d_jax.errors import UserError
from unsup3d_jax.formation.types import Batch

FIELDS = ("image", "depth", "mask", "view", "light")  # of Batch
# Batches sent to the devices before they are asked for.
_AHEAD = 2
# Independent random streams of one seed.
_ORDER, _FLIP, _REORDER = 0, 1, 2


def load_split(config: ConfigDict, split: str) -> Dataset:
    """Loads one split of the configured data set.

    Args:
        config: the full configuration; reads `data`, and `depth` for synface.
        split: train, val or test.

    Raises:
        UserError: if the set, the folder or the split is missing, empty or too
            small, or an option is wrong; the message names the key.
    """
    if split not in ds.SPLITS:
        raise UserError(f"split: expected {', '.join(ds.SPLITS)}, got '{split}'.")
    if config.data.name == "folder":
        return folder.load(config, split)
    if config.data.name == "synface":
        return synface.load(config, split)
    if config.data.name == "open_faces":
        return _load_open_faces(config, split)
    if config.data.name == "tfds":
        return tfds_images.load(config, split)
    raise UserError(
        "data.name: expected folder, open_faces, synface or tfds, got "
        f"'{config.data.name}'."
    )


def training_fields(config: ConfigDict) -> tuple[str, ...]:
    """Names the fields that training needs on the devices."""
    wanted = {
        "depth": config.model.supervision == "depth",
        "mask": config.model.supervision == "depth",
        "view": config.model.oracle_view,
        "light": config.model.oracle_light,
    }
    return ("image", *(name for name, needed in wanted.items() if needed))


def batch_order(size: int, seed: int) -> grain.MapDataset:
    """Returns the endless order of examples: epoch after epoch, each shuffled.

    Element p is the index of the p-th training example. Batches are cut from
    it without gaps, so every example occurs once an epoch also where the batch
    size does not divide the set.
    """
    # Hashed, because grain's epoch e of seed s is epoch 0 of seed s + e.
    hashed = int(np.random.SeedSequence([seed, _ORDER]).generate_state(1)[0])
    return grain.MapDataset.range(size).shuffle(seed=hashed).repeat()


def batch_flips(seed: int, step: int, batch_size: int) -> Bool[np.ndarray, "b"]:
    """Draws which examples of the batch at `step` are mirrored, p = 1/2."""
    sequence = np.random.SeedSequence([seed, _FLIP, step])
    return np.random.Generator(np.random.Philox(sequence)).random(batch_size) < 0.5


def mirror(batch: Batch) -> Batch:
    """Mirrors a batch left-right, its ground truth with it.

    Images, depth and mask are reversed along the row, which is a reflection
    about the optical axis since that passes through the middle of the row. A
    reflection of x negates rotations about y and z, translation along x, and
    the x component of the light direction.
    """
    view_sign = jnp.array([1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
    light_sign = jnp.array([1.0, 1.0, -1.0, 1.0, 1.0])
    return Batch(
        image=batch.image[..., ::-1, :],
        depth=None if batch.depth is None else batch.depth[..., ::-1],
        mask=None if batch.mask is None else batch.mask[..., ::-1],
        view=None if batch.view is None else batch.view * view_sign,
        light=None if batch.light is None else batch.light * light_sign,
    )


def to_batch(arrays: dict[str, Array]) -> Batch:
    """Converts stored arrays to a Batch: 8-bit colours to float32 in [0, 1]."""
    rest = {
        name: arrays[name].astype(jnp.bool_ if name == "mask" else jnp.float32)
        for name in FIELDS[1:]
        if name in arrays
    }
    # A product, because XLA divides by a constant in some programs and
    # multiplies by its reciprocal in others, which differ in the last bit.
    image = arrays["image"].astype(jnp.float32) * np.float32(1.0 / 255.0)
    return Batch(image=image, **rest)


def flip_some(arrays: dict[str, Array], flip: Bool[Array, "*b"]) -> Batch:
    """Converts stored arrays to a Batch and mirrors the marked examples."""
    batch = to_batch(arrays)

    def choose(mirrored: Array, plain: Array) -> Array:
        marks = flip.reshape(flip.shape + (1,) * (plain.ndim - flip.ndim))
        return jnp.where(marks, mirrored, plain)

    return jax.tree.map(choose, mirror(batch), batch)


def gather(
    store: dict[str, Shaped[Array, "n ..."]],
    plan: Int[Array, "*b"],
) -> Batch:
    """Forms a batch from the stored set.

    Args:
        store: the whole data set, example axis first.
        plan: example i as i, mirrored as ~i; one array, one transfer.
    """
    flip = plan < 0
    index = jnp.where(flip, ~plan, plan)
    rows = {name: array[index] for name, array in store.items()}
    return flip_some(rows, flip)


class _Rows:
    """The examples that this process reads, in order, as a long sequence."""

    def __init__(self, dataset: Dataset, order: Any, first: int, batch: int, rows: Any):
        self._dataset, self._order = dataset, order
        self._first, self._batch, self._rows = first, batch, rows

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, np.ndarray] | ds.Failure:
        step, row = divmod(index, len(self._rows))
        place = self._first + step * self._batch + int(self._rows[row])
        return self._dataset.example(self._order[place])


class TrainSource:
    """Endless iterator over training batches, leaves (n_devices, b/n, ...).

    With several processes a batch holds the rows of this one's devices only:
    the processes' rows are disjoint, and together they are the batch that one
    process would see. Its position is the number of batches handed out and how
    often the order was changed; nothing else is state.
    Not safe to share between threads; the reading threads are grain's own.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        fields: Sequence[str],
        batch_size: int,
        devices: Sequence[jax.Device],
        seed: int,
        flip: bool,
        resident: bool,
        start_step: int = 0,
    ):
        """Places a resident set on the devices; see `train_source`."""
        self._dataset = dataset
        self._fields = tuple(fields)
        self._batch_size = batch_size
        local = [d for d in devices if d.process_index == jax.process_index()]
        self._shape = (len(local), batch_size // len(devices))
        # Rows of the global batch that lie on this process's devices.
        rows = np.arange(batch_size).reshape(len(devices), -1)
        self._rows = rows[[devices.index(d) for d in local]].reshape(-1)
        self._seed = seed
        self._flip = flip
        self._reordered = 0
        self._order = batch_order(len(dataset), seed)
        mesh = Mesh(np.array(local), ("devices",))
        split = NamedSharding(mesh, PartitionSpec("devices"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._store = None
        if resident:
            arrays = {name: dataset.arrays[name] for name in self._fields}
            self._store = jax.device_put(arrays, everywhere)
        self._split = split
        self._gather = jax.jit(gather, out_shardings=split)
        self._flip_some = jax.jit(flip_some, out_shardings=split)
        self.seek(start_step)

    @property
    def resident(self) -> bool:
        """Whether the data set is held in device memory."""
        return self._store is not None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._ready) < _AHEAD:
            step = self._step + len(self._ready)
            self._ready.append(
                self._from_host(step) if self._store is None else self._from_store(step)
            )
        self._step += 1
        return self._ready.popleft()

    def seek(self, step: int) -> None:
        """Makes the batch of `step` the next one."""
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}.")
        self._step = step
        self._ready: collections.deque[Batch] = collections.deque()
        self._reader: Iterator[dict[str, np.ndarray] | ds.Failure] = iter(())
        if self._dataset.is_streamed:
            rows = _Rows(
                self._dataset,
                self._order,
                step * self._batch_size,
                self._batch_size,
                self._rows,
            )
            source: Any = grain.MapDataset.source(rows)
            ahead = _AHEAD * len(self._rows)
            self._reader = ds.parallel(source, self._dataset.workers, ahead=ahead)

    def reorder(self, number: int) -> None:
        """Goes on at the same step in another order; 0 is the first one.

        Flips do not change: they belong to the places in a batch.
        """
        self._reordered, seed = number, self._seed
        if number:
            sequence = np.random.SeedSequence([seed, _REORDER, number])
            seed = int(sequence.generate_state(1)[0])
        self._order = batch_order(len(self._dataset), seed)
        self.seek(self._step)

    def state(self) -> dict[str, Any]:
        """Returns the position and what it is a position in, JSON-able."""
        return {
            "step": self._step,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "flip": self._flip,
            "examples": len(self._dataset),
            "digest": self._dataset.digest,
            "reordered": self._reordered,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state()`, exactly; an empty one is the beginning.

        Raises:
            UserError: if the data set or the order is another than then.
        """
        if not state:  # of imported weights, which have seen no data of ours
            self.seek(0)
            return
        for name, now in self.state().items():
            if name not in ("step", "reordered") and state[name] != now:
                raise UserError(
                    f"cannot resume: the training data changed, {name} was "
                    f"{state[name]} and is {now}. Restore the data set, or train in "
                    "a new workdir."
                )
        self._step = int(state["step"])
        self.reorder(int(state.get("reordered", 0)))  # absent in old checkpoints

    def _flips(self, step: int) -> Bool[np.ndarray, "b"]:
        if not self._flip:
            return np.zeros(len(self._rows), bool)
        return batch_flips(self._seed, step, self._batch_size)[self._rows]

    def _indices(self, step: int) -> Int[np.ndarray, "b"]:
        first = step * self._batch_size
        return np.array([self._order[first + int(i)] for i in self._rows], np.int32)

    def _from_store(self, step: int) -> Batch:
        index = self._indices(step)
        plan = np.where(self._flips(step), ~index, index)
        return self._gather(self._store, plan.reshape(self._shape))

    def _from_host(self, step: int) -> Batch:
        if self._dataset.is_streamed:
            examples = [next(self._reader) for _ in self._rows]
            arrays = ds.stack(examples, self._fields)
        else:
            arrays = self._dataset.take(self._indices(step), self._fields)
        arrays = {k: v.reshape(self._shape + v.shape[1:]) for k, v in arrays.items()}
        flips = self._flips(step).reshape(self._shape)
        return self._flip_some(*jax.device_put((arrays, flips), self._split))


def train_source(
    dataset: Dataset,
    config: ConfigDict,
    *,
    devices: Sequence[jax.Device],
    seed: int,
    start_step: int = 0,
) -> TrainSource:
    """Makes the source of training batches.

    Args:
        dataset: the training split.
        config: reads data.flip, data.device_memory_mib, train.batch_size and
            what `training_fields` reads.
        devices: one part of each batch goes to each of them, in order.
        seed: of the order and the flips, a non-negative integer.
        start_step: step of the first batch.

    Raises:
        UserError: if the batch does not fit the devices or the data set, or the
            data set lacks a field that the config asks for.
    """
    batch_size, count = config.train.batch_size, len(devices)
    if batch_size < 1 or batch_size % count:
        raise UserError(
            f"train.batch_size: {batch_size} is not a positive multiple of the "
            f"{count} devices (train.devices)."
        )
    if batch_size > len(dataset):
        raise UserError(
            f"train.batch_size: {batch_size} is larger than the training set of "
            f"{len(dataset)} images."
        )
    fields = training_fields(config)
    sample = dataset.take([0])
    for name in fields:
        if name not in sample:
            raise UserError(
                f"data.name: '{config.data.name}' has no true {name}, which "
                "model.supervision, oracle_view or oracle_light asks for."
            )
    needed = len(dataset) * sum(sample[name].nbytes for name in fields)
    fits = needed <= config.data.device_memory_mib * 2**20
    return TrainSource(
        dataset,
        fields=fields,
        batch_size=batch_size,
        devices=devices,
        seed=seed,
        flip=config.data.flip,
        resident=fits and not dataset.is_streamed,
        start_step=start_step,
    )


def eval_batches(dataset: Dataset, batch_size: int) -> Iterator[tuple[Batch, int]]:
    """Yields the whole set in order, not flipped, with all known fields.

    Yields:
        (batch, count): leaves (batch_size, ...); the last batch is filled up
        by repeating its last example, so only the first `count` are real.

    Raises:
        ValueError: if batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    for first in range(0, len(dataset), batch_size):
        last = min(first + batch_size, len(dataset))
        index = np.minimum(np.arange(first, first + batch_size), last - 1)
        arrays = dataset.take(index[: last - first])
        arrays = {
            name: np.pad(
                arrays[name],
                [(0, first + batch_size - last)] + [(0, 0)] * (arrays[name].ndim - 1),
                mode="edge",
            )
            for name in FIELDS
            if name in arrays
        }
        yield _to_batch(jax.device_put(arrays)), last - first


_to_batch = jax.jit(to_batch)


def _load_open_faces(config: ConfigDict, split: str) -> Dataset:
    from unsup3d_jax.data import open_faces

    _check_open_camera(config)
    data = config.data
    count = data[f"count_{split}"]
    options = {
        "image_size": data.image_size,
        "count": min(count, data.max_images) if data.max_images else count,
        "seed": data.seed,
        "pose": data.pose,
        "asymmetry": data.asymmetry,
        "perturb": data.perturb,
    }
    start = time.monotonic()
    try:
        arrays = open_faces.load(
            split,
            cache_dir=cache_root(data.cache_dir),
            # Nothing reads the normals and albedo of the training set.
            fields=FIELDS if split == "train" else None,
            **options,
        )
    except ValueError as error:  # names the option, which is the key's name
        raise UserError(f"config.data, open_faces: {error}") from None
    size = len(arrays["image"])
    # A few hundred images stand for all: they tell versions of the renderer
    # apart, and hashing everything would read the whole cache file.
    some = np.ascontiguousarray(arrays["image"][:: max(1, size // 256)])
    return Dataset(
        arrays=arrays,
        report=ds.Report(
            name=data.name,
            split=split,
            root="",
            found=size,
            seconds=time.monotonic() - start,
        ),
        digest=ds.digest_of("open_faces", split, options, some.tobytes().hex()),
        workers=data.workers,
    )


def _check_open_camera(config: ConfigDict) -> None:
    """Refuses another camera than the open faces are rendered with.

    A model that looks through another one, or whose depth cannot reach the faces,
    would learn and be scored against a wrong truth without a word.
    """
    from unsup3d_jax.data.open_face import render, scene

    (near, far), view, depth = scene.DEPTH_RANGE, config.view, config.depth
    rules = (
        ("view.fov_deg", view.fov_deg == render.FOV_DEG, f"{render.FOV_DEG:g}"),
        ("view.rotation_centre_depth", view.rotation_centre_depth == 1.0, "1"),
        ("depth.min", depth.min <= near, f"at most {near:g}"),
        ("depth.max", depth.max >= far, f"at least {far:g}"),
    )
    for key, holds, rule in rules:
        if not holds:
            section, name = key.split(".")
            raise UserError(
                f"{key} must be {rule} for data.name=open_faces, as they are "
                f"rendered, got {config[section][name]}."
            )
