"""Sources to packets: the frames of one or several sources as key and delta packets, in real time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tatok_edge.closing import Closing
from tatok_edge.errors import InputError
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.open import open_source
from tatok_edge.sources.source import Source, SourceFrame
from tatok_edge.stream.encoder import StreamEncoder, encode_frames
from tatok_edge.stream.frame import KeyframeTooLarge, StreamFrame
from tatok_edge.stream.options import MAX_LOSS_DB
from tatok_edge.stream.rate import RateControl
from tatok_edge.tokens.budget import TokenBudget


@dataclass(slots=True)
class StreamStatistics:
    """Counts of a stream so far."""

    frames: int = 0
    """Frames encoded."""
    skipped: int = 0
    """Frames that were skipped to keep the bandwidth."""
    bits: int = 0
    """Size of all packets, in bits."""
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=4096), repr=False)
    """Time from the arrival of a frame to its packet, of the newest frames, in milliseconds."""


class Stream(Closing):
    """Encodes the frames of a source; iterate over it.

    ``for frame in Stream(tokenizer, "0"): send(frame.packet)``. A live source gives its newest frame: a slow consumer
    loses frames, which ``dropped`` counts, but does not fall behind. A file gives every frame. The networks run in the
    thread that iterates.

    Args:
        tokenizer: The model.
        source: An open source, or an argument of :func:`open_source`.
        budget: Limits for each packet.
        max_loss_db: See :class:`StreamEncoder`.
        keyframe_interval: See :class:`StreamEncoder`.
        refresh: See :class:`StreamEncoder`; by default ``"rolling"`` with ``max_kbps``, else ``"key"``.
        on_lag: What happens to frames that come too fast: ``"drop"`` takes the newest frame, ``"wait"`` takes all
            frames, ``"auto"`` drops frames of live sources only.
        fps: Largest number of frames per second, by their time stamps; None takes all. For arrays, their frame rate.
        max_kbps: Bandwidth of the link: largest size of the packets of any second, in kilobits. Frames that do not
            fit are skipped; bits that are left make still parts sharper.
        motion: See :class:`StreamEncoder`.

    Raises:
        SourceError: The source cannot be opened.
        InputError: An argument is out of its range.

    Example:
        >>> with tatok_edge.Stream(tokenizer, images, fps=30) as stream:  # or "clip.mp4", "0", "rtsp://camera/stream"
        ...     for frame in stream:
        ...         print(frame.kind, frame.n_tokens, len(frame.packet))
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: Source | str | int | Path | Iterable[Image],
        *,
        budget: TokenBudget | None = None,
        max_loss_db: float = MAX_LOSS_DB,
        keyframe_interval: int = 300,
        refresh: Literal["key", "rolling"] | None = None,
        on_lag: Literal["auto", "drop", "wait"] = "auto",
        fps: float | None = None,
        max_kbps: float | None = None,
        motion: bool = True,
    ) -> None:
        if fps is not None and not 0.01 <= fps <= 1000:
            raise InputError(f"fps must be from 0.01 to 1000, got {fps:g}")
        self._step_us = 0.0 if fps is None else 1e6 / fps
        self._due_us = 0.0
        self._rate = None if max_kbps is None else RateControl(max_kbps)
        self.encoder = StreamEncoder(
            tokenizer,
            budget=budget,
            max_loss_db=max_loss_db,
            keyframe_interval=keyframe_interval,
            refresh=refresh or ("key" if max_kbps is None else "rolling"),
            motion=motion,
            fill=max_kbps is not None,
        )
        """The encoder; its ``max_loss_db`` may be changed between frames."""
        self.budget = self.encoder.budget
        """Limits for each packet; may be changed between frames."""
        self._owned = not isinstance(source, Source)
        if isinstance(source, Source):
            self.source: Source = source
        else:
            named = isinstance(source, (str, int, Path))
            self.source = open_source(source, fps=None if named else fps, on_lag=on_lag)
        """The source of the frames."""
        self.statistics = StreamStatistics()
        """Counts so far."""

    @property
    def dropped(self) -> int:
        """Frames that the source has dropped, because they came faster than they could be encoded."""
        return self.source.dropped

    def request_keyframe(self) -> None:
        """Make the next frame a keyframe; may be called from any thread."""
        self.encoder.request_keyframe()

    def stop(self) -> None:
        """End the iteration before the next frame; may be called from any thread or signal handler."""
        self.source.stop()

    def __iter__(self) -> Iterator[StreamFrame]:
        for frame in self.source:
            if frame.timestamp_us < self._due_us - self._step_us / 10:
                continue
            # A frame that comes a little late must not delay all that follow.
            self._due_us = max(self._due_us + self._step_us, frame.timestamp_us + self._step_us / 2)
            encoded = self._encode(frame)
            if encoded is not None:
                yield encoded

    def _encode(self, frame: SourceFrame) -> StreamFrame | None:
        """Encode a frame; None where the bandwidth has too few bits left for it."""
        begun = time.monotonic()
        if frame.restarted:
            self.encoder.request_keyframe()

        def encode(budget: TokenBudget) -> StreamFrame:
            self.encoder.budget = budget
            return self.encoder.encode(frame.image, index=frame.index, timestamp_us=frame.timestamp_us)

        if self._rate is None:
            return self.account(frame, encode(self.budget), begun)
        try:
            encoded = self._rate.encode(frame.timestamp_us, self.budget, encode)
        except KeyframeTooLarge as error:
            raise InputError(
                f"max_kbps = {self._rate.bits / 1000:g} is too small for frames of {frame.image.shape[1]}x"
                f"{frame.image.shape[0]} pixels: a keyframe needs {error.bits / 1000:.1f} kbit; allow more"
            ) from None
        if encoded is None:
            self.statistics.skipped += 1
            return None
        return self.account(frame, encoded, begun)

    def account(self, frame: SourceFrame, encoded: StreamFrame, begun: float) -> StreamFrame:
        """Count an encoded frame; returns it with its latency.

        Args:
            frame: The frame of the source.
            encoded: The encoded frame.
            begun: When the frame was taken, in seconds of ``time.monotonic``. The latency counts from it where the
                arrival of the frame is not known.
        """
        statistics = self.statistics
        statistics.frames += 1
        statistics.bits += 8 * len(encoded.packet)
        latency = 1000 * (time.monotonic() - (begun if frame.arrived is None else frame.arrived))
        statistics.latency_ms.append(latency)
        return replace(encoded, latency_ms=latency, dropped=self.source.dropped)

    def close(self) -> None:
        """End the iteration and close the source if the stream opened it."""
        self.stop()
        if self._owned:
            self.source.close()


class MultiStream(Closing):
    """Encodes several sources in step: the patches of all cameras go through one call of the patch encoder.

    ``for frames in MultiStream(tokenizer, ["0", "1"]):`` gives, for every step, one :class:`StreamFrame` per camera, or
    None for a camera whose source has ended. A step takes the next frame of each source, of a live source the newest
    one. So it waits for the slowest camera.

    Args:
        tokenizer: The model.
        sources: One per camera, as :class:`Stream` takes them.
        budget: Limits for each packet of each camera.
        max_loss_db: See :class:`StreamEncoder`.
        keyframe_interval: See :class:`StreamEncoder`.
        refresh: See :class:`StreamEncoder`.
        on_lag: See :class:`Stream`.

    Raises:
        SourceError: A source cannot be opened.
        InputError: There is no source, or an argument is out of its range.

    Example:
        >>> cameras = ["synthetic:frames=2,width=96,height=64", "synthetic:frames=2,width=64,height=64"]
        >>> with tatok_edge.MultiStream(tokenizer, cameras) as streams:
        ...     for left, right in streams:
        ...         print(left.n_tokens, right.n_tokens)
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sources: Sequence[Source | str | int | Path | Iterable[Image]],
        *,
        budget: TokenBudget | None = None,
        max_loss_db: float = MAX_LOSS_DB,
        keyframe_interval: int = 300,
        refresh: Literal["key", "rolling"] = "key",
        on_lag: Literal["auto", "drop", "wait"] = "auto",
    ) -> None:
        if not sources:
            raise InputError("sources must hold at least one source, got none")
        self.streams: list[Stream] = []
        """One per camera."""
        try:
            for source in sources:
                self.streams.append(
                    Stream(
                        tokenizer,
                        source,
                        budget=budget,
                        max_loss_db=max_loss_db,
                        keyframe_interval=keyframe_interval,
                        refresh=refresh,
                        on_lag=on_lag,
                    )
                )
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """End the iteration before the next step; may be called from any thread."""
        for stream in self.streams:
            stream.stop()

    def __iter__(self) -> Iterator[list[StreamFrame | None]]:
        feeds = [iter(stream.source) for stream in self.streams]
        while True:
            begun = time.monotonic()
            frames = [next(feed, None) for feed in feeds]
            present = [camera for camera, frame in enumerate(frames) if frame is not None]
            if not present:
                return
            taken = [(self.streams[camera], frame) for camera, frame in enumerate(frames) if frame is not None]
            for stream, frame in taken:
                if frame.restarted:
                    stream.request_keyframe()
            encoded = encode_frames(
                [stream.encoder for stream, _ in taken],
                [frame.image for _, frame in taken],
                indices=[frame.index for _, frame in taken],
                timestamps_us=[frame.timestamp_us for _, frame in taken],
            )
            step: list[StreamFrame | None] = [None] * len(frames)
            for camera, (stream, frame), one in zip(present, taken, encoded, strict=True):
                step[camera] = stream.account(frame, one, begun)
            yield step

    def close(self) -> None:
        """End the iteration and close the sources that were opened here."""
        for stream in self.streams:
            stream.close()
