"""Other names for the folders that a checkout has beside this package.

`configs/` and `rasterizer/` are folders of their own in the repository. What is
installed holds them as `unsup3d_jax.configs` and `unsup3d_jax.rasterizer`, because both
short names belong to others: PyPI has a package that installs a `rasterizer`, and a
`configs` is in many a project. These long names are the ones to import, here as there.
In a checkout they mean the modules `configs` and `rasterizer`, so that no module is
loaded twice.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parent
BESIDE = ("configs", "rasterizer")
# Whether this is a checkout, or an editable installation of one.
IS_ONE = not (PACKAGE / "configs").is_dir()
_ROOT = PACKAGE.parent
CONFIGS = (_ROOT if IS_ONE else PACKAGE) / "configs"


class _Beside:
    """Finds `unsup3d_jax.configs`, `unsup3d_jax.rasterizer` and what is in them.

    A finder and a loader. The base classes of importlib.abc would load much else.
    """

    def find_spec(self, fullname, path=None, target=None):
        package, _, short = fullname.partition(".")
        top = short.partition(".")[0]
        if package != PACKAGE.name or top not in BESIDE:
            return None
        if _is_on_the_path(top):
            found = importlib.util.find_spec(short)
            loader: Any = self
            return found and ModuleSpec(fullname, loader, origin=found.origin)
        # An editable installation, or somebody else's `configs`: by its file, then.
        return PathFinder.find_spec(fullname, path if "." in short else [str(_ROOT)])

    def create_module(self, spec):
        short = spec.name.partition(".")[2]
        module = importlib.import_module(short)
        # What it has imported, too. Importing `rasterizer.rasterize` by its long name
        # later would put the module in place of the function of this name.
        for name, part in list(sys.modules.items()):
            if name.startswith(f"{short}."):
                sys.modules.setdefault(f"{PACKAGE.name}.{name}", part)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run already; but the import system has put the other spec in it."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _is_on_the_path(top: str) -> bool:
    """Whether the short name is that of the folder beside this package."""
    try:
        found = importlib.util.find_spec(top)
    except ValueError:  # a module without a spec
        return False
    if found is None or found.origin is None:
        return False
    return Path(found.origin).resolve() == _ROOT / top / "__init__.py"


def install() -> None:
    """Makes the long names known, where they are not those of folders in here."""
    if IS_ONE and not any(isinstance(x, _Beside) for x in sys.meta_path):
        # Before what an editable installation adds, which would load them anew.
        sys.meta_path.insert(0, _Beside())
