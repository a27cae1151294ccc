"""Files of weights as a disk or a stranger may leave them: read, one a seed.

Run as a program, in a process whose memory is bounded:

    python tests/nets/hostile_files.py FIRST LAST FOLDER

Each seed takes a sound file of one format, damages it and reads it. It ends in a
UserError that names the file, or in arrays of the right shapes; never in another
exception, nor in much time or memory. Prints a JSON line of what was found.
"""

import collections
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_safetensors

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch_zip  # noqa: E402

from unsup3d_jax.errors import UserError  # noqa: E402
from unsup3d_jax.nets import torch_files, weight_files  # noqa: E402

SHAPES = {"a.weight": (8, 3, 3, 3), "a.bias": (8,), "b.weight": (5, 7)}
MOST_SECONDS, MOST_MIB = 5, 128
# Every pickle opcode, and a few with arguments that ask for much.
_CODES = b".(012}]au0lt)Rbcdeghi\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94\x81\x92oQsp"
OPCODES = [_CODES[n : n + 1] for n in range(len(_CODES))] + [
    b"r\xff\xff\xff\x7f",  # a memo of 16 GB
    b"r\x00\x00\x00\x10",
    b"\x8e" + struct.pack("<Q", 1 << 40),  # bytes of 1 TB
    b"\x8d" + struct.pack("<Q", 1 << 33),
    b"\x8b" + struct.pack("<i", 1 << 30),
    b"\x96" + struct.pack("<Q", 1 << 33),
    b"\x95" + struct.pack("<Q", 1 << 62),
    b"2\x86" * 40,  # a tuple of tuples of ..., 2^40 long to hash
    b"2\x86" * 40 + b"K\x01s",
    b"]2a", b"}2K\x012s", b"(" * 30, b"h\x00R", b"cos\nsystem\n(X\x01\x00\x00\x00xtR",
    b"cnumpy\nndarray\n(J\xff\xff\xff\x7ftR", b"J\xff\xff\xff\x7f", b"K\x00\x85",
    b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8tR", b"I" + b"9" * 5000 + b"\n",
]  # fmt: skip


def arrays():
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def legacy(tree):
    """What torch.save wrote before version 1.6."""
    buffer = io.BytesIO()
    torch_zip.save(tree, buffer)
    with zipfile.ZipFile(buffer) as archive:
        described = archive.read("archive/data.pkl")
        data = [archive.read(f"archive/data/{i}") for i in range(len(tree))]
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(value, 2) for value in head] + [described]
    parts.append(pickle.dumps([str(i) for i in range(len(tree))], 2))
    # The key is followed by a view of the storage, which is none.
    parts[3] = parts[3].replace(b"tQ", b"NtQ")
    return b"".join(
        parts + [struct.pack("<q", len(numbers) // 4) + numbers for numbers in data]
    )


def sound():
    """{(suffix, format): bytes} of the same arrays."""
    tree = collections.OrderedDict(arrays())
    files = {(".pth", "legacy"): legacy(tree), (".safetensors", "safetensors"): (
        save_safetensors(dict(tree)))}  # fmt: skip
    for form, save in (("npz", np.savez), ("deflated npz", np.savez_compressed)):
        buffer = io.BytesIO()
        save(buffer, **tree)
        files[".npz", form] = buffer.getvalue()
    for protocol in (0, 2, 4):
        files[".ckpt", f"pickle {protocol}"] = pickle.dumps(dict(tree), protocol)
    buffer = io.BytesIO()
    torch_zip.save({"state_dict": tree, "epoch": 3}, buffer)
    files[".pth", "zip"] = buffer.getvalue()
    return files


def rezipped(data, rng, mutate):
    """A zip whose members are changed and whose checksums are right again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            member = old.read(name)
            if name == chosen:
                member = mutate(member)
            if rng.random() < 0.03:
                continue
            new.writestr(name, member, rng.choice((0, 0, 8, 8, 12, 14)))
            if rng.random() < 0.03:
                new.writestr(rng.choice(names) + "x", bytes(rng.randrange(1 << 20)))
    return out.getvalue()


def damaged(data, rng, others):
    """One or a few mutations, of bytes or of what the bytes mean."""

    def bits(data):
        data = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 30))):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)

    def early(data):
        return data[: rng.randrange(len(data) + 1)]

    def spliced(data):
        other = rng.choice(others)
        a, b = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
        return data[:a] + other[b : b + rng.randrange(1, 400)] + data[a:]

    def cut(data):
        a = rng.randrange(len(data) + 1)
        return data[:a] + data[a + rng.randrange(1, 40) :]

    def opcodes(data):
        for _ in range(rng.choice((1, 2, 5))):
            # Descriptions stand at the front, whose every place is worth a try.
            a = rng.randrange(min(len(data), 600) + 1)
            data = data[:a] + rng.choice(OPCODES) + data[a + rng.randrange(3) :]
        return data

    def numbers(data):
        """A size among the bytes becomes huge, negative or zero."""
        a = rng.randrange(max(len(data) - 8, 1))
        value = rng.choice((0, 1, -1, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1))
        width = rng.choice("<I <Q".split())
        mask = (1 << 8 * struct.calcsize(width)) - 1
        value = struct.pack(width, value & mask)
        return data[:a] + value + data[a + len(value) :]

    ways = (bits, early, spliced, cut, opcodes, numbers)
    way = rng.choice(ways)
    if rng.random() < 0.7:
        try:
            return rezipped(data, rng, way)
        except Exception:  # no zip, or no sound one any more
            pass
    return way(data)


def read(path, form):
    """All that a network would ask of the file."""
    if form.startswith("pickle"):
        tree = torch_files.read_numpy_pickle(path)
    elif form in ("zip", "legacy"):
        tree = torch_files.read_torch_file(path, foreign_classes=len(str(path)) % 2 > 0)
        tree = weight_files.unwrapped(tree)
        weight_files.prefix_of(tree, "weight")
    elif form == "safetensors":
        tree = weight_files.read_safetensors(path)
    else:
        tree = weight_files.read_npz(path)
    for name, shape in SHAPES.items():
        found = weight_files.require_array(tree, name, shape, source=str(path))
        assert found.shape == shape and found.dtype == np.float32


class TooLong(BaseException):
    """Not an Exception: who catches those may not go on."""


def main(first, last, folder):
    def late(*_):
        raise TooLong

    def run(*_):
        raise AssertionError("a file of weights was run")

    signal.signal(signal.SIGALRM, late)
    os.system = run  # what hostile pickles here would call
    warnings.simplefilter("ignore")  # of members that we name twice
    files = sound()
    found = collections.Counter()
    for (suffix, form), data in files.items():
        path = folder / f"sound{suffix}"
        path.write_bytes(data)
        read(path, form)  # does not raise
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Of address space; what is asked for and not used is no matter.
    space = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    )
    resource.setrlimit(resource.RLIMIT_AS, (space + (8 << 30), resource.RLIM_INFINITY))
    slowest = 0.0
    for seed in range(first, last):
        rng = random.Random(seed)
        (suffix, form), data = rng.choice(list(files.items()))
        data = damaged(data, rng, list(files.values()))
        if rng.random() < 0.3:
            data = damaged(data, rng, list(files.values()))
        path = folder / f"{seed}{suffix}"
        path.write_bytes(data)
        start = time.monotonic()
        signal.alarm(MOST_SECONDS)
        try:
            read(path, form)
            found["read"] += 1
        except UserError as error:
            assert str(path) in str(error), (seed, error)
            assert len(str(error)) < 2000, (seed, str(error)[:300])
            found["refused"] += 1
        except BaseException:
            print(f"seed {seed}, {form}: {path}", file=sys.stderr)
            raise
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.monotonic() - start)
        path.unlink()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < MOST_MIB, f"seed {seed}, {form}: {grown:.0f} MiB"
    print(json.dumps({**found, "slowest": slowest, "grown_mib": grown}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
