"""A set of faces, rendered by as many processes as there are cores.

One process does not keep a second core busy: half of its time goes into drawing
random numbers and into programs too small to share. So a large set is cut into as
many shares as there are cores, and this module is the program that renders one:

    python -m unsup3d_jax.data.open_face.processes FOLDER SHARE

FOLDER holds the job, and receives the share's arrays; a line on standard output says
that so many faces more are there.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from unsup3d_jax.data.open_face import generate
from unsup3d_jax.data.open_face.generate import Options
from unsup3d_jax.data.open_face.model import Seeds

# Below so many faces a process does not earn back its start, about 10 s.
_FACES_EACH = 1500


def compact(
    seeds: Seeds,
    *,
    image_size: int,
    pose: str,
    asymmetry: float,
    perturb: bool,
    processes: int | None = None,
) -> dict[str, np.ndarray]:
    """The faces of the given numbers as `generate.chunks` makes them, in one piece.

    Args:
        processes: how many render; None for one a core where the set is large enough.
            The faces are the same however many they are.

    Raises:
        ValueError: naming the argument that is out of range.
        RuntimeError: with the last words of a process that failed.
    """
    options = Options(image_size, pose, asymmetry, perturb)
    count = len(seeds.person)
    if count == 0 or min(numbers.min() for numbers in seeds) < 0:
        raise ValueError("need at least one seed, none of them negative.")
    if processes is None:
        processes = min(len(_cores()), count // _FACES_EACH)
    progress = tqdm(
        total=count, desc="rendering", unit=" faces", delay=2.0, leave=False,
        disable=None,
    )  # fmt: skip
    with progress:
        if processes < 2:
            return _joined(generate.chunks(seeds, options), count, made=progress.update)
        return _joined(
            _by_processes(seeds, options, processes, made=progress.update), count
        )


def _joined(
    parts: Iterator[dict[str, np.ndarray]],
    count: int,
    made: Callable[[int], object] = lambda faces: None,
) -> dict[str, np.ndarray]:
    """Arrays that follow one another, in one array of `count` rows each."""
    faces: dict[str, np.ndarray] = {}
    start = 0
    for arrays in parts:
        size = len(arrays["seed"])
        for name, part in arrays.items():
            if name not in faces:
                faces[name] = np.empty((count, *part.shape[1:]), part.dtype)
            faces[name][start : start + size] = part
        start += size
        made(size)
    return faces


def _cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


# --- the process that wants a set -------------------------------------------------


def _by_processes(
    seeds: Seeds, options: Options, processes: int, *, made: Callable[[int], object]
) -> Iterator[dict[str, np.ndarray]]:
    """The shares in order, each when its process has ended."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        np.savez(folder / "seeds.npz", **seeds._asdict())  # pyright: ignore[reportArgumentType]
        (folder / "options.json").write_text(json.dumps(dataclasses.asdict(options)))
        cores = _cores()
        running = [
            stack.enter_context(
                _Share(folder, k, processes, cores[k % len(cores)], made)
            )
            for k in range(processes)
        ]
        for share in running:
            yield share.arrays()


class _Share:
    """A process that renders one share; leaving the context ends it."""

    def __init__(self, folder: Path, number: int, of: int, core: int, made: Callable):
        self._place = _place(folder, number)
        # The package is found where it was found here; JAX looks for no accelerator,
        # which the process that waits may hold.
        surroundings = {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
        }
        arguments = [str(folder), str(number), str(of), str(core)]
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *arguments],
            env=os.environ | surroundings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for us, who then end it
        )

        def count() -> None:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                made(int(line))

        self._counter = threading.Thread(target=count, daemon=True)
        self._counter.start()

    def arrays(self) -> dict[str, np.ndarray]:
        """What it made, once it has ended.

        Raises:
            RuntimeError: if it failed.
        """
        status = self._process.wait()
        self._counter.join()
        if status != 0:
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip()
            raise RuntimeError(
                f"a process that renders faces ended with status {status}: "
                f"{words[-2000:]}"
            )
        with np.load(self._place, allow_pickle=False) as stored:
            arrays = dict(stored)
        self._place.unlink()
        return arrays

    def __enter__(self) -> "_Share":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._counter.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


def _place(folder: Path, number: int) -> Path:
    return folder / f"{number}.npz"


# --- the process that renders a share ---------------------------------------------


def main() -> None:
    folder, number, of, core = Path(sys.argv[1]), *map(int, sys.argv[2:])
    if hasattr(os, "sched_setaffinity"):
        # XLA starts a thread for each core that it sees; one share is to have one.
        os.sched_setaffinity(0, {core})
    options = Options(**json.loads((folder / "options.json").read_text()))
    with np.load(folder / "seeds.npz", allow_pickle=False) as stored:
        seeds = Seeds(**{name: stored[name] for name in Seeds._fields})
    count = len(seeds.person)
    first, last = (count * k // of for k in (number, number + 1))
    mine = Seeds(*(numbers[first:last] for numbers in seeds))
    faces = _joined(
        generate.chunks(mine, options),
        last - first,
        made=lambda size: print(size, flush=True),
    )
    np.savez(_place(folder, number), **faces)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
