"""``tatok stream``, and decoding its files."""

import re
import signal
import time
from pathlib import Path

import numpy as np
from helpers.cli_runs import CLIP, CONTRACT, Run, launch, load, one_line, psnr

from tatok_edge.format.reader import Reader
from tatok_edge.sources.synthetic import Scene, render


def test_stream_writes_key_and_delta_packets_that_decode_reads(tatok: Run) -> None:
    result = tatok("stream", CLIP, "-o", "a.ttk", "--keyframe-interval", 10, "--json")
    assert result.code == 0, result.err
    report = result.json
    assert set(report) >= CONTRACT
    assert (report["frames"], report["width"], report["height"], report["keyframes"]) == (24, 160, 96, 3)
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p95"]
    assert 0 < report["updated_share"] < 1 and report["dropped"] == report["skipped"] == 0
    assert report["file_bytes"] == Path("a.ttk").stat().st_size
    assert report["complete"] and report["fps"] == 12.0
    with Reader("a.ttk") as reader:
        assert [number for number in range(24) if reader.is_key(number)] == [0, 10, 20]
    info = tatok("info", "a.ttk", "--json")
    assert info.code == 0 and info.json["frames"] == 24 and info.json["key_frames"] == 3
    assert tatok("encode", CLIP, "-o", "b.ttk").code == 0
    assert info.json["tokens_per_frame"]["mean"] < tatok("info", "b.ttk", "--json").json["tokens_per_frame"]["mean"] / 2
    assert tatok("decode", "a.ttk", "-o", "frames").code == 0
    pictures = sorted(Path("frames").iterdir())
    assert len(pictures) == 24
    scene = Scene(width=160, height=96, fps=12, frames=24)
    for number in (0, 7, 23):
        decoded = load(pictures[number])
        assert psnr(render(scene, number), decoded) > 20
        # One frame alone is the same picture.
        assert tatok("decode", "a.ttk", "-o", f"one{number}.png", "--frame", number).code == 0
        np.testing.assert_array_equal(load(Path(f"one{number}.png")), decoded)
    assert tatok("decode", "a.ttk", "-o", "a.mp4").code == 0
    assert tatok("view", "a.ttk", "-o", "view.png", "--frame", 15, "--source", CLIP).code == 0
    assert load(Path("view.png")).shape[1] > 3 * 160


def test_stream_keeps_a_bandwidth(tatok: Run) -> None:
    assert tatok("stream", CLIP, "-o", "a.ttk", "--max-kbps", 12, "--json").code == 0
    with Reader("a.ttk") as reader:
        infos = [reader.info(number) for number in range(len(reader))]
        sizes = [(info.timestamp_us, 8 * info.size) for info in infos]
    assert sum(info.kind == "key" for info in infos) == 1
    for begin, _ in sizes:
        assert sum(bits for time_us, bits in sizes if begin <= time_us < begin + 1_000_000) <= 12_000


def test_stream_without_an_output_reports(tatok: Run) -> None:
    result = tatok("stream", CLIP, "--fps", 6, "--seconds", 1, "--max-loss-db", 1)
    assert result.code == 0
    assert "7 (160x96" in result.out and "latency" in result.out and "kbit/s" in result.out
    assert not list(Path().iterdir())


def test_stream_of_a_live_camera_ends_on_time_and_counts_drops(tatok: Run) -> None:
    result = tatok("stream", "synthetic:live=1,width=96,height=64,fps=30", "-o", "a.ttk", "--seconds", 1.5, "--json")
    assert result.code == 0, result.err
    assert 5 < result.json["frames"] + result.json["dropped"] < 90
    assert result.json["seconds"] < 10
    with Reader("a.ttk") as reader:
        assert reader.complete and len(reader) == result.json["frames"]


def test_a_stream_that_is_terminated_keeps_its_packets(tmp_path: Path) -> None:
    process = launch("stream", "synthetic:live=1,width=96,height=64,fps=30", "-o", "a.ttk", cwd=tmp_path)
    part = tmp_path / "a.ttk.part"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 4000):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    with Reader(tmp_path / "a.ttk") as reader:
        assert reader.complete and len(reader) > 3


def test_a_damaged_packet_of_a_stream_costs_what_builds_on_it(tatok: Run) -> None:
    assert tatok("stream", CLIP, "-o", "a.ttk", "--keyframe-interval", 8).code == 0
    with Reader("a.ttk") as reader:
        where = reader.offset(11) + 20
    data = bytearray(Path("a.ttk").read_bytes())
    data[where] ^= 0x40
    Path("a.ttk").write_bytes(data)
    result = tatok("decode", "a.ttk", "-o", "frames", "--json")
    assert result.code == 1
    assert "frame 11" in result.err and "Traceback" not in result.err
    # Frames 11 to 15 are lost, the keyframe at 16 mends it.
    assert result.json["frames"] == 24 - 5
    assert {int(re.findall(r"\d+", path.stem)[-1]) for path in Path("frames").iterdir()} == set(range(24)) - set(
        range(11, 16)
    )


def test_stream_refuses(tatok: Run) -> None:
    one_line(tatok("stream", CLIP, "--max-kbps", 1), 1, "max_kbps must be at least 4 kbit/s, got 1")
    one_line(tatok("stream", CLIP, "--max-loss-db", -2), 1, "max_loss_db must be from 0 to 20 dB, got -2")
    one_line(tatok("stream", CLIP, "--seconds", 0), 2, "--seconds: must be a number of seconds above 0, got '0'")
    one_line(tatok("stream", CLIP, "--refresh", "never"), 2, "--refresh: invalid choice: 'never'")
    one_line(tatok("stream", CLIP, "--refine", 2), 2, "unrecognized arguments: --refine 2")
    one_line(tatok("stream", CLIP, "--score", "entropy"), 2, "--score: invalid choice: 'entropy'")
    one_line(tatok("stream", CLIP, "-o", "a.mp4"), 1, "a.mp4")
    one_line(tatok("stream", "nothing.mp4"), 1, "nothing.mp4: no such file")
