"""Every command and every piece of code in the README and the pages works as it is written.

What stands between the markers ``<!-- commands -->`` and ``<!-- python -->`` is run, in the order of the page and in
one folder. What cannot run everywhere (a GPU, a board, a ROS installation, a server, ``pip install``) is parsed by the
parser that it would meet. Links, files and extras that are named are there, and the tables are those of the benchmark
results.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.paths import ROOT
from packaging.requirements import Requirement

import tatok_edge
from tatok_edge.cli.main import main
from tatok_edge.model.bundle import open_bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("benchmarks", "docs", "examples", "export", "runtime", "tatok_edge", "tests")

# What the reader of a page has and a test has not, and what takes hours: text of the page, and what is run instead.
TRAINING = {"--config tatok-s8 ": "", "--minutes 90": "--config tatok-tiny --steps 4 --batch 2 --crop 64"}
STAND_INS = {
    "README": TRAINING,
    "training": {
        "--minutes 90": TRAINING["--minutes 90"],
        "--minutes 600": "--steps 2 --batch 2 --crop 64",
        "--steps 2000 --batch 8": "--config tatok-tiny --steps 2 --batch 2 --crop 64",
        "../shared/data/eval/kodak": "pictures",
        "../shared/data": "DIR",
        "--out benchmarks/results": "--out results",
        "--images 1500 --steps 12000": "--images 8 --steps 3",
    },
    "datasets": {"--steps 200": "--steps 3", "/shared/tokens": "ray-tokens", "--workers 64": "--workers 1"},
    "jetson": {'"csi:0"': '"synthetic:frames=3,width=96,height=64"'},
}
# Files of the reader, by the commands that make them from nothing.
FILES = {
    "README": [
        "tatok encode synthetic:frames=4,width=96,height=64 -o made.ttk",
        "tatok decode made.ttk -o video.mp4",
        "tatok decode made.ttk -o videos/clip.mp4",
        "python examples/make_bag.py video.mp4 -o bag.mcap",
    ],
    "training": [
        "tatok encode synthetic:frames=4,width=96,height=64 -o made.ttk",
        "tatok decode made.ttk -o video.mp4",
    ],
    "demo": [
        "tatok encode synthetic:frames=4,width=96,height=64 -o camera.ttk",
        "tatok decode camera.ttk -o clip.mp4",
    ],
}
# Programs that do not come with the package. They are not run; what can be said about their arguments is checked.
OTHERS = {
    ".",
    "apt",
    "cd",
    "cmake",
    "export",
    "ffmpeg",
    "jetson_clocks",
    "lint-imports",
    "mypy",
    "nvpmodel",
    "pytest",
    "ruff",
    "ssh",
    "systemctl",
    "tegrastats",
    "tritonserver",
}
# Modules with a ``main`` that need PyTorch.
WITH_TORCH = (
    "tatok_edge.training.train",
    "tatok_edge.training.entropy",
    "tatok_edge.export.bundle.onnx",
    "tatok_edge.export.bundle.int8",
)
# Blocks that other tests run: the marker or the language, the folder of the test, and the text that it finds them by.
RUN_ELSEWHERE = {
    "dockerfile": ("house", "dockerfile"),
    "ini": ("house", '"ini"'),
    "robotics": ("robotics", "<!-- robotics -->"),
    "example": ("house", "def test_every_public_name_has_an_example_that_runs"),
    "subscriber": ("robotics", "def test_subscriber_of_the_page_runs"),
    "hex packet": ("format", "hex packet"),
    "steps": ("format", "steps"),
    "hex file": ("format", "hex file"),
    "hex delta": ("format", "hex delta"),
    "delta steps": ("format", "delta steps"),
}


class Fence(NamedTuple):
    """A block of a page."""

    page: Path
    line: int
    language: str
    code: str
    marker: str | None


def fences(page: Path) -> list[Fence]:
    """All blocks of a page."""
    text = page.read_text()
    found = []
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```\n", text, re.MULTILINE | re.DOTALL):
        marker = re.search(r"<!-- (\w+) -->\n$", text[: match.start()])
        assert not marker or text[match.end() :].startswith(f"<!-- /{marker[1]} -->"), (
            f"{page}: {marker[1]} is not closed"
        )
        line = text.count("\n", 0, match.start()) + 1
        found.append(Fence(page, line, match[1], match[2], marker[1] if marker else None))
    return found


FENCES = [fence for page in PAGES for fence in fences(page)]


def block(name: str) -> str:
    """The code between the markers ``name`` of the README."""
    (found,) = (fence.code for fence in FENCES if fence.page == PAGES[0] and fence.marker == name)
    return found


def split(code: str) -> list[list[str]]:
    """The commands of shell code, each as its words; loops are unrolled."""
    code = re.sub(
        r"for (\w+) in ([^;]*); do\n(.*?)\ndone",
        lambda loop: "\n".join(loop[3].replace(f"${loop[1]}", value) for value in loop[2].split()),
        code.replace("\\\n", " "),
        flags=re.DOTALL,
    )
    found: list[list[str]] = []
    for line in code.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word not in ("&&", ";", "|"):
                words.append(word)
            elif words:
                found.append(words)
                words = []
    return found


# --- what is run --------------------------------------------------------------------------------------------


def run_command(words: list[str], folder: Path) -> None:
    """Run a command of a page in ``folder``; scripts of the repository are found wherever that is."""
    program, *arguments = words
    if program == "tatok" and arguments[0] == "demo":
        return run_demo(arguments, folder)
    if program == "tatok":
        command = ["-m", "tatok_edge", *arguments]
    elif program == "python" and arguments[0] == "-m" and arguments[1] in WITH_TORCH:
        return run_here(arguments[1], arguments[2:], folder)
    elif program == "python":
        script = ROOT / arguments[0]
        command = [str(script) if script.exists() else arguments[0], *arguments[1:]]
    else:
        assert program in OTHERS | {"pip"}, words
        return None
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return None


def run_here(module: str, arguments: list[str], folder: Path) -> None:
    """Run a module in this process: importing PyTorch takes longer than what it does for a tiny model."""
    import torch

    entry = importlib.import_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            if hasattr(entry, "Options"):  # the entropy model is fitted for minutes, whatever the size of the model
                patch.setattr(entry, "Options", functools.partial(entry.Options, entropy_images=8, entropy_steps=3))
            if hasattr(entry, "REPEATS"):  # a tiny model need not be faster in int8
                patch.setattr(entry, "times", lambda *_: {"fp32_ms": 2.0, "int8_ms": 1.0})
            assert entry.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)


def run_demo(arguments: list[str], folder: Path) -> None:
    """Start the demo on a free port, get its page and end it; without a camera, those of cameras are left out."""
    if arguments[1:] == ["0"]:
        return
    command = [sys.executable, "-m", "tatok_edge", *arguments, "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            assert urllib.request.urlopen(json.loads(line)["url"], timeout=60).status == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()


def pages_with(*markers: str) -> list[Path]:
    """The pages that have such blocks."""
    return [page for page in PAGES if any(fence.page == page and fence.marker in markers for fence in FENCES)]


def with_stand_ins(page: Path, code: str) -> str:
    """The code as it is run."""
    return functools.reduce(lambda text, pair: text.replace(*pair), STAND_INS.get(page.stem, {}).items(), code)


@pytest.mark.parametrize("page", pages_with("commands", "python"), ids=lambda page: page.stem)
def test_pages_run_in_order(page: Path, tmp_path: Path, pictures: Path) -> None:
    shown = [fence for fence in FENCES if fence.page == page and fence.marker in ("commands", "python", "gpu")]
    unused = [text for text in STAND_INS.get(page.stem, {}) if not any(text in fence.code for fence in shown)]
    assert not unused, "the page no longer says this"
    for program, module in {"tatok_edge.training": "torch", "train_prior": "torch", "--engine ray": "ray"}.items():
        if any(program in fence.code for fence in shown):
            pytest.importorskip(module, reason="the page needs it")
    (tmp_path / "videos").mkdir()
    (tmp_path / "list.txt").write_text("clip.mp4\n")
    shutil.copytree(pictures, tmp_path / "DIR")
    for words in split("\n".join(FILES.get(page.stem, []))):
        run_command(words, tmp_path)
    for fence in shown:
        code = with_stand_ins(page, fence.code)
        if fence.marker == "commands":
            for words in split(code):
                run_command(words, tmp_path)
        elif fence.marker == "python":
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    if page.stem == "README":
        assert (tmp_path / "camera.mp4").stat().st_size > 1000
        assert len(list((tmp_path / "frames").iterdir())) == 30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The stand-in of a GPU with engines of the shipped model, where ``Tokenizer.load`` finds them."""
    pytest.importorskip("onnx", reason="the stand-in of TensorRT reads ONNX graphs")
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("the emulation of the kernels needs Linux and g++")
    from helpers import fake_tensorrt

    from tatok_edge.runtime.cuda import kernels as cuda_kernels

    made = fake_tensorrt.Gpu()
    kernels = cuda_kernels.Kernels(cuda_kernels.build_emulation(tmp_path / "emulated.so"))
    fake_tensorrt.install(monkeypatch, made, kernels)
    fake_tensorrt.store_engines(tmp_path / "engines", open_bundle("tatok-s8"))
    monkeypatch.setenv("TATOK_ENGINES", str(tmp_path / "engines"))
    yield made
    assert not made.problems


class OnGpu:
    """A picture in the memory of the stand-in, as PyTorch would give it."""

    def __init__(self, gpu: Any, image: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.memory: dict[int, Any] = {}
        self.pointer = gpu.allocate(self.memory, image.nbytes)
        self.array = gpu.array(self.pointer, image.shape, image.dtype)
        self.array[...] = image

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"data": (self.pointer, False), "shape": self.array.shape, "typestr": "|u1", "version": 3}


@pytest.mark.parametrize("page", pages_with("gpu"), ids=lambda page: page.stem)
def test_python_for_a_gpu_runs_on_the_stand_in(page: Path, tokenizer: Tokenizer, gpu: Any) -> None:
    for fence in FENCES:
        if fence.page != page or fence.marker != "gpu":
            continue
        names: dict[str, Any] = {}
        if "Tokenizer.load" not in fence.code:
            image = render(Scene(width=96, height=64), 3)
            names = {"tensor": OnGpu(gpu, image), "out": OnGpu(gpu, np.zeros_like(image))}
            names["tokenizer"] = Tokenizer.load()
        exec(with_stand_ins(page, fence.code), names)
        assert str(names["tokenizer"].backend).startswith("tensorrt")
        names["tokenizer"].close()
        if "out" in names:
            expected = tokenizer.decode(names["tokens"])  # on the CPU, in another number of threads
            assert np.abs(names["out"].array.astype(int) - expected).max() <= 1
        else:
            assert names["frame"].index == 2


def test_the_api_page_is_that_of_the_docstrings(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "make_api.py"), "--check"], cwd=tmp_path, check=False)
    assert done.returncode == 0, "run python docs/make_api.py"


def test_every_public_name_has_an_example_that_runs(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stream = tatok_edge.Stream(tokenizer, "synthetic:frames=6,width=96,height=64")
    with stream, tatok_edge.Writer("stream.ttk", tokenizer.entropy_model, name=tokenizer.name) as writer:
        for frame in stream:
            writer.write_packet(frame.packet)
    page = ROOT / "docs" / "api.md"
    head, *parts = re.split(r"^## (\w+)\n", page.read_text(), flags=re.MULTILINE)
    assert parts[::2] == tatok_edge.__all__
    shared: dict[str, Any] = {}
    examples = re.compile(r"<!-- example -->\n```python\n(.*?)```", re.DOTALL)
    exec(examples.findall(head)[0], shared)
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        if name == "collate" and importlib.util.find_spec("torch") is None:
            continue
        found = examples.findall(text)
        assert found, f"{name} has no example"
        for code in found:
            # Most examples load no model of their own: that takes longer than all that they do.
            exec(code, shared | {"tokenizer": tokenizer})
        kind = getattr(tatok_edge, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert capsys.readouterr().out, f"the example of {name} raises nothing"


def test_build_command_runs(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds the engines")
    (line,) = block("build").strip().splitlines()
    done = subprocess.run(
        [sys.executable, "-m", "tatok_edge", *shlex.split(line)[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "engines").glob("*.json"))) >= 4


@pytest.mark.parametrize("name", ["python", "stream"])
def test_python_runs(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block(name)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("onnxruntime" in done.stdout) == (name == "python")


# --- what is only checked -----------------------------------------------------------------------------------


class Parsed(BaseException):
    """A command line was parsed, down to these arguments; nothing has been done yet."""


Check = Callable[..., None]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Check:
    """Checks a command without running it."""
    real = argparse.ArgumentParser.parse_known_args
    depth, complete = 0, True

    def parse(parser: argparse.ArgumentParser, *args: Any, **options: Any) -> Any:
        nonlocal depth
        for action in [] if complete else parser._actions:
            action.required = False
        depth += 1
        try:
            known, rest = real(parser, *args, **options)
        finally:
            depth -= 1
        if depth:
            return known, rest
        raise Parsed(rest)

    def check_python(arguments: list[str]) -> None:
        module = arguments[0] == "-m"
        _, program, *rest = arguments if module else ["", *arguments]
        path = ROOT / program
        if not module:
            assert path.is_file(), f"{program} is not in the repository"
            monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
        monkeypatch.setattr(sys, "argv", [program, *rest])
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                if program == "tatok_edge":
                    main(rest)
                elif module:
                    assert importlib.util.find_spec(program), program
                    runpy.run_module(program, run_name="__main__")
                else:
                    runpy.run_path(str(path), run_name="__main__")
        except Parsed as parsed:
            (left,) = parsed.args
            if left and left[0] == "--ros-args":  # ROS parses these
                source = path.read_text()
                assert left[1::2] == ["-p"] * len(left[2::2])
                for parameter in left[2::2]:
                    assert f'"{parameter.partition(":=")[0]}": (' in source, parameter
            else:
                assert not left, f"{program} does not know {left}"
        except SystemExit:
            # A sentence may name an option without its value.
            if complete or not re.search(r"expected (one|at least one) argument", said.getvalue()):
                pytest.fail(f"{shlex.join(arguments)}: {said.getvalue()}")
        else:
            pytest.fail(f"{program} reads no command line")

    def check_command(words: list[str], *, whole: bool = True) -> None:
        nonlocal complete
        complete = whole
        program, *arguments = words[1:] if words[0] == "sudo" else words
        if program == "tatok":
            check_python(["-m", "tatok_edge", *arguments])
        elif program in ("python", "python3", "/usr/bin/python3"):
            check_python(arguments)
        elif program == "pip":
            check_pip(arguments)
        elif program == "make":
            check_make(arguments)
        else:
            assert program in OTHERS, f"no test knows {program!r}"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    return check_command


def check_pip(arguments: list[str]) -> None:
    """What is installed has a name that pip takes; extras of the package exist."""
    assert arguments[0] in ("install", "list")
    # Python 3.10 reads no TOML.
    table = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", table, re.MULTILINE))
    for word in arguments[1:]:
        if word == "-e":
            continue
        wanted = Requirement(f"tatok-edge{word[1:]}" if word.startswith(".") else word)
        if wanted.name == "tatok-edge":
            assert wanted.extras <= extras, f"{word}: there are {sorted(extras)}"


def check_make(arguments: list[str]) -> None:
    """The Makefile has these targets and variables."""
    makefile = (ROOT / "Makefile").read_text()
    for word in arguments:
        name, sign, _ = word.partition("=")
        assert re.search(rf"^{re.escape(name)} \?=" if sign else rf"^{re.escape(name)}:", makefile, re.MULTILINE), word


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: f"{fence.page.stem}-{fence.line}")
def test_every_block_is_run_or_checked(fence: Fence, check: Check) -> None:
    if fence.language == "sh":
        assert fence.marker in (None, "commands", "build", "robotics"), "no test runs this marker"
        commands = split(fence.code)
        assert commands
        for words in commands:
            check(words)
    else:
        name = fence.marker if fence.language == "python" else fence.language
        if name not in ("python", "stream", "gpu"):
            assert name in RUN_ELSEWHERE, f"no test runs this {fence.language}"
            folder, text = RUN_ELSEWHERE[name]
            assert any(text in file.read_text() for file in (ROOT / "tests" / folder).glob("*.py"))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_exist(page: Path, check: Check) -> None:
    """They may leave out what they need, but name no option that is not there."""
    text = re.sub(r"^```.*?^```\n", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
        if re.match(r"(tatok|python3?|pip|make|sudo)\s", code):
            for words in split(" ".join(code.split())):
                check(words, whole=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_repository_exist(page: Path) -> None:
    for name in re.findall(rf"(?<![\w./~-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w", page.read_text()):
        # A link is relative to its page.
        assert (ROOT / name).exists() or (page.parent / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_environment_variables_are_read(page: Path) -> None:
    source = "".join(
        path.read_text()
        for folder in ("tatok_edge", "export", "runtime", "tests")
        for path in ROOT.glob(f"{folder}/**/*.py")
    )
    for name in re.findall(r"\bTATOK_\w+", page.read_text()):
        assert f'"{name}"' in source, f"nothing reads {name}"


@pytest.mark.parametrize(
    "line",
    [
        "tatok encode a.mp4 -o a.ttk --kep 0.3",
        "tatok encode a.mp4",
        "tatok build --precision fp8",
        "tatok-encode a.mp4 -o a.ttk",
        "python -m tatok_edge.export.triton -o a --tua 0.8",
        "python -m tatok_edge.export.no_such",
        "python examples/make_bag.py -o a.mcap --frame-number 3",
        "python examples/no_such.py",
        "python3 examples/ros2_node.py --decodes --ros-args -p topic:=/a",
        "python3 examples/ros2_node.py --ros-args -p topics:=/a",
        "pip install '.[everything]'",
        "make tests",
        "make demo VIDEOS=0",
    ],
)
def test_what_is_wrong_is_found(line: str, check: Check) -> None:
    (words,) = split(line)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(words)


def test_tables_are_those_of_the_results() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"], check=False)
    assert done.returncode == 0, "run python benchmarks/readme.py"


def anchors(page: Path) -> set[str]:
    """What links into a page may name: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


LINKING = [
    ROOT / "README.md",
    *ROOT.glob("*/*.md"),
    *ROOT.glob("benchmarks/*/*.md"),
    *ROOT.glob("tatok_edge/models/*/*.md"),
]


@pytest.mark.parametrize("page", sorted(str(page.relative_to(ROOT)) for page in LINKING))
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)", path.read_text()):
        if not target.startswith(("http://", "https://")):
            file, _, anchor = target.partition("#")
            linked = path.parent / file if file else path
            assert linked.exists(), f"{page} links to {target}"
            assert not anchor or anchor in anchors(linked), f"{page} links to {target}"
