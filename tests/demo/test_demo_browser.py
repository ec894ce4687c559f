"""The demo page in a real browser."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tatok_edge.format.reader import Reader
from tatok_edge.model.tokenizer import Tokenizer

pytest.importorskip("starlette", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("uvicorn", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("websockets", reason="the demo needs tatok-edge[demo]")


from helpers.demo_client import CELLS, PATCHES, PATIENCE, Demo, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Any other address is not looked up: the page must not ask for one, and the tests must not depend on a network.
ARGUMENTS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    if CHROMIUM is None:
        pytest.skip("the browser tests need Chromium (Debian: apt install chromium)")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


class Visit:
    """A page in the browser, with everything that it complained of or asked for."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.add_init_script(
            "window.asked = 0; const devices = navigator.mediaDevices; if (devices) {"
            "const real = devices.getUserMedia.bind(devices);"
            "devices.getUserMedia = wish => { window.asked += 1; return real(wish); }; }"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.waits("document.querySelector('#status').dataset.state === 'live'")

    def waits(self, condition: str) -> None:
        """Wait until a condition holds; Playwright's own way needs eval, which the page forbids."""
        end = time.monotonic() + PATIENCE
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, (
                f"{condition}: complaints {self.complaints}, notice {self.text('#notice-text')!r}, "
                f"status {self.text('#status')!r}"
            )
            self.page.wait_for_timeout(50)

    def text(self, selector: str) -> str:
        return str(self.page.text_content(selector))

    def spread(self, canvas: str) -> float:
        """How much the values of a canvas vary; 0 where nothing is drawn."""
        script = """id => {
            const canvas = document.getElementById(id);
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let sum = 0, squares = 0, count = 0;
            for (let i = 0; i < data.length; i += 4) { sum += data[i]; squares += data[i] ** 2; count += 1; }
            return Math.sqrt(squares / count - (sum / count) ** 2);
        }"""
        return float(self.page.evaluate(script, canvas))

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture
def visit(demo: Demo, browser: Any) -> Iterator[Visit]:
    with Visit(browser, demo.url, viewport={"width": 1440, "height": 900}) as opened:
        yield opened
        assert opened.complaints == []
        assert {re.sub(r"^\w+://", "", url).partition("/")[0] for url in opened.requests} == {demo.host}


def test_browser_shows_pictures_numbers_and_plots(visit: Visit) -> None:
    for canvas in ("camera", "map", "picture"):
        assert visit.spread(canvas) > 10
    visit.waits("document.querySelector('#value-latency').textContent.endsWith(' ms')")
    assert visit.text("#value-kbps").endswith(" kbit/s")
    assert re.fullmatch(r"\d\d\.\d\d dB", visit.text("#value-psnr"))
    assert re.fullmatch(r"\d+\.\d\u00d7", visit.text("#ratio-value"))
    assert visit.text("#count-fixed") == str(PATCHES + CELLS)
    assert 0 < int(visit.text("#count-adaptive")) < PATCHES + CELLS
    for plot in ("tokens", "kbps", "psnr", "latency"):
        drawn = visit.page.evaluate(
            "id => { const c = document.getElementById(id);"
            "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0) }",
            f"plot-{plot}",
        )
        assert drawn, plot
    assert visit.page.evaluate("window.asked") == 0  # nobody clicked on the webcam
    assert visit.page.evaluate("document.documentElement.scrollHeight - innerHeight") <= 40


def test_browser_slider_changes_the_tokens_by_keyboard_alone(visit: Visit, demo: Demo) -> None:
    visit.page.focus("#slider-keep")
    visit.page.keyboard.press("Home")
    assert visit.text("#value-keep") == "≤ 0"
    visit.waits("document.querySelector('#more-tokens').textContent.includes('; 0 patch')")
    assert demo.engine.settings.keep == 0
    visit.waits("document.querySelector('#figures').dataset.sliderMs > 0")
    visit.page.focus("#defaults")
    visit.page.keyboard.press("Enter")
    visit.waits("!document.querySelector('#more-tokens').textContent.includes('; 0 patch')")
    assert visit.text("#value-keep") == "no limit"
    assert demo.engine.settings.keep is None
    visit.page.focus("#slider-max_kbps")
    visit.page.keyboard.press("ArrowLeft")
    wait_for(lambda: demo.engine.settings.max_kbps == 96)
    visit.page.focus("#slider-max_tokens")
    visit.page.keyboard.press("Home")
    wait_for(lambda: demo.engine.settings.max_tokens == 0)


def test_browser_switches_between_fixed_rate_and_adaptive(visit: Visit) -> None:
    adaptive = visit.text("#count-adaptive")
    visit.page.check("input[value=fixed]")
    visit.waits(f"document.querySelector('#value-tokens').textContent === '{PATCHES + CELLS}'")
    assert visit.page.is_disabled("#slider-tau")
    assert adaptive.isdecimal() and int(visit.text("#count-adaptive")) < PATCHES + CELLS
    visit.page.check("input[value=adaptive]")
    visit.waits(f"+document.querySelector('#value-tokens').textContent < {PATCHES}")
    assert visit.page.is_enabled("#slider-tau")


def test_browser_records_plays_and_seeks(visit: Visit, demo: Demo) -> None:
    assert demo.folder is not None
    before = set(demo.folder.glob("*.ttk"))
    visit.page.click("#record")
    visit.waits("document.querySelector('#record-text').textContent === 'Stop recording'")
    visit.page.wait_for_timeout(1500)
    visit.page.click("#record")
    visit.waits("document.querySelector('#record-text').textContent === 'Record'")
    (name,) = [path.name for path in set(demo.folder.glob("*.ttk")) - before]
    visit.page.select_option("#source", label=name)
    visit.waits("!document.querySelector('#playback').hidden && !document.querySelector('#veil').hidden")
    visit.page.click("#play")
    visit.waits("document.querySelector('#play').textContent === 'Play'")
    visit.page.focus("#seek")
    visit.page.keyboard.press("End")
    with Reader(demo.folder / name) as reader:
        last = len(reader) - 1
    visit.waits(f"+document.querySelector('#position').dataset.frame === {last}")
    visit.page.click("#back")
    visit.waits(f"+document.querySelector('#position').dataset.frame === {last - 1}")
    visit.page.focus("#seek")
    visit.page.keyboard.press("Home")
    visit.waits("+document.querySelector('#position').dataset.frame === 0")
    assert visit.spread("picture") > 10 and visit.page.is_disabled("#record")
    visit.page.click("#play")
    visit.waits("+document.querySelector('#position').dataset.frame > 0")
    visit.page.select_option("#source", "source")
    visit.waits("document.querySelector('#playback').hidden && document.querySelector('#veil').hidden")


def test_browser_webcam_only_when_asked(visit: Visit, demo: Demo) -> None:
    assert visit.page.evaluate("window.asked") == 0
    visit.page.click("#webcam")
    visit.waits("document.querySelector('#camera-note').textContent === '320\u00d7240'")
    assert visit.page.evaluate("window.asked") == 1
    assert visit.spread("camera") > 5
    assert visit.text("#webcam") == "Stop my webcam"
    visit.page.click("#webcam")
    visit.waits("document.querySelector('#camera-note').textContent === '160\u00d796'")
    assert visit.text("#webcam") == "Use my webcam"


@pytest.mark.parametrize("width", [320, 390, 820])
def test_browser_narrow_screens_do_not_scroll_sideways(demo: Demo, browser: Any, width: int) -> None:
    phone = {"viewport": {"width": width, "height": 800}, "is_mobile": True, "has_touch": True}
    with Visit(browser, demo.url, **phone) as visit:
        visit.waits("document.querySelector('#figures').textContent.includes('patches')")
        outside = visit.page.evaluate(
            "[...document.querySelectorAll('main *, header *, footer *')].filter(e => { const box = "
            f"e.getBoundingClientRect(); return box.width && (box.right > {width}.5 || box.left < -0.5) }})"
            ".map(e => e.id || e.tagName)"
        )
        assert outside == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width
        assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_is_readable_in_light_and_dark(demo: Demo, browser: Any, scheme: str) -> None:
    with Visit(browser, demo.url, color_scheme=scheme) as visit:
        paper, *inks = visit.page.evaluate(
            "['body', '#model', 'h2', '#ratio-value', '.slider output', '.slider small', '#figures']"
            ".map((s, i) => { const style = getComputedStyle(document.querySelector(s));"
            "return i ? style.color : style.backgroundColor })"
        )
        card, text = visit.page.evaluate(
            "['backgroundColor', 'color'].map(name => getComputedStyle(document.querySelector('#budget'))[name])"
        )
        assert (luminance(paper) < 0.1) == (scheme == "dark")
        for ink in [*inks, text]:
            assert contrast(ink, paper) >= 4.5 or contrast(ink, card) >= 4.5, (ink, paper)
        # Every control has a name.
        nameless = visit.page.evaluate(
            "[...document.querySelectorAll('button, input, select')].filter(e => !(e.textContent.trim() || "
            "e.getAttribute('aria-label') || (e.labels && e.labels.length))).map(e => e.id || e.outerHTML)"
        )
        assert nameless == []


def test_browser_downloads_a_recording_and_drops_it_back_in(visit: Visit, demo: Demo, recording: Path) -> None:
    assert demo.folder is not None
    visit.page.set_input_files("#file", recording)
    visit.waits("!document.querySelector('#playback').hidden")
    with visit.page.expect_download() as waiting:
        visit.page.click("#download")
    data = Path(waiting.value.path()).read_bytes()
    assert data == recording.read_bytes() and waiting.value.suggested_filename.startswith("dropped-")
    before = len(demo.engine.recordings.names)
    visit.page.evaluate(
        """([bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name));
            dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }""",
        [list(data), "again.ttk"],
    )
    wait_for(lambda: len(demo.engine.recordings.names) == before + 1)


def test_browser_wipe_shows_camera_or_reconstruction(visit: Visit) -> None:
    box = visit.page.locator("#compare").bounding_box()
    assert box["width"] > 300
    y = box["y"] + box["height"] / 2
    visit.page.mouse.move(box["x"] + box["width"] / 2, y)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + box["width"] / 5, y, steps=4)
    visit.page.mouse.up()
    place = float(visit.page.input_value("#wipe"))
    assert 10 < place < 30  # dragged
    assert visit.page.evaluate("document.querySelector('#picture').style.clipPath") == f"inset(0px 0px 0px {place:g}%)"
    visit.page.focus("#wipe")
    visit.page.keyboard.press("End")
    assert visit.page.input_value("#wipe") == "100"


def test_browser_shows_the_depth_map_and_the_sequence(visit: Visit) -> None:
    sent = visit.page.evaluate("document.querySelector('#map').toDataURL()")
    visit.page.select_option("#map-view", "depth")
    visit.page.wait_for_timeout(300)
    assert visit.spread("map") > 10
    assert not visit.page.is_visible(".key.held")
    visit.page.select_option("#map-view", "sequence")
    visit.waits("document.querySelector('#sequence-text').textContent.startsWith('(patch, depth, id): (')")
    assert visit.page.evaluate("document.querySelector('#map').toDataURL()") != sent
    visit.page.select_option("#map-view", "sent")
    assert visit.page.is_visible(".key.held") and not visit.page.is_visible("#sequence-text")


@pytest.mark.parametrize(("name", "width", "height"), [("demo.png", 1280, 800), ("demo-phone.png", 390, 844)])
def test_browser_screenshots_of_the_docs(
    tokenizer: Tokenizer, browser: Any, tmp_path: Path, name: str, width: int, height: int
) -> None:
    """TATOK_SCREENSHOTS=docs renews those of the page."""
    folder = Path(os.environ.get("TATOK_SCREENSHOTS", tmp_path))
    running = Demo(tokenizer, tmp_path, "synthetic:width=320,height=240,fps=10,live=1")
    try:
        with Visit(browser, running.url, viewport={"width": width, "height": height}) as visit:
            visit.waits("last !== null && last.held_depth > 1.5")  # still parts have become sharp
            visit.page.screenshot(path=folder / name)
            if width >= 1280:  # all on one screen, without scrolling
                for part in ("#views", "#budget", "#plots"):
                    box = visit.page.locator(part).bounding_box()
                    assert box["y"] < height, part
                assert visit.page.evaluate("document.querySelector('#views').getBoundingClientRect().bottom") < height
    finally:
        running.close()
    assert (folder / name).stat().st_size > 20_000


def luminance(color: str) -> float:
    values = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(first: str, second: str) -> float:
    """Ratio as WCAG 2 defines it."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_browser_with_a_token_hides_it_and_says_when_the_demo_ends(tokenizer: Tokenizer, browser: Any) -> None:
    running = Demo(tokenizer, None, token="s3cret-Token_value")
    with contextlib.ExitStack() as stack:
        closing = stack.enter_context(contextlib.ExitStack())
        closing.callback(running.close)
        visit = stack.enter_context(Visit(browser, running.url))
        assert visit.page.url == f"http://{running.host}/"
        assert visit.complaints == []
        visit.page.reload()
        visit.waits("document.querySelector('#status').dataset.state === 'live'")
        assert visit.page.is_disabled("#record")
        closing.close()
        visit.waits("document.querySelector('#status').dataset.state === 'bad'")


def test_browser_two_pages_at_once_share_what_is_set(visit: Visit, demo: Demo, browser: Any) -> None:
    with Visit(browser, demo.url) as other:
        other.waits("document.querySelector('#model').textContent.endsWith('2 pages')")
        other.page.focus("#slider-max_loss_db")
        other.page.keyboard.press("End")
        visit.waits("document.querySelector('#value-max_loss_db').textContent === '3.00 dB'")
    visit.waits("!document.querySelector('#model').textContent.endsWith('2 pages')")
    first = visit.page.evaluate("last.number")
    visit.waits(f"last.number > {first + 3}")


def test_environment_has_what_the_browser_tests_need() -> None:
    if os.environ.get("CI") and sys.platform == "linux" and os.geteuid() == 0:
        assert CHROMIUM is not None
