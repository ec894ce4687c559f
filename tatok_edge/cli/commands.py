"""What the ``tatok`` commands do once their arguments are understood. Each returns the exit code."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

from tatok_edge.cli.progress import Progress
from tatok_edge.errors import FormatError, InputError, SourceError, TaTokError
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.files import check_target
from tatok_edge.format.packet import unpack_delta
from tatok_edge.format.reader import Reader
from tatok_edge.format.writer import Writer
from tatok_edge.geometry import Image
from tatok_edge.model.bundle import DEFAULT_MODEL, Precision
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.pictures.drawing import keep_overlay, rate_plot, side_by_side, stack
from tatok_edge.pictures.writing import PICTURE_SUFFIXES, open_output, write_image
from tatok_edge.sources.open import open_source
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

TOKEN_SUFFIX = ".ttk"
FALLBACK_FPS = 25.0
"""Frame rate of a video decoded from frames that had none (a folder of pictures)."""
RATE_TOLERANCE = 0.05
"""Where the frames' times differ from the stated rate by more than this share, the times are believed."""

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model to run, and how."""

    name: str | None
    """Name or path of the bundle; None takes the default, or the one that made the file."""
    backend: str
    """Backend to run it, or ``auto``."""
    threads: int | None
    """Threads of the networks; None leaves it to the backend."""
    precision: Precision = "fp32"
    """Of the decoder, see :meth:`Tokenizer.load`."""

    def load(self, default: str = DEFAULT_MODEL) -> Tokenizer:
        """Loads it.

        Raises:
            BundleError: There is no such model, or it is damaged.
            BackendError: The backend is not usable here.
        """
        return Tokenizer.load(
            self.name or default, backend=self.backend, threads=self.threads, precision=self.precision
        )


def encode(
    source: str,
    output: str,
    budget: TokenBudget,
    choice: ModelChoice,
    *,
    frames: int | None,
    snapshot: str | None,
    as_json: bool,
) -> int:
    """``tatok encode``: frame by frame, so that memory does not grow with the length of the source."""
    check_target(output, (TOKEN_SUFFIX,))
    if snapshot is not None:
        check_target(snapshot, PICTURE_SUFFIXES)
    tokenizer = choice.load()
    statistics = Statistics()
    problem: str | None = None
    last: Image | None = None
    with open_source(source) as opened, until_signal(opened.stop) as received:
        total = frames if opened.frames is None else min(frames or opened.frames, opened.frames)
        metadata = {"source": opened.name, "backend": tokenizer.backend.name, "budget": budget_record(budget)}
        writer = Writer(output, tokenizer.entropy_model, name=tokenizer.name, fps=opened.fps, metadata=metadata)
        start = time.perf_counter()
        try:
            with Progress("encoding", total) as progress:
                for frame in opened:
                    tokens = tokenizer.encode(
                        frame.image, budget=budget, index=frame.index, timestamp_us=frame.timestamp_us
                    )
                    size = writer.write(tokens)
                    statistics.add(tokens.width, tokens.height, tokens.n_tokens, tokens.n_patches, size)
                    last = frame.image
                    progress.update(statistics.frames, f"{tokens.n_tokens} tokens")
                    if statistics.frames == frames:
                        break
                else:
                    problem = opened.problem
        except (Exception, KeyboardInterrupt) as error:
            # What was encoded before is worth keeping: a camera's hours do not come back.
            writer.close(partial=True)
            if not statistics.frames or not isinstance(error, (TaTokError, KeyboardInterrupt)):
                raise
            problem = f"after {statistics.frames} frames: {error}" if isinstance(error, TaTokError) else None
        seconds = time.perf_counter() - start
        writer.close(partial=True)
        if not statistics.frames:
            raise SourceError(
                f"{opened.name}: {problem or 'ended'} before a frame was encoded; {output} was not written"
            )
        if snapshot is not None and last is not None:
            write_image(snapshot, last)
        report = statistics.report() | {
            "seconds": round(seconds, 3),
            "frames_per_second": round(statistics.frames / max(seconds, 1e-9), 2),
            "model": tokenizer.name,
            "backend": tokenizer.backend.name,
            "threads": tokenizer.backend.threads,
            "fps": opened.fps,
            "dropped_frames": opened.dropped,
            "source": opened.name,
            "output": output,
            "file_bytes": Path(output).stat().st_size,
            "budget": metadata["budget"],
            "complete": problem is None and not received,
            "problem": problem,
        }
    if as_json:
        print_json(report)
    else:
        rows = common_rows(report)
        rows["speed"] = f"{report['frames_per_second']:.1f} frames/s ({seconds:.1f} s)"
        if opened.live:
            rows["dropped"] = f"{opened.dropped} frames came faster than they could be encoded"
        rows["backend"] = str(tokenizer.backend)
        print_table(f"{opened.name} -> {output}", rows)
    if problem:
        say("encode", f"{problem}; {output} holds the {statistics.frames} frames that are good")
    return exit_code("encode", problem is not None, received)


def decode(path: str, output: str, choice: ModelChoice, *, frame: int | None, fps: float | None, as_json: bool) -> int:
    """``tatok decode``: whole frames of a damaged file are decoded, the others reported."""
    with _open_file(path, choice) as (tokenizer, reader), until_signal() as received:
        numbers = range(len(reader)) if frame is None else [_frame_number(reader, frame)]
        rate = fps or _frame_rate(reader)
        problems = _damage(reader)
        width = height = 0
        decoder = _FileDecoder(reader, tokenizer)
        start = time.perf_counter()
        with (
            open_output(output, fps=rate, frames=len(numbers)) as target,
            Progress("decoding", len(numbers)) as progress,
        ):
            for number in numbers:
                if received:
                    break
                try:
                    image = decoder.image(number)
                except FormatError as error:
                    problems.append(str(error))
                    continue
                target.write(image, number)
                height, width = image.shape[:2]
                progress.update(target.written)
        if not target.written:
            if received:
                return exit_code("decode", True, received)
            raise FormatError(f"{problems[0] if problems else path}: no frame could be decoded")
        seconds = time.perf_counter() - start
    report = {
        "frames": target.written,
        "width": width,
        "height": height,
        "fps": round(rate, 3),
        "seconds": round(seconds, 3),
        "frames_per_second": round(target.written / max(seconds, 1e-9), 2),
        "model": tokenizer.name,
        "backend": tokenizer.backend.name,
        "threads": tokenizer.backend.threads,
        "input": path,
        "output": output,
        "complete": not problems and not received,
        "problem": problems[0] if problems else None,
    }
    if as_json:
        print_json(report)
    else:
        rows = {
            "frames": f"{target.written} ({width}x{height})",
            "speed": f"{report['frames_per_second']:.1f} frames/s ({seconds:.1f} s)",
            "model": tokenizer.name,
        }
        print_table(f"{path} -> {output}", rows)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        say("decode", f"{problems[0]}{more}; {output} holds the {target.written} frames that are good")
    return exit_code("decode", bool(problems), received)


def info(path: str, *, as_json: bool) -> int:
    """``tatok info``: reads every packet's header and checks its CRC; needs no model."""
    start = time.perf_counter()
    statistics = Statistics()
    with Reader(path) as reader:
        problems = _damage(reader)
        first = last = 0
        for number in range(len(reader)):
            try:
                packet = reader.info(number)
            except FormatError as error:
                problems.append(str(error))
                continue
            first = packet.timestamp_us if not statistics.frames else first
            last = packet.timestamp_us
            statistics.add(packet.width, packet.height, packet.n_tokens, packet.n_patches, packet.size)
        fps = None if reader.fps is None else float(reader.fps)
        report = statistics.report() | {
            "seconds": round(time.perf_counter() - start, 3),
            "duration_seconds": round((last - first) / 1e6 + (1 / fps if fps else 0), 3),
            "fps": fps,
            "key_frames": sum(reader.is_key(number) for number in range(len(reader))),
            "model": reader.name,
            "model_tag": reader.tag.hex(),
            "levels": list(reader.levels),
            "backend": reader.metadata.get("backend"),
            "input": path,
            "file_bytes": Path(path).stat().st_size,
            "metadata": reader.metadata,
            "complete": not problems,
            "problem": problems[0] if problems else None,
        }
    if as_json:
        print_json(report)
    else:
        rows = common_rows(report)
        rows["duration"] = f"{report['duration_seconds']:.2f} s" if fps else "no frame rate"
        rows["source"] = str(reader.metadata.get("source", "not stated"))
        print_table(path, rows)
    for problem in problems:
        say("info", problem)
    return 1 if problems else 0


def view(path: str, output: str, choice: ModelChoice, *, frame: int | None, source: str | None, as_json: bool) -> int:
    """``tatok view``: the kept-token map and reconstruction of a frame above the token rate of all frames."""
    check_target(output, PICTURE_SUFFIXES)
    with _open_file(path, choice) as (tokenizer, reader):
        number = _frame_number(reader, len(reader) // 2 if frame is None else frame)
        decoder = _FileDecoder(reader, tokenizer)
        decoded = decoder.image(number)
        tokens = decoder.tokens(number)
        counts, problems = _token_counts(reader)
    kept = f"kept tokens: {tokens.n_tokens} of {tokens.n_patches} ({tokens.n_tokens / tokens.n_patches:.0%})"
    quality: float | None = None
    if source is None:
        panels = [(kept, keep_overlay(decoded, tokens.keep_map())), ("reconstruction", decoded)]
    else:
        original = _source_frame(source, tokens.index)
        if original.shape != decoded.shape:
            raise InputError(
                f"{source}: frame {tokens.index} is {original.shape[1]}x{original.shape[0]}, but {path} holds "
                f"{tokens.width}x{tokens.height}; name what was encoded"
            )
        quality = psnr(original, decoded)
        panels = [
            ("original", original),
            (kept, keep_overlay(original, tokens.keep_map())),
            (f"reconstruction, {quality:.1f} dB", decoded),
        ]
    picture = side_by_side(panels)
    if len(counts) > 1:
        plot = rate_plot(counts, tokens.n_patches, width=picture.shape[1], mark=number)
        picture = stack([picture, plot])
    write_image(output, picture)
    report = {
        "frame": number,
        "width": tokens.width,
        "height": tokens.height,
        "tokens": tokens.n_tokens,
        "patches": tokens.n_patches,
        "psnr_db": None if quality is None else round(quality, 3),
        "model": tokenizer.name,
        "backend": tokenizer.backend.name,
        "input": path,
        "output": output,
        "complete": not problems,
        "problem": problems[0] if problems else None,
    }
    if as_json:
        print_json(report)
    else:
        suffix = "" if quality is None else f", {quality:.1f} dB"
        print(f"{output}: frame {number} of {path}, {kept}{suffix}")
    for problem in problems:
        say("view", problem)
    return 1 if problems else 0


def bench(sizes: Sequence[tuple[int, int]], repeats: int, choice: ModelChoice, *, as_json: bool) -> int:
    """``tatok bench``: how long encoding and decoding take here."""
    from tatok_edge.evaluation import speed as benchmark

    tokenizer = choice.load()
    report = benchmark.bench(tokenizer, sizes, repeats)
    if as_json:
        print_json(report)
        return 0
    print(f"{tokenizer.name}: {tokenizer.backend}")
    print(f"PyTorch: {report['torch']}")
    print(
        f"{'median ms (quartiles)':<24}"
        + "".join(f"{row['width']}x{row['height']}".rjust(26) for row in report["sizes"])
    )
    for key, label in _TIMES.items():
        if any(row[key] for row in report["sizes"]):
            print(f"{label:<24}" + "".join(_time(row[key]).rjust(26) for row in report["sizes"]))
    return 0


def bench_stream(sizes: Sequence[tuple[int, int]], frames: int, choice: ModelChoice, *, as_json: bool) -> int:
    """``tatok bench stream``: how long a stream takes here, beside every token of every frame."""
    from tatok_edge.evaluation import speed as benchmark

    tokenizer = choice.load()
    report = benchmark.bench_stream(tokenizer, sizes, frames)
    if as_json:
        print_json(report)
        return 0
    print(f"{tokenizer.name}: {tokenizer.backend}")
    print(
        f"{'synthetic camera':<14}{'stream ms':>26}{'fixed rate ms':>26}{'tokens':>10}{'fixed rate':>12}{'updated':>10}"
    )
    for row in report["sizes"]:
        print(
            f"{row['width']}x{row['height']}".ljust(16)
            + _time(row["stream_ms"]).rjust(26)
            + _time(row["fixed_ms"]).rjust(26)
            + f"{row['tokens_per_frame']:>10.0f}{row['fixed_tokens_per_frame']:>12}{row['updated_share']:>10.1%}"
        )
    return 0


_TIMES = {
    "encode_ms": "encode",
    "encode_entropy_25_ms": "encode 25 % by entropy",
    "decode_ms": "decode",
    "torch_encode_ms": "PyTorch encode",
    "torch_decode_ms": "PyTorch decode",
}
"""Rows of the table of ``tatok bench``."""


def _time(figure: dict[str, float] | None) -> str:
    return "-" if figure is None else f"{figure['median']:.2f} ({figure['q1']:.2f}-{figure['q3']:.2f})"


@dataclass(slots=True)
class Statistics:
    """Running figures over frames: nothing here grows with their number."""

    frames: int = 0
    tokens: int = 0
    patches: int = 0
    pixels: int = 0
    size: int = 0
    least: int = 0
    most: int = 0
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, width: int, height: int, tokens: int, patches: int, size: int) -> None:
        """Counts a frame with a packet of ``size`` bytes."""
        self.least = tokens if not self.frames else min(self.least, tokens)
        self.most = max(self.most, tokens)
        self.frames += 1
        self.tokens += tokens
        self.patches += patches
        self.pixels += width * height
        self.size += size
        if (width, height) in self.sizes or len(self.sizes) < 64:
            self.sizes[width, height] = self.sizes.get((width, height), 0) + 1

    def report(self) -> Report:
        """The figures of the contract; null where there is no frame."""
        count = self.frames
        width, height = next(iter(self.sizes), (0, 0))

        def mean(total: int) -> float | None:
            return round(total / count, 3) if count else None

        return {
            "frames": count,
            "width": width,
            "height": height,
            "sizes": len(self.sizes),
            "tokens_per_frame": {"mean": mean(self.tokens), "min": self.least, "max": self.most},
            "patches_per_frame": {"mean": mean(self.patches)},
            "bits_per_frame": {"mean": mean(8 * self.size)},
            "bits_per_pixel": round(8 * self.size / self.pixels, 6) if count else None,
        }


@contextmanager
def until_signal(stop: Callable[[], None] | None = None) -> Iterator[list[signal.Signals]]:
    """Makes Ctrl-C and SIGTERM end the work after the current frame; a second Ctrl-C ends it at once.

    Args:
        stop: Called on the signal, to wake up who waits for a frame.

    Yields:
        The signals received so far.
    """
    received: list[signal.Signals] = []

    def handle(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))
        if stop is not None:
            stop()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _open_file(path: str, choice: ModelChoice) -> Iterator[tuple[Tokenizer, Reader]]:
    """A token file with the model that made it, or the one that was asked for."""
    with Reader(path) as header:
        if not len(header):
            raise FormatError(f"{path}: {header.damage or 'it holds no frame'}")
        name = header.name
    tokenizer = choice.load(name)
    with Reader(path, tokenizer.entropy_model) as reader:
        yield tokenizer, reader


class _FileDecoder:
    """Pictures of a token file by number, whether its frames stand alone or are a stream."""

    def __init__(self, reader: Reader, tokenizer: Tokenizer) -> None:
        self._reader = reader
        self._tokenizer = tokenizer
        self._streamed = not all(reader.is_key(number) for number in range(len(reader)))
        self._decoder = StreamDecoder(tokenizer)
        self._next = 0

    def image(self, number: int) -> Image:
        """The picture of a frame; of a stream, everything from its keyframe on is read.

        Raises:
            FormatError: The frame, or one that it builds on, is damaged.
        """
        reader = self._reader
        if not self._streamed:
            return self._tokenizer.decode(reader[number])
        if number < self._next or reader.keyframe_before(number) >= self._next:
            self._next = reader.keyframe_before(number)
            self._decoder = StreamDecoder(self._tokenizer)
        while self._next < number:
            self._next += 1
            with suppress(FormatError):  # the frames that build on it will say what is missing
                self._decoder.push(reader.packet(self._next - 1))
        self._next = number + 1
        decoded = self._decoder.decode(reader.packet(number))
        if decoded.image is None or not decoded.complete:
            raise FormatError(f"{reader.path}: frame {number}: {decoded.problem or 'patches are missing'}")
        return decoded.image

    def tokens(self, number: int) -> TokenFrame | DeltaFrame:
        """What the packet of a frame holds; call :meth:`image` first.

        Raises:
            FormatError: It is damaged.
        """
        if self._reader.is_key(number):
            return self._reader[number]
        state = self._decoder.state
        assert state is not None
        return unpack_delta(self._reader.packet(number), self._tokenizer.entropy_model, state.global_ids)


def _frame_number(reader: Reader, number: int) -> int:
    count = len(reader)
    if not -count <= number < count:
        raise InputError(f"--frame must be from {-count} to {count - 1} for {reader.path}, got {number}")
    return number % count


def _frame_rate(reader: Reader) -> float:
    """The rate to play the frames at: the stated one, unless their times say otherwise (a slow camera, lost frames)."""
    stated = None if reader.fps is None else float(reader.fps)
    try:
        times = [reader.info(number).timestamp_us for number in (0, len(reader) - 1)]
    except FormatError:
        times = [0, 0]
    if times[1] <= times[0]:
        return stated or FALLBACK_FPS
    measured = (len(reader) - 1) * 1e6 / (times[1] - times[0])
    if stated is not None and abs(measured / stated - 1) <= RATE_TOLERANCE:
        return stated
    return float(Fraction(min(max(measured, 0.01), 1000.0)).limit_denominator(1001))


def _token_counts(reader: Reader) -> tuple[list[int], list[str]]:
    """Tokens of each frame, none for a damaged one, and what is damaged."""
    counts, problems = [], _damage(reader)
    for number in range(len(reader)):
        try:
            counts.append(reader.info(number).n_tokens)
        except FormatError as error:
            counts.append(0)
            problems.append(str(error))
    return counts, problems


def _damage(reader: Reader) -> list[str]:
    """What is wrong with the file as a whole, as a list to add damaged frames to."""
    return [f"{reader.path}: {reader.damage}"] if reader.damage else []


def _source_frame(source: str, index: int) -> Image:
    """The picture of frame ``index`` of a source; a single picture stands for any frame."""
    with open_source(source) as opened:
        if opened.live:
            raise InputError(
                f"{source}: a live source cannot show an earlier frame; encode with --snapshot and name that"
            )
        for frame in opened:
            if frame.index == index or opened.frames == 1:
                return frame.image
    raise SourceError(f"{source}: has no frame {index}; name what was encoded")


def budget_record(budget: TokenBudget) -> Report:
    """The limits that were set."""
    default = TokenBudget()
    names = ("tau", "keep", "max_tokens", "max_bits", "min_tokens", "floor_bits", "score", "refine")
    return {name: getattr(budget, name) for name in names if getattr(budget, name) != getattr(default, name)}


def common_rows(report: Report) -> dict[str, str]:
    """Rows that encode and info share."""
    if not report["frames"]:
        return {"frames": "none"}
    tokens, patches = report["tokens_per_frame"], report["patches_per_frame"]["mean"]
    more = "" if report["sizes"] == 1 else ", and other sizes"
    raw = 24 / report["bits_per_pixel"]
    rate = f", {report['fps']:.4g} frames/s" if report["fps"] else ""
    return {
        "frames": f"{report['frames']} ({report['width']}x{report['height']}{more}{rate})",
        "tokens per frame": f"{tokens['mean']:.0f} of {patches:.0f} ({tokens['mean'] / patches:.1%}), "
        f"{tokens['min']} to {tokens['max']}",
        "bits per frame": f"{report['bits_per_frame']['mean']:.0f} ({report['bits_per_pixel']:.4f} per pixel, "
        f"{raw:.0f} times less than RGB)",
        "file": f"{report['file_bytes'] / 1000:.1f} kB",
        "model": report["model"],
    }


def print_table(title: str, rows: dict[str, str]) -> None:
    print(title)
    for name, value in rows.items():
        print(f"  {name:<18}{value}")


def print_json(report: Report) -> None:
    print(json.dumps(report, indent=2, allow_nan=False))


def say(command: str, message: str) -> None:
    print(f"tatok {command}: {' '.join(message.split())}", file=sys.stderr)


def exit_code(command: str, failed: bool, received: Sequence[signal.Signals]) -> int:
    if received:
        say(command, "interrupted; what was whole is kept")
        return 128 + received[0]
    return 1 if failed else 0
