"""The workdir of a run that has not learnt anything, for what only needs one."""

import jax
import jax.numpy as jnp

from unsup3d_jax.engine import checkpoint, gradient_step
from unsup3d_jax.engine.optimizer import make_optimizer
from unsup3d_jax.engine.task import RunState
from unsup3d_jax.engine.workdir import claim_workdir
from unsup3d_jax.unsup3d.task import IDENTITY, initial_params


def make(workdir, config):
    """Parameters as they begin, at step 0."""
    claim_workdir(workdir, config, jax.local_devices(), IDENTITY)
    parts = gradient_step.init(initial_params(config), make_optimizer(config))
    step, key = jnp.zeros((), jnp.int32), jax.random.key(config.seed)
    checkpoint.write_first(workdir, RunState(step=step, key=key, parts=parts))
    return workdir
