"""Frames of a camera to key and delta packets: only changes are encoded and sent.

A frame takes three steps. *Plan* reads the encoder's memory and decides what is encoded. *Draft* makes the packet from
the codes, and what the encoder remembers after it. *Commit* writes the memory. All cameras of a call are drafted before
any is committed, so an error leaves every camera as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from tatok_edge.errors import InputError
from tatok_edge.geometry import Image
from tatok_edge.model.networks import Clock
from tatok_edge.model.pictures import check_image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.stream.change import ChangeEstimates
from tatok_edge.stream.delta import draft_delta
from tatok_edge.stream.frame import CameraFrame, StreamFrame
from tatok_edge.stream.key import KeyPlan, draft_key, plan_key
from tatok_edge.stream.look import look_at
from tatok_edge.stream.memory import Draft, Memory
from tatok_edge.stream.options import MAX_LOSS_DB, StreamOptions
from tatok_edge.stream.plan import DeltaPlan, plan_delta
from tatok_edge.stream.state import StreamState
from tatok_edge.tokens.budget import TokenBudget


class StreamEncoder:
    """Turns the frames of one camera into key and delta packets.

    An error in :meth:`encode` leaves the encoder as it was: the same frame can be encoded again.

    Args:
        tokenizer: The model.
        budget: Limits for each packet, besides ``max_loss_db``.
        max_loss_db: PSNR that the shown picture may lose against the fixed rate (the first token of every patch of
            every frame), in the mean over frames; 0 for no loss.
        keyframe_interval: Frames from one keyframe to the next, or of one round of the rolling refresh; 0 for a
            keyframe at the start only.
        refresh: ``"key"`` sends a keyframe each interval; ``"rolling"`` refreshes a few cells in every frame
            instead, so that the bit rate stays flat.
        motion: Move shown pixels with the camera, where that costs less than new tokens.
        fill: Let the packets use all bits of ``budget.max_bits``, whatever ``max_loss_db`` says: still parts get
            sharper. Without ``max_bits`` it changes nothing.

    Raises:
        InputError: An argument is out of its range.

    Example:
        >>> encoder = tatok_edge.StreamEncoder(tokenizer, max_loss_db=0.4)
        >>> packets = [encoder.encode(image).packet for image in images]  # a keyframe, then deltas
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        budget: TokenBudget | None = None,
        max_loss_db: float = MAX_LOSS_DB,
        keyframe_interval: int = 300,
        refresh: Literal["key", "rolling"] = "key",
        motion: bool = True,
        fill: bool = False,
    ) -> None:
        self._options = StreamOptions(
            tokenizer, budget or TokenBudget(), max_loss_db, keyframe_interval, refresh, motion, fill
        )
        self._memory: Memory | None = None
        self._key_requested = threading.Event()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model."""
        return self._options.tokenizer

    @property
    def budget(self) -> TokenBudget:
        """Limits for each packet; may be changed between frames."""
        return self._options.budget

    @budget.setter
    def budget(self, budget: TokenBudget) -> None:
        self._options = replace(self._options, budget=budget)

    @property
    def max_loss_db(self) -> float:
        """Largest loss of PSNR in dB; may be changed between frames."""
        return self._options.max_loss_db

    @max_loss_db.setter
    def max_loss_db(self, max_loss_db: float) -> None:
        self._options = replace(self._options, max_loss_db=max_loss_db)

    @property
    def state(self) -> StreamState | None:
        """The state after the last frame; None before the first one."""
        return None if self._memory is None else self._memory.state

    @property
    def noise(self) -> float:
        """Estimated standard deviation of the sensor noise, in grey levels."""
        return 0.0 if self._memory is None else self._memory.estimates.deviation

    def request_keyframe(self) -> None:
        """Make the next frame a keyframe; may be called from any thread."""
        self._key_requested.set()

    def fork(self) -> StreamEncoder:
        """An independent encoder that continues from the same frame."""
        other = object.__new__(StreamEncoder)
        other._options = self._options
        other._memory = None if self._memory is None else self._memory.copy()
        other._key_requested = threading.Event()
        if self._key_requested.is_set():
            other._key_requested.set()
        return other

    def encode(
        self, image: Image, *, bgr: bool = False, index: int | None = None, timestamp_us: int = 0
    ) -> StreamFrame:
        """Encode the next frame.

        Args:
            image: uint8 ``(H, W, 3)``; another size than before makes a keyframe.
            bgr: The channels are in BGR order.
            index: Number of the frame, above that of the frame before; by default the next number.
            timestamp_us: Time in microseconds that the packet carries.

        Raises:
            InputError: An image or index is refused.
            KeyframeTooLarge: A keyframe does not fit into the budget of bits.
        """
        return encode_frames(
            [self],
            [image],
            bgr=bgr,
            indices=None if index is None else [index],
            timestamps_us=[timestamp_us],
        )[0]

    # Plan and draft change nothing but scratch memory. Commit cannot fail.

    def _plan(self, image: Image, bgr: bool, index: int | None, timestamp_us: int) -> KeyPlan | DeltaPlan:
        options, memory = self._options, self._memory
        following = 0 if memory is None else memory.state.index + 1
        if index is None:
            index = following
        elif index < following:
            raise InputError(f"index must be at least {following}, the number after the frame before; got {index}")
        frame = CameraFrame(image, bgr, index, timestamp_us)
        if memory is None:
            return plan_key(frame, options, None, ChangeEstimates())
        if (memory.state.width, memory.state.height) != (frame.width, frame.height):
            return plan_key(frame, options, None, replace(memory.estimates, usual_change=None))
        look = look_at(frame, options, memory)
        # With a rolling refresh the bit rate stays flat: a scene cut makes no keyframe.
        if look.scene_cut and options.refresh != "rolling":
            return plan_key(frame, options, None, look.estimates, scene_cut=True)
        if self._key_requested.is_set() or memory.refresh.key_due(options):
            return plan_key(frame, options, memory, look.estimates)
        return plan_delta(look)

    def _commit(self, draft: Draft) -> StreamFrame:
        self._memory = draft.commit()
        if draft.result.kind == "key":
            self._key_requested.clear()
        return draft.result


def encode_frames(
    encoders: Sequence[StreamEncoder],
    images: Sequence[Image],
    *,
    bgr: bool = False,
    indices: Sequence[int | None] | None = None,
    timestamps_us: Sequence[int] | None = None,
) -> list[StreamFrame]:
    """Encode one frame of each of several cameras; the patches of all go through one call, without padding.

    An error in any camera leaves all encoders as they were.

    Args:
        encoders: One per camera, all of one tokenizer.
        images: One per camera, of any sizes.
        bgr: The channels are in BGR order.
        indices: Number of each frame; by default the next of its camera.
        timestamps_us: Time of each frame in microseconds.

    Raises:
        InputError: Numbers do not match, or an image or index is refused.
        KeyframeTooLarge: A keyframe does not fit into the budget of bits.

    Example:
        >>> left, right = tatok_edge.StreamEncoder(tokenizer), tatok_edge.StreamEncoder(tokenizer)
        >>> frames = tatok_edge.encode_frames([left, right], [images[0], images[1]])
    """
    count = len(encoders)
    numbers = [None] * count if indices is None else list(indices)
    times = [0] * count if timestamps_us is None else list(timestamps_us)
    if not count or not len(images) == len(numbers) == len(times) == count:
        raise InputError(f"give one image, index and time for each of the {count} encoders (at least one)")
    if len({id(encoder) for encoder in encoders}) < count:
        raise InputError("encoders must be different ones: each follows one camera")
    tokenizer = encoders[0].tokenizer
    if any(encoder.tokenizer is not tokenizer for encoder in encoders):
        raise InputError("encoders must share one tokenizer")
    images = [check_image(image, "image" if count == 1 else f"images[{camera}]") for camera, image in enumerate(images)]
    plans = [
        encoder._plan(image, bgr, number, time)
        for encoder, image, number, time in zip(encoders, images, numbers, times, strict=True)
    ]
    drafts = _drafts(plans, tokenizer)
    return [encoder._commit(draft) for encoder, draft in zip(encoders, drafts, strict=True)]


def _drafts(plans: Sequence[KeyPlan | DeltaPlan], tokenizer: Tokenizer) -> list[Draft]:
    """The packets of all cameras, with one call of the patch encoder."""
    rows = [plan.features for plan in plans if plan.features is not None]
    codes = np.zeros((0, tokenizer.depth * len(tokenizer.levels)), np.int32)
    clock = Clock()
    if rows:
        codes = tokenizer.networks.patch_codes(rows[0] if len(rows) == 1 else np.concatenate(rows), clock)
    drafts, start = [], 0
    for plan in plans:
        stop = start + plan.n_encoded
        if stop > start:  # each camera is charged for its share of the patches
            plan.frame.clock.seconds["patch_encoder"] = clock.seconds["patch_encoder"] * (stop - start) / len(codes)
        own = codes[start:stop]
        drafts.append(draft_key(plan, own) if isinstance(plan, KeyPlan) else draft_delta(plan, own))
        start = stop
    return drafts
