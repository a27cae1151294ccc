"""A config: loaded from a file, changed by name, compared, its values checked.

Needs the standard library and ml_collections only: a misspelt key is named at once,
without waiting for JAX.
"""

import ast
import difflib
import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unsup3d_jax.errors import UserError, one_line

# name of a method -> its full configuration, every key with its default.
Defaults = Mapping[str, Callable[[], ConfigDict]]


def load(path: Path, defaults: Defaults, *, folder: Path) -> ConfigDict:
    """Runs `get_config()` of a config file.

    Args:
        defaults: the file's key "method" chooses one of them; it may not add keys to
            it, nor leave any out.
        folder: where the project's configs are, for hints.

    Raises:
        UserError: if the file is missing, fails, or has other keys.
    """
    if not path.is_file():
        near = folder / f"{path.stem}.py"
        hint = f"; did you mean {near}?" if near.is_file() else "."
        raise UserError(f"--config: no file {path}{hint}")
    spec = importlib.util.spec_from_file_location("_user_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever a user's file may raise
        raise UserError(
            f"--config: {path} failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config() of {path} returns no ConfigDict.")
    method = config.get("method", None)
    if method not in defaults:
        raise UserError(
            f"--config: {path} has method {method!r}, expected one of "
            f"{', '.join(defaults)}."
        )
    known, given = set(keys(defaults[method]())), set(keys(config))
    if odd := sorted(known ^ given):
        what = "unknown" if odd[0] in given else "missing"
        raise UserError(f"--config: {path} has {what} key {odd[0]!r}.")
    return config


def keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """The names of all keys, "section.key", in the config's order."""
    found = []
    for name, value in config.items():
        nested = isinstance(value, ConfigDict)
        found += keys(value, f"{prefix}{name}.") if nested else [prefix + name]
    return found


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; tuples become lists, as JSON has them."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy with other values of some keys, named "section.key".

    Lists, as JSON has them, become the tuples that configs hold. The copy is locked
    where the config was.
    """
    result = config.copy_and_resolve_references()
    with result.unlocked():
        for key, value in changes.items():
            *sections, name = key.split(".")
            place = functools.reduce(lambda c, s: c[s], sections, result)
            place[name] = tuple(value) if isinstance(value, list) else value
    return result


def need(config: ConfigDict, key: str, allowed: bool, rule: str) -> None:
    """Refuses the value of a key, such as "depth.min", unless it is allowed.

    Raises:
        ValueError: naming the key, the rule ("greater than 0") and the value.
    """
    if not allowed:
        value = functools.reduce(lambda part, name: part[name], key.split("."), config)
        raise ValueError(f"{key} must be {rule}, got {value!r}.")


def need_least(config: ConfigDict, section: str, names: Iterable[str], least: int):
    """Refuses values of a section's keys that are below `least`, 0 or 1.

    Raises:
        ValueError: as `need`.
    """
    rule = "0 or more" if least == 0 else f"at least {least}"
    for name in names:
        need(config, f"{section}.{name}", config[section][name] >= least, rule)


def parse_value(text: str, old: Any) -> Any:
    """Reads a flag's value as the type that the key has.

    Integers are taken for floats, "1e5" for an integer. A tuple is a list with
    or without brackets; its elements have the type of the old elements, and an
    empty tuple's are integers.

    Raises:
        ValueError: saying what was expected.
    """
    if isinstance(old, bool):
        values = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in values:
            raise ValueError("true or false")
        return values[text.lower()]
    if isinstance(old, str):
        return text
    if isinstance(old, tuple):
        inner = text.strip().removeprefix("(").removesuffix(")")
        parts = [part.strip() for part in inner.split(",")]
        element = old[0] if old else 0
        try:
            return tuple(parse_value(_unquoted(p), element) for p in parts if p)
        except ValueError as error:
            raise ValueError(f"a tuple; each element {error}") from None
    try:
        number = float(text)
        if isinstance(old, float):
            return number
        return int(text) if text.lstrip("+-").isdigit() else _whole(number)
    except (ValueError, OverflowError):
        kind = "a number" if isinstance(old, float) else "an integer"
        raise ValueError(kind) from None


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError
    return int(number)


def _unquoted(text: str) -> str:
    return str(ast.literal_eval(text)) if text[:1] in "'\"" else text


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets one key, named as on the command line, in place.

    Raises:
        UserError: if the key is unknown or the value has another type.
    """
    section, value = config, config
    for name in key.split("."):
        if not isinstance(value, ConfigDict) or name not in value:
            near = difflib.get_close_matches(key, keys(config), n=1, cutoff=0.6)
            hint = (
                f"; did you mean {near[0]!r}?" if near else "; see configs/default.py."
            )
            raise UserError(f"--config.{key}: no such key{hint}")
        section, value = value, value[name]
    if isinstance(value, ConfigDict):
        raise UserError(f"--config.{key} is a section; set one of its keys.")
    try:
        section[key.rsplit(".", 1)[-1]] = parse_value(text, value)
    except (ValueError, SyntaxError) as error:
        raise UserError(f"--config.{key}: expected {error}, got {text!r}.") from None
