"""``tatok encode`` and ``tatok decode`` of bags: camera topics to token topics and back, other topics copied."""

from __future__ import annotations

import argparse
import signal
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tatok_edge.cli.interrupt import exit_code, keeping, until_signal
from tatok_edge.cli.options import model_choice
from tatok_edge.cli.pipes import PIPE
from tatok_edge.cli.progress import Progress
from tatok_edge.cli.report import (
    Report,
    budget_record,
    completeness,
    print_json,
    print_table,
    report_stream,
    run_figures,
    say,
    speed_text,
)
from tatok_edge.cli.token_file import FALLBACK_FPS
from tatok_edge.errors import FormatError, InputError, SourceError
from tatok_edge.files import check_target
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.pictures.writing import VIDEO_SUFFIXES, open_output
from tatok_edge.robotics.bags.bag import Bag, choose_topics
from tatok_edge.robotics.bags.cdr import Cdr
from tatok_edge.robotics.bags.records import Channel, Message
from tatok_edge.robotics.bags.writer import BagWriter, check_output
from tatok_edge.robotics.images import COMPRESSED_TYPE, IMAGE_TYPE, IMAGE_TYPES, image_to_message
from tatok_edge.robotics.topics import DECODED_TOPIC, TOKEN_TOPIC, ImageEncoder, TokenDecoder, packet_to_message
from tatok_edge.stream.frame import KeyframeTooLarge
from tatok_edge.stream.options import MAX_LOSS_DB
from tatok_edge.tokens.budget import TokenBudget

T = TypeVar("T")


class _Topic:
    """Figures of one topic."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.messages = self.done = self.keyframes = self.tokens = self.patches = 0
        self.bytes_in = self.bytes_out = 0
        self.sizes: set[tuple[int, int]] = set()
        self.problems: Counter[str] = Counter()
        """Why messages were copied unchanged, and how many for each reason."""

    def report(self) -> Report:
        """The counts for the report."""
        width, height = min(self.sizes, default=(0, 0))
        return {
            "topic": self.target,
            "messages": self.messages,
            "done": self.done,
            "left_as_they_are": sum(self.problems.values()),
            "keyframes": self.keyframes,
            "width": width,
            "height": height,
            "sizes": len(self.sizes),
            "tokens_per_frame": round(self.tokens / self.done, 3) if self.done else None,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }

    def problem(self, name: str) -> str | None:
        """The most frequent problem in one line; None without problems."""
        if not self.problems:
            return None
        text, _ = self.problems.most_common(1)[0]
        return f"{name}: {sum(self.problems.values())} of {self.messages} messages were copied unchanged: {text}"


def encode(args: argparse.Namespace, budget: TokenBudget) -> int:
    """``tatok encode`` of a bag; returns the exit code."""
    check_output(args.output, force=args.force, inputs=[args.source])
    options: dict[str, Any] = {"max_loss_db": MAX_LOSS_DB if args.max_loss_db is None else args.max_loss_db}
    if args.keyframe_interval is not None:
        options["keyframe_interval"] = args.keyframe_interval
    with Bag(args.source, limits=model_choice(args).limits) as bag:
        chosen = choose_topics(bag, args.topic or (), IMAGE_TYPES)
        for topic in chosen:
            _check_free(bag, topic + TOKEN_TOPIC)
        tokenizer = model_choice(args).load()
        options |= {"budget": budget, "frames_only": args.frames_only}
        work = _Encoding(tokenizer, chosen, options, keep_images=args.keep_images)
        return _rewrite(bag, work, args, frames=args.frames)


def decode(args: argparse.Namespace) -> int:
    """``tatok decode`` of a bag; returns the exit code."""
    output = args.output
    video = output == PIPE or Path(output).suffix.lower() in VIDEO_SUFFIXES
    if not video:
        check_output(output, force=args.force, inputs=[args.input])
    elif output != PIPE:
        check_target(output, VIDEO_SUFFIXES, force=args.force, inputs=[args.input])
    with Bag(args.input, limits=model_choice(args).limits) as bag:
        chosen = choose_topics(bag, args.topic or (), (COMPRESSED_TYPE,), suffix=TOKEN_TOPIC)
        work = _Decoding(model_choice(args).load(), chosen, keep_tokens=args.keep_tokens)
        if not video:
            for topic in chosen:
                _check_free(bag, _decoded_topic(topic))
            return _rewrite(bag, work, args)
        if len(chosen) != 1:
            raise SourceError(f"{args.input}: a video shows one of {', '.join(chosen)}; choose with --topic")
        return _to_video(bag, work, chosen[0], args)


# --- parts of the work ----------------------------------------------------------------------------


class _Work:
    """Replaces the messages of some topics: images by tokens, or tokens by images."""

    command = ""
    types: Sequence[str] = ()
    keep = False

    def __init__(self, tokenizer: Tokenizer, targets: dict[str, str]) -> None:
        self.tokenizer = tokenizer
        self.topics = {name: _Topic(target) for name, target in targets.items()}
        self.cdr = Cdr()
        self._channels: dict[Channel, Channel] = {}

    def takes(self, channel: Channel) -> bool:
        """Whether the messages of a channel are replaced."""
        return channel.topic in self.topics and channel.type in self.types

    def replace(self, record: Message) -> Message | None:
        """The message that replaces ``record``; None if ``record`` stays unchanged."""
        data = self.attempt(record, self._convert)
        if data is None:
            return None
        self.topics[record.channel.topic].bytes_out += len(data)
        channel = self.channel(record.channel)
        return Message(channel, record.log_time, record.publish_time, record.sequence, data)

    def attempt(self, record: Message, convert: Callable[[Any, Message], T]) -> T | None:
        """Converts a message. A message that cannot be converted is counted as a problem, and None returned."""
        topic = self.topics[record.channel.topic]
        topic.messages += 1
        topic.bytes_in += len(record.data)
        try:
            converted = convert(self.cdr.read(record), record)
        except KeyframeTooLarge:
            raise
        except (FormatError, InputError) as error:
            topic.problems[str(error)] += 1
            return None
        topic.done += 1
        return converted

    def _convert(self, message: Any, record: Message) -> bytes:
        raise NotImplementedError

    def _target_type(self) -> str:
        raise NotImplementedError

    def channel(self, source: Channel) -> Channel:
        """The channel that replaces ``source``."""
        if source not in self._channels:
            target = self.topics[source.topic].target
            self._channels[source] = self.cdr.channel(target, self._target_type(), source)
        return self._channels[source]


class _Encoding(_Work):
    command = "encode"
    types = IMAGE_TYPES

    def __init__(
        self,
        tokenizer: Tokenizer,
        topics: Sequence[str],
        options: dict[str, Any],
        *,
        keep_images: bool,
    ) -> None:
        super().__init__(tokenizer, {topic: topic + TOKEN_TOPIC for topic in topics})
        self.keep = keep_images
        self.budget: TokenBudget = options["budget"]
        # Named after the topic, not at random: the same bag gives the same bytes.
        self._encoders = {
            topic: ImageEncoder(tokenizer, stream=f"{zlib.crc32(topic.encode()):08x}", **options) for topic in topics
        }

    def _target_type(self) -> str:
        return COMPRESSED_TYPE

    def _convert(self, message: Any, record: Message) -> bytes:
        topic = self.topics[record.channel.topic]
        encoded = self._encoders[record.channel.topic].encode(message, recorded_ns=record.log_time)
        assert encoded is not None  # there is no bandwidth to keep
        topic.keyframes += encoded.kind == "key"
        topic.tokens += encoded.n_tokens
        topic.patches += encoded.n_patches
        topic.sizes.add((encoded.width, encoded.height))
        made = packet_to_message(self.cdr.types[COMPRESSED_TYPE], message.header, encoded, buffer=_bytes_to_array)
        return self.cdr.write(made, COMPRESSED_TYPE)


class _Decoding(_Work):
    command = "decode"
    types = (COMPRESSED_TYPE,)

    def __init__(self, tokenizer: Tokenizer, topics: Sequence[str], *, keep_tokens: bool) -> None:
        super().__init__(tokenizer, {topic: _decoded_topic(topic) for topic in topics})
        self.keep = keep_tokens
        self._decoders = {topic: TokenDecoder(tokenizer) for topic in topics}

    def _target_type(self) -> str:
        return IMAGE_TYPE

    def picture(self, message: Any, record: Message) -> tuple[Image, str]:
        """The complete picture of a token message, and the encoding of the camera message."""
        name = record.channel.topic
        decoded, encoding = self._decoders[name].decode(message)
        if decoded.image is None or not decoded.complete:
            raise FormatError(decoded.problem or "patches are missing until the next keyframe")
        topic = self.topics[name]
        topic.keyframes += decoded.kind == "key"
        topic.sizes.add((decoded.image.shape[1], decoded.image.shape[0]))
        return decoded.image, encoding

    def _convert(self, message: Any, record: Message) -> bytes:
        image, encoding = self.picture(message, record)
        made = image_to_message(self.cdr.types[IMAGE_TYPE], message.header, image, encoding, buffer=lambda data: data)
        return self.cdr.write(made, IMAGE_TYPE)


def _rewrite(bag: Bag, work: _Work, args: argparse.Namespace, *, frames: int | None = None) -> int:
    """Copies the bag with some messages replaced. Messages that cannot be replaced are copied unchanged, and reported.

    Args:
        bag: The input.
        work: Replaces the messages.
        args: The command line, for its output.
        frames: Stop after this number of replaced messages.
    """
    output = args.output
    start = time.perf_counter()
    copied = done = 0
    with (
        until_signal() as received,
        BagWriter(output, force=args.force) as writer,
        keeping(work.command, writer, received, lambda: any(topic.done for topic in work.topics.values())),
        Progress(work.command.rstrip("e") + "ing", frames, unit="images") as progress,
    ):
        for record in bag.records():
            if received or (frames is not None and done >= frames):
                break
            channel = record if isinstance(record, Channel) else getattr(record, "channel", None)
            if channel is None or not work.takes(channel):
                writer.write(record)
                copied += isinstance(record, Message)
                continue
            if isinstance(record, Channel):  # a topic without messages stays, too
                writer.write(work.channel(record))
            made = work.replace(record) if isinstance(record, Message) else None
            if made is not None:
                writer.write(made)
                done += 1
                progress.update(done)
            if work.keep or (made is None and isinstance(record, Message)):
                writer.write(record)
        problems = _problems(bag, work)
        if not done:
            if received:
                raise KeyboardInterrupt
            what = problems[0] if problems else f"{', '.join(work.topics)}: holds no message"
            raise SourceError(f"{bag.path}: {what}; {output} was not written")
        writer.rosbag2 = bag.rosbag2
    output = str(writer.left or output)
    files = [Path(output)] if Path(output).is_file() else list(Path(output).iterdir())
    seconds = time.perf_counter() - start
    report = _report(bag, work, output, seconds, problems, received)
    report["messages_copied"] = copied
    report["file_bytes"] = sum(file.stat().st_size for file in files)
    if isinstance(work, _Encoding):
        report["budget"] = budget_record(work.budget)
    if args.json:
        print_json(report)
    else:
        rows = {f"{topic.target}  ": _row(topic) for topic in work.topics.values()}
        rows["other messages"] = f"{copied}, untouched"
        rows["file"] = f"{report['file_bytes'] / 1000:.1f} kB"
        rows["speed"] = speed_text(report)
        rows["model"] = f"{work.tokenizer.name} ({work.tokenizer.tag.hex()})"
        print_table(f"{bag.path} -> {output}", rows)
    return _end(work, output, problems, received)


def _row(topic: _Topic) -> str:
    width, height = min(topic.sizes, default=(0, 0))
    more = "" if len(topic.sizes) < 2 else " and other sizes"
    text = f"{topic.done} of {topic.messages} messages ({width}x{height}{more}, {topic.keyframes} keyframes)"
    if topic.tokens:
        text += f", {topic.tokens / topic.done:.0f} tokens each"
    ratio = topic.bytes_in / max(topic.bytes_out, 1)
    factor = f"{ratio:.1f} times smaller" if ratio >= 1 else f"{1 / max(ratio, 1e-9):.1f} times larger"
    return f"{text}, {topic.bytes_in / 1e6:.2f} MB to {topic.bytes_out / 1e6:.2f} MB ({factor})"


def _to_video(bag: Bag, work: _Decoding, topic: str, args: argparse.Namespace) -> int:
    """Decodes the whole pictures of one topic to a video."""
    output = args.output
    count, measured = _rate(bag, topic)
    rate = args.fps or measured or FALLBACK_FPS
    bag.problems.clear()  # everything is read once more
    start = time.perf_counter()
    with (
        until_signal() as received,
        open_output(output, fps=rate, frames=count, raw=args.raw) as target,
        keeping(work.command, target, received),
        Progress("decoding", count) as progress,
    ):
        for record in bag.records():
            if received:
                break
            if isinstance(record, Message) and work.takes(record.channel):
                picture = work.attempt(record, work.picture)
                if picture is not None:
                    stamp_us = None if args.fps or measured is None else record.log_time // 1000
                    target.write(picture[0], work.topics[topic].messages - 1, stamp_us)
                    progress.update(target.written)
        problems = _problems(bag, work)
        if not target.written and not received:
            raise SourceError(f"{bag.path}: {problems[0] if problems else f'{topic}: holds no message'}")
    output = str(target.left or output)
    seconds = time.perf_counter() - start
    report = _report(bag, work, output, seconds, problems, received) | {"fps": round(rate, 3)}
    if args.json:
        print_json(report, report_stream(output))
    else:
        rows = {f"{topic}  ": f"{target.written} frames, {rate:.4g} frames/s", "model": work.tokenizer.name}
        print_table(f"{bag.path} -> {output}", rows, report_stream(output))
    return _end(work, output, problems, received)


def _rate(bag: Bag, topic: str) -> tuple[int, float | None]:
    """Number of messages of a topic, and their rate by their times of recording; None if these do not rise."""
    first = last = count = 0
    for record in bag.records():
        if isinstance(record, Message) and record.channel.topic == topic:
            first = first if count else record.log_time
            last = record.log_time
            count += 1
    seconds = (last - first) / 1e9
    return count, min(max((count - 1) / seconds, 0.01), 1000.0) if seconds > 0 else None


def _problems(bag: Bag, work: _Work) -> list[str]:
    return [*bag.problems, *filter(None, (topic.problem(name) for name, topic in work.topics.items()))]


def _report(
    bag: Bag, work: _Work, output: str, seconds: float, problems: list[str], received: Sequence[signal.Signals]
) -> Report:
    done = sum(topic.done for topic in work.topics.values())
    return {
        "topics": {name: topic.report() for name, topic in work.topics.items()},
        **run_figures(work.tokenizer, done, seconds),
        "bundle": work.tokenizer.tag.hex(),
        "input": str(bag.path),
        "output": output,
        **completeness(problems, interrupted=bool(received)),
    }


def _end(work: _Work, output: str, problems: Sequence[str], received: Sequence[signal.Signals]) -> int:
    for problem in problems:
        say(work.command, f"{problem}; {output} holds all others")
    return exit_code(work.command, bool(problems), received)


def _decoded_topic(topic: str) -> str:
    return topic.removesuffix(TOKEN_TOPIC) + DECODED_TOPIC


def _check_free(bag: Bag, topic: str) -> None:
    if topic in bag.topics():
        raise SourceError(f"{bag.path}: already holds the topic {topic}, which this command writes")


def _bytes_to_array(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(data, np.uint8)
