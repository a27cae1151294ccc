"""Mode serve of this method: one compilation, the same viewer, a clean end."""

import http.client
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import bust
import jax
import numpy as np
import pytest
import untrained
from PIL import Image

from unsup3d_jax import cli
from unsup3d_jax.unsup3d import export, model, reconstruct_files

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32


def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    argv = ["main.py", "--mode=serve", f"--workdir={tmp_path}"]
    assert cli.main([*argv, "--config=configs/quickstart.py"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "uvicorn" in line and "pip install '.[serve]'" in line


def test_a_photo_is_shown_as_reconstruct_would(monkeypatch):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from unsup3d_jax.unsup3d import serve

    config = bust.config_of(SIZE)
    factors, options = bust.make(SIZE)
    found = jax.jit(model.reconstruct, static_argnames="options")(
        factors, options=options
    )
    given = []

    def decompose(params, images, options, view_range):
        given.append((images.shape, view_range))
        return factors, found

    monkeypatch.setattr(reconstruct_files, "decompose", decompose)
    half = jax.numpy.asarray(0.5)
    work = serve.work_of(config, {}, view_range=half)
    assert work.size == SIZE
    image = np.full((SIZE, SIZE, 3), 0.5, np.float32)
    shown = work.show(image, work.find(image))
    assert given == [((1, SIZE, SIZE, 3), half)]
    # No perceptual loss: its maps say nothing. Of the first image of the two.
    one, its = jax.device_get(jax.tree.map(lambda a: a[0], (factors, found)))
    one = one.replace(conf_sigma_perceptual=None, conf_sigma_perceptual_flip=None)
    expected = export.viewer_content("photo", image, one, its, options)
    assert shown.described() == expected.described()


def ask(port, route, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=200)
    origin = {"Origin": f"http://127.0.0.1:{port}"}
    connection.request("POST", route, body, origin)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.once),
    ],
)
def test_the_program_serves_a_run_until_it_is_stopped(tmp_path, number):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    config = bust.config_of(SIZE)
    config.data.cache_dir = str(tmp_path / "cache")
    workdir = untrained.make(tmp_path / "run", config)
    command = [sys.executable, str(ROOT / "main.py"), "--mode=serve"]
    command += [f"--workdir={workdir}", "--port=0", "--no_browser"]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    with program:
        try:
            line = program.stdout.readline()
            assert line.startswith("the viewer is at http://127.0.0.1:"), line
            port = int(line.split(":")[2].split("/")[0])
            photo = io.BytesIO()
            Image.new("RGB", (300, 200), (200, 90, 40)).save(photo, "JPEG")
            status, text = ask(port, "/photo", photo.getvalue())
            assert status == 200
            shown = json.loads(text.splitlines()[-1])["content"]
            assert shown["title"] == "photo" and shown["pose"]
            assert ask(port, "/photo", b"broken")[0] == 415
            program.send_signal(number)
            assert program.wait(60) == 0
            assert "stopped. To go on: " in program.stderr.read()
        finally:
            program.kill()
