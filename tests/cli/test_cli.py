"""The ``tatok`` command with the shipped model: what it writes, what it prints, how it fails."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.memory import peak_memory
from helpers.paths import ROOT, shared

from tatok_edge.cli.main import main
from tatok_edge.format.reader import Reader
from tatok_edge.format.writer import Writer
from tatok_edge.model.bundle import DEFAULT_MODEL, MODELS
from tatok_edge.sources.synthetic import Scene, render

SMALL = "synthetic:frames=6,width=96,height=64"
CONTRACT = {"frames", "width", "height", "tokens_per_frame", "bits_per_frame", "seconds", "model", "backend"}


@dataclass
class Result:
    """What a run of ``tatok`` gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON document and nothing else."""
        document: dict[str, Any] = json.loads(self.out)
        return document


Run = Callable[..., Result]


@pytest.fixture
def tatok(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``tatok`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token file of the small rendered clip; do not write to it."""
    path = tmp_path_factory.mktemp("small") / "small.ttk"
    assert main(["encode", SMALL, "-o", str(path), "--keep", "0.35"]) == 0
    return path


def command() -> list[str]:
    """The installed ``tatok`` of this Python."""
    script = Path(sys.executable).with_name("tatok")
    return [str(script)] if script.exists() else [sys.executable, "-m", "tatok_edge"]


def launch(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command(), *(str(argument) for argument in arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def one_line(result: Result, code: int, says: str) -> None:
    """Checks that a failure is told in exactly one line on standard error."""
    assert result.code == code
    assert re.search(says, result.err), result.err
    assert result.err.count("\n") == 1
    assert re.match(r"tatok( [a-z]+)?: ", result.err)
    assert "Traceback" not in result.err


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def load(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None, path
    return np.asarray(image)[..., ::-1]


# --- the command itself --------------------------------------------------------------------------


def test_help_is_quick() -> None:
    def seconds() -> float:
        """Processor time, which is what starting takes on an idle machine, so that a busy one does not matter."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command(), "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_help_and_version(tatok: Run) -> None:
    assert "encode" in tatok("--help").out
    assert re.fullmatch(r"tatok \d+\.\d+\.\d+\S*\n", tatok("--version").out)
    for name in ("encode", "decode", "info", "view", "evaluate", "bench", "doctor"):
        result = tatok(name, "--help")
        assert result.code == 0
        assert "--json" in result.out


def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from tatok_edge.cli.main import main; "
        f"assert main(['encode', '{SMALL}', '-o', 'a.ttk']) == 0; assert main(['decode', 'a.ttk', '-o', 'a']) == 0; "
        "print(sorted({'torch', 'onnx', 'matplotlib', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: COMMAND"),
        (["frob"], "invalid choice: 'frob'"),
        (["encode"], "required: IN, -o/--output"),
        (["encode", SMALL, "-o", "a.ttk", "--tau", "2"], "tau must be above 0 and at most 1, got 2"),
        (["encode", SMALL, "-o", "a.ttk", "--tau", "nan"], "tau must be above 0"),
        (["encode", SMALL, "-o", "a.ttk", "--tau", "x"], "--tau: invalid float value: 'x'"),
        (["encode", SMALL, "-o", "a.ttk", "--keep", "-1"], "keep must be from 0 to 1"),
        (["encode", SMALL, "-o", "a.ttk", "--max-bits", "0"], "max_bits must be at least 1, got 0"),
        (["encode", SMALL, "-o", "a.ttk", "--frames", "0"], "--frames: must be a whole number from 1, got '0'"),
        (["encode", SMALL, "-o", "a.ttk", "--score", "luck"], "--score: invalid choice: 'luck'"),
        (["decode", "a.ttk", "-o", "a.mp4", "--fps", "0"], "--fps must be from 0.01 to 1000, got 0"),
        (["evaluate", ".", "--keep", "0.5;1"], "--keep: must be shares from 0 to 1"),
        (["bench", "--sizes", "640"], "--sizes: must be sizes like 640x480"),
        (["bench", "--sizes", "16x16"], "32 to 16384 pixels, got '16x16'"),
    ],
)
def test_wrong_command_line_exits_with_2(tatok: Run, arguments: list[str], says: str) -> None:
    one_line(tatok(*arguments), 2, re.escape(says))
    assert not list(Path().iterdir())


def test_debug_shows_the_traceback(tatok: Run) -> None:
    result = tatok("info", "missing.ttk", "--debug")
    assert result.code == 1
    assert "Traceback" in result.err


# --- encode and info -----------------------------------------------------------------------------


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
    assert re.search(r"tokens per frame +34 of 96 \(35\.4%\), 34 to 34", result.out)
    assert result.err == ""
    assert "96x64, 30 frames/s" in tatok("info", small).out


def test_encoding_twice_gives_the_same_file(tatok: Run) -> None:
    for name in ("a.ttk", "b.ttk"):
        assert tatok("encode", SMALL, "-o", name, "--tau", "0.7").code == 0
    assert Path("a.ttk").read_bytes() == Path("b.ttk").read_bytes()


def test_budgets(tatok: Run) -> None:
    def tokens(*limits: object) -> dict[str, float]:
        result = tatok("encode", SMALL, "-o", "a.ttk", "--json", *limits)
        assert result.code == 0, result.err
        figures: dict[str, float] = result.json["tokens_per_frame"]
        return figures

    assert tokens("--max-tokens", 10)["max"] == 10
    assert tokens("--keep", 0)["max"] == 0
    everything, most, some = tokens(), tokens("--tau", 0.8), tokens("--tau", 0.4)
    assert everything["mean"] > most["mean"] > some["mean"] > 0
    assert tokens("--tau", 0.4, "--score", "entropy")["mean"] > 0
    tokens("--max-bits", 900)
    with Reader("a.ttk") as reader:
        assert all(8 * len(reader.packet(number)) <= 900 for number in range(len(reader)))


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
    one_line(tatok("decode", "a.ttk", "-o", "a.mp4"), 1, "frame 1 is 96x33 but the video is 64x48; decode .* folder")
    assert not Path("a.mp4").exists()


def test_memory_does_not_grow_with_the_length_of_the_clip(tmp_path: Path) -> None:
    def peak(frames: int) -> float:
        return peak_memory("encode", f"synthetic:frames={frames},width=96,height=64", "-o", "a.ttk", cwd=tmp_path)

    assert peak(200) <= 1.05 * peak(20)


# --- decode --------------------------------------------------------------------------------------


def test_decode_into_a_folder_gives_the_pictures_back(tatok: Run) -> None:
    assert tatok("encode", "synthetic:frames=3,width=320,height=240", "-o", "a.ttk").code == 0
    result = tatok("decode", "a.ttk", "-o", "out", "--json")
    assert result.code == 0
    assert set(result.json) >= {"frames", "width", "height", "seconds", "model", "backend"}
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    for number, name in enumerate(names):
        original = render(Scene(width=320, height=240), number)
        assert psnr(load(Path("out") / name), original) > 20


def test_decode_into_a_video(tatok: Run, small: Path) -> None:
    assert tatok("decode", small, "-o", "out.mp4").code == 0
    capture = cv2.VideoCapture("out.mp4")
    assert capture.get(cv2.CAP_PROP_FPS) == 30
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert len(frames) == 6
    assert frames[0].shape == (64, 96, 3)
    assert tatok("decode", small, "-o", "3.png", "--frame", 3).code == 0
    assert psnr(frames[3][..., ::-1], load(Path("3.png"))) > 28
    assert tatok("decode", small, "-o", "slow.mp4", "--fps", 5).code == 0
    assert cv2.VideoCapture("slow.mp4").get(cv2.CAP_PROP_FPS) == 5


def test_video_of_an_odd_size_grows_to_an_even_one(tatok: Run) -> None:
    assert tatok("encode", "synthetic:frames=2,width=71,height=45", "-o", "a.ttk").code == 0
    assert tatok("decode", "a.ttk", "-o", "a.mp4").code == 0
    capture = cv2.VideoCapture("a.mp4")
    assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (72, 46)


def test_decode_one_frame(tatok: Run, small: Path) -> None:
    assert tatok("decode", small, "-o", "all").code == 0
    assert tatok("decode", small, "-o", "last.png", "--frame", -1).code == 0
    np.testing.assert_array_equal(load(Path("last.png")), load(Path("all/000005.png")))
    one_line(tatok("decode", small, "-o", "a.png"), 1, "a picture holds one frame of 6; choose with --frame")
    one_line(tatok("decode", small, "-o", "a.png", "--frame", 6), 1, "--frame must be from -6 to 5 for .*, got 6")


def test_folder_is_replaced_only_if_it_holds_earlier_frames(tatok: Run, small: Path) -> None:
    assert tatok("decode", small, "-o", "out").code == 0
    Path("out/000099.png").write_bytes(b"left from a longer clip")
    assert tatok("decode", small, "-o", "out").code == 0
    assert len(list(Path("out").iterdir())) == 6
    Path("out/holiday.jpg").write_bytes(b"somebody's picture")
    one_line(tatok("decode", small, "-o", "out"), 1, r"the folder holds other files \(holiday\.jpg\)")
    assert len(list(Path("out").iterdir())) == 7


# --- stream --------------------------------------------------------------------------------------

CLIP = "synthetic:frames=24,width=160,height=96,fps=12"


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
    one_line(tatok("stream", CLIP, "--seconds", 0), 2, "--seconds must be above 0, got 0")
    one_line(tatok("stream", CLIP, "--refresh", "never"), 2, "--refresh: invalid choice: 'never'")
    one_line(tatok("stream", CLIP, "-o", "a.mp4"), 1, "a.mp4")
    one_line(tatok("stream", "nothing.mp4"), 1, "nothing.mp4: no such file")


def test_bench_stream(tatok: Run) -> None:
    result = tatok("bench", "stream", "--sizes", "96x64", "--repeats", 4, "--json")
    assert result.code == 0, result.err
    (row,) = result.json["sizes"]
    assert row["stream_ms"]["median"] > 0 and row["fixed_ms"]["median"] > 0
    assert 0 < row["tokens_per_frame"] < row["fixed_tokens_per_frame"] == 96 + 6
    assert "stream" in tatok("bench", "stream", "--sizes", "96x64", "--repeats", 4).out


# --- what goes wrong -----------------------------------------------------------------------------


def test_video_that_breaks_off_is_kept_up_to_there(tatok: Run) -> None:
    data = shared("videos/bear_pan.mp4").read_bytes()
    Path("cut.mp4").write_bytes(data[: len(data) // 3])
    result = tatok("encode", "cut.mp4", "-o", "a.ttk", "--keep", "0.1", "--json")
    one_line(result, 1, r"cut\.mp4 breaks off after \d+ of 82 frames; a\.ttk holds the \d+ frames that are good")
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
    result = tatok(*arguments)
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
    one_line(result, 1, rf"whole frames were found; out holds the {whole} frames that are good")
    assert len(list(Path("out").iterdir())) == result.json["frames"] == whole


def test_damaged_frame_is_skipped_and_named(tatok: Run, small: Path) -> None:
    data = bytearray(small.read_bytes())
    with Reader(small) as reader:
        data[reader.offset(2) + 30] ^= 0x10
    Path("bad.ttk").write_bytes(data)
    one_line(tatok("info", "bad.ttk"), 1, r"bad\.ttk: frame 2 at byte \d+: packet is damaged")
    one_line(tatok("decode", "bad.ttk", "-o", "out"), 1, "frame 2 at byte .*; out holds the 5 frames that are good")
    assert not Path("out/000002.png").exists()
    one_line(tatok("decode", "bad.ttk", "-o", "2.png", "--frame", 2), 1, "frame 2 at byte .*no frame could be decoded")
    one_line(tatok("view", "bad.ttk", "-o", "view.png", "--frame", 1), 1, "frame 2 at byte")
    assert Path("view.png").exists()


def test_file_of_another_model(tatok: Run, small: Path) -> None:
    with Reader(small) as reader:
        stranger = SimpleNamespace(levels=reader.levels, tag=b"STRANGER")
        with Writer("other.ttk", stranger, name=DEFAULT_MODEL) as writer:  # type: ignore[arg-type]
            writer.write_packet(reader.packet(0))
        with Writer("unknown.ttk", stranger, name="tatok-x9") as writer:  # type: ignore[arg-type]
            writer.write_packet(reader.packet(0))
    one_line(
        tatok("decode", "other.ttk", "-o", "a.png"),
        1,
        "other.ttk was made by model .*5354524",
    )
    one_line(tatok("decode", "unknown.ttk", "-o", "a.png"), 1, "unknown model 'tatok-x9'")
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
    assert err == "tatok encode: interrupted; what was whole is kept\n"
    with Reader(tmp_path / "a.ttk") as reader:
        assert reader.complete
        assert len(reader) == json.loads(out)["frames"] > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ttk"]


def test_reader_of_the_output_may_leave(small: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*command(), "info", str(small)], stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


# --- view, evaluate, bench, doctor ---------------------------------------------------------------


def test_view_shows_original_kept_tokens_and_reconstruction(tatok: Run, small: Path) -> None:
    result = tatok("view", small, "-o", "view.png", "--source", SMALL, "--frame", 2, "--json")
    assert result.code == 0
    assert result.json["psnr_db"] > 15
    picture = load(Path("view.png"))
    enlarged = np.repeat(np.repeat(render(Scene(width=96, height=64), 2), 4, axis=0), 4, axis=1)
    top, left, (height, width) = 30, 8, enlarged.shape[:2]
    np.testing.assert_array_equal(picture[top : top + height, left : left + width], enlarged)
    assert picture.shape[1] == 3 * width + 4 * 8
    assert picture.shape[0] > height + 200  # the plot of tokens per frame is below
    kept = picture[top : top + height, left + width + 8 :][:, :width]
    same = (kept == enlarged).all(axis=2).mean()
    assert 0.1 < same < 0.5  # 34 of 96 patches keep their colours, less the lines around them


def test_view_takes_a_snapshot_or_no_source(tatok: Run, small: Path) -> None:
    assert tatok("encode", SMALL, "-o", "a.ttk", "--snapshot", "last.png").code == 0
    result = tatok("view", "a.ttk", "-o", "view.png", "--source", "last.png", "--frame", -1, "--json")
    assert result.code == 0
    assert result.json["frame"] == 5
    assert result.json["psnr_db"] > 15
    assert tatok("view", small, "-o", "plain.png").code == 0
    assert load(Path("plain.png")).shape[1] == 2 * 384 + 3 * 8


def test_evaluate_reports_the_contract(tatok: Run) -> None:
    Path("in").mkdir()
    for number in range(2):
        image = render(Scene(width=128, height=96, seed=number), 0)
        cv2.imwrite(f"in/{number}.png", np.ascontiguousarray(image[..., ::-1]))
    result = tatok("evaluate", "in", "--keep", "1.0,0.25", "--json")
    assert result.code == 0, result.err
    report = result.json
    assert report["images"] == 2
    assert [row["keep"] for row in report["results"]] == [1.0, 0.25]
    for row in report["results"]:
        assert set(row) >= {"keep", "psnr_db", "tokens_per_image", "bits_per_image"}
    full, quarter = report["results"]
    assert full["psnr_db"] > quarter["psnr_db"] > 15
    assert quarter["tokens_per_image"] == 48
    table = tatok("evaluate", "in", "--keep", "0.25")
    assert re.search(r"25%\s+\d+\.\d\d\s+48", table.out)


def test_bench_reports_the_contract(tatok: Run) -> None:
    result = tatok("bench", "--sizes", "64x64", "--repeats", "2", "--json")
    assert result.code == 0, result.err
    (row,) = result.json["sizes"]
    assert (row["width"], row["height"]) == (64, 64)
    for name in ("encode_ms", "decode_ms"):
        assert row[name]["median"] > 0
        assert row[name]["q1"] <= row[name]["median"] <= row[name]["q3"]
    table = tatok("bench", "--sizes", "64x64,70x40", "--repeats", "2").out
    assert re.search(r"median ms \(quartiles\) +64x64 +70x40\n", table)
    assert re.search(r"^decode +\d+\.\d\d \(.*\) +\d+\.\d\d \(.*\)$", table, re.MULTILINE)


def test_doctor(tatok: Run) -> None:
    result = tatok("doctor", "--json")
    assert result.code == 0
    report = result.json
    assert report["ok"] is True
    assert report["versions"]["numpy"] == np.__version__
    backends = {backend["name"]: backend for backend in report["backends"]}
    assert backends["onnxruntime"]["usable"] is True
    assert all(backend["reason"] for backend in backends.values())
    assert report["opencv"]["version"] == cv2.__version__
    assert {model["name"]: model["usable"] for model in report["models"]}[DEFAULT_MODEL] is True
    text = tatok("doctor").out
    assert text.splitlines()[-1] == "ready"
    assert DEFAULT_MODEL in text


def test_doctor_names_a_damaged_model(tatok: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(MODELS / DEFAULT_MODEL, f"models/{DEFAULT_MODEL}")
    graph = Path(f"models/{DEFAULT_MODEL}/context.onnx")
    graph.write_bytes(graph.read_bytes() + b"x")
    monkeypatch.setattr("tatok_edge.model.bundle.MODELS", Path("models"))
    result = tatok("doctor")
    assert result.code == 1
    assert re.search(rf"{DEFAULT_MODEL} +no +.*context\.onnx: SHA-256 is", result.out)


def test_camera_example(tmp_path: Path) -> None:
    script = ROOT / "examples" / "tokenize_camera.py"
    arguments = ["synthetic:frames=4,width=96,height=64", "--frames", "3"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert len(re.findall(r"^frame +\d: \d+ of 96 tokens .* bytes, \d+\.\d dB$", done.stdout, re.MULTILINE)) == 3


def test_tcp_example_recovers_from_a_lost_packet(tmp_path: Path) -> None:
    script = ROOT / "examples" / "stream_over_tcp.py"
    arguments = ["synthetic:frames=30,width=96,height=64", "--lose", "7", "--frames", "30"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    received = re.findall(r"received frame (\d+): (key|delta), \d+ bytes, (whole|\d+ patches may be old)", done.stdout)
    assert len(received) == 30 - 4
    assert [int(index) for index, _, _ in received] == [n for n in range(30) if n % 7 != 6]
    assert received[0][1] == "key" and received[5][2] == "whole" and received[6][2] != "whole"
    # A keyframe was asked for, and all is well again.
    assert "key" in [kind for _, kind, _ in received[6:]] and "whole" in [state for _, _, state in received[7:]]


# --- real pictures and clips ---------------------------------------------------------------------


def test_every_shared_clip(tatok: Run) -> None:
    clips = sorted(shared("videos").glob("*.mp4"))
    assert len(clips) == 20
    quality = []
    for clip in clips:
        result = tatok("encode", clip, "-o", "a.ttk", "--keep", "0.35", "--frames", 2, "--json")
        assert result.code == 0, (clip, result.err)
        assert result.json["frames"] == 2
        assert tatok("decode", "a.ttk", "-o", "a.mp4").code == 0
        view = tatok("view", "a.ttk", "-o", "a.png", "--source", clip, "--frame", 1, "--json")
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
