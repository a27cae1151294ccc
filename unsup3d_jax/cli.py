"""The command line: flags, config overrides, one function for each mode.

Only the standard library and ml_collections are imported up here: `--help`
and a misspelt flag answer at once, without waiting for JAX.
"""

import argparse
import ast
import dataclasses
import difflib
import importlib.util
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unsup3d_jax.engine import host_memory
from unsup3d_jax.engine.interrupts import Interrupted, Interrupts
from unsup3d_jax.errors import UserError, writing

MODES = {
    "train": "train, or resume; evaluates on schedule and at the end (default)",
    "eval": "score the newest checkpoint, or --checkpoint, on config.eval.split",
    "reconstruct": "decompose the photos of --input into --output",
    "tables": "run the rows of a paper's table: --config=configs/tables/NAME.py",
    "rotnet": "train an encoder for the perceptual loss without labels: --output=.npz",
    "data": "check the data set: counts, broken files, spread, a contact sheet",
    "serve": "the viewer (not built yet)",
}
NOT_BUILT = ("serve",)
CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line, checked.

    Attributes:
        mode: one of `MODES`.
        config: resolved and locked.
        workdir: of the run; may not exist.
        checkpoint: a workdir or one checkpoint folder; None: the workdir's.
        input, output: of mode reconstruct (output also of mode data).
        dry_run: mode train only says what it would need.
        profile: mode train traces these steps, (first, last).
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
    dry_run: bool = False
    profile: tuple[int, int] | None = None
    cluster: tuple[str | None, int | None, int | None] | None = None
    given: frozenset[str] = frozenset()


# --- parsing ------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (--help lists the flags).")


def _parser() -> argparse.ArgumentParser:
    modes = "\n".join(f"  {name:12} {text}" for name, text in MODES.items())
    names = sorted(p.stem for p in CONFIG_FOLDER.glob("*.py") if p.stem != "__init__")
    found = (CONFIG_FOLDER / "tables").glob("*.py")
    tables = sorted(
        f"tables/{p.stem}" for p in found if p.stem not in ("__init__", "recipes")
    )
    parser = _Parser(
        prog="main.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description="Unsupervised 3D shape from single images, in JAX.",
        epilog=(
            f"modes:\n{modes}\n\n"
            f"configs, in {CONFIG_FOLDER}:\n  {', '.join(names)};\n"
            f"  {', '.join(tables)}\n"
            "Every option is in configs/default.py; set one by "
            "--config.section.key=value,\n"
            'a tuple by --config.section.key="a,b" or "()".\n\n'
            "example:\n  python main.py --config=configs/quickstart.py "
            "--config.train.steps=100"
        ),
    )
    parser.add_argument("--config", metavar="FILE", help="configs/NAME.py; required")
    parser.add_argument("--mode", default="train", metavar="MODE", help="see below")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/<config name>")
    parser.add_argument("--checkpoint", metavar="DIR", help="eval, reconstruct")
    parser.add_argument("--input", metavar="FILE_OR_FOLDER", help="reconstruct")
    parser.add_argument("--output", metavar="DIR", help="reconstruct, data, rotnet")
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


def load_config(path: Path, default: ConfigDict) -> ConfigDict:
    """Runs `get_config()` of a config file.

    Args:
        default: the full configuration; the file may not add keys to it, nor
            leave any out.

    Raises:
        UserError: if the file is missing, fails, or has other keys.
    """
    if not path.is_file():
        near = CONFIG_FOLDER / f"{path.stem}.py"
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
            f"--config: {path} failed: {type(error).__name__}: {_one_line(error)}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config() of {path} returns no ConfigDict.")
    known, given = set(_keys(default)), set(_keys(config))
    if odd := sorted(known ^ given):
        what = "unknown" if odd[0] in given else "missing"
        raise UserError(f"--config: {path} has {what} key {odd[0]!r}.")
    return config


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in config.items():
        nested = isinstance(value, ConfigDict)
        keys += _keys(value, f"{prefix}{name}.") if nested else [prefix + name]
    return keys


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


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
            near = difflib.get_close_matches(key, _keys(config), n=1, cutoff=0.6)
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


def parse(argv: Sequence[str], default: ConfigDict) -> Arguments:
    """Reads a command line.

    Args:
        argv: with the program's name first.
        default: every option of the project.

    Raises:
        UserError: for whatever is wrong with it.
    """
    flags, rest = _parser().parse_known_args(_joined(list(argv[1:])))
    if flags.mode not in MODES:
        raise UserError(f"--mode={flags.mode}: expected one of {', '.join(MODES)}.")
    if flags.mode in NOT_BUILT:
        raise UserError(f"--mode={flags.mode} is not built yet.")
    if not flags.config:
        raise UserError(
            f"--config=configs/NAME.py is missing; the configs are in {CONFIG_FOLDER}."
        )
    config = load_config(Path(flags.config), default)
    given = set()
    for argument in rest:
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise UserError(f"unknown argument {argument!r} (--help lists the flags).")
        override(config, key, text)
        given.add(key)
    config.lock()

    def path(text: str | None) -> Path | None:
        return Path(text).expanduser() if text else None

    for name in ("dry_run", "profile", "distributed", "coordinator"):
        if getattr(flags, name) and flags.mode != "train":
            raise UserError(f"--{name} belongs to --mode=train, not {flags.mode}.")
    return Arguments(
        mode=flags.mode,
        config=config,
        workdir=path(flags.workdir) or Path("runs") / config.name,
        checkpoint=path(flags.checkpoint),
        input=path(flags.input),
        output=path(flags.output),
        dry_run=flags.dry_run,
        profile=_profile_steps(flags.profile),
        cluster=_cluster(flags),
        given=frozenset(given),
    )


def _profile_steps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) == 2 and all(part.strip().isdigit() for part in parts):
        first, last = map(int, parts)
        if 1 <= first <= last:
            return first, last
    raise UserError(f"--profile={text}: expected FIRST,LAST with 1 <= FIRST <= LAST.")


def _cluster(flags: Any) -> tuple[str | None, int | None, int | None] | None:
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
    if not 0 <= flags.process < flags.processes or ":" not in flags.coordinator:
        raise UserError(
            "need --coordinator=HOST:PORT and 0 <= --process < --processes, got "
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


# --- modes ----------------------------------------------------------------------


def run_train(args: Arguments, interrupts: Interrupts) -> None:
    """Trains or resumes, then prints the table of the final scores."""
    from unsup3d_jax.engine import checkpoint, hosts
    from unsup3d_jax.engine.log import say
    from unsup3d_jax.unsup3d import score, train

    config, split = args.config, args.config.eval.split
    train.check_config(config)
    if args.dry_run:
        from unsup3d_jax.engine import dry_run

        print(dry_run.report(config), flush=True)
        return
    checkpoint.check_workdir(args.workdir, config)  # before any data are loaded
    splits = train.lazy_splits(config)
    processes = hosts.Hosts()
    if (checkpoint.newest_step(args.workdir) or 0) < config.train.steps:
        score.check_data(config, splits)
    params, step = train.train(
        config, args.workdir, splits, interrupts=interrupts, profile=args.profile
    )
    if step < config.train.steps:
        if processes.first:
            say(
                f"stopped at step {step} of {config.train.steps}; the checkpoint is "
                f"saved. To resume: {_command()}"
            )
        return

    def finish() -> None:
        table = score.recorded_table(config, args.workdir, step, split, splits)
        if table is None:
            table = score.score_run(
                config,
                args.workdir,
                params,
                step,
                split,
                splits,
                # They train with all processes, or none.
                train_baselines=processes.count == 1,
                interrupts=interrupts,
            )
        print(table, flush=True)
        if config.log.picture_every:
            say(f"pictures: {args.workdir / 'pictures'}")

    processes.from_first(finish)


def run_eval(args: Arguments, interrupts: Interrupts) -> None:
    """Scores one checkpoint on one split."""
    from unsup3d_jax.unsup3d import score, train

    train.check_config(args.config)
    params, step = _load_params(args)
    table = score.score_run(
        args.config,
        args.workdir,
        params,
        step,
        args.config.eval.split,
        train.lazy_splits(args.config),
        train_baselines=False,
        interrupts=interrupts,
        checkpoint=_origin(args) or score.THIS_RUN,
    )
    print(table, flush=True)


def run_reconstruct(args: Arguments, interrupts: Interrupts) -> None:
    """Decomposes the user's photos."""
    if args.input is None or args.output is None:
        raise UserError("--mode=reconstruct needs --input=FILE_OR_FOLDER --output=DIR.")
    if not args.input.exists():
        raise UserError(f"--input: {args.input} does not exist.")
    from unsup3d_jax.unsup3d import reconstruct_files, train
    from unsup3d_jax.unsup3d.options import loss_weights

    train.check_config(args.config)
    params, step = _load_params(args)
    reconstruct_files.reconstruct_folder(
        args.config,
        params,
        args.input,
        args.output,
        view_range=loss_weights(args.config, step).view_range,
    )


def run_tables(args: Arguments, interrupts: Interrupts) -> None:
    """Runs what is missing of a paper's table, and prints it."""
    from unsup3d_jax.engine.log import say
    from unsup3d_jax.experiments import tables

    with writing(args.workdir):
        table = tables.run(
            args.config, args.workdir, interrupts=interrupts, given=args.given
        )
    print(table, flush=True)
    say(f"table: {args.workdir / 'table.json'}, table.md, figure.png")


def run_rotnet(args: Arguments, interrupts: Interrupts) -> None:
    """Trains a self-supervised VGG16 on the images of the config."""
    from unsup3d_jax.experiments import rotnet
    from unsup3d_jax.unsup3d import train

    output = args.output or args.workdir / "rotnet.npz"
    splits = train.lazy_splits(args.config)
    if output.is_dir():  # else found when hours of training are to be saved
        raise UserError(f"--output: {output} is a folder; name an .npz file.")
    with writing(output):
        rotnet.pretrain(args.config, output, splits, interrupts=interrupts)


def run_data(args: Arguments, interrupts: Interrupts) -> None:
    """Checks the data set and prints what it holds."""
    from unsup3d_jax.data import report

    output = args.output or args.workdir / "data"
    print(report.data_report(args.config, output), flush=True)


def _origin(args: Arguments) -> str | None:
    """The checkpoint to score, unless it is one of the workdir's own."""
    if args.checkpoint is None:
        return None
    place, own = args.checkpoint.resolve(), args.workdir.resolve()
    return None if place == own or place.parent == own / "checkpoints" else str(place)


def _load_params(args: Arguments) -> tuple[Any, int]:
    import jax

    from unsup3d_jax.engine import checkpoint
    from unsup3d_jax.unsup3d import train

    place = args.checkpoint or args.workdir
    params, step = checkpoint.load_params(place)
    checkpoint.check_meaning(args.config, place)
    expected = jax.eval_shape(lambda: train.initial_params(args.config))
    checkpoint.check_shapes(params, expected, f"the checkpoint in {place}")
    return params, step


def _command() -> str:
    return shlex.join(["python", *sys.argv])


RUN: dict[str, Callable[[Arguments, Interrupts], None]] = {
    "train": run_train,
    "eval": run_eval,
    "reconstruct": run_reconstruct,
    "data": run_data,
    "tables": run_tables,
    "rotnet": run_rotnet,
}


def _keep_compiled(config: ConfigDict) -> None:
    """Keeps compiled programs on disk, so that a restart need not wait for them.

    JAX's own settings (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE)
    have the last word.
    """
    import jax

    from unsup3d_jax.data.prepare import cache_root

    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = cache_root(config.data.cache_dir) / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def main(argv: Sequence[str], default: ConfigDict) -> int:
    """Runs a command line and returns its exit status.

    Status 0: done, or stopped by a first Ctrl-C or SIGTERM with everything
    saved. 1: training diverged; another process of the run is gone; or the
    deadline after a signal came before everything was saved. 2: the user can
    fix it; one line on stderr says how. 130: aborted by a second Ctrl-C.
    """
    several = False
    host_memory.keep_freed()  # before `Interrupts` starts a thread
    try:
        with Interrupts() as interrupts:
            args = parse(argv, default)
            interrupts.deadline = args.config.checkpoint.deadline
            if args.cluster is not None:
                from unsup3d_jax.engine import hosts

                hosts.join(hosts.Cluster(*args.cluster))
                several = True
            if args.mode != "data":
                _keep_compiled(args.config)
            RUN[args.mode](args, interrupts)
        return 0
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        message, status = ending(error)
        if message is None:
            if not several:
                raise
            traceback.print_exc()  # then leave: the others must not wait
        else:
            print(message, file=sys.stderr, flush=True)
        if several:
            from unsup3d_jax.engine import hosts

            hosts.leave_at_once(status)
        return status


def ending(error: BaseException) -> tuple[str | None, int]:
    """What to say, and the exit status, when a run ends by an exception.

    The message is None for a bug, whose trace is wanted.
    """
    if isinstance(error, UserError):
        return f"error: {_one_line(error)}", 2
    if isinstance(error, Interrupted):
        return f"stopped. To go on: {_command()}", 0
    if isinstance(error, KeyboardInterrupt):
        return "aborted.", 130
    from unsup3d_jax.engine.hosts import HostLost
    from unsup3d_jax.engine.recorder import Diverged

    if isinstance(error, Diverged):
        return f"error: {_one_line(error)}", 1
    if isinstance(error, HostLost):
        return (
            "error: another process of this run is gone "
            f"({_one_line(error)[:300]}). The last checkpoint is kept; start all "
            "processes again to go on.",
            1,
        )
    return None, 1
