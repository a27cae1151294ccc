"""The page of a run in a real browser: from disk, sent alone, and live."""

import json
import shutil

import browser as browsers
import numpy as np
import pytest
from PIL import Image

from unsup3d_jax.engine import run_report

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def chromium():
    with browsers.chromium() as found:
        yield found


def expected(locator):
    """What is waited for: the page's policy allows no script of a test's."""
    return pytest.importorskip("playwright.sync_api").expect(locator)


def lines(first, last):
    found = []
    for step in range(first, last + 1, 10):
        found.append({"step": step, "split": "train", "total": 100.0 / step})
    event = {"step": first, "split": "event", "event": "warning", "reason": "flat <b>"}
    return "".join(json.dumps(x) + "\n" for x in [*found, event])


def painted(folder, *steps):
    folder.mkdir(exist_ok=True)
    for step in steps:
        Image.fromarray(np.full((20, 30, 3), step, np.uint8)).save(
            folder / f"{step}.png"
        )


@pytest.fixture
def workdir(tmp_path):
    painted(tmp_path / "pictures", 10, 20, 30)
    (tmp_path / "metrics.jsonl").write_text(lines(10, 30))
    record = {"config": {"train": {"steps": 60}}, "defaults": {"train.steps": 9}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    run_report.write(tmp_path)
    return tmp_path


@pytest.fixture
def opened(chromium):
    contexts, complaints = [], []

    def open_page(address, *, width=390, despite=()):
        context = chromium.new_context(viewport={"width": width, "height": 800})
        contexts.append(context)
        page = context.new_page()

        def complain(text):
            if not any(word in text for word in despite):
                complaints.append(text)

        page.on("console", lambda m: m.type == "error" and complain(m.text))
        page.on("pageerror", lambda error: complain(str(error)))
        page.clock.install()
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def at(page):
    return page.inner_text("#at"), page.get_attribute("#panel", "src")


def test_from_disk_it_shows_curves_and_panels(workdir, opened):
    page = opened((workdir / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert at(page) == ("30", "pictures/30.png")
    assert page.evaluate("document.getElementById('panel').naturalWidth") == 30
    page.focus("#when")
    page.keyboard.press("Home")
    assert at(page) == ("10", "pictures/10.png")
    chart = page.get_by_role("slider", name="Curve of total")
    assert "from 10 to 3.333, lowest 3.333, highest 10" in chart.get_attribute(
        "aria-label"
    )
    chart.focus()
    page.keyboard.press("ArrowLeft")
    assert chart.get_attribute("aria-valuetext") == "step 20: train 5"
    page.keyboard.press("Home")
    told = page.locator(".reading").first
    assert "train 10. warning at step 10: flat <b>" in told.inner_text()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 60)
    assert "Step 30: train 3.333" in told.inner_text()
    log = page.get_by_role("button", name="total: logarithmic scale")
    log.click()
    assert log.get_attribute("aria-pressed") == "true"
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == "rgb(246, 246, 244)"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(colour) == "rgb(23, 24, 26)"


def test_sent_alone_it_says_so_and_shows_the_newest_panel(workdir, opened, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(workdir / "report.html", alone)
    page = opened((alone / "report.html").as_uri(), despite=("ERR_FILE_NOT_FOUND",))
    page.focus("#when")
    page.keyboard.press("Home")
    expected(page.locator("#away")).to_contain_text("10.png is not beside")
    said = page.inner_text("#away")
    assert "pictures/10.png is not beside" in said and "that of step 30" in said
    assert page.get_attribute("#panel", "src").startswith("data:image/png")


def test_live_it_goes_on_and_keeps_the_place(workdir, opened):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from unsup3d_jax.engine import photo_server

    with (
        photo_server.bound(0) as listening,
        photo_server.running(None, listening, workdir=workdir) as (address, _),
    ):
        page = opened(f"{address}run")
        page.focus("#when")
        page.keyboard.press("Home")
        page.click("summary")
        chart = page.get_by_role("slider", name="Curve of total")
        chart.focus()
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(lines(40, 60))
        painted(workdir / "pictures", 40, 50)
        page.clock.fast_forward(6000)
        expected(page.locator("#when")).to_have_attribute("max", "4")
        assert at(page) == ("10", "pictures/10.png")
        assert "Finished. Step 60 of 60" in page.inner_text("#state")
        assert page.locator("details").get_attribute("open") is not None
        assert page.evaluate("document.activeElement.tagName") == "svg"
        assert chart.get_attribute("aria-valuemax") == "60"
        # Who looks at the newest panel is shown the next.
        page.focus("#when")
        page.keyboard.press("End")
        painted(workdir / "pictures", 60)
        page.clock.fast_forward(6000)
        expected(page.locator("#at")).to_have_text("60")
        assert not page.locator("#trouble").is_visible()
