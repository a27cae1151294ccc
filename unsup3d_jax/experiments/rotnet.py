"""Self-supervised VGG16: which way up is this image? (Gidaris et al., ICLR 2018)

A classifier of the four right-angle rotations has to know what objects look
like, and needs no labels. Its early layers replace ImageNet's in the perceptual
loss (Wu et al., CVPR 2020, Table 3, row 6). It is trained with batch
normalisation, which the stored convolutions contain, so that the file is an
ordinary VGG16 for `vgg16_files.load_vgg16`.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from unsup3d_jax.configs import default
from unsup3d_jax.configuration import changed, check_numbers, need
from unsup3d_jax.data.batches import eval_batches
from unsup3d_jax.data.source import train_source
from unsup3d_jax.engine import run
from unsup3d_jax.engine.log import MetricsFile, say
from unsup3d_jax.engine.task import (
    Identity,
    Session,
    State,
    StepContext,
    Task,
)
from unsup3d_jax.errors import UserError, refusing
from unsup3d_jax.files import write_atomically
from unsup3d_jax.nets import vgg16, vgg16_files
from unsup3d_jax.rasterizer.batching import like

# Whole blocks: where the trunk may end.
CONVOLUTIONS = (2, 4, 7, 10, 13)
SUFFIXES = (".safetensors", ".npz")  # of what is written
TURNS = 4
_MOMENTUM = 0.9  # of SGD, and of the running statistics
_LOG_LINES = 100
# What the method does with the images is no matter here; steps and images a step are
# among section rotnet's keys.
_OTHERS = ("model.", "view.", "depth.", "light.", "raster.", "loss.", "compat.")
IDENTITY = Identity(
    harmless=(*_OTHERS, "train.", "tables."),
    younger=default.YOUNGER,
    defaults=default.get_config,
)


class RotNet(nn.Module):
    """VGG16's trunk with batch normalisation, mean over pixels, four logits.

    Attributes:
        convolutions: how many of the trunk's 13 there are; one of `CONVOLUTIONS`.
        axis_name: of the devices that share a batch, whose statistics are common.
    """

    convolutions: int = 13
    axis_name: str | None = None

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
                axis_name=self.axis_name if is_training else None,
                name=f"norm{done}",
            )(x)
            x, done = nn.relu(x), done + 1
        return nn.Dense(TURNS, name="head")(x.mean((1, 2)))


def turned(
    image: Float[Array, "b h w 3"],
) -> tuple[Float[Array, "4*b h w 3"], Int[Array, "4*b"]]:
    """Every image in its four rotations, and how many quarter turns each made.

    Args:
        image: square.
    """
    turns = [jnp.rot90(image, k, axes=(1, 2)) for k in range(TURNS)]
    return jnp.concatenate(turns), jnp.repeat(jnp.arange(TURNS), len(image))


def init(
    key: Key[Array, ""],
    *,
    network: RotNet,
    optimizer: optax.GradientTransformation,
    image_size: int,
) -> State:
    """Parameters, running statistics and the optimizer's state."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = network.lazy_init(key, image, is_training=False)
    params = variables["params"]
    return {
        "params": params,
        "statistics": variables["batch_stats"],
        "opt_state": optimizer.init(params),
    }


def update(
    state: State,
    batch: Any,
    context: StepContext,
    *,
    network: RotNet,
    optimizer: optax.GradientTransformation,
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """One step on a batch in all its rotations; a `Task.step`.

    Returns:
        The next state; cross-entropy ("total") and accuracy over the whole batch.
    """
    axis_name = context.axis_name
    pictures, labels = turned(batch.image)
    network = network.clone(axis_name=axis_name)

    def loss_of(params: Any) -> tuple[Array, tuple[Array, Any]]:
        logits, changed = network.apply(
            {"params": params, "batch_stats": state["statistics"]},
            pictures,
            is_training=True,
            mutable=["batch_stats"],
        )
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return entropy.mean(), (logits, changed["batch_stats"])

    (loss, (logits, statistics)), grads = jax.value_and_grad(loss_of, has_aux=True)(
        like(state["params"], batch)  # see `gradient_step`
    )
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == labels)
    if axis_name is not None:  # the devices' batches are equally large
        loss, accuracy, grads = jax.lax.pmean((loss, accuracy, grads), axis_name)
    changes, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    next_state = {
        "params": optax.apply_updates(state["params"], changes),
        "statistics": statistics,
        "opt_state": opt_state,
    }
    metrics = {"total": loss, "accuracy": accuracy, "finite": jnp.isfinite(loss)}
    return next_state, metrics


def convolutions_of(state: State) -> list[dict[str, np.ndarray]]:
    """The trunk as plain convolutions with bias: what `vgg16` computes with.

    Returns:
        "kernel" (3, 3, in, out) and "bias" (out,) of each, running statistics
        folded in.
    """
    params, statistics = jax.device_get((state["params"], state["statistics"]))
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
    state: State, dataset: Any, network: RotNet, *, batch_size: int
) -> float:
    """Share of a data set's images, in four rotations each, that is recognised."""

    @jax.jit
    def correct(state: State, image: Array) -> Array:
        pictures, labels = turned(image)
        variables = {"params": state["params"], "batch_stats": state["statistics"]}
        logits = network.apply(variables, pictures, is_training=False)
        right = jnp.argmax(logits, axis=1) == labels  # pyright: ignore
        return right.reshape(TURNS, -1).sum(0)

    found, images = 0, 0
    for batch, real in eval_batches(dataset, batch_size):
        found += int(correct(state, batch.image)[:real].sum())
        images += real
    return found / (TURNS * images)


def check_config(config: ConfigDict) -> None:
    """Checks section rotnet, and every number.

    Raises:
        UserError: naming the key.
    """
    whole = config.rotnet.convolutions in CONVOLUTIONS
    rule = f"one of {', '.join(map(str, CONVOLUTIONS))}"
    with refusing():
        check_numbers(config, default.RANGES)
        need(config, "rotnet.convolutions", whole, rule)


def run_config(config: ConfigDict) -> ConfigDict:
    """The config of the training itself, as the engine reads one.

    Whatever does not decide what is learnt, such as the method's own schedule, is left
    as it is.
    """
    options = config.rotnet
    return changed(
        config,
        {
            "train.steps": options.steps,
            "train.batch_size": options.batch_size,
            "train.init_from": "",
            "log.every": max(1, options.steps // _LOG_LINES),
            "log.picture_every": 0,
            "eval.every": 0,
        },
    )


def make_task(session: Session) -> Task:
    """The classifier on the images of a session's training split."""
    config, options = session.config, session.config.rotnet
    network = RotNet(options.convolutions)
    rate = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    optimizer = optax.chain(
        optax.add_decayed_weights(options.weight_decay),
        optax.sgd(rate, momentum=_MOMENTUM, nesterov=True),
    )
    return Task(
        init=functools.partial(
            init,
            network=network,
            optimizer=optimizer,
            image_size=config.data.image_size,
        ),
        step=functools.partial(update, network=network, optimizer=optimizer),
        make_source=lambda devices: train_source(
            session.splits("train"),
            config,
            fields=("image",),
            devices=devices,
            seed=config.seed,
        ),
    )


def pretrain(session: Session, output: Path) -> dict:
    """Trains a RotNet on the images of a config's training split.

    The run itself lies in the folder `<output without suffix>` and is resumed like any
    other. Once it is finished, `output` is written, weights for
    `loss.perceptual_weights`, and beside it what was reached, `<stem>.json`.

    Args:
        session: its config's sections data, rotnet, train (devices, nan and the like),
            checkpoint and seed are read.
        output: ends in .safetensors, which also says where it comes from, or .npz.

    Returns:
        The record: "steps", "of", "train_accuracy", "val_accuracy" (chance: 0.25).
        After a signal "steps" is less than "of", and nothing is written.

    Raises:
        UserError: for anything the user can fix.
        Diverged: if the loss is not finite.
    """
    check_config(session.config)
    if output.suffix not in SUFFIXES:
        raise UserError(
            f"--output: rotnet writes a {' or '.join(SUFFIXES)} file, got {output}."
        )
    session = session.of(run_config(session.config))
    options = session.config.rotnet
    workdir = output.with_suffix("")

    def describe() -> str:
        return f"which way is up, {len(session.splits('train'))} images"

    plan = run.Plan(
        make_task=functools.partial(make_task, session),
        describe=describe,
        identity=IDENTITY,
        results=("params", "statistics"),
    )
    state, step = run.train(session, workdir, plan)
    record: dict[str, Any] = {
        "steps": step,
        "of": options.steps,
        "train_accuracy": _last_accuracy(workdir),
        "val_accuracy": None,
        "chance": 1 / TURNS,
        "convolutions": options.convolutions,
        "images": len(session.splits("train")),
    }
    if step < options.steps:
        say(
            f"rotnet: stopped at step {step} of {options.steps}, which is saved in "
            f"{workdir}; the same command goes on from there."
        )
        return record
    # No further than the perceptual loss goes.
    kept = convolutions_of(state)[: vgg16.LAYERS["relu3_3"]]
    record["val_accuracy"] = _val_accuracy(session, state)
    vgg16_files.save_vgg16(output, kept, origin=_origin(record, len(kept)))
    write_atomically(output.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    say(f"rotnet: {_sentence(record)}; weights: {output}")
    return record


def _origin(record: Mapping[str, Any], kept: int) -> dict[str, str]:
    """What the weights say about themselves: whose layers, and how they were learnt."""
    about = {
        "network": "VGG16",
        "layers": f"the first {kept} convolutions, batch normalisation folded in",
        "made_by": "unsup3d_jax --mode=rotnet (Gidaris et al., ICLR 2018)",
    }
    return about | {name: json.dumps(value) for name, value in record.items()}


def _last_accuracy(workdir: Path) -> float | None:
    """Of the last line of the log."""
    lines = MetricsFile(workdir / "metrics.jsonl").read()
    found = [line["accuracy"] for line in lines if line["split"] == "train"]
    return found[-1] if found else None


def _val_accuracy(session: Session, state: State) -> float | None:
    try:
        dataset = session.splits("val")
    except UserError:  # a folder without a validation split trains all the same
        return None
    options = session.config.rotnet
    network = RotNet(options.convolutions)
    return rotation_accuracy(state, dataset, network, batch_size=options.batch_size)


def _sentence(record: Mapping[str, Any]) -> str:
    shown = record["val_accuracy"]
    accuracy = "unknown" if shown is None else f"{shown:.3f}"
    return (
        f"{record['steps']} of {record['of']} steps, accuracy on the validation split "
        f"{accuracy} (chance {record['chance']})"
    )
