"""The command line, checked: flags, the config they change, and what a mode takes."""

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unsup3d_jax import configuration
from unsup3d_jax.errors import UserError

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"
# Several processes of one run; a mode takes all of them or none.
CLUSTER = ("distributed", "coordinator", "processes", "process")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line, checked.

    Attributes:
        mode: a mode of the config's method.
        config: resolved and locked.
        workdir: of the run; may not exist.
        checkpoint: a workdir or one checkpoint folder; None: the workdir's.
        input, output, sheet: files or folders.
        layout, split, near: of mode keypoints.
        dry_run: only say what a training would need.
        profile: trace these steps, (first, last).
        cluster: (coordinator, processes, process) of a run of several; each
            None is found in the environment. None: one process.
        given: the config's keys that the command line sets, "section.key".
    """

    mode: str
    config: ConfigDict
    workdir: Path
    checkpoint: Path | None = None
    input: Path | None = None
    output: Path | None = None
    sheet: Path | None = None
    layout: str | None = None
    split: str | None = None
    near: str | None = None
    dry_run: bool = False
    profile: tuple[int, int] | None = None
    cluster: tuple[str | None, int | None, int | None] | None = None
    given: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Mode:
    """What a method can be asked to do.

    Attributes:
        help: one line.
        run: (arguments, interrupts that are entered already) -> None. Imports what
            it needs itself, so that `--help` need not wait for JAX.
        flags: names of those it takes beside --config and --workdir.
        required: of these, the ones it cannot do without.
        keeps_compiled: whether its programs are worth keeping on disk.
    """

    help: str
    run: Callable[[Arguments, Any], None]
    flags: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    keeps_compiled: bool = True


@dataclasses.dataclass(frozen=True)
class Method:
    """A method, as the command line sees it.

    Attributes:
        default_config: every key it has, with its default.
        modes: by name; "train" is the default.
    """

    default_config: Callable[[], ConfigDict]
    modes: Mapping[str, Mode]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (--help lists the flags).")


def _parser(methods: Mapping[str, Method]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description="Unsupervised 3D shape from single images, in JAX.",
        epilog=(
            f"{_modes_text(methods)}\n\n"
            f"configs, in {CONFIG_FOLDER}:\n{_configs_text()}\n"
            "Every option is in configs/default.py; set one by "
            "--config.section.key=value,\n"
            'a tuple by --config.section.key="a,b" or "()".\n\n'
            "example:\n  python main.py --config=configs/quickstart.py "
            "--config.train.steps=100"
        ),
    )

    def used_by(flag: str) -> str:
        modes = {m: None for x in methods.values() for m in x.modes
                 if flag in x.modes[m].flags}  # fmt: skip
        return ", ".join(modes)

    parser.add_argument("--config", metavar="FILE", help="configs/NAME.py; required")
    parser.add_argument("--mode", default="train", metavar="MODE", help="see below")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/<config name>")
    for flag, metavar in (
        ("checkpoint", "DIR"),
        ("input", "FILE_OR_FOLDER"),
        ("output", "DIR_OR_FILE"),
        ("sheet", "FILE"),
        ("layout", "NAME"),
        ("split", "NAME"),
        ("near", "small|large"),
    ):
        parser.add_argument(f"--{flag}", metavar=metavar, help=used_by(flag))
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="train: print shapes, parameters, memory and time, and stop",
    )
    parser.add_argument(
        "--profile", metavar="FIRST,LAST", help="train: trace these steps"
    )
    several = parser.add_argument_group("several processes (docs/clusters.md)")
    several.add_argument(
        "--distributed",
        action="store_true",
        help="find the others by the environment: TPU pod, SLURM, Open MPI",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    several.add_argument("--processes", metavar="N", type=int)
    several.add_argument("--process", metavar="I", type=int, help="0 ... N - 1")
    return parser


def _modes_text(methods: Mapping[str, Method]) -> str:
    parts = []
    for name, method in methods.items():
        lines = [f"  {mode:12} {x.help}" for mode, x in method.modes.items()]
        parts.append(f"modes of method {name}:\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _configs_text() -> str:
    """The configs of each folder, those of sub-folders under its name."""
    folders = [CONFIG_FOLDER, *sorted(p for p in CONFIG_FOLDER.iterdir() if p.is_dir())]
    lines = []
    for folder in folders:
        prefix = "" if folder == CONFIG_FOLDER else f"{folder.name}/"
        names = sorted(
            prefix + p.stem
            for p in folder.glob("*.py")
            if "def get_config(" in p.read_text(encoding="utf-8")
        )
        if names:
            lines.append("  " + ", ".join(names))
    return "\n".join(lines)


def parse(argv: Sequence[str], methods: Mapping[str, Method]) -> Arguments:
    """Reads a command line.

    Args:
        argv: with the program's name first.
        methods: by the name that a config's key "method" has.

    Raises:
        UserError: for whatever is wrong with it.
    """
    flags, rest = _parser(methods).parse_known_args(_joined(list(argv[1:])))
    every_mode = {mode: None for x in methods.values() for mode in x.modes}
    if flags.mode not in every_mode:
        raise UserError(
            f"--mode={flags.mode}: expected one of {', '.join(every_mode)}."
        )
    if not flags.config:
        raise UserError(
            f"--config=configs/NAME.py is missing; the configs are in {CONFIG_FOLDER}."
        )
    defaults = {name: method.default_config for name, method in methods.items()}
    config = configuration.load(Path(flags.config), defaults, folder=CONFIG_FOLDER)
    given = set()
    for argument in rest:
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise UserError(f"unknown argument {argument!r} (--help lists the flags).")
        if key == "method":
            raise UserError("--config.method: a config file has one method; use "
                            "another file.")  # fmt: skip
        configuration.override(config, key, text)
        given.add(key)
    config.lock()
    modes = methods[config.method].modes
    if flags.mode not in modes:
        raise UserError(
            f"--mode={flags.mode}: the method {config.method} of {flags.config} has "
            f"{', '.join(modes)}."
        )
    _check_flags(flags, modes)

    _check_places(flags, config)

    def path(text: str | None) -> Path | None:
        return Path(text).expanduser() if text else None

    return Arguments(
        mode=flags.mode,
        config=config,
        workdir=path(flags.workdir) or Path("runs") / config.name,
        checkpoint=path(flags.checkpoint),
        input=path(flags.input),
        output=path(flags.output),
        sheet=path(flags.sheet),
        layout=flags.layout,
        split=flags.split,
        near=flags.near,
        dry_run=flags.dry_run,
        profile=_profile_steps(flags.profile),
        cluster=_cluster(flags),
        given=frozenset(given),
    )


def _check_places(flags: argparse.Namespace, config: ConfigDict) -> None:
    """Refuses gs://bucket/run and the like, of which Path makes a folder "gs:".

    Of every flag and every key: none has an address for a value.
    """
    keys = configuration.flatten(config.to_dict())
    named = {f"--{name}": value for name, value in vars(flags).items()}
    named |= {f"--config.{key}": value for key, value in keys.items()}
    for name, value in named.items():
        if isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", value):
            raise UserError(
                f"{name}={value}: only folders and files of this machine are read and "
                "written; mount a bucket (gcsfuse, s3fs), or copy."
            )


def _check_flags(flags: argparse.Namespace, modes: Mapping[str, Mode]) -> None:
    """Refuses a flag that the mode would ignore, and a mode that lacks one."""
    mode = modes[flags.mode]
    for name, value in vars(flags).items():
        if name in ("config", "mode", "workdir") or value in (None, False):
            continue
        if name not in mode.flags:
            others = [m for m, x in modes.items() if name in x.flags]
            raise UserError(
                f"--{name} belongs to --mode={' or '.join(others)}, not {flags.mode}."
            )
    if any(not getattr(flags, name) for name in mode.required):
        wanted = " and ".join(f"--{name}=..." for name in mode.required)
        raise UserError(f"--mode={flags.mode} needs {wanted} (--help tells what).")


def _profile_steps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) == 2 and all(part.strip().isdigit() for part in parts):
        first, last = map(int, parts)
        if 1 <= first <= last:
            return first, last
    raise UserError(f"--profile={text}: expected FIRST,LAST with 1 <= FIRST <= LAST.")


def _cluster(
    flags: argparse.Namespace,
) -> tuple[str | None, int | None, int | None] | None:
    given = (flags.coordinator, flags.processes, flags.process)
    if flags.distributed:
        return given
    if all(value is None for value in given):
        return None
    if any(value is None for value in given):
        raise UserError(
            "--coordinator, --processes and --process go together; --distributed "
            "finds what is left out by the environment."
        )
    host, _, port = flags.coordinator.rpartition(":")
    valid = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16
    if not (0 <= flags.process < flags.processes and host and valid):
        raise UserError(
            "need --coordinator=HOST:PORT, a port from 1 to 65535, and 0 <= --process "
            "< --processes, got "
            f"{flags.coordinator}, {flags.process}, {flags.processes}."
        )
    return given


def _joined(argv: list[str]) -> list[str]:
    """`--config.key value` as `--config.key=value`, as other flags allow."""
    result: list[str] = []
    for argument in argv:
        previous = result[-1] if result else ""
        waits = previous.startswith("--config.") and "=" not in previous
        if waits and not argument.startswith("--"):
            result[-1] = f"{previous}={argument}"
        else:
            result.append(argument)
    return result


def command() -> str:
    """The command that runs this program again, for people."""
    return shlex.join(["python", *sys.argv])
