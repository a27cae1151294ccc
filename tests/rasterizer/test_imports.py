"""What the modules of the rasterizer may import."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import rasterizer

FOLDER = Path(rasterizer.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
MODULES = {path.stem for path in FILES}


def imported(path: Path) -> set[str]:
    """Full names of all that a file imports, within functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # Relative: an installed one is called unsup3d_jax.rasterizer.
            own = ["rasterizer"] * node.level
            stem = ".".join([*own, *filter(None, [node.module])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


def own_module(name: str) -> str | None:
    """The module of the rasterizer that an import of `name` needs, if any."""
    package, *rest = name.split(".")
    if package != "rasterizer":
        return None
    return rest[0] if rest and rest[0] in MODULES else "__init__"


def test_imports_have_no_circle():
    needs = {
        path.stem: {own_module(name) for name in imported(path)} - {None}
        for path in FILES
    }
    # Raises CycleError, which names the circle.
    order = list(TopologicalSorter(needs).static_order())
    assert {"__init__", "native", "native_soft", "fit_example"} <= set(order)
    assert "native" in needs["rasterize"]  # lazy imports are seen


def test_the_library_needs_jax_and_numpy_only():
    roots = {p.stem: {n.split(".")[0] for n in imported(p)} for p in FILES}
    optional = {"compiled", "custom_call", "native", "native_soft"}  # Numba's
    roots |= {
        path.stem: {n.split(".")[0] for n in imported(path)}
        for path in (FOLDER / "examples").glob("*.py")
        if path.stem != "__init__"
    }
    assert "camera_pose" in roots
    for module, names in roots.items():
        others = names - set(sys.stdlib_module_names) - {"rasterizer", "jax", "numpy"}
        allowed = {"numba", "llvmlite"} if module in optional else set()
        assert others <= allowed, f"{module} imports {others - allowed}"
