"""What surrounds the process: closed streams, terminals without UTF-8, homes, hang-ups, names, and the network."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.cli_runs import SMALL, Run, command, launch, one_line
from helpers.needs import missing

from tatok_edge.format.reader import Reader

TINY = "synthetic:frames=2,width=64,height=64"


def shell(text: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of the shell, in which ``tatok`` is the command of this Python."""
    line = text.replace("tatok", " ".join(command()), 1)
    return subprocess.run(["sh", "-c", line], cwd=cwd, capture_output=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_at_the_start(closed: str, tmp_path: Path) -> None:
    # With --debug, the libraries print: nothing of that may get into the file.
    done = shell(f"tatok stream {TINY} -o a.ttk --debug {closed}", tmp_path)
    assert done.returncode == 0, done.stderr
    with Reader(tmp_path / "a.ttk") as reader:
        assert reader.complete and len(reader) == 2
    failed = shell(f"tatok decode missing.ttk -o a.png {closed}", tmp_path)
    assert failed.returncode == 1
    assert failed.stdout == b""


def test_results_that_have_nowhere_to_go(small: Path, tmp_path: Path) -> None:
    done = shell(f"tatok info {small} --json >&-", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    done = shell(f"tatok encode {TINY} -o - >&-", tmp_path)
    assert done.returncode == 2 and b"-o - writes bytes to standard output" in done.stderr
    done = shell("tatok encode - -o a.ttk <&-", tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(b"tatok encode: standard input")
    assert not list(tmp_path.iterdir())


def test_a_terminal_that_shows_ascii_only(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    for name in ("K\u00f6ln \u2603.png", os.fsdecode(b"caf\xe9.png")):
        (tmp_path / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
        settings = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        done = shell(f"tatok encode '{name}' -o '{name}.ttk'", tmp_path, **settings)
        assert done.returncode == 0, done.stderr
        assert b".png" in done.stdout and done.stdout.isascii()
        assert (tmp_path / f"{name}.ttk").exists()


def test_a_user_without_a_home(tatok: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> pwd.struct_passwd:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "TATOK_ENGINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    assert tatok("encode", SMALL, "-o", "a.ttk").code == 0
    assert tatok("doctor").code == 0


def test_a_home_that_cannot_be_written(tatok: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    assert tatok("encode", SMALL, "-o", "a.ttk").code == 0
    assert tatok("decode", "a.ttk", "-o", "a.mp4").code == 0


def test_nohup_keeps_its_word(tmp_path: Path) -> None:
    source = "synthetic:frames=1000000,width=96,height=64"
    line = " ".join(command())
    arguments = ["sh", "-c", f"trap '' HUP; exec {line} encode {source} -o a.ttk"]
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        part = tmp_path / "a.ttk.part"
        wait_until(lambda: part.exists() and part.stat().st_size > 500)
        process.send_signal(signal.SIGHUP)
        size = part.stat().st_size
        wait_until(lambda: part.stat().st_size > size + 500)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_killed_run_keeps_nothing_from_the_next_one(tmp_path: Path, tatok: Run) -> None:
    assert tatok("encode", "synthetic:frames=40,width=96,height=64", "-o", "long.ttk").code == 0
    for output in ("frames", "clip.mkv"):
        process = launch("decode", "long.ttk", "-o", output, cwd=tmp_path)
        part = tmp_path / f"{output}.part"
        wait_until(part.exists)
        process.kill()
        process.communicate()
        assert len(list(tmp_path.iterdir())) == 2, "it was killed while it wrote"
        assert tatok("decode", "long.ttk", "-o", output).code == 0
        # What was written until then stays, under a name that says so.
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["long.ttk", output, f"{output}.part"])
        for path in (tmp_path / output, part):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


LONG = "n" * 246
STRANGE = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("name", [LONG, "\u00fc" * 123, STRANGE], ids=["250 bytes", "250 bytes of UTF-8", "Latin-1"])
def test_names_that_other_programs_stumble_over(name: str, tatok: Run) -> None:
    for first, then in [("ttk", "mp4"), ("mp4", "ttk"), ("ttk", "png"), ("ttk", "mkv"), ("ttk", "gif")]:
        if then == "ttk":
            result = tatok("encode", f"{name}.{first}", "-o", f"{name}.ttk", "--force")
        elif first == "ttk" and not Path(f"{name}.ttk").exists():
            result = tatok("encode", TINY, "-o", f"{name}.ttk")
            assert result.code == 0, result.err
            result = tatok("decode", f"{name}.ttk", "-o", f"{name}.{then}")
        else:
            frame = ("--frame", 1) if then == "png" else ()
            result = tatok("decode", f"{name}.ttk", "-o", f"{name}.{then}", *frame)
        assert result.code == 0, result.err
        assert Path(f"{name}.{then}").exists()
    assert tatok("decode", f"{name}.ttk", "-o", name).code == 0
    assert tatok("encode", name, "-o", "again.ttk").code == 0
    assert tatok("dataset", f"{name}.mp4", "-o", f"{name}-set", "--workers", 1).code == 0
    assert not [path for path in Path().iterdir() if ".tmp" in path.name or "part" in path.name]


@pytest.mark.skipif(sys.platform != "linux", reason="strace is a program of Linux")
def test_nothing_is_looked_up_and_no_foreign_file_is_left(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        missing("strace is not installed")
    for name in ("home", "tmp", "work"):
        (tmp_path / name).mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "ORT_", "TATOK_"))}
    environment = kept | {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    trace = tmp_path / "trace"
    tracer = ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=socket,connect,sendto,sendmsg,sendmmsg"]
    program = (
        "from tatok_edge import Tokenizer; import numpy as np, time\n"
        "t = Tokenizer.load(); t.encode(np.zeros((64, 64, 3), np.uint8)); time.sleep(2)"
    )
    for run in ([*command(), "encode", SMALL, "-o", "a.ttk"], [sys.executable, "-c", program]):
        done = subprocess.run(
            [*tracer, *run], cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False
        )
        if "ptrace" in done.stderr.lower():
            missing("strace may not trace here")
        assert done.returncode == 0, done.stderr
        assert re.findall(r"AF_INET.*|nscd.*|resolve.*", trace.read_text()) == []
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == ["trace", "work/a.ttk"]


def test_a_message_with_a_name_that_is_not_utf8(tatok: Run) -> None:
    one_line(tatok("decode", f"{STRANGE}.ttk", "-o", "a.png"), 1, r"caf\\udce9\.ttk: No such file")


def wait_until(condition: object, seconds: float = 120) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
