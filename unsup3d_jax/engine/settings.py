"""The sections of a config that the engine reads, whatever the method."""

from ml_collections import ConfigDict

from unsup3d_jax.configuration import need, need_least


def check(config: ConfigDict) -> None:
    """Checks what a run would otherwise trip over late.

    Raises:
        ValueError: naming the key, the value and what is allowed.
    """
    need(config, "seed", config.seed >= 0, "0 or more")
    known = config.train.nan in ("stop", "skip")
    need(config, "train.nan", known, "'stop' or 'skip'")
    need_least(config, "train", ("steps", "batch_size", "skips_in_a_row"), 1)
    need_least(config, "train", ("devices", "grad_norm_max", "rollbacks"), 0)
    need_least(config, "log", ("every", "picture_count"), 1)
    need_least(config, "log", ("picture_every",), 0)
    need_least(config, "checkpoint", ("every", "keep"), 1)
    positive = config.checkpoint.deadline > 0
    need(config, "checkpoint.deadline", positive, "greater than 0")
    need_least(config, "eval", ("every",), 0)


def check_optimizer(config: ConfigDict) -> None:
    """Checks what `optimizer` reads of section train.

    Raises:
        ValueError: naming the key, the value and what is allowed.
    """
    train = config.train
    known = train.optimizer in ("adam", "muon")
    need(config, "train.optimizer", known, "adam or muon")
    known = train.schedule in ("constant", "cosine")
    need(config, "train.schedule", known, "constant or cosine")
    need_least(config, "train", ("warmup_steps", "weight_decay", "clip_norm"), 0)
    need(config, "train.learning_rate", train.learning_rate > 0, "greater than 0")
    for name, scale in train.lr_scale.items():
        need(config, f"train.lr_scale.{name}", scale >= 0, "0 or more")
    share = train.constant_fraction
    need(config, "train.constant_fraction", 0 <= share <= 1, "between 0 and 1")
    for name in ("beta1", "beta2"):
        inside = 0 <= train[name] < 1
        need(config, f"train.{name}", inside, "at least 0 and below 1")
