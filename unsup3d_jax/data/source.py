"""Data sets -> training batches on the devices, for ever.

A small set lives in device memory as 8-bit pixels, and a batch is one jitted
gather; a large one is read by threads and sent ahead. Both take the same
examples in the same order with the same flips, which depend on nothing but
(seed, step), so that resuming at a step is exact.

Order, threads and batches of files are grain's. By hand stay the gather and the
flips, which are one program on the device, and the two batches sent ahead:
grain's `device_put` is experimental, hands over arrays before that program, and
its iterators are set to a place by states of their own instead of a step.
"""

import collections
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.batches import flip_some, gather, gather_plain, to_batch
from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.errors import UserError
from unsup3d_jax.formation.types import Batch

# Batches sent to the devices before they are asked for.
_AHEAD = 2
# Independent random streams of one seed.
_ORDER, _FLIP, _REORDER = 0, 1, 2


def batch_order(size: int, seed: int) -> Any:
    """The endless order of examples, a grain.MapDataset: epochs, each shuffled.

    Element p is the index of the p-th training example. Batches are cut from
    it without gaps, so every example occurs once an epoch also where the batch
    size does not divide the set.
    """
    import grain

    # Hashed, because grain's epoch e of seed s is epoch 0 of seed s + e.
    hashed = int(np.random.SeedSequence([seed, _ORDER]).generate_state(1)[0])
    return grain.MapDataset.range(size).shuffle(seed=hashed).repeat()


def batch_flips(seed: int, step: int, batch_size: int) -> Bool[np.ndarray, "b"]:
    """Draws which examples of the batch at `step` are mirrored, p = 1/2."""
    sequence = np.random.SeedSequence([seed, _FLIP, step])
    return np.random.Generator(np.random.Philox(sequence)).random(batch_size) < 0.5


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
        if not _has_mirror(dataset, self._fields):  # no flip is drawn
            form, convert = gather_plain, lambda arrays, _: to_batch(arrays)
        else:
            known: dict[str, Any] = {}
            if "keypoints" in self._fields:
                known["keypoint_flip"] = dataset.keypoint_flip
            if "latent" in self._fields:
                known["latent_mirror"] = dataset.latent_mirror
            form = functools.partial(gather, **known)
            convert = functools.partial(flip_some, **known)
        self._gather = jax.jit(form, out_shardings=split)
        self._convert = jax.jit(convert, out_shardings=split)
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
        self._reader: Iterator[dict[str, np.ndarray]] = iter(())
        if self._dataset.is_streamed:
            count = len(self._rows)
            dataset = self._dataset
            order: Any = self._order  # of now: see `reorder`
            # Places are counted over this process's rows, from `step` on.
            import grain

            rows = grain.MapDataset.range(step * count, sys.maxsize)
            examples = rows.map(lambda i: dataset.example(order[self._place(i)]))
            self._reader = iter(
                ds.parallel(examples, dataset.workers, ahead=_AHEAD * count).batch(
                    count, batch_fn=functools.partial(ds.stack, fields=self._fields)
                )
            )

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
                    "a new workdir. If the run is older than the key, "
                    "--config.data.near_copies=apart splits photos as it did."
                )
        self._step = int(state["step"])
        self.reorder(int(state.get("reordered", 0)))  # absent in old checkpoints

    def _flips(self, step: int) -> Bool[np.ndarray, "b"]:
        if not self._flip:
            return np.zeros(len(self._rows), bool)
        return batch_flips(self._seed, step, self._batch_size)[self._rows]

    def _place(self, number: int) -> int:
        """Place in the order of the number-th example that this process reads."""
        step, row = divmod(number, len(self._rows))
        return step * self._batch_size + int(self._rows[row])

    def _indices(self, step: int) -> Int[np.ndarray, "b"]:
        first = step * len(self._rows)
        places = map(self._place, range(first, first + len(self._rows)))
        return np.array([self._order[place] for place in places], np.int32)

    def _from_store(self, step: int) -> Batch:
        index = self._indices(step)
        plan = np.where(self._flips(step), ~index, index)
        return self._gather(self._store, plan.reshape(self._shape))

    def _from_host(self, step: int) -> Batch:
        if self._dataset.is_streamed:
            arrays = next(self._reader)
        else:
            arrays = self._dataset.take(self._indices(step), self._fields)
        arrays = {k: v.reshape(self._shape + v.shape[1:]) for k, v in arrays.items()}
        flips = self._flips(step).reshape(self._shape)
        return self._convert(*jax.device_put((arrays, flips), self._split))


def _has_mirror(dataset: Dataset, fields: Sequence[str]) -> bool:
    return "latent" not in fields or dataset.latent_mirror is not None


def train_source(
    dataset: Dataset,
    config: ConfigDict,
    *,
    fields: Sequence[str],
    devices: Sequence[jax.Device],
    seed: int,
    start_step: int = 0,
) -> TrainSource:
    """Makes the source of training batches.

    Args:
        dataset: the training split.
        config: reads data.flip, data.device_memory_mib and train.batch_size.
        fields: of `Batch`, "image" among them; the others of a batch are None.
        devices: one part of each batch goes to each of them, in order.
        seed: of the order and the flips, a non-negative integer.
        start_step: step of the first batch.

    Raises:
        UserError: if the batch does not fit the devices or the data set, or the
            data set lacks a field that is asked for or cannot mirror one.
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
    sample = dataset.take([0])
    for name in fields:
        if name not in sample:
            raise UserError(
                f"data.name: '{config.data.name}' has no true {name}, which training "
                "with this config needs."
            )
    if config.data.flip and not _has_mirror(dataset, fields):
        raise UserError(
            "data.flip: a latent code has no mirror image; set "
            "--config.data.flip=False."
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
