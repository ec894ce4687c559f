"""The ``tatok`` command itself: help, version, wrong command lines."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.cli_runs import SMALL, Run, command, one_line
from helpers.pictures import picture, save


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
        (["encode", SMALL, "-o", "a.ttk", "--keep", "-1"], "keep must be from 0 to 8 tokens per patch, got -1"),
        (["encode", SMALL, "-o", "a.ttk", "--max-bits", "0"], "max_bits must be at least 1, got 0"),
        (["encode", SMALL, "-o", "a.ttk", "--frames", "0"], "--frames: must be a whole number from 1, got '0'"),
        (["encode", SMALL, "-o", "a.ttk", "--score", "luck"], "--score: invalid choice: 'luck'"),
        (["decode", "a.ttk", "-o", "a.mp4", "--fps", "0"], "--fps must be from 0.01 to 1000, got 0"),
        (["evaluate", ".", "--keep", "0.5;1"], "--keep: must be tokens per patch from 0 to 8"),
        (["bench", "--sizes", "640"], "--sizes: must be sizes like 640x480"),
        (["bench", "--sizes", "16x16"], "32 to 16384 pixels, got '16x16'"),
    ],
)
def test_wrong_command_line_exits_with_2(tatok: Run, arguments: list[str], says: str) -> None:
    one_line(tatok(*arguments), 2, re.escape(says))
    assert not list(Path().iterdir())


def test_debug_shows_the_traceback(tatok: Run) -> None:
    for words in (["info", "missing.ttk", "--debug"], ["--debug", "info", "missing.ttk"]):
        result = tatok(*words)
        assert result.code == 1
        assert "Traceback" in result.err


def test_a_file_whose_name_reads_as_an_option(tatok: Run) -> None:
    save(Path("-x.png"), picture(1))
    one_line(tatok("info", "-x.png"), 2, r"the file -x\.png is \./-x\.png here")
    assert tatok("encode", "./-x.png", "-o", "./-y.ttk").code == 0
    one_line(tatok("decode", "-y.ttk", "-o", "y.png"), 2, r"\./-y\.ttk")
    assert tatok("decode", "-o", "y.png", "--", "-y.ttk").code == 0
    assert tatok("decode", "./-y.ttk", "-o", "./-z").code == 0
    assert [path.name for path in Path("-z").iterdir()] == ["000000.png"]


def test_reader_of_the_output_may_leave(small: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*command(), "info", str(small)], stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""
