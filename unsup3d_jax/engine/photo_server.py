"""Photos in, a viewer out, in a browser on this computer: what mode `serve` does.

Beside it the page of a run, as it is now (`run_routes`), or that alone.

What is found in a photo, and what is shown of it, the method says. Other web pages that
the same browser has open must reach nothing here: a name that is not this computer's
(DNS rebinding) and a request that another page sends are refused.

Starlette and uvicorn, because they are plain Python, small, and leave the process's
signals alone outside of its main thread.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import socket
import sys
import tempfile
import threading
import traceback
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from jaxtyping import Float
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unsup3d_jax.data import images as image_files
from unsup3d_jax.engine import run_routes
from unsup3d_jax.errors import UserError, one_line
from unsup3d_jax.show.viewer import page
from unsup3d_jax.show.viewer.content import Content

HOST = "127.0.0.1"
PORT = 8421  # where nobody asks for another, if it is free
MOST_BYTES = 50_000_000  # of a photo
MOST_SECONDS = 60.0  # for a photo to come in
MOST_AT_ONCE = 4  # photos that are read, wait or are worked on
_MOST_CONNECTIONS = 32
_NAMES = ("127.0.0.1", "localhost")
_BUSY = "Too many photos at once: try again when the others are done."

Picture = Float[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Work:
    """What is done with a photo.

    Attributes:
        title: of the page.
        size: pixels a side at which a photo is read.
        find: a photo, float32 in [0, 1] -> what was found in it.
        show: (photo, what was found in it) -> what the viewer shows.
        sample: -> a photo for those who have none.
    """

    title: str
    size: int
    find: Callable[[Picture], Any]
    show: Callable[[Picture, Any], Content]
    sample: Callable[[], Picture]


class Refused(Exception):
    """A request that is answered by a status and a line for people."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def serve(
    work: Work | None,
    *,
    workdir: Path | None = None,
    port: int | None = None,
    opens_browser: bool = True,
) -> None:
    """Answers until the body of the program is interrupted.

    Args:
        work: None: no photos are taken.
        workdir: of a run to show; None, which needs work: there is none.
        port: of the loopback interface; 0: any that is free; None: PORT, or any.
        opens_browser: if there is a screen.

    Raises:
        UserError: if the port is taken.
    """
    with (
        bound(port) as listening,
        running(work, listening, workdir=workdir) as (address, ended),
    ):
        # stdout: it is what was asked for.
        run = f"the run's page is at {address}{run_routes.ADDRESS}"
        told = [f"the viewer is at {address}"] if work else []
        told += [run] if workdir else []
        print(f"{', '.join(told)} (Ctrl-C ends it)", flush=True)
        if opens_browser and _has_screen():
            threading.Thread(
                target=webbrowser.open, args=(address,), daemon=True
            ).start()
        ended.wait()
        raise RuntimeError("the server has ended by itself")


@contextlib.contextmanager
def running(
    work: Work | None, listening: socket.socket, *, workdir: Path | None = None
) -> Iterator[tuple[str, threading.Event]]:
    """The server, in a thread of its own while the body runs.

    Args:
        work, workdir: as of `serve`.
        listening: bound to an address; see `bound`.

    Yields:
        Its address, and what is set when it has ended.
    """
    # One worker: one photo is worked on at a time, and the others wait.
    workers = concurrent.futures.ThreadPoolExecutor(1, "photo")
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(work, workers, workdir=workdir),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
    )
    ended = threading.Event()

    def run() -> None:
        try:
            server.run(sockets=[listening])
        finally:
            ended.set()

    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    # Not the main thread: there it would take the signals from `Interrupts`.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield address, ended
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        workers.shutdown(cancel_futures=True)


def bound(port: int | None) -> socket.socket:
    """A socket that listens on loopback alone.

    Raises:
        UserError: if the port that is asked for cannot be had.
    """
    wanted = [PORT, 0] if port is None else [port]
    for number in wanted:
        listening = socket.socket()
        # Else it is not to be had for a minute after it was.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, number))
            listening.listen(_MOST_CONNECTIONS)
            return listening
        except OSError as error:
            listening.close()
            reason = error.strerror or str(error)
    raise UserError(f"--port={wanted[-1]}: {reason}; name another, or 0 for any.")


def _has_screen() -> bool:
    shown = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform == "darwin" or any(map(os.environ.get, shown))


class Places:
    """So many photos at once; who comes later is sent away."""

    def __init__(self):
        self._held = 0

    @contextlib.contextmanager
    def taken(self) -> Iterator[contextlib.ExitStack]:
        """Takes one until the body ends; `pop_all` of what it yields keeps it longer.

        Raises:
            Refused: if there is none left.
        """
        if self._held >= MOST_AT_ONCE:
            raise Refused(429, _BUSY)
        self._held += 1
        with contextlib.ExitStack() as place:
            place.callback(self._free)
            yield place

    def _free(self) -> None:
        self._held -= 1


class _Lines(StreamingResponse):
    """Lines of JSON; gives a place free when they are sent, or nobody wants them."""

    def __init__(self, lines: AsyncIterator[str], place: contextlib.ExitStack):
        super().__init__(lines, media_type="application/x-ndjson")
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


def make_app(
    work: Work | None,
    workers: concurrent.futures.Executor,
    *,
    workdir: Path | None = None,
) -> ASGIApp:
    """The program that answers: three routes, those of a run, and nothing else.

    Args:
        work, workdir: as of `serve`.
        workers: of one thread.
    """
    routes, policy = [], "default-src 'none'"
    if work is not None:
        routes, policy = _photo_routes(work, workers, shows_run=workdir is not None)
    if workdir is not None:
        routes += run_routes.of(workdir, takes_photos=work is not None)

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        # What is left of the body is not read, so nothing can follow it.
        headers = {"Connection": "close"}
        return JSONResponse({"error": error.reason}, error.status, headers)

    def nothing(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        return JSONResponse({"error": "There is nothing at this address."}, status)

    app = Starlette(
        routes=routes,
        exception_handlers={Refused: refused, 404: nothing, 405: nothing},
    )
    app.router.redirect_slashes = False
    return _guarded(app, policy)


def _photo_routes(
    work: Work, workers: concurrent.futures.Executor, *, shows_run: bool
) -> tuple[list[Route], str]:
    """Those that a photo takes, and the policy of their page."""
    document, policy = page.upload_document(
        work.title,
        most_bytes=MOST_BYTES,
        beside=run_routes.LINK if shows_run else "",
    )
    places = Places()

    def home(request: Request) -> Response:
        return HTMLResponse(document)

    async def photo(request: Request) -> Response:
        with places.taken() as place:
            data = await _body(request, MOST_BYTES)
            picture = await asyncio.to_thread(read_photo, data, work.size)
            return _Lines(_found_in(picture, work, workers), place.pop_all())

    async def sample(request: Request) -> Response:
        with places.taken() as place:
            await _body(request, 0)
            return _Lines(_found_in(None, work, workers), place.pop_all())

    routes = [
        Route("/", home),
        Route("/photo", photo, methods=["POST"]),
        Route("/sample", sample, methods=["POST"]),
    ]
    return routes, policy


async def _found_in(
    picture: Picture | None, work: Work, workers: concurrent.futures.Executor
) -> AsyncIterator[str]:
    """What becomes of a photo, or of a sample: stages, then the content."""
    run = asyncio.get_running_loop().run_in_executor
    try:
        if picture is None:
            yield _line(stage="Rendering a synthetic face; the first takes a while")
        image = picture if picture is not None else await run(workers, work.sample)
        yield _line(stage="Finding shape, albedo, view and light")
        found = await run(workers, work.find, image)
        yield _line(stage="Making the 3D model")
        content = await run(workers, work.show, image, found)
        yield _line(content=content.described())
    except Exception as error:  # a bug: told here, and there
        traceback.print_exc()
        yield _line(error=f"This photo could not be worked on: {one_line(error, 200)}")


def _line(**what: Any) -> str:
    return json.dumps(what) + "\n"


async def _body(request: Request, most: int) -> bytes:
    """What was sent.

    Raises:
        Refused: if it is more than `most` bytes, or comes too slowly, or breaks off.
    """
    refusal = Refused(413, f"This file is too large: at most {most / 1e6:g} MB.")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > most:  # h11 has refused what is no number
        raise refusal
    data = bytearray()
    try:
        async with asyncio.timeout(MOST_SECONDS):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise refusal
    except TimeoutError:
        raise Refused(408, "The photo took too long to come.") from None
    except ClientDisconnect:
        raise Refused(400, "The photo broke off.") from None
    return bytes(data)


def read_photo(data: bytes, size: int) -> Picture:
    """Decodes a photo by the project's own rules, and forgets it.

    The largest centred square is taken, as of any photo that is not the data set's.

    Raises:
        Refused: if it is none that can be used.
    """
    if not data:
        raise Refused(400, "This file is empty.")
    # A file, because damage is looked for in files; gone when its pixels are there.
    with tempfile.TemporaryDirectory(prefix="unsup3d_jax-") as folder:
        path = Path(folder) / "photo"
        path.write_bytes(data)
        try:
            pixels, _ = image_files.read_image(path, crop=(0,), image_size=size)
        except image_files.ImageError as error:
            raise _refusal(error.reason, data) from None
        except MemoryError:
            raise Refused(413, "There is not enough memory for this photo.") from None
    return np.asarray(pixels, np.float32) / 255.0


def _refusal(reason: str, data: bytes) -> Refused:
    if reason.startswith("too large"):
        return Refused(413, f"This photo is {reason}.")
    if data[4:8] == b"ftyp":
        return Refused(
            415,
            "HEIC and AVIF are not read here: pip install '.[heic]', or save as JPEG.",
        )
    if "cannot identify" in reason:
        return Refused(415, "This file is no image that can be read: JPEG, PNG, WebP.")
    return Refused(400, f"This image is damaged or odd: {one_line(Exception(reason))}.")


def _guarded(app: ASGIApp, policy: str) -> ASGIApp:
    """Refuses other names and other pages' requests; adds headers to all answers."""
    headers = {
        "Content-Security-Policy": f"{policy}; {run_routes.UNFRAMED}",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    added = [(k.lower().encode(), v.encode()) for k, v in headers.items()]

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message["headers"]  # a page with a policy of its own keeps it
                names = {name.lower() for name, _ in own}
                more = [(k, v) for k, v in added if k not in names]
                message = {**message, "headers": [*own, *more]}
            await send(message)

        if scope["type"] != "http":
            return
        reason = _wrong_sender(scope["method"], Request(scope).headers)
        if reason:
            answer = JSONResponse({"error": reason}, 403, {"Connection": "close"})
            await answer(scope, receive, sending)
        else:
            await app(scope, receive, sending)

    return guarded


def _wrong_sender(method: str, headers: Mapping[str, str]) -> str:
    """Why a request is not answered; "" if it may be.

    The port may be another: a tunnel (ssh -L) often has another end.
    """
    host = headers.get("host", "")
    if host.rpartition(":")[0] not in _NAMES and host not in _NAMES:
        return "This address is not this program's: open the one that it has printed."
    if method in ("GET", "HEAD"):
        return ""
    if headers.get("origin", "") != f"http://{host}":
        return "Only the program's own page may send photos."
    return ""
