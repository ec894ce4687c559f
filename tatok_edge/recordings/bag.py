"""The token topics of bags, packet by packet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tatok_edge.errors import FormatError, SourceError
from tatok_edge.format.header import PacketInfo, verify
from tatok_edge.format.packet import unpack
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.robotics.bags.bag import Bag, choose_topics
from tatok_edge.robotics.bags.cdr import Cdr
from tatok_edge.robotics.bags.records import Message
from tatok_edge.robotics.images import COMPRESSED_TYPE
from tatok_edge.robotics.topics import TOKEN_TOPIC, TokenFormat
from tatok_edge.tokens.frame import TokenFrame


def token_topics(bag: Bag, topic: str | None = None) -> list[str]:
    """The token topics of a bag, or the one that is named.

    Raises:
        SourceError: There is none; the message lists the topics of the bag.
    """
    return choose_topics(bag, [topic] if topic else [], (COMPRESSED_TYPE,), suffix=TOKEN_TOPIC)


def packets_of(
    bag: Bag, topics: list[str], problems: list[str], *, seen: Counter[str] | None = None
) -> Iterator[tuple[Message, TokenFormat, PacketInfo, bytes]]:
    """The packets of token topics, in the order of their log times.

    Args:
        bag: The bag.
        topics: The token topics.
        problems: Gets a line for each damaged packet and part of the bag.
        seen: Counts the messages of all topics.
    """
    cdr = Cdr()
    for record in bag.records():
        if not isinstance(record, Message):
            continue
        if seen is not None:
            seen[record.channel.topic] += 1
        if record.channel.topic not in topics or record.channel.type != COMPRESSED_TYPE:
            continue
        try:
            message = cdr.read(record)
            packet = bytes(memoryview(message.data))
            yield record, TokenFormat.parse(str(message.format)), verify(packet), packet
        except FormatError as error:
            problems.append(f"{record.channel.topic} at {record.log_time} ns: {error}")
    problems += bag.problems


class TopicReader:
    """The packets of one token topic by number, with what a frame needs of :class:`tatok_edge.Reader`.

    Args:
        path: The bag.
        topic: The token topic; None for the only one.
        tokenizer: The model.

    Raises:
        SourceError: There is no such topic, or it holds no packet.
    """

    def __init__(self, path: str | Path, topic: str | None, tokenizer: Tokenizer) -> None:
        self.path = Path(path)
        """The bag."""
        problems: list[str] = []
        self._tokenizer = tokenizer
        with Bag(path) as bag:
            topics = token_topics(bag, topic)
            if len(topics) != 1:
                raise SourceError(f"{path}: choose one of {', '.join(topics)} with --topic")
            found = [(info, packet) for _, _, info, packet in packets_of(bag, topics, problems)]
        if not found:
            raise SourceError(f"{path}: {topics[0]}: {problems[0] if problems else 'it holds no message'}")
        self.damage = problems[0] if problems else None
        """The first damage of the bag in one line; None for a whole one."""
        self._infos = [info for info, _ in found]
        self._packets = [packet for _, packet in found]

    def __len__(self) -> int:
        return len(self._packets)

    def __getitem__(self, number: int) -> TokenFrame:
        return unpack(self._packets[number], self._tokenizer.entropy_model, limits=self._tokenizer.limits)

    def packet(self, number: int) -> bytes:
        """The packet of a frame."""
        return self._packets[number]

    def info(self, number: int) -> PacketInfo:
        """The header of a packet."""
        return self._infos[number]

    def is_key(self, number: int) -> bool:
        """Whether a frame stands alone."""
        return self._infos[number].kind == "key"

    def keyframe_before(self, number: int) -> int:
        """Number of the nearest key packet at or before a frame.

        Raises:
            FormatError: There is none.
        """
        for candidate in range(number, -1, -1):
            if self.is_key(candidate):
                return candidate
        raise FormatError(f"{self.path}: frame {number} cannot be decoded: no key packet is at or before it")
