"""``-``: videos and packets through pipes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.cli_runs import SMALL, Run, command, one_line

from tatok_edge.cli.pipes import read_packets
from tatok_edge.errors import FormatError
from tatok_edge.format.header import verify
from tatok_edge.format.reader import Reader
from tatok_edge.pictures.piped import Y4mOutput
from tatok_edge.sources.synthetic import Scene, render


def piped(*arguments: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*command(), *map(str, arguments)], input=given, capture_output=True, check=False)


@pytest.fixture(scope="module")
def y4m() -> bytes:
    """A clip of 4 frames as Y4M."""
    stream = io.BytesIO()
    with Y4mOutput(10, stream) as output:
        for number in range(4):
            output.write(render(Scene(width=96, height=64), number), number)
    return stream.getvalue()


def test_a_video_goes_through_the_pipes_and_comes_back(y4m: bytes, tmp_path: Path) -> None:
    encoded = piped("stream", "-", "-o", "-", "--keep", 0.3, given=y4m)
    assert encoded.returncode == 0, encoded.stderr
    packets = list(read_packets(io.BytesIO(encoded.stdout)))
    infos = [verify(packet) for packet in packets]
    assert [info.timestamp_us for info in infos] == [0, 100_000, 200_000, 300_000]
    assert all(info.model is not None for info in infos)
    assert b"standard input -> -" in encoded.stderr
    decoded = piped("decode", "-", "-o", "-", given=encoded.stdout)
    assert decoded.returncode == 0, decoded.stderr
    assert decoded.stdout.startswith(b"YUV4MPEG2 W96 H64 F10:1 ")
    assert decoded.stdout.count(b"FRAME\n") == 4
    cut = piped("decode", "-", "-o", "-", "--raw", given=encoded.stdout[:-1])
    assert cut.returncode == 1
    assert len(cut.stdout) == 3 * 96 * 64 * 3
    assert b"standard input breaks off after 3 packets" in cut.stderr


def test_decode_writes_the_pixels_of_a_file(small: Path) -> None:
    raw = piped("decode", small, "-o", "-", "--raw", "--json")
    assert raw.returncode == 0, raw.stderr
    assert np.frombuffer(raw.stdout, np.uint8).size == 6 * 64 * 96 * 3
    assert raw.stderr.startswith(b"{")


def test_encoded_packets_are_those_of_the_file(tmp_path: Path) -> None:
    assert piped("encode", SMALL, "-o", tmp_path / "a.ttk", "--frames", 2).returncode == 0
    encoded = piped("encode", SMALL, "-o", "-", "--frames", 2)
    with Reader(tmp_path / "a.ttk") as reader:
        stored = [reader.info(number).n_tokens for number in range(2)]
    assert [verify(packet).n_tokens for packet in read_packets(io.BytesIO(encoded.stdout))] == stored


def test_what_is_no_packet_is_refused(small: Path) -> None:
    for given, says in [
        (b"hello, world", b"after 0 packets: no packet begins here"),
        (small.read_bytes(), b"this is a .ttk file, not packets; give its name instead of -"),
        (b"", b"no frame could be decoded"),
    ]:
        done = piped("decode", "-", "-o", "-", given=given)
        assert (done.returncode, done.stdout) == (1, b"")
        assert says in done.stderr and done.stderr.count(b"\n") == 1


def test_a_source_that_is_no_video_is_refused() -> None:
    done = piped("encode", "-", "-o", "-", given=b"no video at all")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"standard input: not a video" in done.stderr
    assert b"through a pipe, send Y4M, Matroska or MPEG-TS" in done.stderr


def test_the_end_of_the_reader_ends_the_writer() -> None:
    end, start = os.pipe()
    os.close(end)
    done = subprocess.run([*command(), "encode", SMALL, "-o", "-"], stdout=start, stderr=subprocess.PIPE, check=False)
    os.close(start)
    assert (done.returncode, done.stderr) == (1, b"")


def test_options_that_do_not_fit(tatok: Run) -> None:
    one_line(tatok("decode", "a.ttk", "-o", "a.mp4", "--raw"), 2, "--raw is for -o -")
    one_line(tatok("decode", "-", "-o", "a.mp4", "--frame", 1), 2, "--frame is for token files")


@pytest.mark.skipif(sys.platform != "linux", reason="opens a terminal of its own")
def test_bytes_are_not_written_to_a_terminal() -> None:
    main, terminal = os.openpty()
    done = subprocess.run(
        [*command(), "encode", SMALL, "-o", "-"], stdout=terminal, stderr=subprocess.PIPE, check=False
    )
    os.close(main)
    os.close(terminal)
    assert done.returncode == 2
    assert b"pipe them into a program or a file" in done.stderr


def test_packets_in_pieces() -> None:
    with pytest.raises(FormatError, match="breaks off after 0 packets"):
        list(read_packets(io.BytesIO(b"\xa9\x10\x20\x00\x00\x00\x00")))
