"""Opens a source of frames: turns the name that a user gives into an open :class:`Source`.

The first frame is read at once, so a source that opens does deliver frames. Files never lose a frame. Live sources
deliver the newest frame and count the dropped ones, so a slow consumer lags by one frame and not by seconds;
:mod:`tatok_edge.sources.live` explains how they survive losses.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from tatok_edge.errors import SourceError
from tatok_edge.geometry import Image
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.sources import gstreamer
from tatok_edge.sources.arrays import ArraySource
from tatok_edge.sources.camera import open_camera
from tatok_edge.sources.folders import FolderContent, folder_content
from tatok_edge.sources.images import FolderSource, ImageSource
from tatok_edge.sources.kinds import kind_of
from tatok_edge.sources.live import RETRY_SECONDS
from tatok_edge.sources.passwords import without_secrets
from tatok_edge.sources.source import MAX_FPS, Source
from tatok_edge.sources.synthetic_source import open_synthetic

OnLag = Literal["auto", "drop", "wait"]

_CAMERA = re.compile(r"(?:/dev/video)?(\d{1,3})")


def open_source(
    spec: str | int | Path | Iterable[Image],
    *,
    fps: float | None = None,
    on_lag: OnLag = "auto",
    retry_seconds: float | None = RETRY_SECONDS,
    limits: Limits = DEFAULT_LIMITS,
) -> Source:
    """Opens a source by its name. A file or folder of that name comes first, whatever the name looks like.

    Args:
        spec: One of

            - the path of a picture, a folder of pictures or a video file; :mod:`tatok_edge.sources.folders` says what
              is taken from a folder of several things;
            - the path of a ROS 2 bag, with ``#`` and a topic behind it if it has several topics of images;
            - the number of a camera, ``/dev/videoN``, or its lasting name under ``/dev/v4l/``;
            - an ``rtsp://``, ``rtsps://``, ``http://`` or ``https://`` URL;
            - ``-``, a video that comes from standard input (Y4M, Matroska, MPEG-TS);
            - ``csi:0`` or ``csi:0,width=1280,height=720,fps=30,flip=2``, a Jetson's CSI camera;
            - ``gst:`` and a GStreamer pipeline, without or with an ``appsink`` at its end;
            - ``synthetic``, the rendered camera clip, with settings as in
              ``synthetic:frames=120,width=640,height=480,fps=30,seed=0``; with ``live=1`` it comes in real time like a
              camera, without end unless ``frames`` is given;
            - RGB pictures, uint8 (height, width, 3): an array of them, a list, a generator.
        fps: Frame rate of arrays (required) or of a folder of pictures (optional); other sources have their own.
        on_lag: What a live source does with frames that nobody takes. ``"drop"``: keep the newest and count the others.
            ``"wait"``: keep four, then stop reading, so that the camera or server waits or drops.
            ``"auto"`` is ``"drop"``. Files always wait and never drop.
        retry_seconds: How long to look for a lost live source, in seconds from its last frame, before the iteration
            ends with ``problem`` set; None for ever, 0 not at all.
        limits: Largest picture, file and message. They hold for files, bags, pipes and network streams.

    Returns:
        An open source that has read its first frame.

    Raises:
        SourceError: It does not exist or cannot be read; the message says what to do.

    Example:
        >>> with tatok_edge.open_source("synthetic:frames=3") as source:  # or "clip.mp4", "frames/", "bag.mcap", 0
        ...     for frame in source:
        ...         print(frame.index, frame.timestamp_us, frame.image.shape)
    """
    if on_lag not in ("auto", "drop", "wait"):
        raise SourceError(f"on_lag must be 'auto', 'drop' or 'wait', got {on_lag!r}")
    if retry_seconds is not None and not retry_seconds >= 0:
        raise SourceError(f"retry_seconds must be at least 0, or None for ever, got {retry_seconds}")
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise SourceError(f"fps must be above 0 and at most {MAX_FPS}, got {fps}")
    if not isinstance(spec, str | int | os.PathLike):
        return ArraySource(spec, fps)
    text = os.fspath(spec) if isinstance(spec, os.PathLike) else str(spec)
    if fps is not None and not os.path.isdir(text):
        raise SourceError(f"{without_secrets(text)}: fps is for arrays and folders of pictures; this has its own times")
    opened = None
    if isinstance(spec, int) or not os.path.exists(text) or stat.S_ISCHR(os.stat(text).st_mode):
        opened = _open_live(text, drop=on_lag != "wait", retry_seconds=retry_seconds, limits=limits)
        opened = opened or _open_bag(text, limits)
    opened = _open_file(text, fps, limits) if opened is None else opened
    if fps is not None and not isinstance(opened, FolderSource):
        opened.close()
        raise SourceError(f"{text}: fps is for arrays and folders of pictures; this has its own times")
    return opened


def _open_live(text: str, *, drop: bool, retry_seconds: float | None, limits: Limits) -> Source | None:
    """A camera, stream, pipeline or the rendered clip; None where the text names none of them."""
    kind, colon, settings = text.partition(":")
    if text == "-":
        # Imported here, because other sources do not need PyAV.
        from tatok_edge.sources.video import open_standard_input

        return open_standard_input(limits)
    if kind == "synthetic":
        return open_synthetic(text, drop=drop)
    if kind == "gst" and colon:
        return gstreamer.open_pipeline(settings, drop=drop, retry_seconds=retry_seconds)
    if kind == "csi":
        return gstreamer.open_csi(text, drop=drop, retry_seconds=retry_seconds)
    if camera := _CAMERA.fullmatch(text):
        return open_camera(camera.group(1), drop=drop, retry_seconds=retry_seconds)
    if text.startswith("/dev/v4l/"):
        return open_camera(text, drop=drop, retry_seconds=retry_seconds)
    if "://" in text:
        from tatok_edge.sources.network import open_stream

        return open_stream(text, drop=drop, retry_seconds=retry_seconds, limits=limits)
    return None


def _open_bag(text: str, limits: Limits) -> Source | None:
    """A topic of a ROS 2 bag; None where the text names none."""
    # Imported here, because other sources need not wait for it.
    from tatok_edge.robotics.bags.bag import split_topic
    from tatok_edge.sources.bag import BagSource

    bag = split_topic(text)
    return None if bag is None else BagSource(*bag, limits=limits)


def _open_file(text: str, fps: float | None, limits: Limits) -> Source:
    """A picture, a video, a bag, or what is in a folder.

    Raises:
        SourceError: There is no such file, or it cannot be read.
    """
    path = Path(text)
    if not text or not os.path.exists(text):
        raise SourceError(
            f"{text or 'an empty name'}: no such file; a source is a picture, a folder of pictures, a video file, "
            "a ROS 2 bag, a camera number, an rtsp:// or http:// URL, csi:0, a gst: pipeline or 'synthetic'"
        )
    if path.is_dir():
        return _open_folder(path, fps, limits)
    kind = kind_of(path)
    if kind == "tokens":
        raise SourceError(f"{text}: this is a token file already; 'tatok decode' turns it into pictures")
    if kind == "picture":
        return ImageSource(path, limits)
    if kind == "bag" and (bag := _open_bag(text, limits)) is not None:
        return bag
    if not os.access(path, os.R_OK):
        raise SourceError(f"{text}: cannot be read (permission denied)")
    # Imported here, because other sources do not need PyAV.
    from tatok_edge.sources.video import open_video

    return open_video(path, limits)


def _open_folder(folder: Path, fps: float | None, limits: Limits) -> Source:
    """What is taken of a folder.

    Raises:
        SourceError: It holds no clip, or several and no pictures.
    """
    if (bag := _open_bag(str(folder), limits)) is not None:
        return bag
    content = folder_content(folder)
    if content.pictures:
        return FolderSource(folder, fps, content, limits=limits)
    clips = [*content.videos, *content.bags]
    if len(clips) != 1:
        beside = content.beside()
        if len(clips) > 1:
            raise SourceError(f"{folder}: holds {beside}; name one of them, or take all with 'tatok dataset'")
        raise SourceError(f"{folder}: holds no picture" + (f", but {beside}" if beside else " and nothing else"))
    source = _open_file(str(clips[0]), fps, limits)
    if content.folders or content.others:
        rest = FolderContent([], [], [], content.folders, content.others)
        source.notes.append(f"{folder}: {clips[0].name} is taken, and not {rest.beside()}")
    return source
