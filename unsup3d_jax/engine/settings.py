"""The sections of a config that the engine reads, whatever the method."""

from ml_collections import ConfigDict

from unsup3d_jax.configuration import need


def check(config: ConfigDict) -> None:
    """Checks the words that a run would otherwise trip over late.

    Numbers have their ranges (`configuration.check_numbers`).

    Raises:
        ValueError: naming the key, the value and what is allowed.
    """
    train = config.train
    known = train.nan in ("stop", "skip")
    need(config, "train.nan", known, "'stop' or 'skip'")
    known = train.optimizer in ("adam", "muon", "sgd")
    need(config, "train.optimizer", known, "adam, muon or sgd")
    known = train.schedule in ("constant", "cosine")
    need(config, "train.schedule", known, "constant or cosine")
