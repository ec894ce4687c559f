"""The frames of a camera topic of a bag as a source, for whatever takes one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tatok_edge.errors import FormatError, InputError, SourceError
from tatok_edge.geometry import Image
from tatok_edge.robotics.bags.bag import Bag, choose_topics
from tatok_edge.robotics.bags.cdr import Cdr
from tatok_edge.robotics.bags.records import Message
from tatok_edge.robotics.images import IMAGE_TYPES, image_from_message
from tatok_edge.sources.source import RisingClock, Source, SourceFrame


class BagSource(Source):
    """The images of one topic of a bag, by their header stamps.

    Args:
        path: The bag.
        topic: The topic; may be left out where the bag has only one of images.

    Raises:
        SourceError: There is no such bag or topic, or it holds no image that can be taken.
        InputError: The packages that read bags are missing.
    """

    def __init__(self, path: str | Path, topic: str | None = None) -> None:
        self._bag = Bag(path)
        try:
            (self.topic,) = choose_topics(self._bag, [topic] if topic else [], IMAGE_TYPES)
            self._bad: list[str] = []
            self._messages = self._images()
            first = next(self._messages, None)
            if first is None:
                problem = next(iter([*self._bad, *self._bag.problems]), "it holds no message")
                raise SourceError(f"{path}: {self.topic}: {problem}")
        except BaseException:
            self._bag.close()
            raise
        self._first = first
        super().__init__(f"{path}#{self.topic}", first[0], fps=None, frames=None)

    def _images(self) -> Iterator[tuple[Image, int, int]]:
        """Pictures with the numbers of their messages and their stamps in microseconds."""
        cdr = Cdr()
        index = -1
        for record in self._bag.records():
            if not isinstance(record, Message) or record.channel.topic != self.topic:
                continue
            index += 1
            try:
                message = cdr.read(record)
                stamp = message.header.stamp
                yield image_from_message(message), index, stamp.sec * 1_000_000 + stamp.nanosec // 1000
            except (FormatError, InputError) as error:
                self._bad.append(f"message {index}: {error}")

    def _read(self) -> Iterator[SourceFrame]:
        clock = RisingClock(None)
        item: tuple[Image, int, int] | None = self._first
        while item is not None:
            image, index, stamp_us = item
            yield SourceFrame(image, index, clock(stamp_us))
            item = next(self._messages, None)
        if self._bad:
            self.problem = f"{self.name}: left out {len(self._bad)} messages; the first: {self._bad[0]}"
        elif self._bag.problems:
            self.problem = self._bag.problems[0]

    def close(self) -> None:
        """Ends the iteration and removes what was unpacked."""
        super().close()
        self._bag.close()
