"""What a visitor of the demo does: look, move sliders, record, play, give a webcam."""

from __future__ import annotations

import re
import time
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest

from tatok_edge.evaluation.metrics import psnr
from tatok_edge.format.reader import Reader
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.stream.decoder import StreamDecoder

pytest.importorskip("starlette", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("uvicorn", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("websockets", reason="the demo needs tatok-edge[demo]")


from helpers.demo_client import CELLS, PATCHES, PATIENCE, Demo, jpeg_of, picture_of

from tatok_edge.demo.messages import MAX_JPEG
from tatok_edge.demo.views import TOKEN, UPDATED


def test_page_is_whole_and_loads_nothing_foreign(demo: Demo) -> None:
    status, headers, content = demo.get()
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in headers
    named = set(re.findall(r'(?:src|href)="([^"]+)"', content.decode()))
    assert named == {"app.js", "style.css", "icon.svg"}
    for name in named:
        status, headers, content = demo.get(f"/{name}")
        assert status == 200 and len(content) > 100
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(|eval\(|innerHTML", text)
    for name in ("/nothing", "/server.py", "/..%2fserver.py", "/page/app.js"):
        assert demo.get(name)[0] == 404
    assert {file.name for file in resources.files("tatok_edge.demo").joinpath("page").iterdir()} == {
        "index.html",
        "app.js",
        "style.css",
        "icon.svg",
    }


def test_frames_show_camera_tokens_and_reconstruction(demo: Demo) -> None:
    with demo.open() as page:
        page.frame()
        header, (camera, picture, token_map, *_) = page.frame(lambda header: header["kind"] == "delta")
        assert (header["width"], header["height"], header["grid"]) == (160, 96, [12, 20])
        assert header["fixed_tokens"] == PATCHES + CELLS
        original, decoded = picture_of(camera), picture_of(picture)
        assert original.shape == decoded.shape == (96, 160, 3)
        assert header["psnr"] == pytest.approx(psnr(original, decoded), abs=1.5)
        assert header["psnr"] > 18
        marks = np.frombuffer(token_map, np.uint8)
        assert len(marks) == PATCHES
        assert np.maximum(marks.astype(int) - TOKEN + 1, 0).sum() == header["patch_tokens"]
        assert np.count_nonzero(marks >= TOKEN) == header["patches_with_tokens"]
        assert np.count_nonzero((marks == UPDATED) | (marks >= TOKEN)) == header["updated"] < PATCHES
        assert header["packet_ms"] >= header["encode_ms"] > 0
        later, _ = page.frame(lambda header: header["shown_ms"] is not None)
        assert later["number"] > header["number"] and later["shown_ms"] > 0
        assert page.state["model"] == "tatok-s8"
        assert page.state["source"]["kind"] == "source"


def test_sliders_act_on_the_next_frame(demo: Demo) -> None:
    with demo.open() as page:
        header, _ = page.change(max_tokens=4)
        assert header["patch_tokens"] <= 4
        header, _ = page.change(max_tokens=None, keep=0.0)
        assert header["patch_tokens"] == 0
        header, _ = page.change(keep=None, size=96)
        assert (header["width"], header["height"]) == (96, 58)
        page.change(max_loss_db=0.0, tau=1.0, size=160)
        plenty = [page.frame()[0]["patch_tokens"] for _ in range(8)]
        page.change(max_loss_db=3.0, tau=0.3)
        few = [page.frame()[0]["patch_tokens"] for _ in range(8)]
        assert sum(few) < 0.7 * sum(plenty)
        page.until(lambda page: page.state["settings"]["tau"] == 0.3)


def test_bandwidth_is_kept_in_every_second(demo: Demo) -> None:
    with demo.open() as page:
        page.change(max_loss_db=0.0)
        free = max(page.frame()[0]["kbps"] for _ in range(25))
        limit = 6.0
        assert free > limit
        header, _ = page.change(max_kbps=limit)
        assert header["limit_kbps"] == limit
        page.frame(lambda later: later["time"] > header["time"] + 1.1)
        assert all(page.frame()[0]["kbps"] <= limit for _ in range(15))


def test_bandwidth_below_a_keyframe_is_an_error_that_says_so(demo: Demo, rng: np.random.Generator) -> None:
    done, noise = cv2.imencode(".jpg", rng.integers(0, 256, (960, 960, 3), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 70])
    assert done and len(noise) < MAX_JPEG
    with demo.open() as page:
        page.change(size=960, max_kbps=4)
        page.send("source", name="webcam")
        page.until(lambda page: page.state["source"]["owner"] == page.state["page"])
        end = time.monotonic() + PATIENCE
        while not page.notices:
            page.connection.send(noise.tobytes())
            page.frame()
            assert time.monotonic() < end
        assert re.fullmatch(r"4 kbit/s are too few for 960x960 pixels: a keyframe needs [\d.]+ kbit", page.notices[0])
        page.send("settings", max_kbps=None)
        page.until(lambda page: page.state["settings"]["max_kbps"] is None)
        page.connection.send(noise.tobytes())
        page.frame(lambda header: header["kind"] == "key" and header["width"] == 960)


def test_fixed_rate_sends_one_token_for_every_patch_of_every_frame(demo: Demo) -> None:
    with demo.open() as page:
        adaptive = [page.frame()[0]["patch_tokens"] for _ in range(9)][1:]
        header, (_, _, token_map, *_) = page.change(mode="fixed")
        for _ in range(3):
            assert header["patch_tokens"] == PATCHES and header["global_tokens"] == CELLS
            assert header["kind"] == "key" and set(token_map) == {TOKEN}
            header, (_, _, token_map, *_) = page.frame()
        assert sum(adaptive) / len(adaptive) < PATCHES / 2, adaptive
        assert header["psnr"] > 18
        header, _ = page.change(mode="adaptive")
        assert header["kind"] == "key"
        assert page.frame()[0]["kind"] == "delta"


def test_record_play_and_seek(demo: Demo, tokenizer: Tokenizer) -> None:
    with demo.open() as page:
        page.send("record", on=True)
        page.until(lambda page: bool(page.state.get("recording", {}).get("name")))
        name = page.state["recording"]["name"]
        assert re.fullmatch(r"tatok-\d{8}-\d{6}(-\d+)?\.ttk", name)
        for _ in range(12):
            page.frame()
        page.change(mode="fixed")
        page.change(mode="adaptive")
        page.frame()
        page.send("record", on=False)
        page.until(lambda page: page.state["recording"]["name"] is None)
        assert name in page.state["recordings"]
        assert demo.folder is not None
        assert [path.suffix for path in demo.folder.glob(f"{name}*")] == [".ttk"]  # no part file is left
        with Reader(demo.folder / name, tokenizer.entropy_model) as reader:
            assert reader.complete and reader.is_key(0) and len(reader) >= 14
            count, packets = len(reader), list(reader.packets())
        pictures = []
        decoder = StreamDecoder(tokenizer)
        for packet in packets:
            decoded = decoder.decode(packet)
            assert decoded.complete and decoded.image is not None
            pictures.append(decoded.image)

        page.send("source", name="recording", recording=name)
        page.until(lambda page: page.state["playback"] is not None)
        assert page.state["playback"]["frames"] == count
        assert page.state["playback"]["keyframes"][0] == 0
        seen = [page.frame(lambda header: header["mode"] == "recording")[0]["frame"] for _ in range(4)]
        assert seen == sorted(seen)
        page.send("play", on=False)
        page.until(lambda page: not page.state["playback"]["playing"])
        for number in (5, 2, count - 1, 0):
            page.send("seek", frame=number)
            header, (camera, picture, token_map, depth_map, sequence) = page.frame(
                lambda header, n=number: header.get("frame") == n
            )
            assert camera == b"" and header["psnr"] is None
            assert psnr(picture_of(picture), pictures[number]) > 30
            assert sum(max(value - TOKEN + 1, 0) for value in token_map) == header["patch_tokens"]
            triplets = np.frombuffer(sequence, "<i4").reshape(-1, 3)
            assert len(triplets) == header["patch_tokens"]
            assert (np.frombuffer(depth_map, np.uint8)[triplets[:, 0]] >= triplets[:, 1]).all()
        page.send("seek", frame=10**6)
        page.frame(lambda header: header.get("frame") == count - 1)
        page.send("play", on=True)
        page.frame(lambda header: header.get("frame") == 0)  # over and over
        page.send("record", on=True)
        page.until(lambda page: any("is a recording already" in notice for notice in page.notices))
        page.send("source", name="source")
        page.frame(lambda header: header["mode"] == "adaptive")


def test_a_token_file_is_a_source(tokenizer: Tokenizer, recording: Path) -> None:
    running = Demo(tokenizer, None, str(recording))
    try:
        with running.open() as page:
            header, _ = page.frame()
            assert header["mode"] == "recording" and (header["width"], header["height"]) == (96, 64)
            page.until(lambda page: page.state.get("playback") is not None)
            assert page.state["given"] == {"name": "clip.ttk", "file": True}
            assert page.state["playback"]["keyframes"] == [0, 10, 20]
            page.send("record", on=True)
            page.until(lambda page: any("--record-to" in notice for notice in page.notices))
    finally:
        running.close()


def test_webcam_of_a_page_is_seen_by_all_and_ends_with_it(demo: Demo) -> None:
    with demo.open() as other:
        other.frame()
        with demo.open() as page:
            page.until(lambda page: bool(page.state))
            page.connection.send(jpeg_of(96, 64))  # nobody asked for it: ignored
            page.send("source", name="webcam")
            page.until(lambda page: page.state["source"]["owner"] == page.state["page"])
            for _ in range(2):
                page.connection.send(jpeg_of(96, 64))
                page.frame(lambda header: (header["width"], header["height"]) == (96, 64))
            other.frame(lambda header: header["width"] == 96)
            other.connection.send(jpeg_of(64, 96))  # only the page that was chosen is heard
            page.connection.send(jpeg_of(96, 64)[:-200])
            page.connection.send(jpeg_of(96, 96))
            header, _ = page.frame(lambda header: header["width"] == 96 and header["height"] != 64)
            assert header["height"] == 96
            page.connection.send(b"\xff\xd8" + bytes(50))
            page.until(lambda page: any("JPEG" in notice for notice in page.notices))
        other.frame(lambda header: header["width"] == 160)
        assert not any("JPEG" in notice for notice in other.notices)
