"""Where the packages lie; all else is in pyproject.toml.

`configs/` and `rasterizer/` go into the package: unsup3d_jax/checkout.py tells why.
"""

from setuptools import find_packages, setup

BESIDE = ("configs", "rasterizer")

setup(
    packages=find_packages(include=["unsup3d_jax", "unsup3d_jax.*"])
    + [
        f"unsup3d_jax.{name}"
        for name in find_packages(include=[y for x in BESIDE for y in (x, f"{x}.*")])
    ],
    package_dir={f"unsup3d_jax.{name}": name for name in BESIDE},
)
