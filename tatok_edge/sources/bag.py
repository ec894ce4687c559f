"""A camera topic of a ROS 2 bag as a source."""

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
    """The images of one topic of a bag, with the time stamps of their headers.

    Args:
        path: The bag.
        topic: The topic; may be left out if the bag has one topic of images.

    Raises:
        SourceError: The bag or topic does not exist, or has no image that can be read.
        InputError: A package of the extra ``robotics`` is missing.
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
        """Pictures with the numbers of their messages and their time stamps in microseconds."""
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
        """Ends the iteration and removes the unpacked files."""
        super().close()
        self._bag.close()
