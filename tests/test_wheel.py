"""What is installed: both archives are built, looked through, and used elsewhere.

Needs a package index, for setuptools.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NARROW = (
    "--config.model.encoder_width=16 --config.model.bottleneck=16 "
    "--config.model.confidence_bottleneck=16 --config.loss.perceptual=0 "
    "--config.train.batch_size=4 --config.data.count_train=64 "
    "--config.data.count_val=8 --config.data.count_test=8"
).split()

pytestmark = [pytest.mark.once, pytest.mark.timeout(1200)]


def _run(*command, cwd, **env) -> subprocess.CompletedProcess:
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=inherited | env,
        capture_output=True,
        text=True,
    )


def _must(*command, cwd, **env) -> str:
    done = _run(*command, cwd=cwd, **env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> str:
    """A folder with setuptools, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("tools")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder]
    done = _run(*pip, "setuptools>=77", cwd=folder)
    if done.returncode:
        pytest.skip(f"no setuptools from a package index: {done.stderr[-200:]}")
    return str(folder)


@pytest.fixture(scope="module")
def archives(tools, tmp_path_factory) -> tuple[Path, Path]:
    """The source archive, and the wheel that is made from it alone."""
    folder = tmp_path_factory.mktemp("archives")
    tree = folder / "tree"
    leave = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "*.pyc")
    shutil.copytree(ROOT, tree, ignore=leave, symlinks=True)

    def build(kind: str, source: Path) -> Path:
        code = (
            f"from setuptools import build_meta as b; b.build_{kind}({str(folder)!r})"
        )
        before = set(folder.iterdir())
        _must(sys.executable, "-c", code, cwd=source, PYTHONPATH=tools)
        (found,) = {path for path in folder.iterdir() if path.is_file()} - before
        return found

    source = build("sdist", tree)
    with tarfile.open(source) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return source, build("wheel", unpacked)


@pytest.fixture(scope="module")
def elsewhere(archives, tmp_path_factory) -> Path:
    """An environment that holds the wheel; what it needs is that of these tests."""
    return _environment(tmp_path_factory.mktemp("elsewhere"), archives[1])


def _environment(folder: Path, *what, **env) -> Path:
    _must(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(_must(python, "-c", code, cwd=folder).strip())
    (own / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    _must(*pip, "--no-deps", "--no-index", *what, cwd=folder, **env)
    return folder / "bin"


def _packed(top: str) -> set[str]:
    """The files of a folder that are to be installed, by their names there."""
    long = "" if top == "unsup3d_jax" else "unsup3d_jax/"
    return {
        long + path.relative_to(ROOT).as_posix()
        for path in (ROOT / top).rglob("*")
        # Bytecode, and what Numba keeps beside it.
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_and_nothing_else(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        names = {x for x in wheel.namelist() if ".dist-info/" not in x}
        entries = wheel.read(next(x for x in wheel.namelist() if "entry_p" in x))
    expected = _packed("unsup3d_jax") | _packed("configs") | _packed("rasterizer")
    assert names == expected
    assert "unsup3d_jax/py.typed" in names
    assert b"unsup3d = unsup3d_jax.cli:installed" in entries


def test_the_source_archive_is_a_checkout_without_tests(archives):
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"main.py", "setup.py", "README.md", "LICENSE", "CITATION.cff"}
    assert wanted | {"configs/celeba.py", "rasterizer/depth.py"} <= names
    assert not [x for x in names if x.startswith(("tests", "benchmarks", "runs"))]


def test_the_readme_is_the_long_description(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        name = next(x for x in wheel.namelist() if x.endswith("dist-info/METADATA"))
        head, _, body = wheel.read(name).decode().partition("\n\n")
    assert "Description-Content-Type: text/markdown" in head
    assert body.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert body.count("```") % 2 == 0


def test_the_command_works_from_any_folder(elsewhere, tmp_path):
    shown = " ".join(_must(elsewhere / "unsup3d", "--help", cwd=tmp_path).split())
    assert shown.startswith(f"usage: {elsewhere / 'unsup3d'} ")
    assert "celeba" in shown and "gan2shape/faces" in shown
    assert str(ROOT) not in shown
    env = {"PATH": f"{elsewhere}{os.pathsep}{os.environ['PATH']}"}
    assert _must("unsup3d", "--help", cwd=tmp_path, **env).startswith("usage: unsup3d ")
    for given, words in (
        (["--config=celbea"], "did you mean celeba?"),
        (
            ["--config=gan2shape/faces", "--mode=reconstruct"],
            "--input=... and --output",
        ),
        (["--config=stn3dmm/open_faces", "--mode=reconstruct"], "--input=... and"),
    ):
        done = _run(elsewhere / "unsup3d", *given, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert words in done.stderr


def test_files_of_the_user_import_the_long_name(elsewhere, tmp_path):
    for top in ("configs", "unsup3d_jax.configs"):
        mine = tmp_path / f"{top}_user.py"
        mine.write_text(
            f"from {top} import folder\n\n\ndef get_config():\n"
            "    return folder.get_config()\n"
        )
        done = _run(elsewhere / "unsup3d", f"--config={mine}", cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        wrong = "write `from unsup3d_jax.configs import" in done.stderr
        assert wrong == (top == "configs")
        assert wrong or "data.path" in done.stderr


RASTERIZER = """
import sys
import jax.numpy as jnp
from unsup3d_jax import __version__, rasterizer
import unsup3d_jax.rasterizer.batching
vertices = jnp.array([[4.0, 4.0, 2.0], [28.0, 6.0, 3.0], [14.0, 27.0, 2.5]])
faces = jnp.array([[0, 1, 2]])
image = rasterizer.render_depth(vertices, faces, (32, 32), background=9.0)
assert image.covered.any() and rasterizer.__name__ == "unsup3d_jax.rasterizer"
loaded = {x.split(".")[1] for x in sys.modules if x.startswith("unsup3d_jax.")}
assert loaded == {"rasterizer", "checkout"}, loaded
for name in ("rasterizer", "configs", "tests"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name)
"""


def test_the_rasterizer_is_used_without_the_rest(elsewhere, tmp_path):
    _must(elsewhere / "python", "-c", RASTERIZER, cwd=tmp_path)


@pytest.mark.slow
def test_a_training_is_tried_dry(elsewhere, tmp_path):
    given = ["--config=quickstart", "--dry_run", *NARROW]
    told = _must(elsewhere / "unsup3d", *given, cwd=tmp_path)
    assert "parameters" in told and "memory" in told


@pytest.mark.slow
def test_a_photo_is_localised(elsewhere, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    given = ["--mode=reconstruct", "--config=stn3dmm/open_faces"]
    given += ["--input=photo.png", "--output=out"]
    _must(elsewhere / "unsup3d", *given, cwd=tmp_path)
    assert (tmp_path / "out" / "photo" / "record.json").exists()


@pytest.mark.slow
def test_a_photo_becomes_a_folder_by_what_ships(elsewhere, tmp_path):
    """From any folder: neither a config nor a workdir is needed."""
    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "face.png")
    given = ["--mode=reconstruct", "--weights=faces", "--detect=none"]
    given += ["--input=face.png", "--output=out"]
    done = _run(elsewhere / "unsup3d", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "warning: face.png: " in done.stderr  # it is noise
    there = {path.name for path in (tmp_path / "out" / "face").iterdir()}
    assert {"panel.png", "factors.npz", "mesh.glb", "viewer.html"} <= there
    assert (tmp_path / "out" / "summary.csv").exists()


def test_an_editable_installation_works_from_any_folder(tools, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("configs", "rasterizer", "unsup3d_jax"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    given = ["--no-build-isolation", "--editable", tree]
    found = _environment(tmp_path / "env", *given, PYTHONPATH=tools)
    assert str(tree) in _must(found / "unsup3d", "--help", cwd=tmp_path)
    code = (
        "import unsup3d_jax.configs.default as c, unsup3d_jax.rasterizer.mesh as r; "
        "print(c.__file__, r.__file__, c.__name__)"
    )
    told = _must(found / "python", "-c", code, cwd=tmp_path).split()
    files = [str(tree / x) for x in ("configs/default.py", "rasterizer/mesh.py")]
    assert told == [*files, "unsup3d_jax.configs.default"]
