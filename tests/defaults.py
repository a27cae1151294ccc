"""The options that `configs/default.py` gives, with a few changed."""

from configs import default
from unsup3d_jax.unsup3d.options import ModelOptions, options_from_config


def options(**changes) -> ModelOptions:
    """Of the default config, with keys such as raster__supersample=1."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return options_from_config(config)
