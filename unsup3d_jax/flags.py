"""The command line, checked: flags, the config they change, and what a mode takes."""

import argparse
import dataclasses
import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unsup3d_jax import checkout, configuration
from unsup3d_jax.errors import UserError, refusing

CONFIG_FOLDER = checkout.CONFIGS
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
        weights: a file of weights, which stands in for a checkpoint. None: --weights
            was not given, or a workdir, which is `checkpoint` then.
        input, output, sheet: files or folders.
        outputs: what mode reconstruct writes of each photo: some of `Mode.outputs`.
        layout, split, near: of mode keypoints.
        port: of mode serve; 0: any that is free; None: its own, or any.
        no_browser: mode serve opens none.
        dry_run: only say what a training would need.
        profile: trace these steps, (first, last).
        cluster: (coordinator, processes, process) of a run of several; each
            None is found in the environment. None: one process.
        given: the config's keys that the command line sets, "section.key".
        note: what of the config file the run's own config overrules, or "".
    """

    mode: str
    config: ConfigDict
    workdir: Path
    checkpoint: Path | None = None
    weights: Path | None = None
    input: Path | None = None
    output: Path | None = None
    outputs: tuple[str, ...] = ()
    sheet: Path | None = None
    layout: str | None = None
    split: str | None = None
    near: str | None = None
    port: int | None = None
    no_browser: bool = False
    dry_run: bool = False
    profile: tuple[int, int] | None = None
    cluster: tuple[str | None, int | None, int | None] | None = None
    given: frozenset[str] = frozenset()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Mode:
    """What a method can be asked to do.

    Attributes:
        help: one line.
        run: (arguments, interrupts that are entered already) -> exit status; None is
            0. Imports what it needs itself, so that `--help` need not wait for JAX.
        flags: names of those it takes beside --config and --workdir.
        required: of these, the ones it cannot do without.
        keeps_compiled: whether its programs are worth keeping on disk.
        of_run: whether it works with what a run has learnt, and so with the config that
            the run was trained with, where there is one: `_read_config`.
        outputs: names that --outputs chooses from.
    """

    help: str
    run: Callable[[Arguments, Any], int | None]
    flags: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    keeps_compiled: bool = True
    of_run: bool = False
    outputs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Method:
    """A method, as the command line sees it.

    Attributes:
        keys: that its configs have.
        modes: by name; "train" is the default.
        weights: files of weights that ship, by the names that --weights has for them.
    """

    keys: configuration.Keys
    modes: Mapping[str, Mode]
    weights: Mapping[str, Path] = dataclasses.field(default_factory=dict)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (--help lists the flags).")


def _parser(methods: Mapping[str, Method], program: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description="Unsupervised 3D shape from single images, in JAX.",
        epilog=(
            f"{_modes_text(methods)}\n\n"
            f"configs, in {CONFIG_FOLDER}:\n{_configs_text()}\n"
            "Every option is in default.py of a method's configs and in "
            "configs/shared.py;\nset one by --config.section.key=value, "
            'a tuple by --config.section.key="a,b" or "()".\n\n'
            f"example:\n  {program} --config=quickstart --config.train.steps=100"
        ),
    )

    def modes(wanted: Callable[[Mode], bool]) -> str:
        found = {m: None for x in methods.values() for m in x.modes
                 if wanted(x.modes[m])}  # fmt: skip
        return ", ".join(found)

    parser.add_argument(
        "--config",
        metavar="NAME",
        help="see below, or a file of yours; not needed where there is a run: "
        f"{modes(lambda mode: mode.of_run)} take the config it was trained with",
    )
    parser.add_argument("--mode", default="train", metavar="MODE", help="see below")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/<config name>")
    for flag, metavar in (
        ("checkpoint", "DIR"),
        ("weights", "NAME|FILE|DIR"),
        ("input", "FILE_OR_FOLDER"),
        ("output", "DIR_OR_FILE"),
        ("outputs", "NAME,NAME"),
        ("sheet", "FILE"),
        ("layout", "NAME"),
        ("split", "NAME"),
        ("near", "small|large"),
    ):
        parser.add_argument(
            f"--{flag}",
            metavar=metavar,
            help=modes(lambda mode, flag=flag: flag in mode.flags),
        )
    parser.add_argument(
        "--detect",
        choices=("none",),
        help="reconstruct: the largest centred square of each photo, as without it",
    )
    parser.add_argument(
        "--port", metavar="N", type=_port, help="serve: on loopback; 0: any"
    )
    parser.add_argument(
        "--no_browser", action="store_true", help="serve: only print the address"
    )
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
    """The names of the configs, those of a folder on a line."""
    lines: dict[str, list[str]] = {"": []}
    for name in configuration.names(CONFIG_FOLDER):
        lines.setdefault(name.rpartition("/")[0], []).append(name)
    return "\n".join("  " + ", ".join(line) for line in lines.values())


def parse(argv: Sequence[str], methods: Mapping[str, Method]) -> Arguments:
    """Reads a command line.

    Args:
        argv: with the program's name first.
        methods: by the name that a config's key "method" has.

    Raises:
        UserError: for whatever is wrong with it.
    """
    flags, rest = _parser(methods, _shell(_program(argv[0]))).parse_known_args(
        _joined(list(argv[1:]))
    )
    every_mode = {mode: None for x in methods.values() for mode in x.modes}
    if flags.mode not in every_mode:
        raise UserError(
            f"--mode={flags.mode}: expected one of {', '.join(every_mode)}."
        )
    if flags.weights:
        _check_weights(flags, methods)
    _check_names({k: v for k, v in vars(flags).items() if k not in _NO_PLACES})
    changes = _changes(rest)
    source = _read_config(flags, methods, name=changes.get("name"))
    config, ranges = source.config, methods[source.config.method].keys.ranges
    for key, text in changes.items():
        configuration.override(config, key, text, ranges)
    with refusing(f"{source.path}: "):
        configuration.check_numbers(config, ranges)
    config.lock()
    modes = methods[config.method].modes
    if flags.mode not in modes:
        raise UserError(
            f"--mode={flags.mode}: the method {config.method} of {source.path} has "
            f"{', '.join(modes)}."
        )
    _check_flags(flags, modes)

    workdir = source.workdir or Path("runs") / config.name
    _check_names(configuration.flatten(config.to_dict()), "--config.")
    _check_names({"workdir": str(workdir)})  # which the config's name may make

    def path(text: str | None) -> Path | None:
        return Path(text).expanduser() if text else None

    return Arguments(
        mode=flags.mode,
        config=config,
        workdir=workdir,
        checkpoint=source.checkpoint or path(flags.checkpoint),
        weights=source.weights,
        input=path(flags.input),
        output=path(flags.output),
        outputs=_outputs(flags.outputs, modes[flags.mode].outputs),
        sheet=path(flags.sheet),
        layout=flags.layout,
        split=flags.split,
        near=flags.near,
        port=flags.port,
        no_browser=flags.no_browser,
        dry_run=flags.dry_run,
        profile=_profile_steps(flags.profile),
        cluster=_cluster(flags),
        given=frozenset(changes),
        note=source.note(changes),
    )


def _changes(rest: Sequence[str]) -> dict[str, str]:
    """{"section.key": text} of what argparse does not know, as given; the last counts.

    Raises:
        UserError: for an argument that is no --config.key=value.
    """
    changes = {}
    for argument in rest:
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise UserError(f"unknown argument {argument!r} (--help lists the flags).")
        if key == "method":
            raise UserError("--config.method: a config file has one method; use "
                            "another file.")  # fmt: skip
        changes[key] = text
    return changes


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a config is from, before the command line changes it.

    Attributes:
        config: unlocked.
        path: the file it is from.
        workdir: None where the config's name decides.
        overruled: of the file of --config, where a run's config.json stands above it.
        checkpoint, weights: what --weights means, a workdir or a file.
    """

    config: ConfigDict
    path: Path
    workdir: Path | None
    overruled: ConfigDict | None = None
    checkpoint: Path | None = None
    weights: Path | None = None

    def note(self, given: Collection[str]) -> str:
        """Which keys of the file are not heard, so that nobody waits for them."""
        if self.overruled is None:
            return ""
        old, new = (
            configuration.flatten(c.to_dict()) for c in (self.overruled, self.config)
        )
        unlike = [k for k in new if old[k] != new[k] and k != "name" and k not in given]
        if not unlike:
            return ""
        shown = [
            f"{key} ({configuration.shown(repr(new[key]))}, "
            f"not {configuration.shown(repr(old[key]))})"
            for key in unlike[:8]
        ]
        more = f" and {len(unlike) - 8} more" if len(unlike) > 8 else ""
        return (
            f"the config of the run, {self.path}, stands above --config: "
            f"{', '.join(shown)}{more}. Change it by --config.key=value."
        )


def _read_config(
    flags: argparse.Namespace, methods: Mapping[str, Method], *, name: str | None
) -> _Source:
    """The config of --config, or of the run that a mode works with.

    A mode `of_run` takes the config of --weights, or the config.json of --checkpoint,
    else of the workdir. It stands above the file of --config, which then only names the
    default workdir: what was set on the command line of the training need not be
    repeated. Keys set on the command line stand above both.

    Args:
        name: of the config, where the command line gives it another one.

    Raises:
        UserError: if there is neither, or the two are of different methods.
    """
    every = {name: method.keys for name, method in methods.items()}
    workdir = Path(flags.workdir).expanduser() if flags.workdir else None
    file = None
    if flags.config:
        place = configuration.find(flags.config, CONFIG_FOLDER)
        config = configuration.load(place, every)
        file = _Source(config, place, workdir)
        workdir = workdir or Path("runs") / (name or config.name)
    missing = "--config=NAME is missing"
    if flags.weights:
        found = _weights(flags.weights, methods, workdir)
        if file is None:
            return found
        _check_method(found.config, found.path, file)
        return dataclasses.replace(found, overruled=file.config)
    if _is_of_run(flags.mode, methods):
        checkpoint = Path(flags.checkpoint).expanduser() if flags.checkpoint else None
        for place in filter(None, (checkpoint, workdir)):
            path = configuration.record_beside(place)
            if path is None:
                continue
            config = configuration.of_run(path, every)
            if file is None:
                return _Source(config, path, workdir or path.parent)
            _check_method(config, path, file)
            return _Source(config, path, workdir, overruled=file.config)
        where = " or ".join(str(p) for p in (checkpoint, workdir) if p)
        missing += f", and no config.json of a run is in {where or 'a --workdir'}"
    if file is None:
        raise UserError(f"{missing}; --help lists the names.")
    return file


def _check_method(config: ConfigDict, path: Path, file: _Source) -> None:
    """Refuses a --config of another method than the run whose config stands above."""
    if config.method != file.config.method:
        raise UserError(
            f"--config: {file.path} is of the method {file.config.method}, the "
            f"run of {path} of {config.method}; leave --config out."
        )


def _weights(text: str, methods: Mapping[str, Method], workdir: Path | None) -> _Source:
    """What --weights names: a file that ships, a workdir, or a file.

    A name stands above a folder of the same name; ./NAME is the folder.

    Raises:
        UserError: if it is none of them, or of a method that does not take it.
    """
    taking = {
        name: method.keys
        for name, method in methods.items()
        if any("weights" in mode.flags for mode in method.modes.values())
    }
    named = {
        k: path for method in methods.values() for k, path in method.weights.items()
    }
    place = named.get(text) or Path(text).expanduser()
    if os.path.isfile(place):
        config = configuration.of_weights(place, taking)
        return _Source(config, place, workdir, weights=place)
    if record := configuration.record_beside(place):
        config = configuration.of_run(record, taking)
        return _Source(config, record, workdir or record.parent, checkpoint=place)
    what = "holds no config.json of a run" if place.is_dir() else "does not exist"
    raise UserError(
        f"--weights: {configuration.shown(str(place))} {what}, and nothing that ships "
        f"has this name; there is {', '.join(named)}."
    )


def _check_weights(flags: argparse.Namespace, methods: Mapping[str, Method]) -> None:
    """Before the config is looked for, which --weights may bring.

    Raises:
        UserError: if the mode does not take them, or they are named twice.
    """
    taking = [m for x in methods.values() for m in x.modes
              if "weights" in x.modes[m].flags]  # fmt: skip
    if flags.mode not in taking:
        raise UserError(
            f"--weights belongs to --mode={' or '.join(taking)}, not {flags.mode}."
        )
    if flags.checkpoint:
        raise UserError("--weights and --checkpoint name the same thing; give one.")


def _is_of_run(mode: str, methods: Mapping[str, Method]) -> bool:
    return any(x.modes[mode].of_run for x in methods.values() if mode in x.modes)


# Flags that name neither file nor folder.
_NO_PLACES = (
    "mode",
    "outputs",
    "detect",
    "layout",
    "split",
    "near",
    "profile",
    "coordinator",
)
# Of which Path makes a folder "gs:".
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def _check_names(named: Mapping[str, Any], prefix: str = "--") -> None:
    """Refuses gs://bucket/run and the like, and what no file can be called.

    Of every key too: none has such a thing for a value.
    """
    for name, value in named.items():
        if not isinstance(value, str):
            continue
        text = f"{prefix}{name}={configuration.shown(value)}"
        if _ADDRESS.match(value):
            raise UserError(
                f"{text}: only folders and files of this machine are read and "
                "written; mount a bucket (gcsfuse, s3fs), or copy."
            )
        # Each part too: behind a folder that does not exist none is looked at.
        for part in (value, *Path(value).parts):
            try:
                os.lstat(part)
            except ValueError:  # a NUL
                raise UserError(f"{text}: no file can have such a name.") from None
            except OSError as error:  # too long, a circle of links, a closed folder
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise UserError(f"{text}: {error.strerror or error}.") from None


def _check_flags(flags: argparse.Namespace, modes: Mapping[str, Mode]) -> None:
    """Refuses a flag that the mode would ignore, and a mode that lacks one."""
    mode = modes[flags.mode]
    for name, value in vars(flags).items():
        if name in ("config", "mode", "workdir") or value is None or value is False:
            continue
        if name not in mode.flags:
            others = [m for m, x in modes.items() if name in x.flags]
            raise UserError(
                f"--{name} belongs to --mode={' or '.join(others)}, not {flags.mode}."
            )
    if any(not getattr(flags, name) for name in mode.required):
        wanted = " and ".join(f"--{name}=..." for name in mode.required)
        raise UserError(f"--mode={flags.mode} needs {wanted} (--help tells what).")


def _outputs(text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """What --outputs chooses, each once, in the order of the mode; None: all.

    Raises:
        UserError: naming what the mode does not write, and what it does.
    """
    if text is None:
        return known
    wanted = {name.strip() for name in text.split(",")}
    if unknown := sorted(wanted - {*known}):
        raise UserError(
            f"--outputs={configuration.shown(text)}: no output is called "
            f"{configuration.shown(unknown[0])!r}; there are {','.join(known)}."
        )
    return tuple(name for name in known if name in wanted)


def _port(text: str) -> int:
    """For argparse, which makes its own words of a ValueError."""
    digits = text.isascii() and text.isdigit() and len(text) <= 5
    if not digits or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(
            f"expected 0 to 65535, got {configuration.shown(text)}"
        )
    return int(text)


def _profile_steps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        first, last = map(int, text.split(","))
        if 1 <= first <= last:
            return first, last
    except ValueError:
        pass
    raise UserError(
        f"--profile={configuration.shown(text)}: expected FIRST,LAST with "
        "1 <= FIRST <= LAST."
    )


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
    ordered = 0 <= flags.process < flags.processes <= 2**16
    if not (ordered and host and valid):
        raise UserError(
            "need --coordinator=HOST:PORT, a port from 1 to 65535, and 0 <= --process "
            "< --processes <= 65536, got "
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
    """The command that runs this program again, as its user has called it."""
    return _shell([*_program(sys.argv[0]), *sys.argv[1:]])


def _program(name: str) -> list[str]:
    """How a program is called whose own argument 0 is this: what stands before flags.

    `python main.py`, with the interpreter that was typed, or `unsup3d`.
    """
    if name.endswith(".py"):
        typed = Path(sys.orig_argv[0] if sys.orig_argv else "").name
        return [sys.orig_argv[0] if typed.startswith("python") else "python", name]
    # An installed command: the system has made its full path of what was typed.
    short = Path(name).stem
    return [short if shutil.which(short) == shutil.which(name) else name]


def _shell(words: Sequence[str]) -> str:
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return join(words)
