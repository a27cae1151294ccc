"""Which room may know which: imports point down the list, and nothing else."""

import ast
import importlib
import inspect
import re
import runpy
from pathlib import Path

import pytest

import unsup3d_jax

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "unsup3d_jax"
# From the top down; each may import those behind it, and itself. Methods know nothing
# of one another.
ROOMS = (
    "experiments",
    "unsup3d",
    "stn3dmm",
    "gan2shape",
    "stylegan2",
    "engine",
    "evaluation",
    "show",
    "data",
    "flags",
    "configuration",
    "nets",
    "formation",
    "terminal",
    "files",
    "errors",
    "checkout",
)
# Folders of their own, which are installed within the package: all rooms may use them.
BESIDE = ("configs", "rasterizer")
METHODS = ("unsup3d", "stn3dmm", "gan2shape", "stylegan2")
SHARED = ("engine", "evaluation", "show", "data", "nets", "formation")
# Where a command line begins: they may import everything.
ENTRANCES = ("cli", "import_weights", "keypoints")


def _imports(path: Path, *, most_dots: int = 0) -> list[str]:
    """Full names of the modules a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= most_dots, f"{path}: a relative import"
            stem = "." * node.level + (node.module or "")
            found += [f"{stem}.{alias.name}" for alias in node.names]
    return found


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or (
    p.stem not in (*ENTRANCES, "__init__")
))  # fmt: skip


def test_every_file_lies_in_a_room():
    assert {_room(path) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room):
    below = {*ROOMS[ROOMS.index(room) :], *BESIDE}
    for path in FILES:
        if _room(path) != room:
            continue
        for name in _imports(path):
            parts = name.split(".")
            if parts[0] != "unsup3d_jax":
                continue
            assert len(parts) > 1 and parts[1] in below, f"{path} imports {name}"


@pytest.mark.parametrize("room", SHARED)
def test_no_shared_room_knows_a_method(room):
    for path in sorted((PACKAGE / room).rglob("*.py")):
        names = [n for n in _imports(path) if n.startswith("unsup3d_jax.")]
        known = {n.split(".")[1] for n in names} & {*METHODS, "experiments"}
        assert not known, f"{path} imports {known}"


def test_the_rasterizer_needs_nothing_of_this_package():
    """And does not call itself by name, as it is installed under another one."""
    for path in sorted((ROOT / "rasterizer").rglob("*.py")):
        up = len(path.relative_to(ROOT / "rasterizer").parts)
        names = {name.split(".")[0] for name in _imports(path, most_dots=up)}
        assert not names & {"unsup3d_jax", "configs", "rasterizer"}, path


def test_what_lies_beside_the_package_is_imported_by_its_long_name():
    """The short names are there in a checkout alone."""
    for path in (*PACKAGE.rglob("*.py"), *(ROOT / "configs").rglob("*.py")):
        assert not {name.split(".")[0] for name in _imports(path)} & {*BESIDE}, path


def test_a_long_name_is_the_same_module():
    import unsup3d_jax.configs.default
    import unsup3d_jax.rasterizer.batching

    import configs.default
    import rasterizer.batching

    assert unsup3d_jax.rasterizer is rasterizer
    assert unsup3d_jax.rasterizer.batching is rasterizer.batching
    assert unsup3d_jax.configs.default is configs.default
    for module in (rasterizer, rasterizer.batching, configs.default):
        assert module.__spec__ is not None
        assert module.__spec__.name == module.__name__
    importlib.import_module("unsup3d_jax.rasterizer.rasterize")
    assert inspect.isfunction(rasterizer.rasterize)
    with pytest.raises(ModuleNotFoundError, match="No module named 'unsup3d_jax.con"):
        importlib.import_module("unsup3d_jax.configs.nothing")


def test_no_modules_import_each_other():
    """Neither in two steps nor in many."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES
    }
    edges = {
        name: {n for n in _imports(path) if n in modules}
        | {n.rsplit(".", 1)[0] for n in _imports(path)} & modules.keys()
        for name, path in modules.items()
    }
    done, way = set(), []

    def visit(name: str) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name in done:
            return
        way.append(name)
        for other in sorted(edges[name] - {name}):
            visit(other)
        done.add(way.pop())

    for name in modules:
        visit(name)


def _tree_of_the_readme() -> dict[str, str]:
    """room -> what the README says of it, on one line."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## How it hangs together") :]
    (tree,) = re.findall(r"```\n(.*?)```", section, re.S)[:1]
    rooms: dict[str, str] = {}
    for line in tree[tree.index("unsup3d_jax/") :].splitlines()[1:]:
        if match := re.match(r"  (\w+)(?:/|\.py) +(.*)", line):
            name = match[1]
            rooms[name] = match[2]
        elif line.startswith("   "):
            rooms[name] += " " + line.strip()
        else:
            break
    return rooms


def test_the_tree_of_the_readme_is_the_tree():
    """Every room is named, and every file of it, and nothing that is not there."""
    rooms = _tree_of_the_readme()
    assert rooms.keys() == {*ROOMS, "cli"}
    assert [name for name in rooms if name != "cli"] == list(ROOMS)
    for room, text in rooms.items():
        if not (PACKAGE / room).is_dir():
            continue
        named = {name.strip() for name in text.split(":", 1)[1].split(",")}
        there = {
            path.name.removesuffix(".py")
            for path in (PACKAGE / room).iterdir()
            if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        assert named | {"modes"} == there - {"__init__"} | {"modes"}, room


def test_the_wheel_holds_every_room(monkeypatch):
    """What setup.py packs: folders with an __init__.py. test_wheel.py builds it."""
    packed = {}
    monkeypatch.setattr("setuptools.setup", lambda **given: packed.update(given))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    for top in ("unsup3d_jax", *BESIDE):
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), folder
            name = ".".join(folder.relative_to(ROOT).parts)
            long = name if top == "unsup3d_jax" else f"unsup3d_jax.{name}"
            assert long in packed["packages"], long
    assert all(x.split(".")[0] == "unsup3d_jax" for x in packed["packages"])


def test_one_version_is_told_everywhere():
    cff = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {unsup3d_jax.__version__}\n" in cff
    newest = re.findall(r"^## (\S+)", changes, re.M)[0]
    assert newest == unsup3d_jax.__version__
