"""A config: loaded from a file or a run, changed by name, compared, its values checked.

Needs the standard library and ml_collections only, and NumPy for a file of weights: a
misspelt key is named at once, without waiting for JAX.
"""

import ast
import dataclasses
import difflib
import functools
import importlib.util
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unsup3d_jax.errors import UserError, one_line

# The least and the greatest value of a key, both included; of a tuple's elements.
Range = tuple[float, float]
# What a file of weights says of itself: the name of an array that holds a JSON text.
ABOUT = "about"
_MOST_ABOUT = 2**22  # bytes; ours have some ten thousands
# Nearer to 0 float32 has fewer digits, and devices take the number for 0.
_LEAST_FLOAT32 = 2.0**-126


@dataclasses.dataclass(frozen=True)
class Keys:
    """What a method's configs hold.

    Attributes:
        defaults: -> every key, with its default.
        ranges: of every key that holds a number, or a tuple of numbers.
        younger: keys that some runs are older than, and the value that means what was
            done then. Another key that a run has not has its default.
    """

    defaults: Callable[[], ConfigDict]
    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    younger: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# --- where it is from ---------------------------------------------------------------


def names(folder: Path) -> list[str]:
    """What the configs in a folder are called: "celeba", "gan2shape/faces"."""
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix()
        for path in folder.rglob("*.py")
        if "def get_config(" in path.read_text(encoding="utf-8")
    )


def find(text: str, folder: Path) -> Path:
    """The file that --config means: one of the user's, or the project's of a name.

    A path as in a checkout, configs/NAME.py, is a name where there is no such file.

    Args:
        folder: where the project's configs are.

    Raises:
        UserError: if there is neither; it lists the names, the nearest first.
    """
    path = Path(text).expanduser()
    # isfile, which is False for a folder that is closed, too
    if path.suffix == ".py" and os.path.isfile(path):
        return path
    name = path.as_posix().removeprefix("configs/").removesuffix(".py")
    known = names(folder)
    if name in known:
        return folder / f"{name}.py"
    if os.path.isfile(path):
        return path
    last = name.rpartition("/")[2]
    near = [x for x in known if last in x.split("/")][:3]
    near += difflib.get_close_matches(name, known, n=3)
    near = list(dict.fromkeys(near))  # each once
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    others = ", ".join(x for x in known if x not in near)
    raise UserError(
        f"--config: no file {shown(str(path))}, and no config has this name; {hint}"
        f"There are {'also ' if near else ''}{others}."
    )


def load(path: Path, methods: Mapping[str, Keys]) -> ConfigDict:
    """Runs `get_config()` of a config file.

    Args:
        methods: the file's key "method" chooses one of them; it may not add keys to
            it, nor leave any out.

    Raises:
        UserError: if the file fails, or has other keys, or values of another type.
            Ranges are not checked yet: the command line may mend them.
    """
    spec = importlib.util.spec_from_file_location("_user_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
        is_config = isinstance(config, ConfigDict)
        values = flatten(config.to_dict()) if is_config else {}
    except BaseException as error:  # whatever a user's file may raise, or sys.exit
        # Ctrl-C and our `Interrupted`, which may come just now, are not the file's.
        ours = type(error).__module__.startswith("unsup3d_jax.")
        if isinstance(error, KeyboardInterrupt) or ours:
            raise
        # There is one beside main.py only.
        is_short = isinstance(error, ModuleNotFoundError) and error.name == "configs"
        hint = "; write `from unsup3d_jax.configs import ...`." if is_short else ""
        raise UserError(
            f"--config: {path} failed: {type(error).__name__}: {one_line(error)}{hint}"
        ) from error
    if not is_config:
        raise UserError(f"--config: get_config() of {path} returns no ConfigDict.")
    where = f"--config: {path}"
    method = _method_of(values.get("method"), methods, where)
    known = set(keys(methods[method].defaults()))
    if odd := sorted(known ^ values.keys()):
        what = "unknown" if odd[0] in values else "missing"
        raise UserError(f"{where} has {what} key {odd[0]!r}.")
    return _filled(methods[method], values, where)


def recorded(path: Path) -> dict[str, Any] | None:
    """What a config.json of a run holds; None if it is torn or something else."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    is_one = isinstance(record, dict) and isinstance(record.get("config"), dict)
    return record if is_one else None


def record_beside(place: Path) -> Path | None:
    """The config.json of a workdir, or of one `checkpoints/<step>` folder in it.

    None where there is none. Folders above are looked into for a checkpoint alone:
    what lies above a workdir is somebody else's.
    """
    folders = [place]
    if place.name.isdigit():
        folders += list(place.resolve().parents)[:2]
    paths = (folder / "config.json" for folder in folders)
    return next((path for path in paths if os.path.isfile(path)), None)


def of_run(path: Path, methods: Mapping[str, Keys]) -> ConfigDict:
    """The config of a run, as its config.json records it.

    Keys that are younger than the run have the value that means what was done then;
    those that no longer exist are left out.

    Raises:
        UserError: if the file is no run's, or a value has another type than its key.
    """
    record = recorded(path)
    if record is None:
        raise UserError(
            f"{path} is not the config of a run, so that nobody knows what the "
            "checkpoints beside it are of. Remove it to use them all the same, with "
            "the --config they were trained with."
        )
    values = flatten(record["config"])
    # The key "method" itself is younger than some runs.
    first = [name for name, kind in methods.items() if kind.younger.get("method")]
    method = values.get("method", *first[:1])
    return _of_then(values | {"method": method}, methods, str(path))


def of_weights(path: Path, methods: Mapping[str, Keys]) -> ConfigDict:
    """The config that a file of weights (`engine.half_precision`) was trained with.

    It is called as the file is. Keys are filled as in `of_run`.

    Raises:
        UserError: if the file is none, or a value has another type than its key.
    """
    about = about_weights(path)
    # Those that ship for one config alone do not say the rest of it.
    if about is None or not isinstance(about.get("config"), dict):
        raise UserError(f"--weights: {path} is no file of weights with their config.")
    values = {**about["config"], **about["keys"], "name": path.stem}
    return _of_then(values, methods, str(path))


def about_weights(path: Path) -> dict[str, Any] | None:
    """What a file of weights says of itself; None if it is something else.

    Nothing in it is executed, and little of it is read.
    """
    import numpy as np  # not for a `--help`

    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{ABOUT}.npy")
            if member.file_size > _MOST_ABOUT:
                return None
            with archive.open(member) as file:
                text = np.lib.format.read_array(file, allow_pickle=False)
        about = json.loads(str(text))
    except Exception:  # whatever a stranger's file leads numpy and zipfile to
        return None
    sound = isinstance(about, dict) and isinstance(about.get("keys"), dict)
    return about if sound else None


def _of_then(
    values: Mapping[str, Any], methods: Mapping[str, Keys], where: str
) -> ConfigDict:
    """A config of keys that were there then, and the rest as it was then."""
    kind = methods[_method_of(values.get("method"), methods, where)]
    known = set(keys(kind.defaults()))
    then = dict(kind.younger) | {k: v for k, v in values.items() if k in known}
    return _filled(kind, then, where)


def _method_of(method: Any, methods: Mapping[str, Keys], where: str) -> str:
    if isinstance(method, str) and method in methods:
        return method
    raise UserError(
        f"{where} has method {shown(repr(method))}, expected one of "
        f"{', '.join(methods)}."
    )


def _filled(kind: Keys, values: Mapping[str, Any], where: str) -> ConfigDict:
    """The defaults with other values, each of the type that its key has.

    Raises:
        UserError: naming the key and the type.
    """
    config = kind.defaults()
    for key, value in values.items():
        section, name = _place(config, key)
        try:
            section[name] = _fitting(value, section[name])
        except ValueError as error:
            limits = kind.ranges.get(key)
            what = _expected(section[name], limits) if limits else str(error)
            raise UserError(
                f"{where}: {key} must be {what}, got {shown(value)}."
            ) from None
    return config


# --- by name ------------------------------------------------------------------------


def _place(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The section of a key, and its name in it."""
    *sections, name = key.split(".")
    return functools.reduce(lambda part, s: part[s], sections, config), name


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
            place, name = _place(result, key)
            place[name] = tuple(value) if isinstance(value, list) else value
    return result


# --- values -------------------------------------------------------------------------


def need(config: ConfigDict, key: str, allowed: bool, rule: str) -> None:
    """Refuses the value of a key, such as "depth.min", unless it is allowed.

    For what a key has to do with others, and for words. Ranges are `check_numbers`'.

    Raises:
        ValueError: naming the key, the rule ("greater than depth.min") and the value.
    """
    if not allowed:
        section, name = _place(config, key)
        raise ValueError(f"{key} must be {rule}, got {section[name]!r}.")


def check_numbers(config: ConfigDict, ranges: Mapping[str, Range]) -> None:
    """Refuses numbers that are not finite or outside of their key's range.

    Raises:
        ValueError: naming the key, its value and its range.
    """
    for key, limits in ranges.items():
        section, name = _place(config, key)
        value = section[name]
        try:
            _fitting(value, value, limits)
        except ValueError as error:
            raise ValueError(f"{key} must be {error}, got {shown(value)}.") from None


def _expected(old: Any, limits: Range | None) -> str:
    """What a key of the type of `old` takes: "an integer from 1 to 100"."""
    if isinstance(old, bool):
        return "true or false"
    if isinstance(old, str):
        return "a text"
    if isinstance(old, tuple):
        return f"a tuple; each element {_expected(old[0] if old else 0, limits)}"
    kind = "a number" if isinstance(old, float) else "an integer"
    if limits is None:
        return kind
    least, most = (f"{x:.7g}" if isinstance(x, float) else str(x) for x in limits)
    return f"{kind} from {least} to {most}"


def _fitting(value: Any, old: Any, limits: Range | None = None) -> Any:
    """A value as the type that the key has: integers as floats, lists as tuples.

    Args:
        old: the key's present value; an empty tuple's elements are integers.

    Raises:
        ValueError: saying what was expected.
    """
    if isinstance(old, tuple) and isinstance(value, tuple | list):
        element = old[0] if old else 0
        try:
            return tuple(_fitting(part, element, limits) for part in value)
        except ValueError as error:
            raise ValueError(f"a tuple; each element {error}") from None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(old, float) and is_number:
        try:
            value = float(value)
        except OverflowError:
            raise ValueError(_expected(old, limits)) from None
    if type(value) is not type(old) or isinstance(old, tuple):
        raise ValueError(_expected(old, limits))
    if limits is not None:
        inside = is_number and limits[0] <= value <= limits[1]  # not NaN
        if not inside or 0 < abs(value) < _LEAST_FLOAT32:
            raise ValueError(_expected(old, limits))
    return value


def shown(value: Any, most: int = 60) -> str:
    """A value in a message: a number may have thousands of digits."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # more digits than Python turns into text
        text = "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}..."


def parse_value(text: str, old: Any, limits: Range | None = None) -> Any:
    """Reads a flag's value as the type that the key has.

    Integers are taken for floats, "1e5" for an integer. A tuple is a list with
    or without brackets; its elements have the type of the old elements, and an
    empty tuple's are integers.

    Args:
        limits: of a number, or of the elements of a tuple.

    Raises:
        ValueError: saying what was expected.
    """
    if isinstance(old, str):
        return text
    if isinstance(old, tuple):
        inner = text.strip().removeprefix("(").removesuffix(")")
        parts = [part.strip() for part in inner.split(",")]
        element = old[0] if old else 0
        try:
            return tuple(parse_value(_unquoted(p), element, limits) for p in parts if p)
        except (ValueError, SyntaxError):
            raise ValueError(_expected(old, limits)) from None
    try:
        return _fitting(_scalar(text, old), old, limits)
    except (KeyError, ValueError, OverflowError):
        raise ValueError(_expected(old, limits)) from None


def _scalar(text: str, old: bool | float) -> bool | float:
    if isinstance(old, bool):
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if isinstance(old, float):
        return float(text)
    if text.lstrip("+-").isdigit():
        return int(text)
    number = float(text)
    if number != int(number):
        raise ValueError
    return int(number)


def _unquoted(text: str) -> str:
    return str(ast.literal_eval(text)) if text[:1] in "'\"" else text


def override(config: ConfigDict, key: str, text: str, ranges: Mapping[str, Range]):
    """Sets one key, named as on the command line, in place.

    Raises:
        UserError: if the key is unknown, or the value has another type or is out of
            the key's range.
    """
    section, value = config, config
    for name in key.split("."):
        if not isinstance(value, ConfigDict) or name not in value:
            near = difflib.get_close_matches(key, keys(config), n=1, cutoff=0.6)
            hint = (
                f"; did you mean {near[0]!r}?"
                if near
                else "; --help tells where they are explained."
            )
            raise UserError(f"--config.{shown(key)}: no such key{hint}")
        section, value = value, value[name]
    if isinstance(value, ConfigDict):
        raise UserError(f"--config.{key} is a section; set one of its keys.")
    try:
        found = parse_value(text, value, ranges.get(key))
    except ValueError as error:
        raise UserError(f"--config.{key}={shown(text)}: expected {error}.") from None
    section[key.rsplit(".", 1)[-1]] = found
