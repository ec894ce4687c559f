"""Reads data sets of tokens of any format; the flat format and WebDataset need only numpy."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tatok_edge.datasets.clip_reader import FrameReader
from tatok_edge.datasets.formats import FORMAT_VERSION, FORMATS, LEROBOT_METADATA, METADATA, open_reader
from tatok_edge.datasets.tokens import DEPTH_DTYPE, FrameTokens, RaggedTokens
from tatok_edge.errors import FormatError, InputError
from tatok_edge.files import read_json
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.tokens.checks import MAX_DEPTH

_KINDS = {"<u2", "<u4"}


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """A clip of a data set."""

    name: str
    """Its path, relative to the common folder of all inputs."""
    first: int
    """Number of its first frame in the data set."""
    frames: int
    """Number of its frames."""
    fps: float | None
    """Its frame rate, if known."""


class TokenDataset:
    """A data set of tokens: a sequence of frames, in clips. Open one with :func:`open_dataset`.

    ``dataset[i]`` is a frame, ``for frame in dataset`` gives them all, ``dataset.clip(k)`` is a whole clip and
    ``dataset.batch([i, j, ...])`` is some frames without padding. The flat format has the same speed in any order. The
    other formats hold the last clip in memory, so read them clip by clip. Forked and spawned workers of a PyTorch
    ``DataLoader`` may use it.
    """

    def __init__(
        self, path: Path, metadata: dict[str, Any], clips: list[ClipInfo], reader: FrameReader, limits: Limits
    ) -> None:
        self.path = path
        """Its folder."""
        self.metadata = metadata
        """Its metadata."""
        self.clips = clips
        """Its clips, in order."""
        self._reader = reader
        self._limits = limits
        self._frames = sum(clip.frames for clip in clips)

    @property
    def model_tag(self) -> bytes:
        """Tag of the model that encoded the frames; only this model decodes the tokens."""
        return bytes.fromhex(self.metadata["model"]["tag"])

    @property
    def vocabulary(self) -> int:
        """Number of different token ids."""
        return int(self.metadata["vocabulary"])

    @property
    def depth(self) -> int:
        """Most tokens of a patch: the depth of the model."""
        return int(self.metadata["depth"])

    @property
    def levels(self) -> tuple[int, ...]:
        """FSQ levels: an id is a mixed-radix number over them, dimension 0 least significant."""
        return tuple(self.metadata["levels"])

    def __len__(self) -> int:
        return self._frames

    def __getitem__(self, number: int) -> FrameTokens:
        number = operator.index(number)
        if not -self._frames <= number < self._frames:
            raise IndexError(f"frame {number} of {self._frames}")
        return self._reader.frame(number % self._frames)

    def __iter__(self) -> Iterator[FrameTokens]:
        for clip in self.iter_clips():
            for number in range(len(clip)):
                yield clip[number]

    def clip(self, number: int) -> RaggedTokens:
        """All frames of clip ``number``, end to end.

        Raises:
            InputError: The clip has more than 2^31 - 1 tokens; read its frames one by one.
        """
        if not -len(self.clips) <= number < len(self.clips):
            raise IndexError(f"clip {number} of {len(self.clips)}")
        return self._reader.clip(number % len(self.clips))

    def iter_clips(self) -> Iterator[RaggedTokens]:
        """The clips, one after the other."""
        for number in range(len(self.clips)):
            yield self._reader.clip(number)

    def batch(self, numbers: Iterable[int]) -> RaggedTokens:
        """Some frames end to end, for variable-length attention; a copy.

        Raises:
            InputError: There are no frames, or they have more than 2^31 - 1 tokens.
        """
        return RaggedTokens.join([self[number] for number in numbers])

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process (a spawned DataLoader worker) opens the files again.
        return partial(open_dataset, limits=self._limits), (str(self.path.absolute()),)

    def __repr__(self) -> str:
        return (
            f"TokenDataset({str(self.path)!r}, {self.metadata['format']}, {len(self.clips)} clips, {len(self)} frames, "
            f"{self.metadata['tokens']} tokens of {self.metadata['model']['name']})"
        )


def open_dataset(path: str | Path, *, limits: Limits = DEFAULT_LIMITS) -> TokenDataset:
    """Opens a data set of ``tatok dataset``, of any format.

    Args:
        path: The folder.
        limits: Largest metadata.

    Raises:
        InputError: There is no data set.
        FormatError: The data set is damaged, of a newer format version, or its metadata are too large.
        BackendError: The format needs a package that is not installed; the message names it.
    """
    folder = Path(path)
    where = next((folder / name for name in (METADATA, LEROBOT_METADATA) if (folder / name).is_file()), None)
    if where is None:
        raise InputError(f"{path}: is no data set of tokens (it has no {METADATA}); 'tatok dataset' makes one")
    limits.check("max_metadata", where.stat().st_size, f"{where}", FormatError)
    metadata = _read_metadata(where, limits.max_metadata)
    clips = _clips(metadata, where)
    spans = [(clip.first, clip.first + clip.frames) for clip in clips]
    reader = open_reader(metadata["format"], folder, metadata, spans)
    return TokenDataset(folder, metadata, clips, reader, limits)


def _read_metadata(where: Path, max_bytes: int) -> dict[str, Any]:
    metadata = read_json(where, max_bytes, FormatError)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("format_version"), int):
        raise FormatError(f"{where}: has no 'format_version'; these are no metadata of tokens")
    if metadata["format_version"] > FORMAT_VERSION:
        raise FormatError(
            f"{where}: format version {metadata['format_version']} is newer than this version reads "
            f"({FORMAT_VERSION}): upgrade tatok-edge"
        )
    model, types = metadata.get("model"), metadata.get("types")
    try:
        fits = (
            metadata["format"] in FORMATS
            and all(_count(metadata[name]) for name in ("frames", "tokens", "globals", "vocabulary", "depth"))
            and isinstance(model, dict)
            and isinstance(model["name"], str)
            and len(bytes.fromhex(model["tag"])) == 8
            and isinstance(types, dict)
            and all(types[name] in _KINDS for name in ("ids", "positions", "globals"))
            and types["depths"] == DEPTH_DTYPE.str
            and 1 <= metadata["depth"] <= MAX_DEPTH
            and isinstance(metadata["levels"], list)
            and isinstance(metadata["clips"], list)
        )
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise FormatError(f"{where}: is damaged: an entry is missing or has an impossible value")
    return metadata


def _clips(metadata: dict[str, Any], where: Path) -> list[ClipInfo]:
    clips = []
    first = 0
    for record in metadata["clips"]:
        try:
            info = ClipInfo(record["name"], first, record["frames"], record["fps"])
        except (KeyError, TypeError):
            info = None
        if info is None or not isinstance(info.name, str) or not _count(info.frames):
            raise FormatError(f"{where}: a record of a clip is damaged")
        clips.append(info)
        first += info.frames
    if first != metadata["frames"]:
        raise FormatError(f"{where}: its clips have {first} frames, not {metadata['frames']}")
    return clips


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
