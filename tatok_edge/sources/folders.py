"""What is in a folder: one rule for all commands.

- Files and folders whose names begin with a dot, and those of the system (``Thumbs.db``, ``desktop.ini``,
  ``__MACOSX``, ...) are none of the user's. They are passed over.
- A folder that a recorder of ROS 2 wrote is a bag. A ``metadata.yaml`` alone makes no bag.
- The pictures directly in a folder are one clip, in natural order (``2.png`` before ``10.png``).
- Each video, bag and sub-folder beside them is a clip of its own, by the same rule. Commands that take many clips take
  all of them. Commands that take one clip take the pictures, or else the only clip there is, and say what they left.
- Endings may be in capitals. A file of an unknown ending is what its first bytes say. Files that are neither picture
  nor video nor bag are counted and named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tatok_edge.errors import SourceError
from tatok_edge.files import is_hidden, natural_order
from tatok_edge.sources.kinds import kind_of

NAMED: Final = 3
"""Files that a message names at most."""


@dataclass(frozen=True, slots=True)
class FolderContent:
    """The files directly in a folder, in natural order."""

    pictures: list[Path]
    videos: list[Path]
    bags: list[Path]
    folders: list[Path]
    others: list[Path]
    """Files that are neither picture nor video nor bag, and token files."""

    def beside(self, *, pictures: bool = False, clips: bool = True) -> str:
        """What else is in the folder, with counts and names; an empty string where nothing is.

        Args:
            pictures: Count the pictures, too.
            clips: Count videos, bags and folders, and not only other files.
        """
        parts = []
        groups = (("picture", self.pictures), ("video", self.videos), ("bag", self.bags), ("folder", self.folders))
        for name, paths in groups:
            if paths and (pictures if name == "picture" else clips):
                parts.append(_counted(paths, name))
        if self.others:
            parts.append(_counted(self.others, "other file"))
        return ", ".join(parts)


def folder_content(folder: str | Path) -> FolderContent:
    """Looks at what is in a folder.

    Raises:
        SourceError: It cannot be read.
    """
    content = FolderContent([], [], [], [], [])
    places = {"picture": content.pictures, "video": content.videos, "bag": content.bags}
    try:
        entries = sorted((path for path in Path(folder).iterdir() if not is_hidden(path.name)), key=natural_order)
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read ({error.strerror or error})") from None
    for path in entries:
        if path.is_dir():
            content.folders.append(path)
        else:
            # A pipe or device is never opened because of its name.
            kind = kind_of(path, look=False) if path.is_file() or not path.exists() else "other"
            places.get(kind, content.others).append(path)
    return content


def _counted(paths: list[Path], name: str) -> str:
    """``2 videos (a.mp4, b.mp4)``."""
    names = ", ".join(path.name for path in paths[:NAMED]) + (", ..." if len(paths) > NAMED else "")
    return f"{len(paths)} {name}{'s' if len(paths) > 1 else ''} ({names})"
