"""Speed of the demo page: frames per second, latency, and the time from a slider to the picture.

``python benchmarks/demo.py --out benchmarks/results``, on a quiet machine. A server process encodes, decodes and packs
the rendered camera of 320x240 pixels; a plain socket takes its frames, alone and beside a page that never reads, then
a headless Chromium shows them (needs playwright and Chromium; it shares the machine's cores with the server).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import common
import numpy as np
from websockets.sync.client import connect

from tatok_edge.evaluation.speed import machine

CAMERA = "synthetic:width=320,height=240,fps=30,live=1"
WARM_UP = 2.0
"""Seconds that are left out at the start of each run."""
SOCKET_HEADERS = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"


@contextlib.contextmanager
def server(threads: int | None) -> Iterator[tuple[str, int]]:
    """A running demo: its URL and process."""
    options = [] if threads is None else ["--threads", str(threads)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tatok_edge", "demo", CAMERA, "--port", "0", "--json", *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tempfile.gettempdir(),  # not where the source folders are: they would hide the installed package
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process.pid
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def deaf_page(url: str) -> Iterator[None]:
    """A page that opens its socket and never reads from it."""
    host = urlsplit(url).netloc
    with socket.create_connection((host.partition(":")[0], int(host.rpartition(":")[2]))) as connection:
        request = f"GET /socket HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n{SOCKET_HEADERS}"
        connection.sendall(f"{request}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
        yield


def percentiles(values: list[float]) -> dict[str, float]:
    """Median, 95 % and the largest."""
    return {
        name: round(float(np.percentile(values, share)), 2) for name, share in (("p50", 50), ("p95", 95), ("max", 100))
    }


def watch(url: str, seconds: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Take every frame of a run and acknowledge it at once."""
    host = urlsplit(url).netloc
    headers: list[dict[str, Any]] = []
    with connect(f"ws://{host}/socket", origin=f"http://{host}", max_size=None) as connection:
        connection.send(json.dumps({"type": "settings"} | settings))
        begun = time.perf_counter()
        while (now := time.perf_counter()) < begun + WARM_UP + seconds:
            message = connection.recv(timeout=30)
            if isinstance(message, str):
                continue
            header = json.loads(message[4 : 4 + int.from_bytes(message[:4], "little")])
            connection.send(json.dumps({"type": "seen", "number": header["number"]}))
            if now > begun + WARM_UP:
                headers.append(header)
    return {
        "fps": round(len(headers) / seconds, 2),
        "tokens": round(
            float(np.mean([one["patch_tokens"] + one["global_tokens"] + one["vectors"] for one in headers])), 1
        ),
        "psnr": round(float(np.mean([one["psnr"] for one in headers])), 2),
        "encode_ms": percentiles([one["encode_ms"] for one in headers]),
        "server_ms": percentiles([one["server_ms"] for one in headers]),
        "shown_ms": percentiles([one["shown_ms"] for one in headers if one["shown_ms"] is not None]),
    }


def browse(url: str, seconds: float, changes: int, picture: Path | None) -> dict[str, Any] | None:
    """The same in a headless Chromium, and the time from a slider to the picture; None without a browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        return None
    if chromium is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(url)
        page.wait_for_timeout(1000 * WARM_UP)
        first, begun = page.evaluate("drawn"), time.perf_counter()
        page.wait_for_timeout(1000 * seconds)
        shown, elapsed = page.evaluate("drawn") - first, time.perf_counter() - begun
        latency = page.evaluate("samples.map(sample => sample.shown_ms).filter(value => value !== null)")
        times = []
        for number in range(changes):
            # The next frame must show each change: from no patch tokens to all, and back.
            page.evaluate(
                "value => { sliderMs = null; const slider = document.getElementById('slider-keep');"
                "slider.value = value ? slider.max : 0; slider.dispatchEvent(new Event('input')); }",
                number % 2,
            )
            end = time.monotonic() + 30
            while (value := page.evaluate("sliderMs")) is None and time.monotonic() < end:
                page.wait_for_timeout(20)
            times.append(value)
            page.wait_for_timeout(137)  # not in step with the frames
        if picture is not None:
            take_picture(page, picture)
        browser.close()
    return {"fps": round(shown / elapsed, 2), "shown_ms": percentiles(latency), "slider_ms": percentiles(times)}


def take_picture(page: Any, path: Path) -> None:
    """Picture of the page for the documentation: adaptive, fixed rate, and adaptive again."""
    from PIL import Image

    page.click("#defaults")
    for mode, seconds in (("adaptive", 9), ("fixed", 4), ("adaptive", 6)):
        page.check(f"input[value={mode}]")
        page.wait_for_timeout(1000 * seconds)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").resize((1200, 750), Image.Resampling.LANCZOS).quantize(256).save(path, optimize=True)


def resident_mb(process: int) -> float:
    """Memory of a process."""
    fields = Path(f"/proc/{process}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def run(threads: int | None, seconds: float, changes: int, picture: Path | None) -> dict[str, Any]:
    """All measurements."""
    report: dict[str, Any] = {"machine": machine(), "load_average": os.getloadavg()[0], "seconds": seconds}
    with server(threads) as (url, process):
        report["adaptive"] = watch(url, seconds, {"mode": "adaptive"})
        report["fixed"] = watch(url, seconds, {"mode": "fixed"})
        before = resident_mb(process)
        with deaf_page(url):
            report["beside_deaf"] = watch(url, seconds, {"mode": "adaptive"})
        report["beside_deaf"]["growth_mb"] = round(resident_mb(process) - before, 2)
        report["browser"] = browse(url, seconds, changes, picture)
    return report


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""

    def three(values: dict[str, float]) -> str:
        return ", ".join(f"{value:.0f}" for value in values.values())

    lines = [
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores; camera of 320x240 pixels and 30 frames/s; "
        "times in ms: median, 95 %, largest.",
        "",
        "| what | frames/s | tokens | PSNR dB | encoding | camera to message | camera to screen |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, label in (
        ("adaptive", "adaptive"),
        ("fixed", "fixed rate"),
        ("beside_deaf", "adaptive, beside a page that never reads"),
    ):
        row = report[name]
        lines.append(
            f"| {label} | {row['fps']:.1f} | {row['tokens']:.0f} | {row['psnr']:.2f} | {three(row['encode_ms'])} | "
            f"{three(row['server_ms'])} | {three(row['shown_ms'])} |"
        )
    if (shown := report["browser"]) is not None:
        lines += [
            f"| shown by headless Chromium on the same cores | {shown['fps']:.1f} | | | | "
            f"| {three(shown['shown_ms'])} |",
            "",
            f"From a slider to the picture: {three(shown['slider_ms'])} ms.",
        ]
    lines += ["", f"Memory beside a page that never reads: {report['beside_deaf']['growth_mb']:+.1f} MB."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--threads", type=int, help="threads of the networks")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each run")
    parser.add_argument("--changes", type=int, default=40, help="changes of a slider")
    parser.add_argument("--picture", type=Path, help="also take the picture for docs/demo.md (needs Pillow)")
    options = parser.parse_args()
    report = run(options.threads, options.seconds, options.changes, options.picture)
    common.publish("demo", report, markdown(report), options.out)


if __name__ == "__main__":
    main()
