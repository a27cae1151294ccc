"""The plain C++ z-buffer loop, compiled when it is first asked for."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.peers.types import Calls, Peer, Scene, Unavailable

FLAGS = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]


def build() -> ctypes.CDLL:
    """Compiles zbuffer.cpp into the temporary folder and loads it.

    Raises:
        Unavailable: without g++, or if the compilation fails.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise Unavailable("g++ is not installed")
    source = Path(__file__).with_name("zbuffer.cpp")
    digest = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode()).hexdigest()
    folder = Path(tempfile.mkdtemp(prefix="zbuffer-"))
    try:
        library = folder / f"{digest[:16]}.so"
        command = [compiler, *FLAGS, str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"g++ failed: {done.stderr.strip().splitlines()[0]}")
        return ctypes.CDLL(str(library))
    finally:
        shutil.rmtree(folder)  # what is loaded stays loaded


def load(threads: int | None = None) -> Peer:
    """The loop on `threads` threads, by default one for each core we may use."""
    library = build()
    threads = threads or len(os.sched_getaffinity(0))

    def pointer(array):
        return array.ctypes.data_as(ctypes.c_void_p)

    def prepare(scene: Scene) -> Calls:
        vertices = np.ascontiguousarray(scene.vertices, np.float32)
        faces = np.ascontiguousarray(scene.faces, np.int32)
        cotangent = np.ascontiguousarray(scene.cotangent, np.float32)
        index = np.empty((scene.batch, *scene.size), np.int32)
        depth = np.empty((scene.batch, *scene.size), np.float32)
        gradient = np.empty_like(vertices)

        def run(into):
            tail = (
                *scene.size,
                ctypes.c_float(scene.background),
                pointer(index),
                pointer(depth),
                pointer(cotangent),
                into,
                threads,
            )
            if scene.grid is not None:
                library.render_grid(pointer(vertices), scene.batch, *scene.grid, *tail)
            else:
                library.render_mesh(
                    pointer(vertices),
                    *vertices.shape[:2],
                    pointer(faces),
                    len(faces),
                    *tail,
                )

        def forward():
            run(None)
            return depth

        def both():
            run(pointer(gradient))
            return depth, gradient

        return Calls(forward, both)

    version = subprocess.run(
        ["g++", "-dumpfullversion"], capture_output=True, text=True
    ).stdout.strip()
    return Peer(
        name="C++ loop",
        version=f"g++ {version} {' '.join(FLAGS[:2])}",
        device=f"CPU, {threads} threads",
        prepare=prepare,
        differs="float32 coverage",
    )
