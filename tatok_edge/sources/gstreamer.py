"""Cameras and streams through GStreamer: Jetson CSI cameras, hardware decoders, and any pipeline that ends in pictures.

GStreamer is reached through the system's own Python bindings (Debian and JetPack: ``python3-gi``), which pip cannot
install. They are found from a virtual environment too if it was made with the system's Python version.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tatok_edge.errors import InputError, SourceError, one_line
from tatok_edge.geometry import Image
from tatok_edge.sources.live import OPEN_TIMEOUT, POLL, Ended, LiveSource, Lost, first_picture, next_picture
from tatok_edge.sources.passwords import without_secrets
from tatok_edge.sources.source import RisingClock, Source, SourceFrame

PACKAGES = "apt install python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
"""Command that installs GStreamer for Python on Debian, Ubuntu and JetPack."""
SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")
"""Folder of the Python modules that apt installs on Debian, Ubuntu and JetPack."""
SINK_QUEUE = 2
"""Pictures that a pipeline may hold ready."""

_PROVIDERS = {
    "avdec_": "apt install gstreamer1.0-libav",
    "decodebin": "apt install gstreamer1.0-plugins-base",
    "h264parse": "apt install gstreamer1.0-plugins-bad",
    "h265parse": "apt install gstreamer1.0-plugins-bad",
    "libcamerasrc": "apt install gstreamer1.0-libcamera",
    "nv": "part of a Jetson's JetPack, nvidia-l4t-gstreamer",
    "openh264": "apt install gstreamer1.0-plugins-bad",
    "rtsp": "apt install gstreamer1.0-plugins-good",
    "rtp": "apt install gstreamer1.0-plugins-good",
    "v4l2": "apt install gstreamer1.0-plugins-good",
    "video": "apt install gstreamer1.0-plugins-base",
    "x264": "apt install gstreamer1.0-plugins-ugly",
}
"""Beginnings of element names, and the packages that provide the elements."""
_CSI_LIMITS = {"sensor": (0, 15), "width": (32, 16384), "height": (32, 16384), "fps": (1, 1000), "flip": (0, 7)}
_RGB = "video/x-raw,format=RGB"


@dataclass(frozen=True)
class _Modules:
    """The modules of GStreamer's bindings that are used."""

    gst: Any
    app: Any
    video: Any


def csi_pipeline(sensor: int = 0, *, width: int = 1280, height: int = 720, fps: int = 30, flip: int = 0) -> str:
    """The pipeline of a Jetson's CSI camera, for ``open_source("gst:" + ...)``.

    Args:
        sensor: Number of the camera.
        width: Width in pixels, before a quarter turn.
        height: Height in pixels, before a quarter turn.
        fps: Frames per second.
        flip: ``flip-method`` of ``nvvidconv``: 0 as it is, 2 upside down, 1 and 3 quarter turns, 4 to 7 mirrored.

    Raises:
        InputError: A value is out of range.
    """
    given = {"sensor": sensor, "width": width, "height": height, "fps": fps, "flip": flip}
    for key, value in given.items():
        low, high = _CSI_LIMITS[key]
        if not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"{key} must be a whole number from {low} to {high}, got {value!r}")
    size = f"width={width},height={height},framerate={fps}/1"
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),format=NV12,{size} "
        f"! nvvidconv flip-method={flip} ! video/x-raw,format=BGRx ! videoconvert ! {_RGB}"
    )


def rtsp_pipeline(url: str, *, latency_ms: int = 100, jetson: bool = False) -> str:
    """The pipeline of an RTSP stream, for ``open_source("gst:" + ...)``.

    Args:
        url: An ``rtsp://`` or ``rtsps://`` URL; special characters in its password percent-encoded.
        latency_ms: Time for which packets are held to put them in order, in milliseconds.
        jetson: Copy the pictures out of the memory of a Jetson's hardware decoder.

    Raises:
        InputError: The URL is of another kind or holds characters that a URL cannot have; a value is out of range.
    """
    if not re.fullmatch(r"rtsps?://[^\s\"'\\<>]+", url, re.IGNORECASE):
        raise InputError(f"{without_secrets(url)}: not an rtsp:// URL without spaces, quotes and backslashes")
    if not 0 <= latency_ms <= 60_000:
        raise InputError(f"latency_ms must be from 0 to 60000, got {latency_ms}")
    convert = "nvvidconv ! video/x-raw,format=BGRx ! videoconvert" if jetson else "videoconvert"
    return (
        f'rtspsrc location="{url}" protocols=tcp latency={latency_ms} drop-on-latency=true '
        f"! decodebin ! {convert} ! {_RGB}"
    )


def open_csi(text: str, *, drop: bool, retry_seconds: float | None) -> Source:
    """Opens a Jetson's CSI camera from ``csi:0,width=1280,height=720,fps=30,flip=2``.

    Raises:
        SourceError: A setting is wrong, GStreamer or one of its elements is missing, or no picture came.
    """
    values: dict[str, int] = {}
    first, *items = text.partition(":")[2].split(",")
    for item in [f"sensor={first or 0}", *items]:
        key, _, value = item.partition("=")
        if key not in _CSI_LIMITS:
            raise SourceError(f"{text}: unknown setting {key!r}; write csi:0,width=1280,height=720,fps=30,flip=0")
        try:
            values[key] = int(value)
        except ValueError:
            raise SourceError(f"{text}: {key} must be a whole number, got {value!r}") from None
    try:
        pipeline = csi_pipeline(values.pop("sensor"), **values)
    except InputError as error:
        raise SourceError(f"{text}: {error}") from None
    return open_pipeline(pipeline, name=text, drop=drop, retry_seconds=retry_seconds)


def open_pipeline(text: str, *, drop: bool, retry_seconds: float | None, name: str | None = None) -> Source:
    """Opens a pipeline. GStreamer tells whether it is live; otherwise it is read like a file.

    Args:
        text: As for ``gst-launch-1.0``. A pipeline without an ``appsink`` gets one, behind a conversion to RGB. An
            ``appsink`` of its own must get video, and is set to RGB.
        drop: See :class:`tatok_edge.sources.live.LiveSource`.
        retry_seconds: See there.
        name: Its name in messages and files; by default the pipeline without its passwords.

    Raises:
        SourceError: GStreamer or an element is missing, the pipeline is wrong, or no picture came.
    """
    text = text.strip()
    name = name or without_secrets(f"gst:{text}")
    connection: _PipelineConnection | None = _PipelineConnection(name, text)

    def connect() -> _PipelineConnection:
        # The first connection is open already: only an open pipeline tells whether it is live.
        nonlocal connection
        opened, connection = connection or _PipelineConnection(name, text), None
        return opened

    assert connection is not None
    if connection.live:
        return LiveSource(name, connect, drop=drop, retry_seconds=retry_seconds)
    return _PipelineSource(name, connection)


def find() -> tuple[bool, str]:
    """Whether GStreamer can be used, and its version or the missing part."""
    try:
        gst = _load().gst
    except SourceError as error:
        return False, str(error)
    return True, str(gst.version_string())


def has_element(name: str) -> bool:
    """Whether an element is installed; GStreamer must be usable."""
    return _load().gst.ElementFactory.find(name) is not None


class _PipelineSource(Source):
    """A pipeline that waits for its reader."""

    def __init__(self, name: str, connection: _PipelineConnection) -> None:
        self._connection = connection
        self._first = first_picture(connection, name)
        super().__init__(name, self._first, fps=connection.fps, frames=None)

    def _read(self) -> Iterator[SourceFrame]:
        clock = RisingClock(self.fps)
        image: Image | None = self._first
        index = 0
        try:
            while image is not None:
                yield SourceFrame(image, index, clock(self._connection.stamp_us))
                index += 1
                image = next_picture(self._connection, lambda: self.stopped)
        except Lost as lost:
            self.problem = f"{self.name} {lost} after {index} frames"
        except Ended:
            pass

    def close(self) -> None:
        super().close()
        self._connection.close()


class _PipelineConnection:
    """A running pipeline."""

    def __init__(self, name: str, text: str) -> None:
        self._modules = _load()
        gst = self._modules.gst
        if missing := _missing_elements(gst, text):
            raise SourceError(f"{name}: GStreamer has no {missing}")
        self._pipeline, self._sink = _build(self._modules, name, text)
        self._bus = self._pipeline.get_bus()
        self.fps: float | None = None
        self.stamp_us = 0
        """Time stamp of the last picture, in microseconds."""
        change = self._pipeline.set_state(gst.State.PAUSED)
        if change == gst.StateChangeReturn.ASYNC:
            change = self._pipeline.get_state(round(OPEN_TIMEOUT * gst.SECOND))[0]
        self.live = change == gst.StateChangeReturn.NO_PREROLL
        if change not in (gst.StateChangeReturn.FAILURE, gst.StateChangeReturn.ASYNC):
            change = self._pipeline.set_state(gst.State.PLAYING)
        if change == gst.StateChangeReturn.FAILURE:
            reason = self._error() or "it cannot be started"
            self.close()
            raise SourceError(f"{name}: {reason}")

    def read(self) -> Image | None:
        sample = self._sink.try_pull_sample(round(POLL * self._modules.gst.SECOND))
        if sample is not None:
            return self._picture(sample)
        if reason := self._error():
            raise Lost(f"stopped sending ({reason})")
        if self._sink.is_eos():
            raise Lost("stopped sending") if self.live else Ended("it is empty")
        return None

    def _picture(self, sample: Any) -> Image:
        gst, video = self._modules.gst, self._modules.video
        caps, buffer = sample.get_caps(), sample.get_buffer()
        info = video.VideoInfo.new_from_caps(caps)
        width, height = info.width, info.height
        meta = video.buffer_get_video_meta(buffer)
        stride, start = (meta.stride[0], meta.offset[0]) if meta else (info.stride[0], info.offset[0])
        if info.fps_n > 0:
            self.fps = info.fps_n / info.fps_d
        if buffer.pts != gst.CLOCK_TIME_NONE:
            self.stamp_us = buffer.pts // 1000
        mapped, data = buffer.map(gst.MapFlags.READ)
        if not mapped:
            raise Lost("gave a picture whose memory cannot be read")
        try:
            pixels = np.frombuffer(data.data, np.uint8)
            end = start + stride * (height - 1) + 3 * width
            if stride < 3 * width or end > pixels.size:
                raise Lost(f"gave {pixels.size} bytes for a picture of {width}x{height}")
            rows = np.lib.stride_tricks.as_strided(pixels[start:], (height, width, 3), (stride, 3, 1), writeable=False)
            return rows.copy()
        finally:
            buffer.unmap(data)

    def _error(self) -> str:
        """The first error that the pipeline reported, in one line; empty without an error."""
        message = self._bus.pop_filtered(self._modules.gst.MessageType.ERROR)
        return "" if message is None else _shown(message.parse_error()[0].message)

    def close(self) -> None:
        self._pipeline.set_state(self._modules.gst.State.NULL)


def _build(modules: _Modules, name: str, text: str) -> tuple[Any, Any]:
    """The pipeline and its appsink."""
    gst = modules.gst
    if not re.search(r"\bappsink\b", text):
        text = f"{text} ! videoconvert ! {_RGB} ! appsink"
    try:
        pipeline = gst.parse_launch(text)
    except Exception as error:  # GLib.Error, a class that exists only with the bindings
        raise SourceError(f"{name}: {_shown(getattr(error, 'message', str(error)))}") from None
    sinks = []
    if isinstance(pipeline, gst.Bin):
        sinks = [element for element in pipeline.children if isinstance(element, modules.app.AppSink)]
    if len(sinks) != 1:
        raise SourceError(f"{name}: a pipeline has one appsink, at its end; this has {len(sinks)}")
    sink = sinks[0]
    sink.set_property("caps", gst.Caps.from_string(_RGB))
    # The pipeline drops nothing: the reader of the frames decides on drops and counts them.
    for key, value in {"sync": False, "drop": False, "max-buffers": SINK_QUEUE, "emit-signals": False}.items():
        sink.set_property(key, value)
    return pipeline, sink


def _missing_elements(gst: Any, text: str) -> str:
    """The elements of a pipeline that are not installed, with their packages; empty where none is missing."""
    names = dict.fromkeys(re.findall(r"(?:^|!)[\s(]*([a-z][a-z0-9_]*)(?=\s|$|!)", re.sub(r"\"[^\"]*\"", "", text)))
    providers: dict[str, list[str]] = {}
    for name in names:
        if gst.ElementFactory.find(name) is None:
            providers.setdefault(_provider(name), []).append(name)
    return "; ".join(", ".join(missing) + provider for provider, missing in providers.items())


def _provider(element: str) -> str:
    found = [provider for beginning, provider in _PROVIDERS.items() if element.startswith(beginning)]
    return f" ({found[0]})" if found else ""


def _shown(text: object) -> str:
    """A message of GStreamer, on one line and without passwords."""
    return without_secrets(one_line(text))


@lru_cache(maxsize=1)
def _load() -> _Modules:
    """GStreamer's bindings.

    Raises:
        SourceError: They are missing; the message says what to install.
    """
    _import_gi()
    try:
        gi = importlib.import_module("gi")
        for namespace in ("Gst", "GstApp", "GstVideo"):
            gi.require_version(namespace, "1.0")
        gst, app, video = (importlib.import_module(f"gi.repository.{name}") for name in ("Gst", "GstApp", "GstVideo"))
        gst.init(None)
    except (ImportError, ValueError, AttributeError) as error:
        raise SourceError(f"GStreamer for Python is incomplete ({_shown(str(error))}): {PACKAGES}") from None
    return _Modules(gst, app, video)


def _import_gi() -> None:
    """Imports ``gi``, from the system's packages where this is a virtual environment without them."""
    try:
        importlib.import_module("gi")
        return
    except ImportError:
        pass
    folder = SYSTEM_PACKAGES / "gi"
    if not folder.is_dir():
        raise SourceError(f"GStreamer for Python (python3-gi) is missing: {PACKAGES}")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not any((folder / f"_gi{suffix}").exists() for suffix in importlib.machinery.EXTENSION_SUFFIXES):
        raise SourceError(
            f"GStreamer for Python in {SYSTEM_PACKAGES} was built for another Python than this {version}: "
            "make the virtual environment with the system's python3 and --system-site-packages"
        )
    # This package only: the whole folder on sys.path would bring other system packages into the environment.
    spec = importlib.util.spec_from_file_location(
        "gi", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gi"] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules["gi"]
        raise SourceError(f"GStreamer for Python cannot be loaded ({_shown(str(error))}): {PACKAGES}") from None
