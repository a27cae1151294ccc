"""The page of a run behind the server of mode `serve`, as it is now."""

import hashlib
import threading
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from unsup3d_jax.engine import run_report
from unsup3d_jax.show.run_page import page

ADDRESS = "run"
LINK = f'<p><a href="{ADDRESS}">The run: curves, panels, scores</a></p>'
UNFRAMED = "frame-ancestors 'none'"


class _Live:
    """The page of a workdir; made anew when something there has changed."""

    def __init__(self, workdir: Path, beside: str):
        self._watched, self._beside = run_report.Watched(workdir), beside
        self._signature: tuple = ()
        self._made: tuple[str, str, str] | None = None
        self._one = threading.Lock()

    def made(self) -> tuple[str, str, str]:
        """The page, its policy, and a tag that tells it from others."""
        with self._one:
            signature = self._watched.signature()
            if self._made is None or signature != self._signature:
                run = self._watched.run()
                text, policy = page.document(run, live=True, beside=self._beside)
                tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
                self._made, self._signature = (text, policy, tag), signature
            return self._made


def of(workdir: Path, *, takes_photos: bool) -> list[Route]:
    """What a run adds to a server.

    Args:
        takes_photos: whether another page is at "/".
    """
    live = _Live(workdir, "./" if takes_photos else "")

    async def run(request: Request) -> Response:
        text, policy, tag = await run_in_threadpool(live.made)
        headers = {"Content-Security-Policy": f"{policy}; {UNFRAMED}", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return HTMLResponse(text, headers=headers)

    async def picture(request: Request) -> Response:
        name = request.path_params["name"]
        data = await run_in_threadpool(run_report.picture, workdir, name)
        if data is None:
            return JSONResponse({"error": "There is no such picture."}, 404)
        return Response(data, media_type="image/png")

    async def home(request: Request) -> Response:
        return RedirectResponse(f"/{ADDRESS}")

    routes = [Route(f"/{ADDRESS}", run), Route("/pictures/{name}.png", picture)]
    return routes if takes_photos else [Route("/", home), *routes]
