"""Frames of a camera to key and delta packets: only what is new is encoded and sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError
from tatok_edge.format.packet import body_crc, pack, pack_delta
from tatok_edge.geometry import PATCH, PATCH_VALUES, Image, cell_grid, patch_grid
from tatok_edge.model.networks import Clock, Prior
from tatok_edge.model.tokenizer import Tokenizer, check_image
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.state import (
    PATCHES,
    StreamState,
    Window,
    cell_of,
    inside,
    move_flags,
    sources,
    turns_of,
    window_around,
)
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

MAX_LOSS_DB: Final = 0.4
"""Loss of PSNR that a stream may cost where nothing else is said: what `benchmarks/stream.py` measures."""
AIM: Final = 0.95
"""Share of the allowed loss that is aimed at: measured now and then, it may be passed in between."""
NOISE_SHARE: Final = 0.1
"""The noise is read off the patch at this rank: flat and still areas, of which even a moving camera sees some."""
NOISE_CORRECTION: Final = 1.13
"""Mean over quantile of the change of a patch that is noise only: chi-squared with 192 degrees of freedom."""
NOISE_MARGIN: Final = 1.45
"""A patch has changed when it differs by more than so many times the noise energy (4.4 standard deviations)."""
MAX_NOISE: Final = 200.0
"""Largest energy of the difference of two noisy frames that is believed: a standard deviation of 10 per frame."""
LEAST_CHANGE: Final = np.float32(1e-3)
"""Loss that a patch has at least when it has changed."""
VISIBLE: Final = 144.0
"""Mean squared change in grey levels squared above which a change is visible wherever it is."""
CANDIDATE_SHARE: Final = 0.5
"""Patches whose error is above this share of the token threshold are encoded again."""
CUT_FACTOR: Final = 6.0
"""A scene cut changes so many times more than frames did lately."""
CUT_CHANGE: Final = 900.0
"""A scene cut changes by so much in the mean, in grey levels squared."""
MIN_NOISE_LIMIT: Final = 8.0
"""Noise of this energy is always believed."""
TYPICAL_SCALE: Final = 0.35
"""Error that dropping a token adds, as a share of the residual energy of its patch, in the mean over many scenes."""
SCALE_LIMITS: Final = (0.15, 1.0)
"""Smallest and largest such share in one scene: all patches together lack more than each alone."""
GLOBAL_BITS: Final = 16
PATCH_BITS: Final = 6
"""Bits of a global token and of a patch (token or not), roughly: how much is worth computing for a small packet."""
LONGEST_LIFE: Final = 8.0
"""Frames that a token is taken to last at most, and in a new scene."""
LIFE_RATE: Final = 0.3
"""Weight of the newest interval in the mean time between updates of a patch."""
SAME_SHARE: Final = 1.0
"""A token that would not change is not sent, unless the mean of its patch has moved by this share of its loss."""
MOTION_CAP: Final = 3.0
"""Difference at which a patch is taken to need a token whatever its motion, in thresholds of tokens."""
MOTION_COST: Final = 1.0
"""What a motion vector must save, in tokens."""
VECTOR_BITS: Final = 24
"""Bits of a motion vector at most, beside one for every cell."""
MOTION_SHARE: Final = 0.1
"""Share of the patches whose tokens motion must save in a frame: to know what it costs takes a picture now and then."""
LOOK_INTERVAL: Final = 3
"""Frames between looks at moved pictures."""
LOOK_STEPS: Final = (0.7, 1.3)
"""Limits of the change of the allowance by one such look."""
MOVING_INTERVAL: Final = 24
"""Frames between measurements of the loss at most, while pictures move."""
UNKNOWN_EXCESS: Final = 1.0
"""How much more patches that a look cannot know lack than those it knows: they changed twice within its frames."""
LEAST_MOVING_GAIN: Final = 0.1
"""Below this share of the allowance, motion costs more than it saves."""
MOTION_PAUSE: Final = 60
"""Frames until motion is tried again where it did not suit."""
FAR_BEYOND: Final = 4.0
"""So many times the allowed loss says at once that motion does not suit the scene."""
FIRST_PROBE: Final = 3
"""Frames from a new scene to the first measurement of the loss; the intervals then grow."""
FIRST_GAIN: Final = 0.5
"""Share of the allowance that is used in a new scene: the estimates say too little more often than too much."""
GAIN_LIMITS: Final = (0.05, 10.0)
"""Limits of that share once it has been measured."""
GAIN_STEPS: Final = (0.3, 1.5)
"""Limits of its change by one measurement: one frame says less about the next ones where little is lost."""
PROBE_INTERVAL: Final = 64
"""Frames between looks at the error of the reconstruction."""


class KeyframeTooLarge(InputError):
    """A keyframe that does not fit into its budget of bits even without patch tokens."""

    bits: int
    """What it needs."""

    def __init__(self, message: str, bits: int) -> None:
        super().__init__(message)
        self.bits = bits


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """One encoded frame of a stream."""

    tokens: TokenFrame | DeltaFrame
    """What the packet says."""
    packet: bytes = field(repr=False)
    """The packet (``docs/format.md``)."""
    n_encoded: int
    """Patches that went through the patch encoder."""
    seconds: dict[str, float] = field(repr=False)
    """Wall time of each stage."""
    scene_cut: bool = False
    """The keyframe was made because the scene changed."""
    latency_ms: float | None = None
    """Time from the arrival of the frame to its packet; None where it is not known."""
    dropped: int = 0
    """Frames that the source has dropped so far."""

    @property
    def kind(self) -> Literal["key", "delta"]:
        """Whether the frame stands alone."""
        return "key" if isinstance(self.tokens, TokenFrame) else "delta"

    @property
    def index(self) -> int:
        """Number of the frame."""
        return self.tokens.index

    @property
    def timestamp_us(self) -> int:
        """Time of the frame in microseconds."""
        return self.tokens.timestamp_us

    @property
    def n_tokens(self) -> int:
        """Patch tokens in the packet."""
        return self.tokens.n_tokens

    @property
    def n_globals(self) -> int:
        """Global tokens in the packet."""
        return int(self.tokens.global_ids.size)

    @property
    def n_vectors(self) -> int:
        """Motion vectors in the packet."""
        tokens = self.tokens
        return 0 if isinstance(tokens, TokenFrame) else tokens.n_vectors

    @property
    def n_updated(self) -> int:
        """Patches whose entry the packet changes."""
        tokens = self.tokens
        return tokens.n_patches if isinstance(tokens, TokenFrame) else tokens.n_updated


@dataclass(slots=True)
class _Pending:
    """A frame between the two halves of its encoding."""

    image: Image
    bgr: bool
    index: int
    timestamp_us: int
    clock: Clock = field(default_factory=Clock)
    key: bool = False
    new_scene: bool = False
    scene_cut: bool = False
    loss: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """What each patch would add to the mean squared error if it were held, ``(N,)``."""
    life: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """For how many frames a token of each patch is of use, ``(N,)``."""
    candidates: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """Patches to look at more closely."""
    visible: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Which of them have changed visibly."""
    refreshed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Which of them are to be updated whatever they cost."""
    cost: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """What each of them adds to the mean squared error if it is updated without a token."""
    token: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Which of them get a token."""
    encoded: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """Patches that go through the patch encoder."""
    cells: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """Cells whose global token is sent."""
    global_codes: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.int32))
    """Codes of all cells after this frame ``(D, hc, wc)``."""
    window: Window = (0, 0, 0, 0)
    """Cells whose context is computed."""
    motion: NDArray[np.int32] | None = None
    """Vector of each cell ``(hc, wc, 2)``; None where nothing moves."""
    held_loss: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """What the entry of each patch lacks already, where it has moved to, ``(N,)``."""
    prior: Prior | None = None
    """Prior of the patches under them."""
    features: NDArray[np.float32] | None = None
    """Rows for the patch encoder."""


class StreamEncoder:
    """Turns the frames of one camera into key and delta packets.

    Args:
        tokenizer: The model.
        budget: Limits for each packet, on top of what ``max_loss_db`` leaves out.
        max_loss_db: How much PSNR holding and filtering may cost against all tokens of every frame; 0 sends a token
            for everything that changed by more than noise.
        keyframe_interval: Frames from one keyframe to the next, or of one round of the rolling refresh; 0 for a
            keyframe at the start only.
        refresh: ``"key"`` sends a keyframe each interval; ``"rolling"`` refreshes a few cells in every frame
            instead, so that the bit rate stays flat.
        motion: Move held pixels with the camera. It saves tokens where the camera moves and takes time there: the
            picture is decoded every third frame.
        recompute: ``"changed"`` encodes the patches that changed; ``"always"`` encodes all and selects the same
            way, for comparison.

    Raises:
        InputError: An argument is out of its range.
        BundleError: The bundle lacks what streams need.
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
        recompute: Literal["changed", "always"] = "changed",
    ) -> None:
        if not 0.0 <= max_loss_db <= 20.0:
            raise InputError(f"max_loss_db must be from 0 to 20 dB, got {max_loss_db:g}")
        if not 0 <= keyframe_interval < 1 << 31:
            raise InputError(f"keyframe_interval must be a number of frames from 0, got {keyframe_interval}")
        if refresh not in ("key", "rolling"):
            raise InputError(f"refresh must be 'key' or 'rolling', got {refresh!r}")
        if recompute not in ("changed", "always"):
            raise InputError(f"recompute must be 'changed' or 'always', got {recompute!r}")
        if budget is not None and budget.refine:
            tokenizer.refiner()  # better now than at the first keyframe
        self.tokenizer = tokenizer
        """The model."""
        self.budget = budget or TokenBudget()
        """Limits for each packet; may be changed between frames."""
        self.max_loss_db = max_loss_db
        """Largest loss of PSNR; may be changed between frames."""
        self.keyframe_interval = keyframe_interval
        self.refresh = refresh
        self.motion = motion
        self.recompute = recompute
        self.state: StreamState | None = None
        """The entries after the last frame; None ahead of the first one."""
        self._key_requested = threading.Event()
        self._since_key = 0
        self._until_probe = self._probe_interval = FIRST_PROBE
        self._gain = FIRST_GAIN
        self._next_refresh = 0
        self._usual_change: float | None = None
        self._error = 0.0
        self._noise: float | None = None
        self._noise_limit = MAX_NOISE
        self._threshold = 0.0
        self._scale = TYPICAL_SCALE
        self._failed_looks = self._moves_from = 0
        self._error_of_detail = 0.0
        self._shown: NDArray[np.uint8] | None = None
        self._shown_later: list[tuple[NDArray[np.int32] | None, NDArray[np.int32]]] = []

    def request_keyframe(self) -> None:
        """Make the next frame a keyframe; may be called from any thread."""
        self._key_requested.set()

    @property
    def noise(self) -> float:
        """Standard deviation of the sensor noise, as estimated so far, in grey levels."""
        return 0.0 if self._noise is None else float(np.sqrt(self._noise / 2))

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
            InputError: An image or index that cannot be taken, or a budget of bits that is too small.
        """
        return encode_frames(
            [self],
            [image],
            bgr=bgr,
            indices=None if index is None else [index],
            timestamps_us=[timestamp_us],
        )[0]

    # The work on a frame has two halves; between them the patches of all cameras go through one call.

    def _begin(self, image: Image, bgr: bool, index: int | None, timestamp_us: int) -> _Pending:
        height, width = image.shape[:2]
        state = self.state
        following = 0 if state is None else state.index + 1
        if index is None:
            index = following
        elif index < following:
            raise InputError(f"index must be at least {following}, the number after the frame before; got {index}")
        pending = _Pending(image, bgr, index, timestamp_us)
        if state is None or (state.width, state.height) != (width, height):
            self._usual_change = None
            return self._begin_key(pending, new_scene=True)
        with pending.clock.stage("change"):
            pending.held_loss = self._held_loss
            changes = kernels.patch_change(image, bgr, self._reference, out=self._changes)
        with pending.clock.stage("motion"):
            changes = self._find_motion(pending, state, changes)
        with pending.clock.stage("change"):
            # In detail, and as far as codes can follow: in means of 4x4 pixels.
            change, coarse = changes.astype(np.float32) * np.float32(1 / PATCH_VALUES)
            noise = self._update_noise(changes[0])
            mean_change = float(change.mean())
            usual, self._usual_change = self._usual_change, mean_change
        pending.scene_cut = mean_change > max(CUT_FACTOR * (usual or 0.0), CUT_CHANGE)
        if pending.scene_cut and self.refresh == "rolling":
            self._until_probe = 0  # the bit rate is to stay flat: no keyframe, but what is known of the scene is void
        elif pending.scene_cut or self._key_requested.is_set() or self._key_due():
            return self._begin_key(pending, new_scene=pending.scene_cut)
        with pending.clock.stage("change"):
            changed = change > NOISE_MARGIN * noise
            # Detail that codes cannot follow costs next to nothing, but it has changed.
            beyond = np.where(changed, np.maximum(coarse - np.float32(noise / 16), LEAST_CHANGE), np.float32(0))
            # What a patch costs if it is held: what its entry lacks already, and what has changed since.
            pending.loss = pending.held_loss + beyond
            visible = changed & (change - np.float32(noise) > VISIBLE)
            self._age += 1
            pending.life = life = np.clip(np.maximum(self._life, self._age), 1, LONGEST_LIFE)
            value = pending.loss * life
            due = visible | (changed & (value > self._threshold)) | (pending.held_loss * life > self._threshold)
            wanted = due | (changed & (value > CANDIDATE_SHARE * self._threshold))
            # What may wait for a token must not widen the window, which is what the context costs.
            wanted &= box_around(due.reshape(state.grid)).ravel()
            if self.budget.max_bits is not None:
                self._leave_for_later(wanted, pending.loss, state, self.budget.max_bits)
            refreshed, announced = self._refresh_round(state)
            wanted |= refreshed
            pending.candidates = np.flatnonzero(wanted).astype(np.int32)
            pending.visible, pending.refreshed = visible[pending.candidates], refreshed[pending.candidates]
        if len(pending.candidates):
            self._begin_delta(pending, state, announced)
        return pending

    def _key_due(self) -> bool:
        return self.refresh == "key" and 0 < self.keyframe_interval <= self._since_key + 1

    def _begin_key(self, pending: _Pending, *, new_scene: bool) -> _Pending:
        networks = self.tokenizer.networks
        height, width = pending.image.shape[:2]
        grid = patch_grid(width, height)
        patches = grid[0] * grid[1]
        pending.key, pending.new_scene = True, new_scene
        pending.global_codes = networks.global_codes(pending.image, pending.bgr, pending.clock)
        pending.prior = prior = networks.prior(pending.global_codes, pending.clock)
        pending.window = (0, 0, *cell_grid(width, height))
        pending.candidates = np.arange(patches, dtype=np.int32)
        pending.refreshed = np.zeros(patches, np.bool_)
        with pending.clock.stage("select"):
            residual = kernels.patch_residual(
                pending.image, pending.bgr, prior.mean, pending.candidates, pending.candidates, grid[1]
            )
            if new_scene:
                self._scale = TYPICAL_SCALE
                pending.life = np.full(patches, LONGEST_LIFE, np.float32)
            else:
                pending.life = np.clip(np.maximum(self._life, self._age), 1, LONGEST_LIFE)
            pending.cost = residual * np.float32(self._scale)
            # What all tokens would leave is what the loss is measured against: a new scene is encoded whole to see it.
            pending.token = choose(pending.cost, pending.life, 0.0 if new_scene else self._allowed())[0]
            self._limit(pending, patches)
        self._gather(pending, prior.context, prior.mean, everything=new_scene and self.max_loss_db > 0)
        return pending

    def _begin_delta(self, pending: _Pending, state: StreamState, announced: NDArray[np.int32]) -> None:
        networks, clock, columns = self.tokenizer.networks, pending.clock, state.grid[1]
        codes = networks.global_codes(pending.image, pending.bgr, clock)
        with clock.stage("select"):
            cells = cell_of(pending.candidates, columns)
            touched = np.zeros(state.global_ids.size, np.bool_)
            touched[cells] = True
            pending.window = window_around(np.flatnonzero(touched), state.cells)
            touched[announced] = True
            mixed = np.where(touched.reshape(state.cells), codes, state.global_codes)
            differs = (mixed != state.global_codes).any(0).ravel()
            differs[announced] = True
            pending.cells = np.flatnonzero(differs).astype(np.int32)
            pending.global_codes = mixed
            top, left, height, width = pending.window
            area = mixed[:, top : top + height, left : left + width]
        pending.prior = prior = networks.prior(area, clock)
        with clock.stage("select"):
            source = inside(pending.candidates, pending.window, columns)
            residual = kernels.patch_residual(
                pending.image, pending.bgr, prior.mean, source, pending.candidates, columns
            )
            pending.cost = residual * np.float32(self._scale)
            loss = pending.loss[pending.candidates]
            held = float(pending.loss.sum(dtype=np.float64) - loss.sum(dtype=np.float64))
            life = pending.life[pending.candidates]
            pending.token, _ = choose(np.minimum(pending.cost, loss), life, self._allowed() - held)
            pending.token[best_per_cell(pending.cost, pending.visible, cells)] = True
            self._limit(pending, state.ids.size)
        with clock.stage("gather"):
            chosen = pending.candidates if self.recompute == "always" else pending.candidates[pending.token]
            source = inside(chosen, pending.window, columns)
            kernels.scatter_columns(prior.context, source, self._context, chosen)
            kernels.scatter_columns(prior.mean, source, self._mean, chosen)
        self._gather(pending, self._context, self._mean)

    def _gather(
        self,
        pending: _Pending,
        context: NDArray[np.float32],
        mean: NDArray[np.float32],
        *,
        everything: bool = False,
    ) -> None:
        """Features of the patches that get a token, or of all patches of the frame."""
        with pending.clock.stage("gather"):
            if everything or self.recompute == "always":
                pending.encoded = np.arange(context.shape[1], dtype=np.int32)
            else:
                pending.encoded = pending.candidates[pending.token]
            if len(pending.encoded) == 0:
                return
            pending.features = self.tokenizer.networks.features(len(pending.encoded))
            columns = patch_grid(pending.image.shape[1], pending.image.shape[0])[1]
            kernels.gather_features(
                pending.image, pending.bgr, context, mean, pending.encoded, columns, out=pending.features
            )

    def _finish(self, pending: _Pending, codes: NDArray[np.int32]) -> StreamFrame:
        if pending.key:
            return self._finish_key(pending, codes)
        assert self.state is not None
        return self._finish_delta(pending, codes, self.state)

    def _finish_key(self, pending: _Pending, codes: NDArray[np.int32]) -> StreamFrame:
        tokenizer, clock, prior = self.tokenizer, pending.clock, pending.prior
        assert prior is not None
        levels, patches = tokenizer.levels, len(pending.candidates)
        height, width = pending.image.shape[:2]
        if pending.new_scene and self.max_loss_db > 0:
            everything = np.ones(patches, np.bool_)
            self._set_error(self._error_with(everything, codes, prior, pending), pending.image, pending.bgr)
            token, _ = choose(pending.cost, pending.life, self._allowed())
            if 0 < np.count_nonzero(token) < patches:
                # The estimate of what a dropped token costs holds on average over scenes; correct it for this one.
                added = self._error_with(token, codes, prior, pending) - self._error
                estimate = float(pending.cost[~token].sum(dtype=np.float64))
                scale = self._scale
                self._scale = float(np.clip(scale * added / max(estimate, 1e-6), *SCALE_LIMITS))
                pending.cost *= np.float32(self._scale / scale)
                token, _ = choose(pending.cost, pending.life, self._allowed())
            pending.token &= token
        with clock.stage("select"):
            self._limit_by_information(pending, codes, patches)
            kept = np.flatnonzero(pending.token).astype(np.int32)
            order = kept[np.argsort(-pending.cost[kept], kind="stable")]
            full = np.zeros((patches, len(levels)), np.int32)
            full[pending.encoded] = codes
        saved = self._refine(kept, full, prior, pending)
        with clock.stage("select"):
            ids = kernels.ids_from_codes(full, levels)
            global_ids = self._ids_of(pending.global_codes)

        def packed(count: int) -> tuple[TokenFrame, bytes]:
            positions = np.sort(order[:count])
            frame = TokenFrame(
                ids=ids[positions],
                positions=positions,
                global_ids=global_ids,
                width=width,
                height=height,
                model=tokenizer.tag,
                index=pending.index,
                timestamp_us=pending.timestamp_us,
            )
            return frame, pack(frame, tokenizer.entropy_model)

        with clock.stage("pack"):
            frame, packet = fit(packed, len(order), self.budget.max_bits)
            if self.budget.max_bits is not None and 8 * len(packet) > self.budget.max_bits:
                raise KeyframeTooLarge(
                    f"a keyframe of {width}x{height} pixels needs {8 * len(packet)} bits for its global tokens alone, "
                    f"the limit is {self.budget.max_bits}; allow more bits or make the image smaller",
                    8 * len(packet),
                )
        with clock.stage("update"):
            kept = frame.positions
            held = np.full(patches, -1, np.int32)
            held[kept] = frame.ids
            self.state = StreamState(
                width=width,
                height=height,
                index=pending.index,
                crc=body_crc(packet),
                global_codes=pending.global_codes,
                global_ids=global_ids,
                ids=held,
                context=prior.context,
                mean=prior.mean,
                state=kernels.decoder_state(full[kept], kept, prior.expected, prior.entropy, levels),
                moved=np.zeros(patches, np.bool_),
            )
            self._set_threshold(pending.cost, pending.life)
            self._held_loss = pending.cost
            self._held_loss[kept] = -saved[kept]
            self._start_from(pending, self.state)
        return StreamFrame(frame, packet, len(pending.encoded), clock.seconds, pending.scene_cut)

    def _start_from(self, pending: _Pending, state: StreamState) -> None:
        """What a keyframe resets, besides the entries."""
        rows, columns = state.grid
        self._reference = np.empty((rows * PATCH, columns * PATCH, 3), np.uint8)
        kernels.update_reference(pending.image, pending.bgr, self._reference, pending.candidates)
        self._changes = np.empty((2, rows * columns), np.int32)
        self._moved_reference, self._moved_changes = np.empty_like(self._reference), np.empty_like(self._changes)
        self._motion = np.zeros((*state.cells, 2), np.int32)
        self._shown = None
        self._shown_later.clear()
        self._failed_looks = 0
        # Room for the features of entries that are not written yet.
        self._context, self._mean = state.context.copy(), state.mean.copy()
        self._noise_limit = noise_limit(self._reference)
        self._since_key = self._next_refresh = 0
        self._key_requested.clear()
        if pending.new_scene:
            self._age, self._life = np.zeros(rows * columns, np.float32), pending.life
            self._gain, self._moves_from = FIRST_GAIN, 0
            self._until_probe = self._probe_interval = FIRST_PROBE

    def _finish_delta(self, pending: _Pending, codes: NDArray[np.int32], state: StreamState) -> StreamFrame:
        tokenizer, clock, prior, candidates = self.tokenizer, pending.clock, pending.prior, pending.candidates
        levels, loss = tokenizer.levels, pending.loss
        if pending.motion is not None:
            if self._shown is None:
                height, width = self._reference.shape[:2]
                with clock.stage("probe"):
                    pixels = state.pixels(tokenizer.networks, Clock())
                    self._shown = kernels.assemble(pixels, width // PATCH, height, width, False)
            self._reference, self._moved_reference = self._moved_reference, self._reference
            self._held_loss = pending.held_loss
            state.move(pending.motion)
        turns, vectors = turns_of(pending.motion)
        with clock.stage("select"):
            self._limit_by_information(pending, codes, loss.size)
            token = pending.token
            rows = np.searchsorted(pending.encoded, candidates[token])
            codes = np.ascontiguousarray(codes[rows])
            if prior is not None:
                same = self._says_the_same(pending, codes, state, prior)
                # The token that is held is what a new one would be: the patch is as good as updated.
                still = candidates[token][same]
                kernels.update_reference(pending.image, pending.bgr, self._reference, still)
                loss[still] = self._held_loss[still] = 0.0
                token[np.flatnonzero(token)[same]] = False
                codes = np.ascontiguousarray(codes[~same])
            # Best first: what an update gains for its bits; a token costs some eight times those of an update without.
            gain = np.where(token, loss[candidates] / 8, loss[candidates] - pending.cost)
            order = np.argsort(-gain, kind="stable")
            order = order[token[order] | (gain[order] > 0)]
            without_token = loss.copy()
            without_token[candidates] = np.minimum(loss[candidates], pending.cost)
            global_ids = self._ids_of(pending.global_codes) if len(candidates) else state.global_ids

        def delta_of(count: int) -> DeltaFrame:
            active = np.zeros(len(candidates), np.bool_)
            active[order[:count]] = True
            with_token = active & token
            active |= pending.refreshed
            changed = bool(active.any())
            cells = pending.cells if changed else np.zeros(0, np.int32)
            return DeltaFrame(
                updated=candidates[active],
                positions=candidates[with_token],
                ids=kernels.ids_from_codes(codes, levels)[with_token[token]],
                cells=cells,
                global_ids=global_ids[cells],
                window=pending.window if changed else (0, 0, 0, 0),
                width=state.width,
                height=state.height,
                model=tokenizer.tag,
                index=pending.index,
                timestamp_us=pending.timestamp_us,
                reference=state.index,
                follows=state.crc,
                turns=turns,
                vectors=vectors,
            )

        if self.budget.refine and prior is not None and len(codes):
            codes = self._refine_delta(delta_of(len(order)), codes, prior, state, pending)

        def packed(count: int) -> tuple[DeltaFrame, bytes]:
            delta = delta_of(count)
            return delta, pack_delta(
                delta, tokenizer.entropy_model, global_ids if delta.n_updated else state.global_ids
            )

        with clock.stage("pack"):
            delta, packet = fit(packed, len(order), self.budget.max_bits)
        with clock.stage("update"):
            if prior is not None and delta.n_updated:
                state.global_codes = pending.global_codes
                state.global_ids[delta.cells] = delta.global_ids
                sent = np.searchsorted(candidates[token], delta.positions)
                state.update(prior, delta, codes[sent], levels)
                kernels.update_reference(pending.image, pending.bgr, self._reference, delta.updated)
                rows = np.searchsorted(candidates, delta.updated)
                loss[delta.updated] = self._held_loss[delta.updated] = pending.cost[rows]
                loss[delta.positions] = self._held_loss[delta.positions] = 0.0
                self._life[delta.updated] += LIFE_RATE * (self._age[delta.updated] - self._life[delta.updated])
                self._age[delta.updated] = 0
            state.index, state.crc = pending.index, body_crc(packet)
            self._set_threshold(without_token, pending.life)
        self._since_key += 1
        self._until_probe -= 1
        self._follow_motion(pending, state, delta)
        if self.max_loss_db > 0 and self._until_probe <= 0:
            self._probe(pending, state)
            self._probe_interval = min(2 * self._probe_interval, PROBE_INTERVAL)
            self._until_probe = self._probe_interval
        return StreamFrame(delta, packet, len(pending.encoded), clock.seconds)

    def _says_the_same(
        self, pending: _Pending, codes: NDArray[np.int32], state: StreamState, prior: Prior
    ) -> NDArray[np.bool_]:
        """Which of the new tokens are those that are held already, with a mean that has hardly moved."""
        chosen = pending.candidates[pending.token]
        same: NDArray[np.bool_] = kernels.ids_from_codes(codes, self.tokenizer.levels) == state.ids[chosen]
        same &= ~pending.refreshed[pending.token] & ~state.moved[chosen]
        here = chosen[same]
        if len(here):
            moved = prior.mean[:, inside(here, pending.window, state.grid[1])] - state.mean[:, here]
            energy = (moved * moved).mean(0) * np.float32(127.5**2)
            same[same] = energy < SAME_SHARE * pending.loss[here]
        return same

    # --- parts of the work ------------------------------------------------------------------------

    def _allowed_share(self) -> float:
        """What holding and filtering may add to the squared error, as a share of it."""
        share: float = 10.0 ** (AIM * self.max_loss_db / 10) - 1
        return share

    def _allowed(self) -> float:
        """Squared error that holding and filtering may add to a frame, summed over its patches."""
        return self._allowed_share() * self._error * self._gain

    def _set_threshold(self, loss: NDArray[np.float32], life: NDArray[np.float32]) -> None:
        """What a token must be worth, from what this frame would lose without tokens."""
        self._threshold = choose(loss, life, self._allowed())[1] if self.max_loss_db > 0 else 0.0

    def _refine(
        self, kept: NDArray[np.int32], codes: NDArray[np.int32], prior: Prior, pending: _Pending
    ) -> NDArray[np.float32]:
        """Correct the codes ``(N, D)`` of the patches ``kept`` of a keyframe in place, as the budget asks.

        Returns:
            What each patch has gained by it, ``(N,)``: it may lose as much later on and is as good as all tokens.
        """
        if not (self.budget.refine and kept.size):
            return np.zeros(len(codes), np.float32)
        before = self._errors_with(kept, codes, prior, pending)
        refiner, rates = self.tokenizer.refiner(), self.tokenizer.rates(pending.global_codes)
        _, codes[kept] = refiner.refine(
            pending.image, pending.bgr, prior, codes, kept, rates, self.budget.refine, pending.clock
        )
        # Without an allowance, whatever changes is to be sent.
        share = np.float32(1 if self.max_loss_db > 0 else 0)
        return share * (before - self._errors_with(kept, codes, prior, pending))

    def _refine_delta(
        self, delta: DeltaFrame, codes: NDArray[np.int32], prior: Prior, state: StreamState, pending: _Pending
    ) -> NDArray[np.int32]:
        """The codes ``(T, D)`` of the tokens of a delta packet, corrected beside what its window holds after it."""
        top, left, height, width = (PATCHES * side for side in delta.window)
        rows, columns = state.grid
        tokens, updated = (inside(patches, delta.window, columns) for patches in (delta.positions, delta.updated))

        def window(held: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float32]:
            area = held.reshape(-1, rows, columns)[:, top : top + height, left : left + width]
            values = area.reshape(len(held), -1).copy()
            values[:, updated] = new[:, updated]
            return values

        with pending.clock.stage("refine"):
            states = kernels.decoder_state(codes, tokens, prior.expected, prior.entropy, self.tokenizer.levels)
            hidden = state.moved.reshape(rows, columns)[top : top + height, left : left + width].flatten()
            hidden[updated] = False
            states = window(state.state, states)
            context, mean = window(state.context, prior.context), window(state.mean, prior.mean)
            rates = self.tokenizer.rates(pending.global_codes)
        return self.tokenizer.refiner().correct(
            pending.image[top * PATCH : (top + height) * PATCH, left * PATCH : (left + width) * PATCH],
            pending.bgr,
            states,
            context,
            mean,
            tokens,
            codes,
            lambda codes, _: rates(codes, delta.positions),
            self.budget.refine,
            pending.clock,
            hidden=hidden,
        )

    def _error_with(self, token: NDArray[np.bool_], codes: NDArray[np.int32], prior: Prior, pending: _Pending) -> float:
        """Squared error of the whole frame when the patches ``token`` keep their token, summed over patches."""
        kept = np.flatnonzero(token).astype(np.int32)
        return float(self._errors_with(kept, codes, prior, pending).sum(dtype=np.float64))

    def _errors_with(
        self, kept: NDArray[np.int32], codes: NDArray[np.int32], prior: Prior, pending: _Pending
    ) -> NDArray[np.float32]:
        """Squared error of each patch, ``(N,)``, of the picture from the codes ``(N, D)`` of the patches ``kept``."""
        with pending.clock.stage("probe"):
            state = kernels.decoder_state(
                np.ascontiguousarray(codes[kept]), kept, prior.expected, prior.entropy, self.tokenizer.levels
            )
            grid = patch_grid(pending.image.shape[1], pending.image.shape[0])
            pixels = self.tokenizer.networks.pixels(state, prior.context, prior.mean, grid, Clock())
            return kernels.patch_error(pixels, pending.image, pending.bgr, grid[1])

    def _probe(self, pending: _Pending, state: StreamState) -> None:
        """Measure what holding and filtering cost in this frame, and correct losses and allowance by it.

        The estimates behind every choice are local ones: what updates do to the patches around them, only a decoder
        knows, and how it adds up differs from scene to scene.
        """
        image, bgr, clock = pending.image, pending.bgr, pending.clock
        networks, levels, (rows, columns) = self.tokenizer.networks, self.tokenizer.levels, state.grid
        inner = Clock()
        with clock.stage("probe"):
            everything = np.arange(rows * columns, dtype=np.int32)
            prior = networks.prior(networks.global_codes(image, bgr, inner), inner)
            features = networks.features(len(everything))
            kernels.gather_features(image, bgr, prior.context, prior.mean, everything, columns, out=features)
            codes = networks.patch_codes(features, inner)
            full = kernels.decoder_state(codes, everything, prior.expected, prior.entropy, levels)
            errors = [
                kernels.patch_error(pixels, image, bgr, columns)
                for pixels in (
                    networks.pixels(full, prior.context, prior.mean, state.grid, inner),
                    state.pixels(networks, inner),
                )
            ]
            self._set_error(float(errors[0].sum(dtype=np.float64)), image, bgr)
            known = np.ones(rows * columns, np.bool_)
            if self._shown is not None and state.moved.any():
                errors[1], known = self._shown_error(image, bgr, state)
            self._correct(_excess(errors[1], errors[0], known), GAIN_STEPS)
            unseen = errors[1] - errors[0] - pending.loss
            self._held_loss[known] += unseen[known]
            self._noise_limit = noise_limit(self._reference)

    def _shown_error(
        self, image: Image, bgr: bool, state: StreamState
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Squared error of each patch of the picture that a decoder shows, nearly.

        Where pixels have moved, only a decoder knows the picture, and decoding every frame would cost more than motion
        saves. So it is made up for some frames at a time, from one decoding: patches that were updated twice in
        that time show their last update too early.
        """
        grid = state.grid
        pixels = state.pixels(self.tokenizer.networks, Clock())
        decoded = kernels.assemble(pixels, grid[1], grid[0] * PATCH, grid[1] * PATCH, False)
        assert self._shown is not None
        last = np.full(state.ids.size, -1)
        for number, (_, updated) in enumerate(self._shown_later):
            last[updated] = number
        unknown = np.zeros(state.ids.size, np.bool_)
        for number, (motion, updated) in enumerate(self._shown_later):
            if motion is not None:
                self._shown = kernels.move_cells(self._shown, motion)
                unknown = move_flags(unknown.reshape(grid), motion).ravel()
            kernels.update_reference(decoded, False, self._shown, updated)
            unknown[updated] = last[updated] > number
        self._shown_later.clear()
        unmoved = np.flatnonzero(~state.moved).astype(np.int32)
        kernels.update_reference(decoded, False, self._shown, unmoved)
        error = kernels.patch_change(image, bgr, self._shown)[0].astype(np.float32) * np.float32(1 / PATCH_VALUES)
        unknown[unmoved] = False
        return error, ~unknown

    def _follow_motion(self, pending: _Pending, state: StreamState, delta: DeltaFrame) -> None:
        """Keep what a look at the picture needs while pixels move, and look now and then."""
        if self._shown is None:
            return
        if not state.moved.any():
            self._shown = None
            self._shown_later.clear()
            return
        self._shown_later.append((pending.motion, delta.updated))
        self._until_probe = min(self._until_probe, MOVING_INTERVAL)
        if len(self._shown_later) >= LOOK_INTERVAL and self._until_probe > 0:
            with pending.clock.stage("probe"):
                self._look(pending, state)

    def _look(self, pending: _Pending, state: StreamState) -> None:
        """Correct the allowance by the error of moved pictures; give motion up where it does not suit the scene."""
        shown, known = self._shown_error(pending.image, pending.bgr, state)
        expected = np.float32(self._error_of_detail) * self._detail(pending.image, pending.bgr)
        self._error = float(expected.sum(dtype=np.float64))
        excess = _excess(shown, expected, known)
        self._correct(excess, LOOK_STEPS)
        if excess > FAR_BEYOND * self._allowed_share():
            self._failed_looks += 2
        else:
            self._failed_looks = self._failed_looks + 1 if self._gain < LEAST_MOVING_GAIN else 0
        if self._failed_looks >= 2:
            self._moves_from, self._gain = pending.index + MOTION_PAUSE, FIRST_GAIN
            self._failed_looks = 0
            self._held_loss[state.moved] += shown[state.moved]

    def _detail(self, image: Image, bgr: bool) -> NDArray[np.float32]:
        """Energy of each patch beyond means of 4x4 pixels; the error of all tokens follows it in a scene."""
        rows, columns = patch_grid(image.shape[1], image.shape[0])
        total, coarse = kernels.patch_change(image, bgr, np.zeros((rows * PATCH, columns * PATCH, 3), np.uint8))
        detail: NDArray[np.float32] = (total - coarse).astype(np.float32) * np.float32(1 / PATCH_VALUES)
        return detail

    def _set_error(self, error: float, image: Image, bgr: bool) -> None:
        """Take note of the squared error that all tokens leave in a frame, summed over its patches."""
        self._error = error
        self._error_of_detail = error / max(float(self._detail(image, bgr).sum(dtype=np.float64)), 1e-6)

    def _correct(self, excess: float, steps: tuple[float, float]) -> None:
        """Correct the allowance by what holding and filtering added to the squared error, as a share of it."""
        step = np.clip(self._allowed_share() / max(excess, 1e-6), *steps)
        self._gain = float(np.clip(self._gain * step, *GAIN_LIMITS))

    def _find_motion(self, pending: _Pending, state: StreamState, changes: NDArray[np.int32]) -> NDArray[np.int32]:
        """Move the reference picture where that saves tokens; returns the changes against what it is then."""
        threshold = self._threshold
        # Who joins a rolling refresh in the middle could never tell which moved pixels are right.
        allowed = self.motion and self.refresh != "rolling" and pending.index >= self._moves_from
        if not (allowed and 0 < threshold < np.inf):
            return changes
        noise = np.float32((self._noise or 0.0) / 16)
        life = np.clip(np.maximum(self._life, self._age), 1, LONGEST_LIFE)

        def tokens(changes: NDArray[np.int32], held: NDArray[np.float32]) -> NDArray[np.float32]:
            """About how many tokens each cell takes."""
            coarse = changes[1].astype(np.float32) * np.float32(1 / PATCH_VALUES)
            value = (held + np.maximum(coarse - noise, 0)) * life
            rows, columns = state.cells
            patches = np.minimum(value / threshold, 1).reshape(rows, PATCHES, columns, PATCHES)
            cells: NDArray[np.float32] = patches.sum((1, 3))
            return cells

        now = tokens(changes, self._held_loss)
        active = now > MOTION_COST
        if not active.any():
            return changes
        cap = int(min(MOTION_CAP * 64 * threshold / float(np.median(life)), 1 << 22))
        motion = self._motion.copy()
        kernels.find_motion(
            pending.image, pending.bgr, self._reference, active.view(np.uint8), cap, int(MOTION_COST * cap), motion
        )
        self._motion = motion
        if not motion.any():
            return changes
        kernels.move_cells(self._reference, motion, out=self._moved_reference)
        moved = kernels.patch_change(pending.image, pending.bgr, self._moved_reference, out=self._moved_changes)
        held_loss = self._held_loss[sources(motion)]
        moving = motion.any(2).repeat(PATCHES, 0).repeat(PATCHES, 1).ravel()
        # What refining has gained is not taken along: interpolated pixels lose it, and only a look would tell.
        held_loss[moving] = np.maximum(held_loss[moving], 0)
        vectors = len(turns_of(motion)[0])
        saved = float((now - tokens(moved, held_loss)).sum()) - MOTION_COST * vectors
        bits = VECTOR_BITS * vectors + now.size
        if saved <= MOTION_SHARE * state.ids.size or bits > (self.budget.max_bits or np.inf) / 4:
            return changes
        pending.motion, pending.held_loss = motion, held_loss
        return moved

    def _update_noise(self, changes: NDArray[np.int32]) -> float:
        """Energy of the difference of two frames that noise alone makes, per value."""
        found = kernels.change_quantile(changes, NOISE_SHARE) * (NOISE_CORRECTION / PATCH_VALUES)
        found = min(found, self._noise_limit)
        if self._noise is None:
            self._noise = found
        else:  # falls fast, rises slowly: what moves must not pass for noise
            self._noise += (found - self._noise) * (0.3 if found < self._noise else 0.05)
        return self._noise

    def _refresh_round(self, state: StreamState) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
        """Patches of the cells whose turn it is in the rolling refresh, and the cells whose token is sent anew."""
        rows, columns = state.cells
        turn = np.zeros((rows, columns), np.bool_)
        if self.refresh == "rolling" and self.keyframe_interval:
            start, count = self._next_refresh, -(-rows * columns // self.keyframe_interval)
            turn.ravel()[start : start + count] = True
            self._next_refresh = start + count if start + count < rows * columns else 0
            # A round begins with all global tokens, so that whoever joins can read the codes from there on.
            announced = np.arange(rows * columns) if start == 0 else np.flatnonzero(turn)
        else:
            announced = np.zeros(0, np.int64)
        return turn.repeat(PATCHES, 0).repeat(PATCHES, 1).ravel(), announced.astype(np.int32)

    def _leave_for_later(
        self, wanted: NDArray[np.bool_], loss: NDArray[np.float32], state: StreamState, max_bits: int
    ) -> None:
        """Keep of ``wanted`` the cells that lose most, as far as ``max_bits`` may reach."""
        rows, columns = state.cells
        area = (rows, PATCHES, columns, PATCHES)
        total = (loss * wanted).reshape(area).sum((1, 3)).ravel()
        bits = GLOBAL_BITS + PATCH_BITS * wanted.reshape(area).sum((1, 3)).ravel()
        order = np.argsort(-total, kind="stable")
        later = order[1:][np.cumsum(bits[order])[1:] > max_bits]
        wanted.reshape(area).transpose(0, 2, 1, 3)[np.unravel_index(later, (rows, columns))] = False

    def _limit(self, pending: _Pending, patches: int) -> None:
        """Take tokens away until the budget holds, as far as that can be said ahead of the codes."""
        if self.budget.score == "information":
            return
        scores = pending.cost
        if self.budget.score == "entropy" and pending.prior is not None:
            columns = patch_grid(pending.image.shape[1], pending.image.shape[0])[1]
            scores = pending.prior.entropy[inside(pending.candidates, pending.window, columns)]
        self._filter(pending.token, scores, patches)

    def _limit_by_information(self, pending: _Pending, codes: NDArray[np.int32], patches: int) -> None:
        """As :meth:`_limit`, by the information of the codes of the tokens chosen so far."""
        if self.budget.score != "information" or pending.prior is None:
            return
        columns = patch_grid(pending.image.shape[1], pending.image.shape[0])[1]
        chosen = pending.candidates[pending.token]
        rows = np.ascontiguousarray(codes[np.searchsorted(pending.encoded, chosen)])
        source = inside(chosen, pending.window, columns)
        scores = np.zeros(len(pending.candidates), np.float32)
        scores[pending.token] = kernels.information(pending.prior.log2_probs, rows, source, self.tokenizer.levels)
        self._filter(pending.token, scores, patches)

    def _filter(self, token: NDArray[np.bool_], scores: NDArray[np.float32], patches: int) -> None:
        smallest, largest = self.budget.limits(patches)
        chosen = np.flatnonzero(token)
        if self.budget.tau == 1.0 and self.budget.floor_bits == 0.0 and len(chosen) <= largest:
            return
        indices, _ = kernels.dtf(
            np.ascontiguousarray(scores[chosen])[None],
            tau=self.budget.tau,
            min_tokens=smallest,
            max_tokens=largest,
            floor_bits=self.budget.floor_bits,
        )
        token[:] = False
        token[chosen[indices]] = True

    def _ids_of(self, global_codes: NDArray[np.int32]) -> NDArray[np.int32]:
        flat = np.ascontiguousarray(global_codes.reshape(len(global_codes), -1).T)
        return kernels.ids_from_codes(flat, self.tokenizer.levels)


def encode_frames(
    encoders: Sequence[StreamEncoder],
    images: Sequence[Image],
    *,
    bgr: bool = False,
    indices: Sequence[int | None] | None = None,
    timestamps_us: Sequence[int] | None = None,
) -> list[StreamFrame]:
    """Encode one frame of each of several cameras; the patches of all go through one call, without padding.

    Args:
        encoders: One per camera, all of one tokenizer.
        images: One per camera, of any sizes.
        bgr: The channels are in BGR order.
        indices: Number of each frame; by default the next of its camera.
        timestamps_us: Time of each frame in microseconds.

    Raises:
        InputError: Numbers do not match, or an image cannot be taken; no encoder has changed then.
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
    for camera, image in enumerate(images):  # ahead of everything that changes an encoder
        check_image(image, "image" if count == 1 else f"images[{camera}]")
    pending = [
        encoder._begin(image, bgr, number, time)
        for encoder, image, number, time in zip(encoders, images, numbers, times, strict=True)
    ]
    rows = [one.features for one in pending if one.features is not None]
    codes = np.zeros((0, len(tokenizer.levels)), np.int32)
    clock = Clock()
    if rows:
        codes = tokenizer.networks.patch_codes(rows[0] if len(rows) == 1 else np.concatenate(rows), clock)
    frames, start = [], 0
    for encoder, one in zip(encoders, pending, strict=True):
        stop = start + (0 if one.features is None else len(one.features))
        if stop > start:  # the time of the common call is shared out by patches
            one.clock.seconds["patch_encoder"] = clock.seconds["patch_encoder"] * (stop - start) / len(codes)
        frames.append(encoder._finish(one, codes[start:stop]))
        start = stop
    return frames


def _excess(shown: NDArray[np.float32], best: NDArray[np.float32], known: NDArray[np.bool_]) -> float:
    """What a picture lacks against the best one, as a share of the error of that, from the patches that are known."""
    least = float(best[known].sum(dtype=np.float64))
    if least <= 0:
        return 0.0
    excess = float(shown[known].sum(dtype=np.float64)) / least - 1
    return excess * (1 + UNKNOWN_EXCESS * (1 - float(known.mean())))


# --- choices ---------------------------------------------------------------------------------------


def choose(loss: NDArray[np.float32], life: NDArray[np.float32], allowed: float) -> tuple[NDArray[np.bool_], float]:
    """The patches that get a token so that the loss of the others sums to at most ``allowed``.

    Dynamic Token Filtering over time: patches are ranked by ``loss * life``, what a token brings for as long as it
    lasts, and the smallest number of best ones is taken that leaves out no more than is allowed.

    Returns:
        Their mask, and the ``loss * life`` of the last one that gets none (infinite where none needs one).
    """
    chosen = np.zeros(len(loss), np.bool_)
    value = loss * life
    order = np.argsort(value, kind="stable")
    # The largest number: the sum falls at first where entries are better than all tokens would be.
    below = np.flatnonzero(np.cumsum(loss[order], dtype=np.float64) <= allowed)
    dropped = int(below[-1]) + 1 if len(below) else 0
    chosen[order[dropped:]] = True
    chosen &= loss > 0
    return chosen, float(value[order[dropped]]) if dropped < len(order) else float("inf")


def box_around(marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The smallest box of whole rows and columns that holds all ``marks`` ``(h, w)``, as a mask."""
    box = np.zeros_like(marks)
    rows, columns = np.flatnonzero(marks.any(1)), np.flatnonzero(marks.any(0))
    if len(rows):
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def best_per_cell(scores: NDArray[np.float32], among: NDArray[np.bool_], cells: NDArray[np.int32]) -> NDArray[np.int64]:
    """Indices of the highest score in each cell, of the patches ``among``."""
    indices = np.flatnonzero(among)
    order = indices[np.lexsort((-scores[indices], cells[indices]))]
    first = np.ones(len(order), np.bool_)
    first[1:] = cells[order[1:]] != cells[order[:-1]]
    return order[first]


Packed = TypeVar("Packed")


def fit(packed: Callable[[int], tuple[Packed, bytes]], most: int, max_bits: int | None) -> tuple[Packed, bytes]:
    """The packet with the largest count, up to ``most``, that has at most ``max_bits``; with 0 where none has."""
    result = packed(most)
    if max_bits is None or most == 0 or 8 * len(result[1]) <= max_bits:
        return result
    result = packed(0)
    low, high, size = 0, most, 8 * len(result[1])
    while high - low > max(1, most >> 7) and size <= max_bits:
        middle = (low + high) // 2
        trial = packed(middle)
        if 8 * len(trial[1]) <= max_bits:
            low, result = middle, trial
        else:
            high = middle
    return result


def noise_limit(image: NDArray[np.uint8]) -> float:
    """Energy of the difference of two frames above which it cannot be noise: three times what one frame shows.

    The frame's noise is read off its smoothest patches, after Immerkaer, "Fast Noise Variance Estimation" (1996).

    Args:
        image: uint8 ``(H, W, 3)`` with sides that are multiples of 8.
    """
    grey = image[:, :, 1].astype(np.int32)
    twice = grey[:, :-2] - 2 * grey[:, 1:-1] + grey[:, 2:]
    residual = (twice[:-2] - 2 * twice[1:-1] + twice[2:]).astype(np.float32)
    energy = np.pad(residual * residual, 1)
    height, width = grey.shape
    patches = energy.reshape(height // PATCH, PATCH, width // PATCH, PATCH).mean((1, 3)).ravel() / 36
    patches = patches[patches > 0]
    variance = float(np.quantile(patches, NOISE_SHARE)) if len(patches) else 0.0
    return min(max(3 * 2 * variance, MIN_NOISE_LIMIT), MAX_NOISE)
