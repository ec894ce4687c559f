"""Commands that people guess right: examples, completion, near misses, limits, reports, a decoded video measured."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from helpers.cli_runs import SMALL, Run, one_line
from helpers.paths import ROOT

import tatok_edge
from tatok_edge.cli.main import COMMANDS, actions_of, command_parser


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_three_examples_that_parse(tatok: Run, name: str) -> None:
    examples = import_module(f"tatok_edge.cli.{name}").EXAMPLES
    assert len(examples) == 3
    shown = tatok(name, "--help").out
    assert shown.rstrip().endswith("\n  ".join(("examples:", *examples)))
    for line in examples:
        for command in line.split(" | "):
            program, one, *arguments = shlex.split(command)
            assert program == "tatok"
            command_parser(one).parse_args(arguments)


def test_the_page_of_the_command_line_is_that_of_the_parsers(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "make_cli.py"), "--check"], cwd=tmp_path, check=False)
    assert done.returncode == 0, "run python docs/make_cli.py"


def test_an_unknown_option_points_to_the_help_of_its_command(tatok: Run) -> None:
    one_line(tatok("info", "a.ttk", "--depth"), 1, "no such|cannot open|a.ttk")  # an abbreviation of --depths
    one_line(
        tatok("encode", SMALL, "-o", "a.ttk", "--framse", 2), 2, "did you mean --frames.; see 'tatok encode --help'"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(tatok: Run, shell: str) -> None:
    script = tatok("completion", shell).out
    for name in COMMANDS:
        for action in actions_of(command_parser(name)):
            for option in action.option_strings[-1:]:
                assert (f"-l {option[2:]} " if shell == "fish" else option) in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_bash_completes(tatok: Run, tmp_path: Path) -> None:
    (tmp_path / "tatok.bash").write_text(tatok("completion", "bash").out)

    def completed(*words: str) -> list[str]:
        line = " ".join(shlex.quote(word) for word in words)
        code = f'. ./tatok.bash; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _tatok; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("tatok", "dec") == ["decode"]
    assert completed("tatok", "encode", "a.mp4", "--kee") == ["--keep", "--keep-images"]
    assert completed("tatok", "stream", "--refresh", "r") == ["rolling"]
    assert completed("tatok", "completion", "f") == ["fish"]


def test_frames_and_seconds_mean_the_same_everywhere(tatok: Run) -> None:
    clip = "synthetic:frames=12,width=96,height=64,fps=4"
    for command in ("encode", "stream"):
        for limit, frames in ((("--frames", 3), 3), (("--seconds", 1), 5)):
            name = f"{command}{frames}.ttk"
            assert json.loads(tatok(command, clip, "-o", name, *limit, "--json").out)["frames"] == frames
    assert json.loads(tatok("decode", "stream5.ttk", "-o", "pictures", "--frames", 2, "--json").out)["frames"] == 2
    assert len(list(Path("pictures").iterdir())) == 2
    one_line(tatok("encode", clip, "-o", "a.ttk", "--seconds", "-1"), 2, "number of seconds above 0, got .-1.")


def test_info_says_keyframes_rate_and_depth(tatok: Run) -> None:
    tatok("stream", "synthetic:frames=9,width=96,height=64,fps=4", "-o", "a.ttk", "--keyframe-interval", 4)
    report = json.loads(tatok("info", "a.ttk", "--json").out)
    assert (report["key_frames"], report["depth"]) == (3, 4)
    bits = report["bits_per_frame"]["mean"]
    assert report["kbit_per_second"] == pytest.approx(bits * 4 / 1000, rel=1e-3)
    shown = tatok("info", "a.ttk").out
    assert "3, one in 3" in shown
    assert "kbit/s" in shown


def test_a_video_is_evaluated_and_a_decoded_one_compared(tatok: Run) -> None:
    clip = "synthetic:frames=4,width=96,height=64"
    tatok("stream", clip, "-o", "a.ttk")
    tatok("decode", "a.ttk", "-o", "pictures")
    report = json.loads(tatok("evaluate", clip, "--frames", 2, "--keep", "1,0.5", "--json").out)
    assert report["images"] == 2
    assert report["results"][0]["psnr_db"] > report["results"][1]["psnr_db"] > 15
    results = [json.loads(tatok("evaluate", clip, "--against", name, "--json").out) for name in ("a.ttk", "pictures")]
    assert results[0]["psnr_db"] == results[1]["psnr_db"]
    assert results[0]["frames"] == 4
    assert results[0]["psnr_db"]["mean"] > 15
    assert "PSNR dB" in tatok("evaluate", clip, "--against", clip).out
    one_line(tatok("evaluate", clip, "--against", "a.ttk", "--keep", "1"), 2, "--keep is for encoding")
    with tatok_edge.Reader("a.ttk") as reader, tatok_edge.open("a.ttk") as recording:
        model = recording.tokenizer
        with tatok_edge.Writer("skipped.ttk", model.entropy_model, name=model.name) as writer:
            writer.write_packet(reader.packet(0))
            late = next(image for number, image in enumerate(frame.image for frame in recording) if number == 2)
            writer.write(model.encode(late, index=2))
    skipped = json.loads(tatok("evaluate", clip, "--against", "skipped.ttk", "--json").out)
    assert (skipped["frames"], skipped["complete"]) == (2, True)
    shorter = tatok("evaluate", "synthetic:frames=3,width=96,height=64", "--against", "a.ttk")
    assert shorter.code == 1
    assert "ends after 3 frames" in shorter.err
