"""Damaged inputs, killed writers and bad links by the thousand, with a fixed seed; the counts go to docs/security.md.

``python benchmarks/hardening.py --out benchmarks/results``; about an hour on one core. Each part runs in a process of
its own with a limit on memory, and goes on in a new one where that dies. The results are written while it runs, so an
interrupted run leaves them. ``--part`` runs some of the parts, and keeps the results of the others. It needs the
repository: inputs and writers are those of ``tests``.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
from lossy import Agreement, Link, fingerprints

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.fuzzing import LIMITS, Fuzzer
from helpers.streams import same
from helpers.writers import CLIPS, WORKERS, WRITERS, Run, content, kill_data_set, kill_writer, make_inputs

from tatok_edge.datasets.formats import FORMATS
from tatok_edge.errors import FormatError, TaTokError
from tatok_edge.evaluation.speed import machine
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.encoder import StreamEncoder

FILES = ("ttk", "manifest", "graph", "tables", "bag", "index", "video")
"""Fuzz targets of the part ``files``."""
SLOW = 1.0
"""Seconds of computing that an input may take."""
SILENT = 900.0
"""Seconds without a word after which a process counts as hanging."""
ADDRESS_SPACE = 2 << 30
"""Bytes of address space of a process (``ulimit -v``)."""
SESSION = 200
"""Packets of one stream of the part ``streams``."""
SHARES = {"lost": 0.05, "damaged": 0.03, "repeated": 0.03, "late": 0.05}
LONG = 600
"""Frames of an input that takes a while to write."""

COUNTED = ("inputs", "refused", "foreign", "wrong", "slow", "crashes", "hangs")
"""What is counted in every part."""

One = Callable[[int], dict[str, int]]
"""Does the work of one number; gives what is counted, and raises where something is wrong."""


class Wrong(Exception):
    """Something that must not happen."""


def packets(fuzzer: Fuzzer, seed: int) -> One:
    """Damaged packets with a right length and checksum to a decoder in the middle of a stream."""
    tokenizer = fuzzer.tokenizer
    decoder = StreamDecoder(tokenizer, limits=LIMITS)
    first: list[StreamDecoder] = []  # after 0, 1, ... packets
    for packet in fuzzer.packets:
        first.append(_copy(decoder))
        decoder.push(packet)
    used = [_copy(each) for each in first]

    def one(number: int) -> dict[str, int]:
        count = number % len(first)
        decoder = used[count]
        try:
            decoder.push(fuzzer.input("packet", seed, number))
        except FormatError:
            if decoder.state is not None and not same(decoder.state, first[count].state):
                raise Wrong("a refused packet has changed the state") from None
            return {"inputs": 1, "refused": 1}
        used[count] = _copy(first[count])
        return {"inputs": 1}

    return one


def _copy(decoder: StreamDecoder) -> StreamDecoder:
    """An independent decoder in the same state."""
    return copy.deepcopy(decoder, {id(decoder.tokenizer): decoder.tokenizer})


def files(fuzzer: Fuzzer, seed: int) -> One:
    """Damaged token files, bundles, bags, data sets and videos."""

    def one(number: int) -> dict[str, int]:
        name = FILES[number % len(FILES)]
        try:
            fuzzer.targets[name][1](fuzzer.input(name, seed, number))
        except TaTokError:
            return {"inputs": 1, "refused": 1}
        return {"inputs": 1}

    return one


def streams(fuzzer: Fuzzer, seed: int) -> One:
    """Streams over a bad link, with encoders that start again."""
    tokenizer = fuzzer.tokenizer
    scenes = {size: [render(Scene(width=size, height=64), 2 * number) for number in range(50)] for size in (64, 96)}

    def one(number: int) -> dict[str, int]:
        rng = random.Random(f"stream {seed} {number}")
        link, agreement, decoder = Link(rng.randrange(1 << 30), SHARES), Agreement(), StreamDecoder(tokenizer)
        counts: Counter[str] = Counter(streams=1)
        answers = rng.random() < 0.7  # otherwise nobody hears that the receiver needs a keyframe

        def begin() -> tuple[StreamEncoder, int, int]:
            refresh, interval = rng.choice(("key", "rolling")), rng.choice((20, 50))
            encoder = StreamEncoder(tokenizer, refresh=refresh, keyframe_interval=interval)  # type: ignore[arg-type]
            return encoder, rng.choice((0, 0, 1 << 20)), rng.choice((64, 64, 96))

        encoder, index, size = begin()
        for frame in range(SESSION):
            if rng.random() < 0.01:
                encoder, index, size = begin()
                counts["restarts"] += 1
            loop = scenes[size]
            ends = frame >= SESSION - 10  # a link that works again
            if frame == SESSION - 10 or (answers and decoder.needs_keyframe and rng.random() < 0.5):
                encoder.request_keyframe()
            packet = encoder.encode(loop[abs(frame % 98 - 49)], index=index).packet
            index += 1
            assert encoder.state is not None
            agreement.note(encoder.state)
            for arriving in [packet] if ends else link.send(packet):
                try:
                    decoded = decoder.decode(arriving)
                except FormatError:
                    counts["refused"] += 1
                    continue
                if decoded.complete:
                    assert decoder.state is not None
                    agreement.compare(decoder.state)
        counts.update(
            inputs=SESSION, compared=agreement.compared, **{k: v for k, v in link.faults.items() if k != "sent"}
        )
        if agreement.different_pictures or agreement.different_states:
            raise Wrong(
                f"stream {number}: {agreement.different_pictures} pictures, {agreement.different_states} states differ"
            )
        assert decoder.state is not None and encoder.state is not None
        if not decoded.complete or fingerprints(decoder.state) != fingerprints(encoder.state):
            raise Wrong(f"stream {number}: the receiver has not recovered")
        return dict(counts)

    return one


def kills(fuzzer: Fuzzer, seed: int) -> One:
    """Writers that are killed at random moments."""
    folder = fuzzer.folder / "kills"
    folder.mkdir()
    make_inputs(folder, LONG)
    make_inputs(folder, 2)
    earlier: dict[str, Path] = {}
    straight: dict[str, dict[str, str]] = {}
    names = [*WRITERS, *FORMATS]

    def one(number: int) -> dict[str, int]:
        name, rng = names[number % len(names)], random.Random(f"kill {seed} {number}")
        if name not in earlier:
            place, log = folder / name, folder / "log"
            place.mkdir()
            if name in WRITERS:
                earlier[name] = place / WRITERS[name].output
                Run(*WRITERS[name].arguments(folder, 2, earlier[name]), log=log).finish()
            else:
                earlier[name] = place / "earlier"
                words = ("--format", name, *WORKERS)
                Run("dataset", CLIPS[0], "-o", earlier[name], *words, log=log).finish()
                Run("dataset", *CLIPS, "-o", place / "straight", *words, log=log).finish()
                straight[name] = content(place / "straight")
        good = earlier[name]
        if name in WRITERS:
            kill_writer(name, folder, good, LONG, rng)
            return {"inputs": 1, name: 1}
        tokens = good.parent / "tokens"
        shutil.rmtree(tokens, ignore_errors=True)
        shutil.copytree(good, tokens)
        if not kill_data_set(tokens, name, straight[name], rng.random() * 0.6):
            return {"too_fast": 1}
        return {"inputs": 1, name: 1}

    return one


PARTS: dict[str, tuple[Callable[[Fuzzer, int], One], str, int, int]] = {
    "packets": (packets, "malformed packets, with a right checksum", 1_000_000, 1_000_000),
    "files": (files, "malformed files: `.ttk`, bundles, bags, data sets, Y4M", 100_000, 100_000),
    "streams": (streams, "packets of streams over a bad link", 20_000, 20_000 // SESSION),
    "kills": (kills, "writers killed in the middle", 500, 500),
}
"""Parts: what makes the work, what it is, how many inputs are the goal, and in how many numbers."""


def work(part: str, seed: int, first: int, last: int, place: int, seconds: float) -> None:
    """The process of a part: numbers ``first`` to ``last - 1``. It tells the number in hand in the file ``place``."""
    counts: Counter[str] = Counter()
    end, told = time.monotonic() + seconds, time.monotonic()

    def tell(number: int, failure: str | None = None) -> None:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"next": number, "counts": counts, "rss_mb": memory, "failure": failure}), flush=True)
        counts.clear()

    with tempfile.TemporaryDirectory() as folder, Tokenizer.load(threads=1) as tokenizer:
        make = PARTS[part][0]
        one = make(Fuzzer(tokenizer, Path(folder)), seed)
        if part != "kills":
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        for number in range(first, last):
            os.pwrite(place, number.to_bytes(8, "little"), 0)
            start, failure = time.process_time(), None
            try:
                counts.update(one(number))
            except Exception as error:
                kind = "wrong" if isinstance(error, (Wrong, AssertionError)) else "foreign"
                counts.update({"inputs": 1, kind: 1})
                failure = f"{part} {number}: {type(error).__name__}: {error}\n{traceback.format_exc()}"
            if part in ("packets", "files") and (taken := time.process_time() - start) > SLOW:
                counts["slow"] += 1
                failure = failure or f"{part} {number}: took {taken:.1f} s"
            now = time.monotonic()
            if failure or now - told > 1 or number == last - 1:
                tell(number + 1, failure)
                told = now
            if now > end:
                break


def run(part: str, seed: int, scale: float, end: float, told: Callable[[dict[str, Any]], None]) -> None:
    """Runs a part, in new processes where one dies, and tells the results now and then."""
    _, what, goal, numbers = PARTS[part]
    last, following, begun = max(1, round(numbers * scale)), 0, time.monotonic()
    result: dict[str, Any] = {"what": what, "goal": goal, "rss_mb": 0, "failures": []}
    counts: Counter[str] = Counter(
        dict.fromkeys(("inputs", "refused", "foreign", "wrong", "slow", "crashes", "hangs"), 0)
    )
    command = [sys.executable, __file__, "--seed", str(seed), "--work", part]
    with tempfile.TemporaryFile() as place:
        while following < last and time.monotonic() < end:
            numbers_of_run = [str(following), str(last), str(place.fileno()), str(end - time.monotonic())]
            process = subprocess.Popen(
                [*command, *numbers_of_run],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[place.fileno()],
                text=True,
            )
            assert process.stdout is not None
            timer = _Watchdog(process)
            for line in process.stdout:
                timer.heard()
                news = json.loads(line)
                following = news["next"]
                counts.update(news["counts"])
                result["rss_mb"] = max(result["rss_mb"], news["rss_mb"])
                if news["failure"]:
                    print(news["failure"], flush=True)
                    result["failures"].append(news["failure"].splitlines()[0])
                told(result | {"counts": counts, "seconds": round(time.monotonic() - begun)})
            code = process.wait()
            if code:
                following = int.from_bytes(os.pread(place.fileno(), 8, 0), "little") + 1
                counts["hangs" if timer.fired else "crashes"] += 1
                result["failures"].append(f"{part} {following - 1}: ended with {code}")
                told(result | {"counts": counts, "seconds": round(time.monotonic() - begun)})
            elif time.monotonic() < end and following < last:
                raise SystemExit(f"{part}: ended at {following} of {last}")


class _Watchdog:
    """Kills a process that says nothing for :data:`SILENT` seconds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.fired = False
        self._process = process
        self._heard = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def heard(self) -> None:
        self._heard = time.monotonic()

    def _watch(self) -> None:
        while self._process.poll() is None:
            time.sleep(0.5)
            if time.monotonic() - self._heard > SILENT:
                self.fired = True
                self._process.kill()
                return


def markdown(report: dict[str, Any]) -> str:
    """The counts as a table."""
    parts = report["parts"]
    lines = [
        f"Seed {report['seed']}. A hang is more than a second of computing for one input, or a quarter of an hour "
        f"without an answer. Each process has {report['address_space_gib']} GiB of address space (`ulimit -v`).",
        "",
        "| what | goal | done | crashes | hangs | foreign errors | wrong results | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for part in PARTS:
        if (result := parts.get(part)) is None:
            continue
        counts = result["counts"]
        faults = (counts["crashes"], counts["hangs"] + counts["slow"], counts["foreign"], counts["wrong"])
        cells = [result["what"], *(f"{value:,}" for value in (result["goal"], counts["inputs"], *faults))]
        cells.append("" if part == "kills" else f"{result['rss_mb']} MB")
        lines.append(f"| {' | '.join(cells)} |")
    if "packets" in parts:
        counts = parts["packets"]["counts"]
        lines += [
            "",
            f"{counts['refused']:,} of the malformed packets were refused. The others were read, or set aside as not "
            "next.",
        ]
    if "streams" in parts:
        counts = Counter(parts["streams"]["counts"])
        lines += [
            "",
            f"{counts['streams']:,} streams: the links lost {counts['lost']:,} packets, damaged {counts['damaged']:,}, "
            f"repeated {counts['repeated']:,} and delayed {counts['late']:,}; encoders started again "
            f"{counts['restarts']:,} times. {counts['compared']:,} pictures that the receiver called complete were "
            "compared with the sender's, bit for bit, with all that both ends hold. At its end each link worked again; "
            "then the picture had to be complete.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--part", action="append", choices=list(PARTS), help="only this part; can be given several times"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the goals")
    parser.add_argument("--minutes", type=float, default=600.0, help="longest time of all parts together")
    parser.add_argument(
        "--work", nargs=5, metavar=("PART", "FIRST", "LAST", "PLACE", "SECONDS"), help="for the processes"
    )
    args = parser.parse_args()
    if args.work:
        part, first, last, place, seconds = args.work
        work(part, args.seed, int(first), int(last), int(place), float(seconds))
        return
    report: dict[str, Any] = {
        "machine": machine(),
        "seed": args.seed,
        "address_space_gib": ADDRESS_SPACE >> 30,
        "parts": {},
    }
    if args.out is not None and args.part and (before := args.out / "hardening.json").exists():
        report["parts"] = json.loads(before.read_text())["parts"]
    end, published = time.monotonic() + 60 * args.minutes, 0.0
    for part in args.part or PARTS:

        def told(result: dict[str, Any], part: str = part) -> None:
            nonlocal published
            report["parts"][part] = result
            if time.monotonic() - published > 60:
                common.publish("hardening", report, markdown(report), args.out)
                published = time.monotonic()

        run(part, args.seed, args.scale, end, told)
    common.publish("hardening", report, markdown(report), args.out)


if __name__ == "__main__":
    main()
