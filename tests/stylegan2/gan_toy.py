"""A generator of 8 px and four channels, and coloured noise for it to learn from."""

import functools
import pickle

import jax
import numpy as np

from configs.gan2shape import gan_default
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.engine import loop, parallel
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.task import Session, initial_state
from unsup3d_jax.engine.workdir import lock_workdir
from unsup3d_jax.files import replacing
from unsup3d_jax.stylegan2 import task

SIZE = 8


def config(**changes):
    """Everything on: noise, mixing, both penalties, augmentation; loss__r1=1."""
    c = gan_default.get_config()
    c.data.image_size, c.gan.channels = SIZE, (4, 4)
    c.gan.style, c.gan.mapping_layers, c.gan.half_life = 4, 2, 32
    c.loss.r1_every, c.loss.path_every = 2, 3
    c.augment.target, c.augment.every, c.augment.images = 0.6, 2, 64
    c.train.batch_size, c.train.steps, c.train.devices = 8, 6, 1
    c.log.every, c.log.tensorboard, c.log.picture_every = 1, False, 0
    c.checkpoint.every, c.eval.every = 2, 0
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@functools.cache
def splits(split, count=24):
    """Blobs of one colour each before grey."""
    rng = np.random.default_rng(ds.SPLITS.index(split))
    x = np.arange(SIZE)
    place, colour = rng.uniform(2, 5, (count, 2)), rng.uniform(0, 255, (count, 3))
    away = np.hypot(
        x[None, :, None] - place[:, :1, None], x[None, None] - place[:, 1:, None]
    )
    blob = np.exp(-0.2 * np.square(away))[..., None]
    image = blob * colour[:, None, None] + (1.0 - blob) * 128.0
    return ds.Dataset(
        {"image": image.astype(np.uint8)},
        ds.Report("folder", split, "", count),
        digest=split,
    )


def fit(c, workdir, the_task=None):
    """The last state on the host and its step, from wherever the workdir stands."""
    workdir.mkdir(exist_ok=True)
    with Interrupts() as now, lock_workdir(workdir):
        state = loop.fit(
            Session(c, splits, now),
            the_task or task.gan_task(c, splits),
            workdir,
            devices=parallel.local_devices(c),
        )
    return jax.device_get(parallel.one_copy(state.parts)), int(state.step)


def walk(devices):
    """States and metrics of six steps, on the host."""
    c = config(train__devices=devices)
    made, places = task.gan_task(c, splits), parallel.local_devices(c)
    state, constants, schedule = parallel.replicate(
        (initial_state(made, 0), made.constants, made.schedule), places
    )
    step, source = parallel.parallel_step(made, places), made.make_source(places)

    def host(tree):
        return jax.tree.map(np.array, jax.device_get(tree))

    states, metrics = [host(state.parts)], []
    for _ in range(6):
        state, found = step(state, next(source), constants, schedule)
        states.append(host(state.parts))
        metrics.append(host(found))
    return states, metrics


def walk_elsewhere(workdir, devices):
    """A life of `lives.start`: leaves players and metrics of the first step."""
    jax.config.update("jax_num_cpu_devices", devices)
    (_, first, *_), metrics = walk(devices)
    players = {name: first[name] for name in ("generator", "discriminator")}
    with replacing(workdir) as file:
        file.write(pickle.dumps((players, metrics[0])))


def live(workdir, devices):
    """A life of `lives.start`: trains to the end, or until it is killed."""
    jax.config.update("jax_num_cpu_devices", devices)
    fit(config(train__devices=devices), workdir)
    (workdir / "finished").touch()
