"""Self-supervised VGG16: which way up is this image? (Gidaris et al., ICLR 2018)

A classifier of the four right-angle rotations has to know what objects look
like, and needs no labels. Its early layers replace ImageNet's in the perceptual
loss (Wu et al., CVPR 2020, Table 3, row 6). It is trained with batch
normalisation, which the stored convolutions contain, so that the file is an
ordinary VGG16 for `vgg16_files.load_vgg16`.
"""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from unsup3d_jax.data import pipeline
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.log import MetricsFile, Progress, say
from unsup3d_jax.errors import UserError
from unsup3d_jax.files import write_atomically
from unsup3d_jax.nets import vgg16, vgg16_files

# Whole blocks: where the trunk may end.
CONVOLUTIONS = (2, 4, 7, 10, 13)
TURNS = 4
_MOMENTUM = 0.9  # of SGD, and of the running statistics
_LOG_LINES = 100


class RotNet(nn.Module):
    """VGG16's trunk with batch normalisation, mean over pixels, four logits.

    Attributes:
        convolutions: how many of the trunk's 13 there are; one of `CONVOLUTIONS`.
    """

    convolutions: int = 13

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, is_training: bool
    ) -> Float[Array, "b 4"]:
        x, done = vgg16.normalise(image), 0
        for stage in vgg16.PLAN:
            if done == self.convolutions:
                break
            if stage == "pool":
                x = vgg16.max_pool(x)
                continue
            x = nn.Conv(int(stage), (3, 3), use_bias=False, name=f"conv{done}")(x)
            x = nn.BatchNorm(
                use_running_average=not is_training,
                momentum=_MOMENTUM,
                name=f"norm{done}",
            )(x)
            x, done = nn.relu(x), done + 1
        return nn.Dense(TURNS, name="head")(x.mean((1, 2)))


@struct.dataclass
class RotNetState:
    """Parameters, running statistics and optimizer state."""

    params: Any
    statistics: Any
    opt_state: Any


def turned(
    image: Float[Array, "b h w 3"],
) -> tuple[Float[Array, "4*b h w 3"], Int[Array, "4*b"]]:
    """Every image in its four rotations, and how many quarter turns each made.

    Args:
        image: square.
    """
    turns = [jnp.rot90(image, k, axes=(1, 2)) for k in range(TURNS)]
    return jnp.concatenate(turns), jnp.repeat(jnp.arange(TURNS), len(image))


def update(
    state: RotNetState,
    image: Float[Array, "b h w 3"],
    *,
    network: RotNet,
    optimizer: optax.GradientTransformation,
) -> tuple[RotNetState, dict[str, Float[Array, ""]]]:
    """One step on a batch in all its rotations; cross-entropy and accuracy."""
    pictures, labels = turned(image)

    def loss_of(params: Any) -> tuple[Array, tuple[Array, Any]]:
        logits, changed = network.apply(
            {"params": params, "batch_stats": state.statistics},
            pictures,
            is_training=True,
            mutable=["batch_stats"],
        )
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return entropy.mean(), (logits, changed["batch_stats"])

    (loss, (logits, statistics)), grads = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == labels)
    next_state = RotNetState(
        params=optax.apply_updates(state.params, changes),
        statistics=statistics,
        opt_state=opt_state,
    )
    return next_state, {"loss": loss, "accuracy": accuracy}


def convolutions_of(state: RotNetState) -> list[dict[str, np.ndarray]]:
    """The trunk as plain convolutions with bias: what `vgg16` computes with.

    Returns:
        "kernel" (3, 3, in, out) and "bias" (out,) of each, running statistics
        folded in.
    """
    params, statistics = jax.device_get((state.params, state.statistics))
    layers = []
    while f"conv{len(layers)}" in params:
        conv, norm = (params[f"{kind}{len(layers)}"] for kind in ("conv", "norm"))
        running = statistics[f"norm{len(layers)}"]
        kernel = conv["kernel"]
        layer = {"kernel": kernel, "bias": np.zeros(kernel.shape[-1], np.float32)}
        layers.append(
            vgg16_files.fold_batch_norm(
                layer, norm["scale"], norm["bias"], running["mean"], running["var"]
            )
        )
    return layers


def rotation_accuracy(
    state: RotNetState, dataset: Any, network: RotNet, *, batch_size: int
) -> float:
    """Share of a data set's images, in four rotations each, that is recognised."""

    @jax.jit
    def correct(state: RotNetState, image: Array) -> Array:
        pictures, labels = turned(image)
        variables = {"params": state.params, "batch_stats": state.statistics}
        logits = network.apply(variables, pictures, is_training=False)
        right = jnp.argmax(logits, axis=1) == labels  # pyright: ignore
        return right.reshape(TURNS, -1).sum(0)

    found, images = 0, 0
    for batch, real in pipeline.eval_batches(dataset, batch_size):
        found += int(correct(state, batch.image)[:real].sum())
        images += real
    return found / (TURNS * images)


def check_config(config: ConfigDict) -> None:
    """Checks section rotnet.

    Raises:
        UserError: naming the key.
    """
    options = config.rotnet
    if options.convolutions not in CONVOLUTIONS:
        allowed = ", ".join(map(str, CONVOLUTIONS))
        raise UserError(
            f"rotnet.convolutions must be one of {allowed}, got {options.convolutions}."
        )
    for name in ("steps", "batch_size"):
        if options[name] < 1:
            raise UserError(f"rotnet.{name} must be at least 1, got {options[name]}.")
    if options.learning_rate <= 0 or options.weight_decay < 0:
        raise UserError(
            "rotnet.learning_rate must be greater than 0 and rotnet.weight_decay 0 or "
            f"more, got {options.learning_rate} and {options.weight_decay}."
        )


def pretrain(
    config: ConfigDict, output: Path, splits: Any, *, interrupts: Interrupts
) -> dict:
    """Trains a RotNet on the images of a config's training split.

    Writes `output`, an .npz for `loss.perceptual_weights`, and beside it the
    log `<stem>.jsonl` and what was reached, `<stem>.json`. After a signal the
    weights of that moment are written; a run is not resumed.

    Args:
        config: sections data, rotnet, train.devices and seed.
        output: ends in .npz.
        splits: split name -> data set, as `train.lazy_splits`.
        interrupts: entered already.

    Returns:
        The record: "steps", "of", "train_accuracy", "val_accuracy" (chance: 0.25).

    Raises:
        UserError: for anything the user can fix.
    """
    check_config(config)
    if output.suffix != ".npz":
        raise UserError(f"--output: rotnet writes an .npz file, got {output}.")
    options = config.rotnet
    network = RotNet(options.convolutions)
    rate = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    optimizer = optax.chain(
        optax.add_decayed_weights(options.weight_decay),
        optax.sgd(rate, momentum=_MOMENTUM, nesterov=True),
    )
    data_config = config.copy_and_resolve_references()
    with data_config.unlocked():
        data_config.train.batch_size = options.batch_size
        data_config.model.supervision = "none"
        data_config.model.oracle_view = data_config.model.oracle_light = False
    source = pipeline.train_source(
        splits("train"), data_config, devices=jax.local_devices()[:1], seed=config.seed
    )
    size = config.data.image_size
    variables = jax.jit(functools.partial(network.init, is_training=False))(
        jax.random.key(config.seed), jnp.zeros((1, size, size, 3))
    )
    state = RotNetState(
        params=variables["params"],
        statistics=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
    )
    step_once = jax.jit(
        functools.partial(update, network=network, optimizer=optimizer),
        donate_argnums=0,
    )
    log = MetricsFile(output.with_suffix(".jsonl"))
    log.truncate(0)
    every = max(1, options.steps // _LOG_LINES)
    step, metrics, saved = 0, {}, False
    with interrupts.deferred(lambda: step > 0 and not saved):
        progress = Progress(options.steps, options.batch_size)
        while step < options.steps and not interrupts.requested:
            state, metrics = step_once(state, next(source).image[0])
            step += 1
            if step % every == 0 or step in (1, options.steps):
                line = {k: float(v) for k, v in metrics.items()}
                if not math.isfinite(line["loss"]):
                    raise UserError(
                        f"rotnet: the loss is not finite at step {step}; lower "
                        f"rotnet.learning_rate ({options.learning_rate})."
                    )
                log.append({"step": step, "split": "train", **line})
                progress.message(
                    f"rotnet step {step}/{options.steps}  loss {line['loss']:.3f}  "
                    f"accuracy {line['accuracy']:.3f}"
                )
        progress.close()
        # No further than the perceptual loss goes.
        kept = convolutions_of(state)[: vgg16.LAYERS["relu3_3"]]
        vgg16_files.save_vgg16(output, kept)
        saved = True
    record: dict[str, Any] = {
        "steps": step,
        "of": options.steps,
        "train_accuracy": float(metrics["accuracy"]) if metrics else None,
        "chance": 1 / TURNS,
        "convolutions": options.convolutions,
        "images": len(splits("train")),
    }
    is_whole = step == options.steps
    record["val_accuracy"] = (
        _val_accuracy(state, config, splits, network) if is_whole else None
    )
    write_atomically(output.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    say(f"rotnet: {_sentence(record)}; weights: {output}")
    return record


def _val_accuracy(
    state: RotNetState, config: ConfigDict, splits: Any, network: RotNet
) -> float | None:
    try:
        dataset = splits("val")
    except UserError:  # a folder without a validation split trains all the same
        return None
    batch_size = config.rotnet.batch_size
    return rotation_accuracy(state, dataset, network, batch_size=batch_size)


def _sentence(record: Mapping[str, Any]) -> str:
    shown = record["val_accuracy"]
    accuracy = "unknown" if shown is None else f"{shown:.3f}"
    return (
        f"{record['steps']} of {record['of']} steps, accuracy on the validation split "
        f"{accuracy} (chance {record['chance']})"
    )
