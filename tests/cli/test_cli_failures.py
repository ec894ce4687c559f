"""Damaged inputs, files and models: one line on standard error, and all good results are kept."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers.cli_runs import SMALL, Run, one_line
from helpers.paths import shared

from tatok_edge.format.reader import Reader
from tatok_edge.format.writer import Writer
from tatok_edge.model.bundle import DEFAULT_MODEL, MODELS
from tatok_edge.sources.synthetic import Scene, render


def test_video_that_breaks_off_is_kept_up_to_there(tatok: Run) -> None:
    data = shared("videos/bear_pan.mp4").read_bytes()
    Path("cut.mp4").write_bytes(data[: len(data) // 3])
    result = tatok("encode", "cut.mp4", "-o", "a.ttk", "--keep", "0.1", "--json")
    one_line(
        result,
        1,
        r"cut\.mp4 breaks off after \d+ of 82 frames: \d+ of \d+ bytes are there; a\.ttk holds the \d+ good frames",
    )
    report = result.json
    assert report["complete"] is False
    with Reader("a.ttk") as reader:
        assert reader.complete
        assert len(reader) == report["frames"] > 5
    assert tatok("decode", "a.ttk", "-o", "a.mp4").code == 0


def test_bad_picture_in_a_folder_is_left_out(tatok: Run) -> None:
    Path("in").mkdir()
    image = np.ascontiguousarray(render(Scene(width=64, height=48), 0)[..., ::-1])
    for number in range(3):
        cv2.imwrite(f"in/{number}.png", image)
    Path("in/1.png").write_bytes(Path("in/1.png").read_bytes()[:99])
    result = tatok("encode", "in", "-o", "a.ttk", "--json")
    one_line(result, 1, r"left out 1 of 3 pictures; the first: in/1\.png: a PNG that is cut off; a\.ttk holds the 2")
    assert result.json["frames"] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["encode", "missing.mp4", "-o", "old.ttk"], r"missing\.mp4: no such file"),
        (["encode", "text.mp4", "-o", "old.ttk"], r"text\.mp4: not a video or picture"),
        (["encode", "tiny.png", "-o", "old.ttk"], r"tiny\.png: is 16x16; width and height must be from 32"),
        (["encode", "98", "-o", "old.ttk"], "camera 98 cannot be opened"),
        (["encode", SMALL, "-o", "old.ttk", "--max-bits", "8"], "max_bits = 8 is less than"),
        (["encode", SMALL, "-o", "old.ttk", "--model", "nope"], f"unknown model 'nope'.*{DEFAULT_MODEL}"),
        (["encode", SMALL, "-o", "old.ttk", "--backend", "abacus"], "unknown backend 'abacus'"),
        (["encode", SMALL, "-o", "old.png"], r"old\.png: the name must end in \.ttk"),
        (["encode", SMALL, "-o", "old.ttk", "--snapshot", "a.gif"], r"a\.gif: the name must end in"),
        (["encode", "small.ttk", "-o", "old.ttk"], "token file already"),
        (["decode", "missing.ttk", "-o", "old.mp4"], r"missing\.ttk: No such file"),
        (["decode", "text.ttk", "-o", "old.mp4"], r"text\.ttk is not a \.ttk file"),
        (["decode", "empty.ttk", "-o", "old.mp4"], r"empty\.ttk"),
        (["decode", "small.ttk", "-o", "old.avi"], r"old\.avi: the name must end in \.mp4"),
        (["decode", "small.ttk", "-o", "nowhere/old.mp4"], "folder .*nowhere does not exist; create it first"),
        (["info", "text.ttk"], r"text\.ttk is not a \.ttk file"),
        (["view", "text.ttk", "-o", "old.png"], r"text\.ttk is not a \.ttk file"),
        (["view", "small.ttk", "-o", "old.png", "--frame", "9"], "--frame must be from -6 to 5"),
        (["view", "small.ttk", "-o", "old.png", "--source", "big.png"], "is 128x96, but small.ttk holds 96x64"),
        (["view", "small.ttk", "-o", "old.png", "--source", "synthetic:frames=2,width=96,height=64"], "has no frame 3"),
        (["evaluate", "nowhere"], "nowhere"),
    ],
)
def test_failure_is_one_line_and_leaves_outputs_alone(tatok: Run, small: Path, arguments: list[str], says: str) -> None:
    outputs = [Path(f"old{suffix}") for suffix in (".ttk", ".mp4", ".png", ".avi")]
    for path in outputs:
        path.write_bytes(b"from before")
    shutil.copy(small, "small.ttk")
    Path("text.mp4").write_text("hello")
    Path("text.ttk").write_text("hello" * 50)
    Path("empty.ttk").touch()
    cv2.imwrite("tiny.png", np.zeros((16, 16, 3), np.uint8))
    cv2.imwrite("big.png", np.zeros((96, 128, 3), np.uint8))
    before = sorted(Path().iterdir())
    result = tatok(*arguments, *(["--force"] if arguments[0] in ("encode", "decode", "view") else []))
    one_line(result, 1, says)
    assert result.out == ""
    assert all(path.read_bytes() == b"from before" for path in outputs)
    assert sorted(Path().iterdir()) == before


def test_token_file_that_is_cut_off(tatok: Run, small: Path) -> None:
    data = small.read_bytes()
    Path("cut.ttk").write_bytes(data[: len(data) * 2 // 3])
    result = tatok("info", "cut.ttk", "--json")
    one_line(result, 1, r"cut\.ttk: .*without an index.* whole frames were found")
    assert result.json["complete"] is False
    whole = result.json["frames"]
    assert 1 <= whole < 6
    result = tatok("decode", "cut.ttk", "-o", "out", "--json")
    one_line(result, 1, rf"whole frames were found; out holds the {whole} good frames")
    assert len(list(Path("out").iterdir())) == result.json["frames"] == whole


def test_damaged_frame_is_skipped_and_named(tatok: Run, small: Path) -> None:
    data = bytearray(small.read_bytes())
    with Reader(small) as reader:
        data[reader.offset(2) + 30] ^= 0x10
    Path("bad.ttk").write_bytes(data)
    one_line(tatok("info", "bad.ttk"), 1, r"bad\.ttk: frame 2 at byte \d+: packet is damaged")
    one_line(tatok("decode", "bad.ttk", "-o", "out"), 1, "frame 2 at byte .*; out holds the 5 good frames")
    assert not Path("out/000002.png").exists()
    one_line(tatok("decode", "bad.ttk", "-o", "2.png", "--frame", 2), 1, "frame 2 at byte .*no frame could be decoded")
    one_line(tatok("view", "bad.ttk", "-o", "view.png", "--frame", 1), 1, "frame 2 at byte")
    assert Path("view.png").exists()


def test_file_of_another_model(tatok: Run, small: Path) -> None:
    with Reader(small) as reader:
        stranger = SimpleNamespace(levels=reader.levels, depth=reader.depth, tag=b"STRANGER")
        with Writer("other.ttk", stranger, name=DEFAULT_MODEL) as writer:  # type: ignore[arg-type]
            writer.write_packet(reader.packet(0))
        with Writer("unknown.ttk", stranger, name="tatok-x9") as writer:  # type: ignore[arg-type]
            writer.write_packet(reader.packet(0))
    one_line(
        tatok("decode", "other.ttk", "-o", "a.png"),
        1,
        "other.ttk was made by model .*5354524",
    )
    one_line(
        tatok("decode", "unknown.ttk", "-o", "a.png"), 1, "model 'tatok-x9', which is neither a shipped one.*--model"
    )
    assert tatok("info", "unknown.ttk", "--json").json["model"] == "tatok-x9"


def test_damaged_bundle(tatok: Run) -> None:
    shutil.copytree(MODELS / DEFAULT_MODEL, "bundle")
    assert tatok("encode", SMALL, "-o", "a.ttk", "--model", "bundle").code == 0
    graph = Path("bundle/decoder.onnx")
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    one_line(tatok("encode", SMALL, "-o", "b.ttk", "--model", "bundle"), 1, "decoder.onnx: SHA-256 is .*install")
    manifest = json.loads(Path("bundle/manifest.json").read_text())
    Path("bundle/manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    one_line(tatok("encode", SMALL, "-o", "b.ttk", "--model", "bundle"), 1, "format 99 is newer .*upgrade tatok-edge")
    assert not Path("b.ttk").exists()
