"""Mode serve's page of a run over HTTP, with photos beside it and alone."""

import contextlib
import http.client
import json
import sys

import numpy as np
import pytest

pytest.importorskip("starlette", reason="mode serve is not installed")
pytest.importorskip("uvicorn", reason="mode serve is not installed")

from unsup3d_jax import cli
from unsup3d_jax.engine import photo_server

PNG = b"\x89PNG, or so"


def nothing(*_):
    raise AssertionError("no photo was sent")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "2.png").write_bytes(PNG)
    (folder / "config.json").write_text(json.dumps({"config": {"name": "<mine>"}}))
    line = {"step": 2, "split": "train", "total": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "secret.png").write_bytes(b"secret")
    return folder


@pytest.fixture(scope="module", params=["alone", "beside"])
def port(request, workdir):
    work = photo_server.Work("viewer", 8, nothing, nothing, lambda: np.zeros((8, 8, 3)))
    work = work if request.param == "beside" else None
    with photo_server.bound(0) as listening:
        with photo_server.running(work, listening, workdir=workdir):
            yield listening.getsockname()[1], work is not None


def ask(port, route, method="GET", **headers):
    given = {"Host": f"127.0.0.1:{port}"} | headers
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, route, headers=given)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def test_the_page_is_shown_under_its_own_policy(port):
    status, headers, body = ask(port[0], "/run")
    assert status == 200 and b"&lt;mine&gt;" in body
    assert len(headers.get_all("Content-Security-Policy")) == 1
    policy = headers["Content-Security-Policy"]
    assert "img-src 'self' data:" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_the_two_pages_lead_to_each_other(port):
    number, takes_photos = port
    status, headers, body = ask(number, "/")
    if takes_photos:
        assert status == 200 and b'<a href="run">' in body
        assert b'<a href="./">' in ask(number, "/run")[2]
        assert "img-src data: blob:" in headers["Content-Security-Policy"]
    else:
        assert status == 307 and headers["Location"] == "/run"
        assert b'<a href="./">' not in ask(number, "/run")[2]
        assert ask(number, "/photo")[0] == 404


def test_what_has_not_changed_is_not_sent_again(port, workdir):
    tag = ask(port[0], "/run")[1]["ETag"]
    status, headers, body = ask(port[0], "/run", **{"If-None-Match": tag})
    assert (status, body) == (304, b"") and headers["ETag"] == tag
    step = 2 + len((workdir / "metrics.jsonl").read_text().splitlines())
    line = {"step": step, "split": "train", "total": 0.25}
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    status, headers, body = ask(port[0], "/run", **{"If-None-Match": tag})
    assert status == 200 and headers["ETag"] != tag and f"Step {step}".encode() in body


@pytest.mark.parametrize(
    ("route", "status"),
    [
        ("/pictures/2.png", 200),
        ("/pictures/3.png", 404),
        ("/pictures/%2e%2e%2fsecret.png", 404),
        ("/pictures/../secret.png", 404),
        ("/secret.png", 404),
        (f"/pictures/{'9' * 5000}.png", 404),
        ("/metrics.jsonl", 404),
        ("/run/", 404),
    ],
)
def test_pictures_are_given_and_nothing_else(port, route, status):
    found, headers, body = ask(port[0], route)
    assert found == status and b"secret" not in body
    if status == 200:
        assert body == PNG and headers["Content-Type"] == "image/png"


def test_other_names_and_other_methods_are_refused(port):
    assert ask(port[0], "/run", Host="evil.example")[0] == 403
    assert ask(port[0], "/pictures/2.png", Host="evil.example:80")[0] == 403
    assert ask(port[0], "/run", "POST", Origin="http://evil.example")[0] == 403
    here = f"http://127.0.0.1:{port[0]}"
    assert ask(port[0], "/run", "POST", Origin=here)[0] == 405


@pytest.mark.parametrize(
    "config", ["quickstart", "gan2shape/gan_faces", "stn3dmm/full"]
)
def test_a_run_without_a_checkpoint_is_served_alone(
    tmp_path, monkeypatch, capsys, config
):
    given = []
    monkeypatch.setattr(
        photo_server, "serve", lambda work, **options: given.append((work, options))
    )
    (tmp_path / "metrics.jsonl").touch()
    argv = ["main.py", "--mode=serve", f"--config={config}", f"--workdir={tmp_path}"]
    assert cli.main([*argv, "--port=0", "--no_browser"]) == 0
    expected = {"workdir": tmp_path, "port": 0, "opens_browser": False}
    assert given == [(None, expected)]


def test_where_there_is_no_run_that_is_said(tmp_path, capsys, monkeypatch):
    argv = ["main.py", "--mode=serve", "--config=stn3dmm/full"]
    argv.append(f"--workdir={tmp_path}")
    assert cli.main(argv) == 2
    assert "there is no run in" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(argv) == 2
    assert "pip install '.[serve]'" in capsys.readouterr().err
