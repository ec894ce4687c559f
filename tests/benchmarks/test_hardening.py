"""The soak and the counts of the page of security: they run, and they notice what must not happen."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tatok_edge import StreamDecoder, StreamEncoder, Tokenizer
from tatok_edge.sources.synthetic import Scene, render

Script = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def packets(tokenizer: Tokenizer) -> list[bytes]:
    """A short stream."""
    encoder = StreamEncoder(tokenizer)
    return [encoder.encode(render(Scene(width=64, height=64), number)).packet for number in range(4)]


def test_a_wrong_picture_and_a_wrong_state_are_noticed(
    script: Script, tokenizer: Tokenizer, packets: list[bytes]
) -> None:
    lossy = script("benchmarks/lossy.py")
    agreement, decoder = lossy.Agreement(), StreamDecoder(tokenizer)
    decoder.push(packets[0])
    state = decoder.state
    assert state is not None
    agreement.compare(state)  # nobody sent it
    agreement.note(state)
    agreement.compare(state)
    assert (agreement.compared, agreement.different_pictures, agreement.different_states) == (2, 1, 1)
    state.maps.context[0, 5] += 1
    agreement.compare(state)
    assert (agreement.different_pictures, agreement.different_states) == (1, 2)
    state.picture = state.picture ^ 1
    agreement.compare(state)
    assert (agreement.different_pictures, agreement.different_states) == (2, 3)


def test_the_link_has_every_fault_and_the_same_ones_again(script: Script) -> None:
    lossy = script("benchmarks/lossy.py")
    sent = [bytes([number % 256]) * 20 for number in range(500)]
    shares = dict.fromkeys(("lost", "damaged", "repeated", "late"), 0.1)
    runs = []
    for _ in range(2):
        link = lossy.Link(7, shares)
        runs.append([link.send(packet) for packet in sent])
    assert runs[0] == runs[1]
    assert link.faults["sent"] == 500 and all(20 < link.faults[fault] < 90 for fault in shares)
    arrived = [packet for packets in runs[0] for packet in packets]
    damaged = sum(packet not in sent for packet in arrived)
    assert damaged == link.faults["damaged"]
    lost = link.faults["lost"] + len(link._waiting)
    assert len(arrived) == 500 - lost + link.faults["repeated"]
    assert arrived != sorted(arrived, key=arrived.index)  # some overtook others, and some came twice


def test_the_soak(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soak = script("benchmarks/soak.py")
    options = "--hours 0.001 --every 1 --rotate 0.5 --width 64 --height 64 --fps 30 --threads 1 --out".split()  # noqa: SIM905
    monkeypatch.setattr(sys, "argv", ["soak.py", *options, str(tmp_path)])
    soak.main()
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["hours"] >= 0.001 and report["rows"]
    assert report["compared"] > 0 and report["different_pictures"] == report["different_states"] == 0
    assert report["recorded_files"] > 0 and report["most_files"] <= soak.FILES + 1
    assert "| open files |" in (tmp_path / "soak.md").read_text()


def test_the_counts(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hardening = script("benchmarks/hardening.py")
    options = "--part packets --part files --scale 0.0003 --out".split()  # noqa: SIM905
    monkeypatch.setattr(sys, "argv", ["hardening.py", *options, str(tmp_path)])
    hardening.main()
    parts = json.loads((tmp_path / "hardening.json").read_text())["parts"]
    assert parts["packets"]["counts"]["inputs"] == 300 and parts["files"]["counts"]["inputs"] == 30
    assert all(not part["failures"] and part["rss_mb"] > 50 for part in parts.values())
    assert (
        "| malformed packets, with a right checksum | 1,000,000 | 300 | 0 |" in (tmp_path / "hardening.md").read_text()
    )


def test_a_process_that_dies_is_counted(script: Script, tmp_path: Path) -> None:
    hardening = script("benchmarks/hardening.py")
    dying = tmp_path / "dying.py"
    dying.write_text(
        "import json, os, sys\n"
        "first, last, place = (int(word) for word in sys.argv[-4:-1])\n"
        "for number in range(first, last):\n"
        "    os.pwrite(place, number.to_bytes(8, 'little'), 0)\n"
        "    if number == 3:\n"
        "        os.abort()\n"
        "    print(json.dumps(dict(next=number + 1, counts={'inputs': 1}, rss_mb=9, failure=None)), flush=True)\n"
    )
    hardening.__file__ = str(dying)
    results = []
    hardening.run("kills", 0, 0.02, float("inf"), results.append)
    counts = results[-1]["counts"]
    assert counts["inputs"] == 9 and counts["crashes"] == 1
    assert results[-1]["failures"] == ["kills 3: ended with -6"]
