"""The server of mode serve over HTTP: what it answers, and all that it refuses."""

import contextlib
import http.client
import io
import json
import socket
import struct
import tempfile
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="mode serve is not installed")
pytest.importorskip("uvicorn", reason="mode serve is not installed")

from unsup3d_jax.engine import photo_server
from unsup3d_jax.engine.photo_server import Work
from unsup3d_jax.errors import UserError
from unsup3d_jax.show import mesh_files
from unsup3d_jax.show.viewer import content

SIZE = 8


def triangle(title="photo"):
    """The least that the viewer can show."""
    surface = mesh_files.Surface(
        vertices=np.array([[-1, -1, 0], [1, -1, 0], [0, 1, 0]], np.float32),
        normals=np.array([[0, 0, 1]] * 3, np.float32),
        faces=np.array([[0, 1, 2]], np.int32),
        uv=np.array([[0, 0], [1, 0], [0.5, 1]], np.float32),
    )
    texture = mesh_files.Texture(np.full((2, 2, 3), 0.5, np.float32), 1)
    glb = mesh_files.glb(surface, texture)
    return content.Content(title, glb, "Texture", content.eye_for(surface))


class Recorder:
    """Work that notes what it is given; waits where `gate` is not set."""

    def __init__(self):
        self.gate, self.begun = threading.Event(), threading.Event()
        self.reset()

    def reset(self):
        self.photos, self.error = [], None
        self.begun.clear()
        self.gate.set()

    def find(self, photo):
        self.photos.append(photo)
        self.begun.set()
        assert self.gate.wait(60)
        if self.error:
            raise self.error
        return "found"

    def show(self, photo, found):
        assert found == "found" and photo is self.photos[-1]
        return triangle()

    def work(self):
        return Work(
            title="a <model> & more",
            size=SIZE,
            find=self.find,
            show=self.show,
            sample=lambda: np.full((SIZE, SIZE, 3), 0.25, np.float32),
        )


@pytest.fixture(scope="module")
def served():
    recorder = Recorder()
    with photo_server.bound(0) as listening:
        with photo_server.running(recorder.work(), listening):
            yield recorder, listening.getsockname()[1]
            recorder.gate.set()


@pytest.fixture
def recorder(served):
    served[0].reset()
    return served[0]


@pytest.fixture
def port(served):
    return served[1]


def ask(port, method="POST", route="/photo", body=b"", **headers):
    """Status, headers and text; headers that are None are left out."""
    given = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}"}
    given |= {k.replace("_", "-"): v for k, v in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest(method, route, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Content-Length": str(len(body)), **given}.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


PHOTO = encoded(Image.new("RGB", (30, 20), (255, 0, 0)))


def reason(answer):
    """The one line of a refusal."""
    status, _, text = answer
    (line,) = text.splitlines()
    assert status >= 400, text
    return status, json.loads(line)["error"]


def test_a_photo_is_read_and_shown(port, recorder):
    status, headers, text = ask(port, body=PHOTO)
    assert status == 200
    lines = [json.loads(line) for line in text.splitlines()]
    assert [list(line) for line in lines] == [["stage"], ["stage"], ["content"]]
    assert lines[-1]["content"] == triangle().described()
    (photo,) = recorder.photos
    assert photo.shape == (SIZE, SIZE, 3) and photo.dtype == np.float32
    np.testing.assert_array_equal(photo[0, 0], [1.0, 0.0, 0.0])
    assert ask(port, route="/sample")[0] == 200
    assert recorder.photos[1].max() == 0.25


def test_the_page_and_every_answer_say_what_a_browser_may_do(port):
    status, headers, text = ask(port, "GET", "/", Origin=None)
    assert status == 200 and "a &lt;model&gt; &amp; more" in text
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "connect-src 'self'" in policy and "unsafe" not in policy
    for answer in (
        ask(port, body=PHOTO),
        ask(port, "GET", "/nothing"),
        ask(port, Host="evil.example"),
        ask(port, body=b"no photo"),
    ):
        for name in ("Content-Security-Policy", "X-Frame-Options"):
            assert answer[1][name] == headers[name]
        assert answer[1]["X-Content-Type-Options"] == "nosniff"
        assert answer[1]["Cache-Control"] == "no-store"
        assert answer[1]["Access-Control-Allow-Origin"] is None
        assert answer[1]["Server"] is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:80", "Origin": "http://evil.example:80"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example@127.0.0.1"},
        {"Host": "[::1]:80"},
        {"Origin": None},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1:{port}"},
    ],
)
def test_other_names_and_other_pages_reach_nothing(port, recorder, headers):
    given = {k: v and v.format(port=port) for k, v in headers.items()}
    for route in ("/photo", "/sample"):
        assert reason(ask(port, route=route, body=b"", **given))[0] == 403
    if "Host" in headers:
        assert reason(ask(port, "GET", "/", **given))[0] == 403
    assert not recorder.photos


def test_the_other_end_of_a_tunnel_may_have_another_port(port):
    here = {"Host": "localhost:9999", "Origin": "http://localhost:9999"}
    assert ask(port, body=PHOTO, **here)[0] == 200


def test_a_request_without_a_host_or_with_two_is_refused(port):
    for hosts in ("", f"Host: evil\r\nHost: 127.0.0.1:{port}\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
            raw.sendall(f"GET / HTTP/1.1\r\n{hosts}\r\n".encode())
            assert raw.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("method", "route", "status"),
    [
        ("GET", "/photo", 405),
        ("PUT", "/photo", 405),
        ("OPTIONS", "/photo", 405),
        ("POST", "/", 405),
        ("GET", "/viewer.js", 404),
        ("GET", "/../pyproject.toml", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "//etc/passwd", 404),
        ("POST", "/photo/../../x", 404),
        ("POST", "/photo/", 404),
    ],
)
def test_there_are_three_routes_and_nothing_else(port, method, route, status):
    assert reason(ask(port, method, route))[0] == status


def _bomb():
    """A PNG of a few bytes that says it has 30,000 x 30,000 pixels."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = (
        chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


JPEG = encoded(
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)),
    "JPEG",
)


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"hello", 415, "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "no image"),
        (b"\0\0\0\x18ftypheic" + bytes(40), 415, "JPEG"),
        (JPEG[:600], 400, "damaged"),
        (PHOTO[:-30], 400, "damaged"),
        (_bomb(), 413, "million pixels"),
    ],
)
def test_what_is_no_usable_photo_gets_a_line_for_people(
    port, recorder, data, status, words
):
    found, line = reason(ask(port, body=data))
    assert (found, words in line) == (status, True), line
    assert "/" not in line and "Error" not in line
    assert not recorder.photos
    assert ask(port, body=PHOTO)[0] == 200


def test_too_many_bytes_are_refused_whether_announced_or_not(
    port, recorder, monkeypatch
):
    monkeypatch.setattr(photo_server, "MOST_BYTES", 1000)
    status, line = reason(ask(port, Content_Length="1001"))
    assert status == 413 and "at most 0.001 MB" in line
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in [bytes(600)] * 2)
    sent = {"Transfer_Encoding": "chunked", "Content_Length": None}
    assert reason(ask(port, body=chunked + b"0\r\n\r\n", **sent))[0] == 413
    assert reason(ask(port, route="/sample", body=b"x"))[0] == 413
    assert not recorder.photos


def test_a_photo_that_does_not_come_is_not_waited_for(port, monkeypatch):
    monkeypatch.setattr(photo_server, "MOST_SECONDS", 0.2)
    assert reason(ask(port, Content_Length="100"))[0] == 408


def test_more_photos_than_can_be_held_are_sent_away(port, recorder):
    recorder.gate.clear()
    answers = []

    def one():
        answers.append(ask(port, body=PHOTO)[0])

    def hold():
        thread = threading.Thread(target=one)
        thread.start()
        return thread

    threads = [hold() for _ in range(photo_server.MOST_AT_ONCE)]
    assert recorder.begun.wait(60)
    deadline = threading.Event()
    for _ in range(600):  # until all of them hold a place
        status = ask(port, body=b"")[0]
        if status == 429:
            break
        deadline.wait(0.05)
    assert reason(ask(port, body=PHOTO)) == (429, photo_server._BUSY)
    assert ask(port, "GET", "/")[0] == 200
    assert len(recorder.photos) == 1  # one is worked on
    recorder.gate.set()
    for thread in threads:
        thread.join(60)
    assert answers == [200] * photo_server.MOST_AT_ONCE
    assert ask(port, body=PHOTO)[0] == 200


def test_who_leaves_gives_the_place_free(port, recorder):
    for _ in range(2 * photo_server.MOST_AT_ONCE):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
            lines = ["POST /photo HTTP/1.1", f"Host: 127.0.0.1:{port}"]
            lines += [f"Origin: http://127.0.0.1:{port}", "Content-Length: 999"]
            raw.sendall("\r\n".join([*lines, "", "half"]).encode())
    assert ask(port, body=PHOTO)[0] == 200


def test_nothing_of_a_photo_stays_on_disk(port, recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    recorder.gate.clear()
    thread = threading.Thread(target=ask, args=(port,), kwargs={"body": PHOTO})
    thread.start()
    assert recorder.begun.wait(60)
    assert not list(tmp_path.iterdir())  # not even while it is worked on
    recorder.gate.set()
    thread.join(60)
    ask(port, body=JPEG[:600])
    assert not list(tmp_path.iterdir())


def test_a_bug_is_told_and_the_next_photo_is_answered(port, recorder, capsys):
    recorder.error = KeyError("a bug")
    status, _, text = ask(port, body=PHOTO)
    assert status == 200
    assert "could not be worked on" in json.loads(text.splitlines()[-1])["error"]
    assert "Traceback" in capsys.readouterr().err
    recorder.error = None
    assert "content" in json.loads(ask(port, body=PHOTO)[2].splitlines()[-1])


def test_only_loopback_listens_and_a_port_in_use_is_an_error():
    with photo_server.bound(0) as first:
        name, number = first.getsockname()
        assert name == "127.0.0.1"
        with pytest.raises(UserError, match=f"--port={number}: .* or 0 for any"):
            photo_server.bound(number)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(photo_server, "PORT", number)
            with photo_server.bound(None) as other:
                assert other.getsockname()[1] != number
