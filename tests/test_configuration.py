"""Values of a config: each number's range, whichever way the value comes."""

import json
import math
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from unsup3d_jax import cli, configuration, flags
from unsup3d_jax.configuration import flatten
from unsup3d_jax.data.source import batch_flips, batch_order
from unsup3d_jax.engine.task import run_keys
from unsup3d_jax.errors import UserError

METHODS = {name: method.keys for name, method in cli.METHODS.items()}
NUMBERS = [(name, key) for name, keys in METHODS.items() for key in keys.ranges]
# As a command line, a Python file or JSON can have them.
ODD = (
    *(math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-320, 1e30, -1, -1.5),
    *(0, 2**31, 2**32, 2**63, -(2**63), 10**400, 10**5000),
)
STEPS = "expected an integer from 1 to 2147483647."


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lies_in(value, limits) -> bool:
    parts = value if isinstance(value, tuple) else [value]
    return all(math.isfinite(x) and limits[0] <= x <= limits[1] for x in parts)


@pytest.mark.parametrize("method", METHODS)
def test_every_number_of_a_method_has_a_range(method):
    keys = METHODS[method]
    values = {
        key: value
        for key, value in flatten(keys.defaults().to_dict()).items()
        if all(map(_is_number, value if isinstance(value, list) else [value]))
    }
    assert values.keys() == keys.ranges.keys()
    for key, (least, most) in keys.ranges.items():
        assert math.isfinite(least) and math.isfinite(most) and least < most
        whole = not isinstance(values[key], float)
        assert not whole or isinstance(least, int) and isinstance(most, int), key
    configuration.check_numbers(keys.defaults(), keys.ranges)
    assert keys.younger.keys() <= flatten(keys.defaults().to_dict()).keys()


def _texts(value) -> list[str]:
    try:
        return [repr(value)]
    except ValueError:  # Python writes no more than 4300 digits
        return ["9" * 5000, "1" + "0" * 5000 + ".0"]


def test_an_odd_number_on_the_command_line_is_refused_by_name():
    accepted = 0
    texts = [text for value in ODD for text in _texts(value)]
    configs = {name: keys.defaults() for name, keys in METHODS.items()}
    for method, key in NUMBERS:
        keys = METHODS[method]
        for text in texts:
            config = configs[method]
            try:
                configuration.override(config, key, text, keys.ranges)
            except UserError as error:
                words = rf"--config\.{re.escape(key)}=\S+: expected .* from \S+ to \S+"
                assert re.fullmatch(words, str(error)) and len(str(error)) < 250
                continue
            *sections, name = key.split(".")
            for section in sections:
                config = config[section]
            assert _lies_in(config[name], keys.ranges[key]), (key, text)
            accepted += 1
    assert accepted  # 0 is no odd number of most keys


@pytest.mark.once
def test_an_odd_number_of_a_run_is_refused_by_name(tmp_path):
    path = tmp_path / "config.json"
    odd = [x for x in ODD if len(_texts(x)) == 1]
    for place_of_key, (method, key) in enumerate(NUMBERS):
        keys = METHODS[method]
        # Reading a whole config takes time: each key meets every fourth value.
        for value in odd[place_of_key % 4 :: 4]:
            *sections, name = key.split(".")
            tree = place = json.loads(json.dumps(keys.defaults().to_dict()))
            for section in sections:
                place = place[section]
            place[name] = [value] if isinstance(place[name], list) else value
            path.write_text(json.dumps({"config": tree}))
            try:
                config = configuration.of_run(path, METHODS)
                configuration.check_numbers(config, keys.ranges)
            except (UserError, ValueError) as error:
                assert f"{key} must be a" in str(error) and " from " in str(error)
                continue
            found = flatten(config.to_dict())[key]
            assert _lies_in(found, keys.ranges[key]) if _is_number(found) else True


@pytest.mark.parametrize(
    "key, text, words",
    [
        ("train.steps", "1e300", STEPS),
        ("train.steps", "0", STEPS),
        ("train.learning_rate", "nan", "expected a number from 1e-12 to 10."),
        ("seed", str(2**63), "expected an integer from 0 to 4294967295."),
        ("raster.supersample", "1000", "expected an integer from 1 to 16."),
        ("raster.sigma", "1e-40", "expected a number from 0 to 1000."),
        ("data.workers", "-1", "expected an integer from 0 to 1024."),
        ("data.flip", "2", "expected true or false."),
        (
            "data.crop",
            "(1,2,-3,4)",
            "expected a tuple; each element an integer from 0 to 1000000.",
        ),
    ],
)
def test_what_is_said(key, text, words):
    with pytest.raises(UserError) as error:
        configuration.override(default.get_config(), key, text, default.RANGES)
    assert str(error.value) == f"--config.{key}={text}: {words}"


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_a_seed_in_its_range_is_one_of_its_own(seed):
    keys = jax.random.key_data(run_keys(seed)[0])
    others = [run_keys(other)[0] for other in (2, 2**31 - 1, 2**32 - 2)]
    assert not any(np.array_equal(keys, jax.random.key_data(x)) for x in others)
    assert batch_flips(seed, 3, 8).shape == (8,)
    assert sorted(batch_order(9, seed)[i] for i in range(9)) == list(range(9))


def test_jax_does_not_tell_larger_seeds_apart():
    """Why the range ends there."""
    large, small = (jax.random.key_data(jax.random.key(x)) for x in (2**32 + 5, 5))
    np.testing.assert_array_equal(large, small)


FILE = "from configs import default\ndef get_config():\n    c = default.get_config()\n"


@pytest.mark.parametrize(
    "lines, words",
    [
        (
            "c.train.steps = 0",
            "mine.py: train.steps must be an integer from 1 to 2147483647, got 0.",
        ),
        ("c.train.learning_rate = float('inf')", "from 1e-12 to 10, got inf."),
        (
            "c.depth.bump_height = float('nan')",
            "depth.bump_height must be a number from -100 to 100, got",
        ),
        (
            "c.train.steps = None",
            "train.steps must be an integer from 1 to 2147483647, got None.",
        ),
        ("c.data.crop = ('a',)", "data.crop must be a tuple; each element an integer"),
        ("c.data.path = None", "data.path must be a text, got None."),
        (
            "from ml_collections import ConfigDict\n"
            "    c = ConfigDict({'method': ['unsup3d']})",
            "method ['unsup3d'], expected one of unsup3d",
        ),
        ("import sys; sys.exit(0)", "mine.py failed: SystemExit: 0"),
        ("class X(BaseException): pass\n    raise X('odd')", "mine.py failed: X: odd"),
        ("c.data.path = 'a\\0b'", "no file can have such a name"),
        ("c.data.path = 'x' * 5000", "data.path=xxx"),
        ("c.name = 'x' * 300", "File name too long"),
        ("c = c.to_dict()", "no ConfigDict"),
        ("c = c.train", "method None, expected one of unsup3d"),
        ("c.train = 5", "failed: TypeError"),
        ("c = default", "no ConfigDict"),
    ],
)
def test_a_file_is_checked_as_the_command_line_is(lines, words, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(f"{FILE}    {lines}\n    return c\n")
    assert cli.main(["main.py", f"--config={path}"]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("error: ") and out == ""
    assert words in err and len(err) < 400


def test_a_file_may_raise_what_ctrl_c_raises(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    raise KeyboardInterrupt\n")
    assert cli.main(["main.py", f"--config={path}"]) == 130
    assert capsys.readouterr().err == "aborted.\n"


def test_the_command_line_mends_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"{FILE}    c.train.steps = 0\n    return c\n")
    given = ["main.py", f"--config={path}", "--config.train.steps=7"]
    assert flags.parse(given, cli.METHODS).config.train.steps == 7


def test_a_frozen_config_is_one_too(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"{FILE}    from ml_collections import FrozenConfigDict\n"
                    "    return FrozenConfigDict(c)\n")  # fmt: skip
    given = ["main.py", f"--config={path}", "--config.train.steps=7"]
    config = flags.parse(given, cli.METHODS).config
    assert config.train.steps == 7
    assert type(config) is ConfigDict and type(config.train.lr_scale) is ConfigDict


LONG = "x" * 300


@pytest.mark.parametrize(
    "given",
    [
        ["--workdir={}"],
        ["--config={}"],
        ["--config.data.path={}"],
        ["--config.name={}"],
        ["--config.data.cache_dir={}"],
        ["--mode=eval", "--checkpoint={}"],
        ["--mode=reconstruct", "--output=o", "--input={}"],
        ["--mode=reconstruct", "--input=i", "--output={}"],
        ["--mode=keypoints", "--input=i", "--sheet={}"],
    ],
)
@pytest.mark.parametrize("name", [LONG, f"a/{LONG}/b", "y/" * 3000, "a\0b"])
def test_a_name_that_no_file_can_have_is_one_line(given, name, capsys):
    config = (
        [] if "--config={}" in given else [f"--config={flags.CONFIG_FOLDER}/folder.py"]
    )
    given = [text.format(name) for text in given]
    assert cli.main(["main.py", *config, *given]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and len(err) < 250
    flag = given[-1].split("=")[0]
    assert err.startswith(f"error: {flag}=")
    assert ("can have such a name" if "\0" in name else "File name too long") in err
