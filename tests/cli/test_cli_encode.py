"""``tatok encode`` and ``tatok info`` with the shipped model."""

import json
import re
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.cli_runs import CONTRACT, SMALL, Run, launch, load, one_line, psnr
from helpers.memory import peak_memory
from helpers.paths import shared

from tatok_edge.format.reader import Reader
from tatok_edge.model.bundle import DEFAULT_MODEL
from tatok_edge.sources.synthetic import Scene, render


def test_encode_reports_the_contract(tatok: Run) -> None:
    result = tatok("encode", SMALL, "-o", "a.ttk", "--keep", "0.25", "--json")
    assert result.code == 0
    assert result.err == ""
    report = result.json
    assert set(report) >= CONTRACT
    assert (report["frames"], report["width"], report["height"], report["model"]) == (6, 96, 64, DEFAULT_MODEL)
    assert report["tokens_per_frame"] == {"mean": 24.0, "min": 24, "max": 24}
    assert report["patches_per_frame"]["mean"] == 96
    assert report["bits_per_frame"]["mean"] > 0
    assert report["seconds"] > 0
    assert report["backend"] == "onnxruntime"
    assert report["complete"] is True
    assert report["file_bytes"] == Path("a.ttk").stat().st_size

    about = tatok("info", "a.ttk", "--json").json
    assert set(about) >= CONTRACT
    same = (
        "frames",
        "width",
        "height",
        "tokens_per_frame",
        "bits_per_frame",
        "bits_per_pixel",
        "model",
        "backend",
        "fps",
    )
    assert {name: about[name] for name in same} == {name: report[name] for name in same}
    assert about["duration_seconds"] == 0.2
    assert about["metadata"]["budget"] == {"keep": 0.25}


def test_summary_table(tatok: Run, small: Path) -> None:
    result = tatok("encode", SMALL, "-o", "a.ttk", "--keep", "0.35")
    assert re.search(r"tokens per frame +34 \(34 to 34\) for 96 patches: 0\.35 per patch", result.out)
    assert result.err == ""
    assert "96x64, 30 frames/s" in tatok("info", small).out


def test_encoding_twice_gives_the_same_file(tatok: Run) -> None:
    for name in ("a.ttk", "b.ttk"):
        assert tatok("encode", SMALL, "-o", name, "--tau", "0.7").code == 0
    assert Path("a.ttk").read_bytes() == Path("b.ttk").read_bytes()


def test_budgets(tatok: Run) -> None:
    def tokens(*limits: object) -> dict[str, float]:
        result = tatok("encode", SMALL, "-o", "a.ttk", "--json", "--force", *limits)
        assert result.code == 0, result.err
        figures: dict[str, float] = result.json["tokens_per_frame"]
        return figures

    assert tokens("--max-tokens", 10)["max"] == 10
    assert tokens("--keep", 0)["max"] == 0
    assert tokens("--keep", 2)["max"] == 2 * 96
    assert tokens("--max-depth", 1)["max"] == tokens("--max-depth", 1)["min"] == 96  # one for every patch
    assert tokens("--max-depth", 2, "--keep", 0.5, "--score", "visual")["max"] == 48
    everything, most, some = tokens(), tokens("--tau", 0.8), tokens("--tau", 0.4)
    assert everything["mean"] > most["mean"] > some["mean"] > 0
    assert tokens("--tau", 0.4, "--score", "entropy")["mean"] > 0
    tokens("--max-bits", 900)
    with Reader("a.ttk") as reader:
        assert all(8 * len(reader.packet(number)) <= 900 for number in range(len(reader)))


def test_more_tokens_than_the_model_gives_are_refused(tatok: Run) -> None:
    says = "keep must be from 0 to 4 tokens per patch, the depth of this model, got 5"
    one_line(tatok("encode", SMALL, "-o", "a.ttk", "--keep", 5), 1, says)
    assert not Path("a.ttk").exists()


def test_info_counts_the_patches_by_depth(tatok: Run) -> None:
    """Of a file of frames, and of a stream, where patches hold tokens of earlier packets."""
    assert tatok("encode", SMALL, "-o", "a.ttk", "--keep", 1.5).code == 0
    report = tatok("info", "a.ttk", "--depths", "--json").json
    assert (report["depth"], report["tokens_per_patch"]) == (4, 1.5)
    counts = report["patches_by_depth"]
    assert sum(counts) == 6 * 96 and sum(depth * count for depth, count in enumerate(counts)) == 6 * 144
    assert counts[0] > 0 and max(counts[2:]) > 0
    assert tatok("info", "a.ttk", "--json").json["patches_by_depth"] is None
    text = tatok("info", "a.ttk", "--depths").out
    assert re.search(r"held per patch +1\.50 \(0: \d+\.\d%, 1: .*, 4: \d+\.\d% of the patches\)", text)
    assert "tatok-s8, up to 4 tokens per patch" in text
    assert tatok("stream", SMALL, "-o", "b.ttk", "--keep", 1).code == 0
    streamed = tatok("info", "b.ttk", "--depths", "--json").json
    assert streamed["key_frames"] < streamed["frames"] == 6
    assert sum(streamed["patches_by_depth"]) == 6 * 96 and not streamed["problem"]
    one_line(tatok("info", "a.ttk", "--depths", "--model", "none"), 1, "unknown model 'none'")


def test_frames_stops_early_and_snapshot_keeps_the_last_frame(tatok: Run) -> None:
    result = tatok("encode", SMALL, "-o", "a.ttk", "--frames", 3, "--snapshot", "last.png", "--json")
    assert result.code == 0
    assert result.json["frames"] == 3
    np.testing.assert_array_equal(load(Path("last.png")), render(Scene(width=96, height=64), 2))


def test_folder_of_pictures_of_several_sizes(tatok: Run, tmp_path: Path) -> None:
    sizes = [(64, 48), (96, 33), (40, 70)]
    (tmp_path / "in").mkdir()
    for number, (width, height) in enumerate(sizes):
        image = render(Scene(width=width, height=height), number)
        cv2.imwrite(f"in/p{number}.png", np.ascontiguousarray(image[..., ::-1]))
    result = tatok("encode", "in", "-o", "a.ttk", "--json")
    assert result.code == 0
    assert result.json["frames"] == 3
    assert result.json["fps"] is None
    assert tatok("decode", "a.ttk", "-o", "out").code == 0
    assert [load(path).shape[1::-1] for path in sorted(Path("out").iterdir())] == sizes
    result = tatok("decode", "a.ttk", "-o", "a.mp4")
    assert result.code == 1
    assert re.search(r"frame 1 is 96x33 but the video is 64x48; decode .* folder", result.err), result.err
    assert not Path("a.mp4").exists()


def test_memory_does_not_grow_with_the_length_of_the_clip(tmp_path: Path) -> None:
    def peak(frames: int) -> float:
        source = f"synthetic:frames={frames},width=96,height=64"
        return peak_memory("encode", source, "-o", f"{frames}.ttk", cwd=tmp_path)

    assert peak(200) <= 1.05 * peak(20)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupt_keeps_what_is_whole(tmp_path: Path, number: signal.Signals, code: int) -> None:
    source = "synthetic:frames=1000000,width=96,height=64"
    process = launch("encode", source, "-o", "a.ttk", "--keep", "0.2", "--json", cwd=tmp_path)
    part = tmp_path / "a.ttk.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 2000) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    kept = json.loads(out)["frames"]
    assert err == (
        f"tatok encode: not finished: {kept} frames are in a.ttk.part, and a.ttk is as before\n"
        "tatok encode: interrupted; finished work is kept\n"
    )
    with Reader(tmp_path / "a.ttk.part") as reader:
        assert reader.complete
        assert len(reader) == kept > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ttk.part"]


def test_every_shared_clip(tatok: Run) -> None:
    clips = sorted(shared("videos").glob("*.mp4"))
    assert len(clips) == 20
    quality = []
    for clip in clips:
        result = tatok("encode", clip, "-o", "a.ttk", "--keep", "0.35", "--frames", 2, "--json", "--force")
        assert result.code == 0, (clip, result.err)
        assert result.json["frames"] == 2
        assert tatok("decode", "a.ttk", "-o", "a.mp4", "--force").code == 0
        view = tatok("view", "a.ttk", "-o", "a.png", "--source", clip, "--frame", 1, "--json", "--force")
        quality.append(view.json["psnr_db"])
    assert np.mean(quality) > 24
    assert min(quality) > 17


def test_all_kodak_pictures(tatok: Run) -> None:
    result = tatok("encode", shared("eval/kodak"), "-o", "kodak.ttk", "--keep", "0.35", "--json")
    assert result.code == 0
    assert result.json["frames"] == 24
    assert tatok("decode", "kodak.ttk", "-o", "kodak").code == 0
    originals = sorted(shared("eval/kodak").glob("*.png"))
    decoded = sorted(Path("kodak").iterdir())
    quality = [psnr(load(a), load(b)) for a, b in zip(originals, decoded, strict=True)]
    assert np.mean(quality) > 23
    assert min(quality) > 17
