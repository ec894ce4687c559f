"""Opens a recording of tokens: its frames with tokens, times and pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, overload

from tatok_edge.closing import Closing
from tatok_edge.errors import BundleError, FormatError, InputError
from tatok_edge.format.entropy import IntegerEntropyModel
from tatok_edge.format.reader import Reader
from tatok_edge.geometry import Image
from tatok_edge.model.bundle import DEFAULT_MODEL, list_models
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.recordings.bag import TopicReader
from tatok_edge.recordings.frames import FileDecoder, PacketReader
from tatok_edge.robotics.bags.bag import split_topic
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame
from tatok_edge.tokens.held import HeldTokens


class RecordedFrame:
    """One frame of a :class:`Recording`. Tokens and picture are decoded when they are first read, then kept.

    Example:
        >>> with tatok_edge.open("stream.ttk") as recording:
        ...     frame = recording[3]
        ...     print(frame.kind, frame.time, frame.tokens, frame.image.shape)
    """

    def __init__(self, recording: Recording, number: int) -> None:
        self._recording = recording
        self._read: tuple[TokenFrame | DeltaFrame, HeldTokens] | None = None
        self._image: Image | None = None
        info = recording.reader.info(number)
        self.number: Final = number
        """Place of the frame in the recording, from 0."""
        self.index: Final = info.index
        """Number of the frame in its source: dropped frames count."""
        self.timestamp_us: Final = info.timestamp_us
        """Time of the frame in microseconds."""
        self.kind: Final[Literal["key", "delta"]] = info.kind
        """Kind of its packet: a keyframe stands alone, a delta changes the frame before."""
        self.width: Final = info.width
        """Width of the picture in pixels."""
        self.height: Final = info.height
        """Height of the picture in pixels."""
        self.n_tokens: Final = info.n_tokens
        """Number of patch tokens in its packet."""
        self.n_bytes: Final = info.size
        """Size of its packet in bytes."""

    @property
    def time(self) -> float:
        """Time of the frame in seconds."""
        return self.timestamp_us / 1e6

    @property
    def packet(self) -> bytes:
        """Its packet, for a socket, a :class:`Writer` or a :class:`StreamDecoder`."""
        return self._recording.reader.packet(self.number)

    @property
    def tokens(self) -> TokenFrame | DeltaFrame:
        """The tokens in its packet: a :class:`TokenFrame` of a keyframe, a :class:`DeltaFrame` of a change."""
        return self._tokens()[0]

    @property
    def held(self) -> HeldTokens:
        """All tokens that the stream holds after this frame, not only those that the packet changed."""
        return self._tokens()[1]

    @property
    def image(self) -> Image:
        """The picture, uint8 ``(H, W, 3)``, RGB. Frames of a stream are decoded fastest in their order."""
        if self._image is None:
            self._image = self._recording.decoder.image(self.number)
        return self._image

    def _tokens(self) -> tuple[TokenFrame | DeltaFrame, HeldTokens]:
        if self._read is None:
            self._read = self._recording.decoder.tokens(self.number)
        return self._read

    def __repr__(self) -> str:
        return (
            f"RecordedFrame({self.number}, {self.kind}, {self.time:.3f} s, {self.width}x{self.height}, "
            f"{self.n_tokens} patch tokens, {self.n_bytes} bytes)"
        )


class Recording(Closing):
    """The frames of a ``.ttk`` file or of a token topic of a bag; open one with :func:`open`.

    ``len(recording)`` is the number of frames, ``recording[i]`` a :class:`RecordedFrame`, ``recording[i:j]`` a list of
    them, and ``for frame in recording`` gives them all. It is a context manager. Use it in one thread at a time.

    Raises:
        FormatError: A frame that is read is damaged; the message names it.

    Example:
        >>> with tatok_edge.open("stream.ttk") as recording:
        ...     print(len(recording), "frames of", recording.tokenizer.name)
        ...     pictures = [frame.image for frame in recording[:5]]
    """

    def __init__(self, reader: PacketReader, tokenizer: Tokenizer, *, owned: bool = False) -> None:
        self.reader: Final = reader
        """Its packets: a :class:`Reader`, or those of a topic of a bag."""
        self.tokenizer: Final = tokenizer
        """The model that decodes it."""
        self.decoder: Final = FileDecoder(reader, tokenizer)
        """Decodes frames by number."""
        self._owned = owned

    @property
    def path(self) -> Path:
        """The file or bag."""
        return self.reader.path

    @property
    def damage(self) -> str | None:
        """Damage of the recording as a whole, in one line; None for a whole one."""
        return self.reader.damage

    def __len__(self) -> int:
        return len(self.reader)

    @overload
    def __getitem__(self, number: int) -> RecordedFrame: ...
    @overload
    def __getitem__(self, number: slice) -> list[RecordedFrame]: ...
    def __getitem__(self, number: int | slice) -> RecordedFrame | list[RecordedFrame]:
        numbers = range(len(self))
        if isinstance(number, slice):
            return [RecordedFrame(self, one) for one in numbers[number]]
        try:
            return RecordedFrame(self, numbers[number])
        except IndexError:
            raise IndexError(f"frame {number} is not in {self.path}: it holds {len(self)} frames, from 0") from None

    def __iter__(self) -> Iterator[RecordedFrame]:
        return (RecordedFrame(self, number) for number in range(len(self)))

    def close(self) -> None:
        """Close the file, and the model if :func:`open` loaded it."""
        if isinstance(self.reader, Reader):
            self.reader.close()
        if self._owned:
            self.tokenizer.close()

    def __repr__(self) -> str:
        state = f", damaged: {self.damage}" if self.damage else ""
        return f"Recording({str(self.path)!r}, {len(self)} frames, model {self.tokenizer.name}{state})"


def open(  # as in gzip: the module is used as tatok_edge.open
    path: str | os.PathLike[str], *, tokenizer: Tokenizer | None = None, topic: str | None = None
) -> Recording:
    """Open a recording of tokens to read frames, times and pictures.

    Args:
        path: A ``.ttk`` file; or a bag of ROS 2 with a token topic, also as ``BAG#TOPIC``.
        tokenizer: The model; by default the one that made the recording is loaded, and closed with it.
        topic: The token topic of a bag; by default the only one.

    Returns:
        The open :class:`Recording`, a context manager.

    Raises:
        SourceError: There is no such file, it cannot be read, or the bag has no such topic.
        FormatError: It is no recording of tokens, is damaged in its header, or is of another model than ``tokenizer``.
        BundleError: The model that made it is not shipped; give ``tokenizer=Tokenizer.load("PATH OF ITS BUNDLE")``.

    Example:
        >>> with tatok_edge.open("stream.ttk") as recording:
        ...     for frame in recording:
        ...         frame.time, frame.tokens.ids, frame.image  # seconds, int32 (T,), uint8 (H, W, 3)
    """
    bag = split_topic(os.fspath(path))
    if bag is None and topic is not None:
        raise InputError(f"topic is for bags, and {os.fspath(path)} is none; leave it out")
    model = tokenizer or Tokenizer.load(_model_name(path) if bag is None else DEFAULT_MODEL)
    try:
        reader = _token_file(path, model.entropy_model) if bag is None else TopicReader(bag[0], topic or bag[1], model)
        return Recording(reader, model, owned=tokenizer is None)
    except BaseException:
        if tokenizer is None:
            model.close()
        raise


def _model_name(path: str | os.PathLike[str]) -> str:
    """Name of the shipped model that made a token file.

    Raises:
        BundleError: The model is not shipped. A file must not say which folder is opened.
        FormatError: It is no token file.
    """
    with _token_file(path) as header:
        name, tag = header.name, header.tag
    if name not in list_models():
        raise BundleError(
            f"{os.fspath(path)} was made by model {name} ({tag.hex()}), which does not ship with this version: give "
            'its bundle, open(..., tokenizer=Tokenizer.load("BUNDLE"))'
        )
    return name


def _token_file(path: str | os.PathLike[str], model: IntegerEntropyModel | None = None) -> Reader:
    try:
        return Reader(path, model)
    except FormatError as error:
        if " is not a .ttk file" not in str(error):
            raise
        raise FormatError(f"{error}; tatok_edge.open_source opens pictures and videos") from None
