"""A real browser for tests, where there is one."""

import contextlib
import os
import shutil

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def chromium():
    """A headless one, driven by playwright; skips with a reason where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = own if os.path.exists(own) else None
        path = path or next(filter(None, map(shutil.which, _NAMES)), None)
        if path is None:
            pytest.skip("there is no Chromium")
        # In software, as a machine without a screen draws.
        flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # which Chromium wants of root
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        with contextlib.closing(browser):
            yield browser
