"""A camera topic of a ROS 2 bag as a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tatok_edge.errors import FormatError, InputError, SourceError
from tatok_edge.geometry import Image
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.robotics.bags.bag import Bag, choose_topics
from tatok_edge.robotics.bags.cdr import Cdr
from tatok_edge.robotics.bags.records import Message
from tatok_edge.robotics.images import IMAGE_TYPES, image_from_message, stamp_us
from tatok_edge.sources.source import RisingClock, Source, SourceFrame


class BagSource(Source):
    """The images of one topic of a bag, with the time stamps of their headers.

    Messages come in the order of their log times. Where a header has no stamp (0), the log time counts.

    Args:
        path: The bag.
        topic: The topic; may be left out if the bag has one topic of images.
        limits: Largest chunk, message and picture.

    Raises:
        SourceError: The bag or topic does not exist, or has no image that can be read.
        InputError: A package of the extra ``robotics`` is missing.
    """

    def __init__(self, path: str | Path, topic: str | None = None, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._bag = Bag(path, limits=limits)
        self._limits = limits
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

    def _images(self) -> Iterator[tuple[Image, int, int | None, int]]:
        """Pictures with the numbers of their messages, their time stamps and log times in microseconds."""
        cdr = Cdr()
        index = -1
        for record in self._bag.records():
            if not isinstance(record, Message) or record.channel.topic != self.topic:
                continue
            if record.channel.type not in IMAGE_TYPES:
                continue
            index += 1
            try:
                message = cdr.read(record)
                yield (
                    image_from_message(message, limits=self._limits),
                    index,
                    stamp_us(message),
                    record.log_time // 1000,
                )
            except (FormatError, InputError) as error:
                self._bad.append(f"message {index}: {error}")

    def _read(self) -> Iterator[SourceFrame]:
        clock = RisingClock(None)
        item: tuple[Image, int, int | None, int] | None = self._first
        while item is not None:
            image, index, stamp, logged = item
            yield SourceFrame(image, index, clock(stamp, logged))
            item = next(self._messages, None)
        if self._bad:
            self.problem = f"{self.name}: left out {len(self._bad)} messages; the first: {self._bad[0]}"
        elif self._bag.problems:
            self.problem = self._bag.problems[0]

    def close(self) -> None:
        """Ends the iteration and removes the unpacked files."""
        super().close()
        self._bag.close()
