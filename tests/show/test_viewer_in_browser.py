"""The viewer in a real browser: from disk, and behind the server."""

import io

import browser as browsers
import bust
import jax
import numpy as np
import pytest
from PIL import Image

from unsup3d_jax.show.viewer import page as pages
from unsup3d_jax.unsup3d import export, model

pytestmark = pytest.mark.once
MAPS = ["shaded", "texture", "shape", "normals", "depth", "confidence", "symmetry"]


@pytest.fixture(scope="module")
def chromium():
    with browsers.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def head():
    """What the viewer shows of the head, which the photo has turned by +25 degrees."""
    factors, options = bust.make(32)
    reconstruct = jax.jit(model.reconstruct, static_argnames="options")
    found = reconstruct(factors, options=options)
    factors, found = jax.device_get(jax.tree.map(lambda a: a[0], (factors, found)))
    image = np.clip(found.plain.image, 0, 1)
    return export.viewer_content("head", image, factors, found, options)


@pytest.fixture(scope="module")
def address(head, tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    pages.write(folder, head)
    return (folder / pages.FILE).as_uri()


@pytest.fixture
def opened(chromium):
    """-> a page; whatever it complains of, or asks the network for, fails the test."""
    contexts, complaints = [], []

    def open_page(
        address, *, motion="reduce", width=420, touch=False, expected=(), script=""
    ):
        context = chromium.new_context(
            viewport={"width": width, "height": 800},
            reduced_motion=motion,
            has_touch=touch,
            accept_downloads=True,
        )
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(script)

        def complain(text):
            if not any(word in text for word in expected):
                complaints.append(text)

        page.on("console", lambda m: m.type == "error" and complain(m.text))
        page.on("pageerror", lambda error: complain(str(error)))
        base = address.rpartition("/")[0]
        page.on(
            "request",
            lambda r: r.url.startswith((base, "data:", "blob:")) or complain(r.url),
        )
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def seen(page):
    """What the canvas shows, when it has been drawn."""
    page.evaluate("new Promise((f) => requestAnimationFrame(() => setTimeout(f, 0)))")
    shot = page.locator("#canvas").screenshot()
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    # Without the edge, where the focus is shown.
    return np.asarray(picture, np.float32)[4:-4, 4:-4]


def until(page, condition):
    """Waits; the page's policy forbids playwright's own way, which is `eval`."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {condition}")


def apart(a, b):
    """Share of the pixels that differ to the eye."""
    return (np.abs(a - b).max(axis=-1) > 8).mean()


def ready(page):
    page.locator("#viewer").wait_for()
    until(page, "viewer.loaded && viewer.painter && !viewer.queued")
    return page


def drag(page, start, end, modifier=None):
    """From one place of the view to another, shares of its side."""
    box = page.locator("#canvas").bounding_box()
    places = [
        (box["x"] + x * box["width"], box["y"] + y * box["height"])
        for x, y in (start, end)
    ]
    if modifier:
        page.keyboard.down(modifier)
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=4)
    page.mouse.up()
    if modifier:
        page.keyboard.up(modifier)


def test_from_disk_it_shows_the_object(opened, address):
    page = ready(opened(address))
    picture = seen(page)
    h, w, _ = picture.shape
    assert (np.abs(picture[4, 4] - 28) < 3).all()  # the ground
    red = picture[int(0.56 * h), int(0.33 * w)]
    assert red[0] > 2 * red[1]  # the cheek, on the image's left
    green = picture[int(0.88 * h), w // 2]
    assert green[1] > 1.5 * green[0]  # the chin is below
    assert page.title() == "head"


def test_mouse_and_keys_turn_it(opened, address):
    page = ready(opened(address))
    front = seen(page)
    drag(page, (0.5, 0.85), (0.7, 0.85))
    right = seen(page)
    assert apart(front, right) > 0.1
    assert page.evaluate("viewer.yaw") == pytest.approx(36, abs=1)
    page.focus("#canvas")
    page.keyboard.press("Home")
    assert apart(front, seen(page)) == 0
    for key, angle, value in (
        ("ArrowLeft", "yaw", -5),
        ("ArrowUp", "pitch", 5),
    ):
        page.keyboard.press(key)
        assert page.evaluate(f"viewer.{angle}") == value
    assert apart(front, seen(page)) > 0.01
    assert page.locator("#said").inner_text() == "Turned -5 degrees right, 5 up"
    before = seen(page)
    page.keyboard.press("+")
    assert apart(before, seen(page)) > 0.01
    page.locator("#yaw").fill("60")
    assert page.evaluate("viewer.yaw") == 60


def test_the_light_moves_by_shift_lamp_keys_and_sliders(opened, address):
    page = ready(opened(address))
    page.check("input[value=shape]")
    before = seen(page)
    drag(page, (0.5, 0.85), (0.9, 0.85), "Shift")
    assert page.evaluate("viewer.yaw") == 0
    moved = seen(page)
    h, w, _ = before.shape
    left, right = (
        (moved - before)[int(0.3 * h) : int(0.4 * h), int(a * w) : int(b * w)].mean()
        for a, b in ((0.2, 0.3), (0.7, 0.8))
    )
    assert right > left + 20  # the light has gone to the right
    page.click("#relit")
    assert apart(before, seen(page)) == 0
    lamp = page.locator("#lamp").bounding_box()
    page.mouse.move(lamp["x"] + 22, lamp["y"] + 22)
    page.mouse.down()
    page.mouse.move(lamp["x"] + 120, lamp["y"] + 22, steps=3)
    page.mouse.up()
    assert apart(before, seen(page)) > 0.1
    page.click("#relit")
    page.focus("#canvas")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")
    assert apart(before, seen(page)) > 0.1
    page.click("#relit")
    for slider, value in (("azimuth", "70"), ("elevation", "-60"), ("diffuse", "0.1")):
        last = seen(page)
        page.locator(f"#{slider}").fill(value)
        assert apart(last, seen(page)) > 0.05, slider


def test_two_fingers_move_the_light_and_one_turns(opened, address):
    page = ready(opened(address, touch=True))
    box = page.locator("#canvas").bounding_box()
    left, top, side = box["x"], box["y"], box["width"]
    finger = page.context.new_cdp_session(page)

    def touch(kind, *places):
        points = [
            {"id": i, "x": left + x * side, "y": top + y * side}
            for i, (x, y) in enumerate(places)
        ]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (0.4, 0.8))
    touch("touchMove", (0.5, 0.8))
    touch("touchEnd")
    assert page.evaluate("viewer.yaw") == pytest.approx(18, abs=1)
    light = page.evaluate("viewer.lampAt()[0]")
    touch("touchStart", (0.4, 0.8), (0.6, 0.8))
    touch("touchMove", (0.5, 0.8), (0.7, 0.8))
    touch("touchEnd")
    assert page.evaluate("viewer.yaw") == pytest.approx(18, abs=1)
    assert page.evaluate("viewer.lampAt()[0]") > light + 0.1


def test_every_map_looks_different_and_says_what_it_is(opened, address):
    page = ready(opened(address))
    assert page.locator("#maps input").count() == len(MAPS)
    pictures, legends = [], set()
    for name in MAPS:
        page.check(f"input[value={name}]")
        pictures.append(seen(page))
        legends.add(page.locator("#legend").inner_text())
    assert len(legends) == len(MAPS)
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert apart(one, other) > 0.02
    # By keys alone, as radio buttons are.
    page.focus("input[value=depth]")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("viewer.map") == "normals"


def test_as_in_the_photo_it_lies_over_the_photo(opened, address):
    page = ready(opened(address))
    shown = seen(page)
    assert page.locator("#photo").is_visible()
    page.click("#pose")
    posed = seen(page)
    assert apart(shown, posed) > 0.1
    page.locator("#wipe").fill("100")
    over = np.asarray(
        Image.open(io.BytesIO(page.locator("#screen").screenshot())).convert("RGB"),
        np.float32,
    )[4:-4, 4:-4]
    # The photo is what the same shape was rendered to; its ground is another.
    inside = (np.abs(posed - 28).max(axis=-1) > 12) & (np.abs(over - 90).max(-1) > 30)
    assert apart(shown, over) > 0.3 and inside.mean() > 0.3
    assert np.median(np.abs(posed - over).max(axis=-1)[inside]) < 10
    drag(page, (0.5, 0.85), (0.6, 0.85))
    assert page.locator("#wipe").input_value() == "0"
    assert page.locator("#overlay").is_hidden()


def test_the_model_and_the_picture_are_saved(opened, address, head, tmp_path):
    page = ready(opened(address))
    with page.expect_download() as waiting:
        page.click("#glb")
    assert waiting.value.suggested_filename == "head.glb"
    waiting.value.save_as(tmp_path / "head.glb")
    assert (tmp_path / "head.glb").read_bytes() == head.glb
    with page.expect_download() as waiting:
        page.click("#png")
    assert waiting.value.suggested_filename == "head.png"
    waiting.value.save_as(tmp_path / "head.png")
    with Image.open(tmp_path / "head.png") as picture:
        assert picture.size == (1024, 1024)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 1000
    assert apart(seen(page), np.full((1, 1, 3), 28.0)) > 0.3  # it is still shown


# Keeps the farthest turn that the page has shown: at once may be too late to look.
WATCH = """
globalThis.farthest = 0;
document.addEventListener("DOMContentLoaded", () => {
  const yaw = document.getElementById("yaw");
  new MutationObserver(() => {
    farthest = Math.max(farthest, Math.abs(yaw.value));
  }).observe(yaw, { attributes: true });
});"""


def test_it_moves_by_itself_once_and_only_where_that_is_welcome(opened, address):
    page = ready(opened(address, script=WATCH))
    page.wait_for_timeout(300)
    assert page.evaluate("[viewer.swinging, farthest]") == [0, 0]
    page.click("#swing")
    assert page.locator("#swing").get_attribute("aria-pressed") == "true"
    until(page, "farthest > 2")
    page.focus("#canvas")
    page.keyboard.press("Shift")  # whatever a person does ends it
    assert page.evaluate("viewer.swinging") == 0
    assert page.locator("#swing").get_attribute("aria-pressed") == "false"
    page = ready(opened(address, motion="no-preference", script=WATCH))
    until(page, "farthest > 2")
    until(page, "viewer.swinging === 0 && viewer.yaw === 0")


def test_it_fits_a_telephone(opened, address):
    page = ready(opened(address, width=360))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for name in ("canvas", "yaw", "glb", "wipe"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
        assert min(box["width"], box["height"]) >= 28


def test_all_controls_can_be_reached_by_keys(opened, address):
    page = ready(opened(address))
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    wanted = {"canvas", "yaw", "pitch", "zoom", "front", "pose", "swing", "azimuth"}
    wanted |= {"elevation", "ambient", "diffuse", "relit", "wipe", "glb", "png"}
    assert wanted <= set(reached)


def test_without_3d_it_says_so_and_the_model_can_be_saved(opened, address):
    page = opened("about:blank")
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(address)
    page.locator("#trouble").wait_for()
    assert "shows no 3D" in page.locator("#trouble").inner_text()
    with page.expect_download():
        page.click("#glb")


# --- behind the server ----------------------------------------------------------


@pytest.fixture(scope="module")
def server(head):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from unsup3d_jax.engine import photo_server

    work = photo_server.Work(
        title="served",
        size=32,
        find=lambda photo: photo,
        show=lambda photo, found: head,
        sample=lambda: np.full((32, 32, 3), 0.5, np.float32),
    )
    with photo_server.bound(0) as listening:
        with photo_server.running(work, listening) as (address, _):
            yield address


def photo(tmp_path, name="my face.png"):
    path = tmp_path / name
    Image.new("RGB", (50, 40), (90, 120, 30)).save(path)
    return path


def test_a_photo_is_uploaded_and_seen(opened, server, tmp_path):
    page = opened(server)
    assert page.locator("#viewer").is_hidden()
    page.set_input_files("#file", photo(tmp_path))
    ready(page)
    page.locator("#state", has_text="Done").wait_for()
    assert page.locator("h1").inner_text() == "my face"
    first = seen(page)
    page.keyboard.press("ArrowRight")  # the view has the focus
    assert apart(first, seen(page)) > 0.01
    page.click("#sample")
    page.locator("h1", has_text="Synthetic face").wait_for()
    assert apart(first, seen(page)) == 0  # it faces the front again


def test_a_photo_is_dropped(opened, server, tmp_path):
    page = opened(server)
    data = list(photo(tmp_path).read_bytes())
    page.evaluate(
        """(data) => {
          const carried = new DataTransfer();
          carried.items.add(new File([new Uint8Array(data)], "dropped.png"));
          const event = new DragEvent("drop", { dataTransfer: carried, bubbles: true,
            cancelable: true });
          document.getElementById("drop").dispatchEvent(event);
        }""",
        data,
    )
    ready(page)
    assert page.locator("h1").inner_text() == "dropped"


def test_a_broken_photo_is_told_and_the_next_one_works(opened, server, tmp_path):
    page = opened(server, expected=["Failed to load resource"])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"hello")
    page.set_input_files("#file", broken)
    page.locator("#state.bad", has_text="no image").wait_for()
    assert page.locator("#viewer").is_hidden()
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(50_000_001)
    page.set_input_files("#file", large)
    page.locator("#state.bad", has_text="at most 50 MB").wait_for()
    page.set_input_files("#file", photo(tmp_path))
    ready(page)


def test_another_page_cannot_send_photos(opened, server, address):
    """Not even one from disk, and it may not look at this one."""
    page = opened("about:blank", expected=["CORS", "Failed to load", "http://"])
    tried = page.evaluate(
        """async (address) => {
          const results = [];
          for (const mode of ["cors", "no-cors"]) {
            try {
              const answer = await fetch(address + "sample", { method: "POST", mode });
              results.push(`${answer.type} ${answer.status}`);
            } catch (error) { results.push(error.name); }
          }
          return results;
        }""",
        server,
    )
    assert tried[0] == "TypeError" and tried[1] in ("TypeError", "opaque 0")
