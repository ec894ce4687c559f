"""The folder of recordings: lists them, and writes one at a time."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Final

from tatok_edge.demo.messages import MessageError
from tatok_edge.demo.views import Audience
from tatok_edge.errors import FormatError, TaTokError
from tatok_edge.format.reader import Reader
from tatok_edge.format.writer import Writer
from tatok_edge.model.tokenizer import Tokenizer

LONGEST_RECORDING: Final = 3600.0
"""Longest recording in seconds. It ends by itself, because a forgotten page must not fill the disk."""
MAX_LISTED: Final = 200
"""Newest recordings that a page can choose from."""


class Recordings:
    """Recordings of the demo. Pages ask for one from any thread; the engine's thread writes it.

    Args:
        folder: Folder of the recordings; None allows none.
        tokenizer: The model.
        audience: The pages.
    """

    def __init__(self, folder: Path | None, tokenizer: Tokenizer, audience: Audience) -> None:
        self._folder, self._tokenizer, self._audience = folder, tokenizer, audience
        self._wanted = False
        self._writer: Writer | None = None
        self._begun = 0.0
        self.names: list[str] = []
        """File names, newest first."""
        self.find()

    @property
    def allowed(self) -> bool:
        """Whether there is a folder for recordings."""
        return self._folder is not None

    @property
    def current(self) -> str | None:
        """File name of the recording in progress."""
        writer = self._writer
        return None if writer is None else writer.path.name

    def path(self, name: str) -> Path:
        """Path of one of ``names``."""
        assert self._folder is not None
        return self._folder / name

    def find(self) -> None:
        """List the folder."""
        if self._folder is None:
            return
        found = [path for path in self._folder.glob("*.ttk") if path.is_file()]
        # By name: names begin with the time, and files that were copied have new times.
        self.names = sorted((path.name for path in found), reverse=True)[:MAX_LISTED]

    def draft(self) -> Path | None:
        """A new hidden name in the folder for a recording that comes from a page; None if nothing can be written."""
        return None if self._folder is None else self._folder / f".{secrets.token_hex(8)}.part"

    def take(self, draft: Path) -> str:
        """Check a file that came from a page and give it a name; returns the name.

        Raises:
            FormatError: It is no recording of this model, or holds no frame.
            SourceError: It cannot be read.
        """
        try:
            with Reader(draft, self._tokenizer.entropy_model) as reader:
                frames, damage = len(reader), reader.damage
        except TaTokError as error:
            raise type(error)(str(error).replace(str(draft), "the dropped file")) from None
        if not frames:
            raise FormatError(f"the dropped file holds no frame{': ' + damage if damage else ''}")
        path = self._new_path("dropped")
        draft.rename(path)
        self.find()
        self._audience.changed()
        return path.name

    def _new_path(self, prefix: str) -> Path:
        """A path that is free, named after the time."""
        name = time.strftime(f"{prefix}-%Y%m%d-%H%M%S")
        path, count = self.path(f"{name}.ttk"), 1
        while path.exists() or path.with_name(f"{path.name}.part").exists():
            count += 1
            path = self.path(f"{name}-{count}.ttk")
        return path

    def request(self, on: bool) -> None:
        """Begin or end a recording, with the next picture.

        Raises:
            MessageError: There is no folder for it.
        """
        if on and self._folder is None:
            raise MessageError("nothing can be recorded: start 'tatok demo' with --record-to FOLDER")
        self._wanted = on

    def follow(self, source: str | None) -> bool:
        """Begin or end a recording as requested; returns whether one has just begun.

        Args:
            source: Name of the camera; None where a recording is played, which is not recorded again.
        """
        wanted = self._wanted and source is not None
        if self._writer is not None and (not wanted or time.monotonic() - self._begun > LONGEST_RECORDING):
            self._wanted = False
            self.end()
        elif self._writer is None and wanted:
            return self._begin(source or "")
        return False

    def _begin(self, source: str) -> bool:
        path = self._new_path("tatok")
        metadata = {"source": source, "backend": self._tokenizer.backend.name}
        try:
            self._writer = Writer(path, self._tokenizer.entropy_model, name=self._tokenizer.name, metadata=metadata)
        except TaTokError as error:
            self._wanted = False
            self._audience.tell(str(error))
            return False
        self._begun = time.monotonic()
        self._audience.changed()
        return True

    def write(self, packet: bytes) -> None:
        """Add a packet to the recording in progress, if any; an error ends the recording."""
        if self._writer is None:
            return
        try:
            self._writer.write_packet(packet)
        except TaTokError as error:
            self._wanted = False
            self._audience.tell(f"the recording has ended: {error}")
            self.end()

    def end(self) -> None:
        """End the recording in progress, if any."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close(partial=True)
        except TaTokError as error:
            self._audience.tell(str(error))
        self.find()
        self._audience.changed()
