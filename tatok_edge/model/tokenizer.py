"""The tokenizer: images to token frames and back."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Union, cast

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import BackendError, InputError
from tatok_edge.format.entropy import IntegerEntropyModel
from tatok_edge.format.packet import pack, unpack
from tatok_edge.geometry import CELL, MAX_SIDE, MIN_SIDE, PATCH, Image, cell_grid, patch_grid
from tatok_edge.model.bundle import DEFAULT_MODEL, PRECISIONS, REFINER, Bundle, Precision, open_bundle
from tatok_edge.model.networks import Clock, Networks, Prior
from tatok_edge.model.refine import Rates, Refiner
from tatok_edge.runtime.cpu import kernels
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.runtime.open import open_session
from tatok_edge.runtime.session import Backend, DecodeRequest, EncodeRequest, Session, TokenFilter
from tatok_edge.tokens.batch import TokenBatch
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.frame import TokenFrame

if TYPE_CHECKING:
    from tatok_edge.runtime.cuda.arrays import DeviceArray, OnDevice

AnyImage = Union[Image, "OnDevice"]
"""An image on the host or, for a tokenizer on a GPU, in its memory: an array of PyTorch, CuPy, pycuda, ..."""

ALL_TOKENS = TokenBudget()
"""The default budget keeps every patch token."""


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """Tokens of one image and how they came about."""

    frame: TokenFrame
    scores: NDArray[np.float32]
    """What the patches were ranked by, ``(h, w)``: bits, or grey levels squared for the score ``residual``."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time per stage."""


class _Tokens(NamedTuple):
    """Tokens of one image, as codes."""

    global_codes: NDArray[np.int32]  # (D, hc, wc)
    positions: NDArray[np.int32]  # (T,)
    codes: NDArray[np.int32]  # (T, D)
    scores: NDArray[np.float32]  # (N,), or none at all where nobody needs them


class Tokenizer:
    """Turns images into tokens and back; safe to call from several threads.

    Make one with :meth:`load`; it is a context manager, and :meth:`close` frees the networks.
    """

    def __init__(self, bundle: Bundle, session: Session, backend: Backend) -> None:
        self.bundle = bundle
        """The model bundle."""
        self.backend = backend
        """What runs the networks, and why."""
        self.entropy_model: IntegerEntropyModel = bundle.entropy_model()
        """Integer frequencies for packets."""
        self.networks = Networks(session, bundle.context_width)
        """The networks."""
        self._refiner: Refiner | None = None
        self._refiner_session: OnnxSession | None = None
        self._opening = threading.Lock()

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = DEFAULT_MODEL,
        *,
        backend: str = "auto",
        threads: int | None = None,
        precision: Precision = "fp32",
        engines: str | Path | None = None,
        stream: Any = None,
    ) -> Tokenizer:
        """Load a model.

        Args:
            name_or_path: A shipped model's name, or the path of a bundle folder or zip.
            backend: ``"auto"``, ``"onnxruntime"`` (the CPU), ``"tensorrt"`` or ``"tensorrt-rtx"``. Auto takes TensorRT
                where ``tatok build`` has made engines for this machine's GPU; :attr:`backend` says what runs and why.
            threads: CPU threads of the networks; by default the cores of this process, at most 8.
            precision: ``"fp32"``, or ``"int8"``: a decoder in int8, faster on CPUs, for the same tokens. On a GPU,
                ``tatok build`` chooses the precision of the engines.
            engines: Folder of the TensorRT engines; by default the user's cache, where ``tatok build`` puts them.
            stream: CUDA stream to work on, of PyTorch, CuPy, pycuda or cuda-python, or its handle; by default one of
                the tokenizer's own.

        Raises:
            BundleError: unknown model, damaged bundle, newer format, no int8 decoder in it.
            InputError: a precision that there is not.
            BackendError: the backend cannot run here.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        bundle = open_bundle(name_or_path)
        graphs = bundle.graphs(precision)
        session, chosen = open_session(
            graphs,
            backend=backend,
            threads=threads,
            precision=precision,
            engines=engines,
            model=str(name_or_path),
            stream=stream,
        )
        return cls(bundle, session, chosen)

    def with_session(self, session: Session) -> Tokenizer:
        """A tokenizer of the same bundle whose networks run on another session; each closes its own."""
        return Tokenizer(self.bundle, session, self.backend)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.bundle.name

    @property
    def tag(self) -> bytes:
        """Eight bytes that name the model's content; token frames carry them."""
        return self.bundle.tag

    @property
    def levels(self) -> tuple[int, ...]:
        """FSQ levels per code dimension."""
        return self.bundle.levels

    @property
    def vocabulary(self) -> int:
        """Number of different token ids."""
        return int(np.prod(self.levels))

    # --- encode ----------------------------------------------------------------------------------

    def encode(
        self,
        image: AnyImage,
        *,
        budget: TokenBudget = ALL_TOKENS,
        bgr: bool = False,
        index: int = 0,
        timestamp_us: int = 0,
    ) -> TokenFrame:
        """Encode one image.

        Args:
            image: uint8 ``(H, W, 3)``, RGB, at least 32x32 pixels, any strides. A tokenizer on a GPU also takes arrays
                in its memory, through ``__cuda_array_interface__`` or DLPack, without a copy.
            budget: How many patch tokens to keep; all of them by default.
            bgr: The channels are in BGR order, as OpenCV delivers them.
            index: Frame number that the result carries.
            timestamp_us: Time in microseconds that the result carries.

        Raises:
            InputError: an image or budget that cannot be taken.
        """
        return self._encode([image], [index], [timestamp_us], budget, bgr, Clock(), detailed=False)[0][0]

    def encode_detailed(
        self,
        image: AnyImage,
        *,
        budget: TokenBudget = ALL_TOKENS,
        bgr: bool = False,
        index: int = 0,
        timestamp_us: int = 0,
    ) -> EncodeResult:
        """As :meth:`encode`, with the scores and the time of each stage."""
        clock = Clock()
        results = self._encode([image], [index], [timestamp_us], budget, bgr, clock, detailed=True)
        frame, scores = results[0]
        return EncodeResult(frame, scores, clock.seconds)

    def encode_batch(
        self,
        images: Sequence[AnyImage],
        *,
        budget: TokenBudget = ALL_TOKENS,
        bgr: bool = False,
        indices: Sequence[int] | None = None,
        timestamps_us: Sequence[int] | None = None,
    ) -> TokenBatch:
        """Encode several images, of any sizes, into one ragged batch; the patches of all go through one call.

        The budget holds for each image. Every image gets the tokens that :meth:`encode` gives it.

        Raises:
            InputError: no image, or one that cannot be taken; the message says which.
        """
        if len(images) == 0:
            raise InputError("encode_batch takes at least one image, got none")
        numbers = list(indices) if indices is not None else list(range(len(images)))
        times = list(timestamps_us) if timestamps_us is not None else [0] * len(images)
        if len(numbers) != len(images) or len(times) != len(images):
            raise InputError(f"indices and timestamps_us must be as many as the {len(images)} images")
        results = self._encode(images, numbers, times, budget, bgr, Clock(), detailed=False)
        return TokenBatch.from_frames([frame for frame, _ in results])

    def _encode(
        self,
        images: Sequence[AnyImage],
        indices: Sequence[int],
        timestamps_us: Sequence[int],
        budget: TokenBudget,
        bgr: bool,
        clock: Clock,
        *,
        detailed: bool,
    ) -> list[tuple[TokenFrame, NDArray[np.float32]]]:
        names = ["image"] if len(images) == 1 else [f"images[{number}]" for number in range(len(images))]
        session = self.networks.session.frames
        if budget.refine:
            self.refiner()
        if session is None:
            hosted: list[Image] = []
            for image, name in zip(images, names, strict=True):
                check_image(image, name)
                hosted.append(cast("Image", image))
            frames: Sequence[Image | DeviceArray] = hosted
            encoded = self._tokens(hosted, budget, bgr, clock)
        else:
            frames = [_on_device(image, name, session.stream) for image, name in zip(images, names, strict=True)]
            patches = [int(np.prod(patch_grid(frame.shape[1], frame.shape[0]))) for frame in frames]
            request = EncodeRequest(
                filters=[_token_filter(count, budget) for count in patches],
                levels=self.levels,
                score=budget.score,
                with_scores=detailed or budget.max_bits is not None,
                bgr=bgr,
            )
            encoded = [
                _Tokens(
                    made.global_codes,
                    made.positions,
                    made.codes,
                    np.empty(0, np.float32) if made.scores is None else made.scores,
                )
                for made in session.encode_frames(frames, request, clock.stage)
            ]
        results = []
        for number, (taken, tokens) in enumerate(zip(frames, encoded, strict=True)):
            height, width = taken.shape[:2]
            with clock.stage("ids"):
                frame = self._frame(tokens, (width, height), indices[number], timestamps_us[number])
            if budget.max_bits is not None:
                with clock.stage("max_bits"):
                    frame = self._fit_bits(frame, tokens.scores, budget.max_bits)
            results.append((frame, tokens.scores.reshape(patch_grid(width, height) if tokens.scores.size else -1)))
        return results

    def _frame(self, tokens: _Tokens, size: tuple[int, int], index: int = 0, timestamp_us: int = 0) -> TokenFrame:
        """The frame of tokens, for an image of ``size`` (width, height)."""
        global_codes = np.ascontiguousarray(tokens.global_codes.reshape(len(self.levels), -1).T)
        return TokenFrame(
            ids=kernels.ids_from_codes(tokens.codes, self.levels),
            positions=tokens.positions,
            global_ids=kernels.ids_from_codes(global_codes, self.levels),
            width=size[0],
            height=size[1],
            model=self.tag,
            index=index,
            timestamp_us=timestamp_us,
        )

    def _tokens(self, images: Sequence[Image], budget: TokenBudget, bgr: bool, clock: Clock) -> list[_Tokens]:
        """Tokens of checked images, with what is between the networks on the CPU."""
        globals_, priors = [], []
        for image in images:
            codes = self.networks.global_codes(image, bgr, clock)
            priors.append(self.networks.prior(codes, clock))
            globals_.append(codes)
        # Where neither score nor refining needs the other codes, only what is kept is encoded.
        by_information = budget.score == "information"
        everything = by_information or budget.refine > 0
        ranked: list[NDArray[np.float32]] = []
        if not by_information:
            with clock.stage("score"):
                pairs = zip(images, priors, strict=True)
                ranked = [_score(image, bgr, prior, budget.score) for image, prior in pairs]
        if everything:
            kept = [np.arange(prior.entropy.size, dtype=np.int32) for prior in priors]
        else:
            with clock.stage("dtf"):
                kept = [_filter(scores, budget) for scores in ranked]
        codes_of = self._patch_codes(images, bgr, priors, kept, clock)
        results = []
        for number, prior in enumerate(priors):
            positions, codes = kept[number], codes_of[number]
            if by_information:
                with clock.stage("score"):
                    scores = kernels.information(prior.log2_probs, codes, positions, self.levels)
            else:
                scores = ranked[number]
            if everything:
                with clock.stage("dtf"):
                    positions = _filter(scores, budget)
                with clock.stage("ids"):
                    every, codes = codes, codes[positions]
            tokens = _Tokens(globals_[number], positions, codes, scores)
            if budget.refine:
                if budget.max_bits is not None:  # tokens that do not fit would only mislead the others
                    with clock.stage("max_bits"):
                        height, width = images[number].shape[:2]
                        fitting = self._fit_bits(self._frame(tokens, (width, height)), scores, budget.max_bits)
                        positions = fitting.positions
                rates = self.rates(globals_[number])
                positions, codes = self.refiner().refine(
                    images[number], bgr, prior, every, positions, rates, budget.refine, clock, scores=scores
                )
                tokens = _Tokens(globals_[number], positions, codes, scores)
            results.append(tokens)
        return results

    def refiner(self) -> Refiner:
        """What a budget with ``refine`` needs and others never do: opened when it is first asked for.

        Raises:
            BackendError: the tokenizer does not run on the CPU.
            BundleError: the bundle has no refiner.
        """
        if self.backend.name != "onnxruntime":
            raise BackendError(
                f"refining works on the CPU, and this tokenizer runs {self.backend}: load it with backend "
                "'onnxruntime', or take a budget with refine 0"
            )
        with self._opening:
            if self._refiner is None:
                graph, curvature = self.bundle.refiner()
                self._refiner_session = OnnxSession({REFINER: graph}, threads=self.backend.threads)
                self._refiner = Refiner(self._refiner_session, curvature, self.levels)
            return self._refiner

    def rates(self, global_codes: NDArray[np.int32]) -> Rates:
        """What patch tokens cost under global tokens with codes ``(D, hc, wc)``, for the refiner."""
        dims, hc, wc = global_codes.shape
        rows = np.ascontiguousarray(global_codes.reshape(dims, -1).T)
        grid = (hc * (CELL // PATCH), wc * (CELL // PATCH))
        return lambda codes, positions: self.entropy_model.patch_log2_probs(codes, positions, rows, grid)

    def _patch_codes(
        self,
        images: Sequence[Image],
        bgr: bool,
        priors: Sequence[Prior],
        kept: Sequence[NDArray[np.int32]],
        clock: Clock,
    ) -> list[NDArray[np.int32]]:
        """Codes ``(T, D)`` of the patches ``kept`` of each image, all through one flat batch."""
        counts = [len(positions) for positions in kept]
        if sum(counts) == 0:
            return [np.zeros((0, len(self.levels)), np.int32) for _ in images]
        with clock.stage("gather"):
            features = self.networks.features(sum(counts))
            start = 0
            for image, prior, positions in zip(images, priors, kept, strict=True):
                columns = patch_grid(image.shape[1], image.shape[0])[1]
                rows = features[start : start + len(positions)]
                kernels.gather_features(image, bgr, prior.context, prior.mean, positions, columns, out=rows)
                start += len(positions)
        codes = self.networks.patch_codes(features, clock)
        return list(np.split(codes, np.cumsum(counts)[:-1]))

    def reduce(self, result: EncodeResult, budget: TokenBudget) -> TokenFrame:
        """Filter an encoded image again: the tokens that :meth:`encode` would keep with ``budget``.

        Args:
            result: An image encoded with the same ``score``, and with all patches kept.
            budget: The new budget.

        Raises:
            InputError: ``result`` does not hold all patches, or even no token at all is above ``max_bits``.
        """
        frame = result.frame
        if frame.n_tokens != frame.n_patches:
            raise InputError(
                f"result holds {frame.n_tokens} of {frame.n_patches} patches; encode with all of them before reducing"
            )
        scores = result.scores.reshape(-1)
        reduced = _subset(frame, _filter(scores, budget))
        return reduced if budget.max_bits is None else self._fit_bits(reduced, scores, budget.max_bits)

    def _fit_bits(self, frame: TokenFrame, scores: NDArray[np.float32], max_bits: int) -> TokenFrame:
        """The largest number of best tokens whose packet has at most ``max_bits``."""
        kept = np.ascontiguousarray(scores[frame.positions])

        def best(count: int) -> TokenFrame:
            return frame if count >= frame.n_tokens else _subset(frame, _filter(kept, TokenBudget(max_tokens=count)))

        def bits(candidate: TokenFrame) -> int:
            return 8 * len(self.pack(candidate))

        if bits(frame) <= max_bits:
            return frame
        low, high, smallest = 0, frame.n_tokens, bits(best(0))
        if smallest > max_bits:
            raise InputError(
                f"max_bits = {max_bits} is less than the {smallest} bits that a {frame.width}x{frame.height} image "
                "needs for its global tokens alone; allow more bits or make the image smaller"
            )
        while high - low > 1:
            middle = (low + high) // 2
            if bits(best(middle)) <= max_bits:
                low = middle
            else:
                high = middle
        return best(low)

    # --- decode -----------------------------------------------------------------------------------

    def decode(self, frame: TokenFrame, *, bgr: bool = False) -> Image:
        """Decode one frame to an image, uint8 ``(H, W, 3)``, RGB (or BGR).

        Raises:
            InputError: the frame belongs to another model, or has ids outside the vocabulary.
        """
        return self._decode(frame, bgr, Clock())

    def decode_into(self, frame: TokenFrame, out: OnDevice, *, bgr: bool = False) -> None:
        """As :meth:`decode`, into memory of the GPU that the tokenizer works on.

        Args:
            frame: The tokens.
            out: uint8 ``(H, W, 3)`` in C order, with ``__cuda_array_interface__`` or DLPack: of PyTorch, CuPy, ...
            bgr: The channels in BGR order.

        Raises:
            InputError: another shape, dtype or layout, or a frame that :meth:`decode` does not take.
            BackendError: the tokenizer does not prepare frames on a GPU; :attr:`backend` says why.
        """
        session = self.networks.session.frames
        if session is None:
            raise BackendError(
                f"decode_into needs a tokenizer that prepares frames on a GPU; this one runs {self.backend}"
            )
        from tatok_edge.runtime.cuda.arrays import device_array

        target = device_array(out, stream=session.stream)
        if target.dtype != np.uint8 or target.shape != (frame.height, frame.width, 3) or not target.contiguous:
            raise InputError(
                f"out must be uint8 {(frame.height, frame.width, 3)} in C order, got {target.dtype} {target.shape}"
                f"{'' if target.contiguous else ' with gaps or in another order'}"
            )
        clock = Clock()
        session.decode_into(self._decode_request(frame, bgr, clock), target, clock.stage)

    def decode_detailed(self, frame: TokenFrame, *, bgr: bool = False) -> tuple[Image, dict[str, float]]:
        """As :meth:`decode`, with the wall time of each stage."""
        clock = Clock()
        return self._decode(frame, bgr, clock), clock.seconds

    def decode_batch(self, batch: TokenBatch, *, bgr: bool = False) -> list[Image]:
        """Decode every frame of a ragged batch."""
        return [self.decode(frame, bgr=bgr) for frame in batch.frames()]

    def _decode_request(self, frame: TokenFrame, bgr: bool, clock: Clock) -> DecodeRequest:
        """The codes of a frame's tokens."""
        if frame.model != self.tag:
            raise InputError(
                f"the frame was made by model {frame.model.hex()}, this is {self.name} {self.tag.hex()}: "
                "decode it with the model that encoded it"
            )
        hc, wc = cell_grid(frame.width, frame.height)
        with clock.stage("ids"):
            try:
                global_codes = kernels.codes_from_ids(frame.global_ids, self.levels)
                codes = kernels.codes_from_ids(frame.ids, self.levels)
            except ValueError as error:
                raise InputError(f"the frame does not fit model {self.name}: {error}") from None
        cells = global_codes.T.reshape(len(self.levels), hc, wc)
        return DecodeRequest(
            global_codes=cells,
            positions=frame.positions,
            codes=codes,
            levels=self.levels,
            size=(frame.height, frame.width),
            bgr=bgr,
        )

    def _decode(self, frame: TokenFrame, bgr: bool, clock: Clock) -> Image:
        request = self._decode_request(frame, bgr, clock)
        session = self.networks.session.frames
        if session is not None:
            return session.decode_frame(request, clock.stage)
        rows, columns = patch_grid(frame.width, frame.height)
        prior = self.networks.prior(request.global_codes, clock)
        with clock.stage("scatter"):
            state = kernels.decoder_state(request.codes, request.positions, prior.expected, prior.entropy, self.levels)
        pixels = self.networks.pixels(state, prior.context, prior.mean, (rows, columns), clock)
        with clock.stage("assemble"):
            return kernels.assemble(pixels, columns, frame.height, frame.width, bgr)

    # --- packets ----------------------------------------------------------------------------------

    def pack(self, frame: TokenFrame) -> bytes:
        """The frame as one self-delimiting, CRC-checked packet (``docs/format.md``)."""
        return pack(frame, self.entropy_model)

    def unpack(self, data: bytes | bytearray | memoryview) -> TokenFrame:
        """The frame of a packet.

        Raises:
            FormatError: damaged, truncated or foreign data.
        """
        return unpack(data, self.entropy_model)

    # --- the rest ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the networks."""
        self.networks.session.close()
        if self._refiner_session is not None:
            self._refiner_session.close()

    def __enter__(self) -> Tokenizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, tag={self.tag.hex()}, backend={self.backend})"


def check_image(image: object, name: str = "image") -> None:
    """Check that ``image`` is uint8 ``(H, W, 3)`` of 32 to 16384 pixels a side.

    Raises:
        InputError: names what came and what is allowed.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"{name} must be a numpy array uint8 (H, W, 3), got {type(image).__name__}")
    _check_pixels(image.dtype, image.shape, name)


def _check_pixels(dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> None:
    if dtype != np.uint8:
        raise InputError(f"{name} must be uint8 with values 0 to 255, got {dtype}; convert it first")
    if len(shape) != 3 or shape[2] != 3:
        raise InputError(f"{name} must have shape (H, W, 3), got {shape}")
    height, width = shape[:2]
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise InputError(
            f"{name} is {width}x{height} pixels; width and height must be between {MIN_SIDE} and {MAX_SIDE}"
        )


def _on_device(image: object, name: str, stream: int) -> Image | DeviceArray:
    """The image as a session that takes frames wants it: an array of the host, or what describes one on the GPU."""
    from tatok_edge.runtime.cuda.arrays import device_array, is_on_device

    if not is_on_device(image):
        check_image(image, name)
        return cast("Image", image)
    try:
        array = device_array(image, stream=stream)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    _check_pixels(array.dtype, array.shape, name)
    return array


def _subset(frame: TokenFrame, chosen: NDArray[np.int32]) -> TokenFrame:
    """The tokens ``chosen`` (indices into the frame's tokens, rising) of a frame."""
    return dataclasses.replace(frame, ids=frame.ids[chosen], positions=frame.positions[chosen])


def _score(image: Image, bgr: bool, prior: Prior, score: str) -> NDArray[np.float32]:
    """Scores ``(N,)`` of all patches that do not need their codes."""
    if score == "entropy":
        return prior.entropy
    everything = np.arange(prior.entropy.size, dtype=np.int32)
    columns = patch_grid(image.shape[1], image.shape[0])[1]
    return kernels.patch_residual(image, bgr, prior.mean, everything, everything, columns)


def _token_filter(patches: int, budget: TokenBudget) -> TokenFilter:
    """What a budget means for an image with so many patches."""
    smallest, largest = budget.limits(patches)
    return TokenFilter(budget.tau, smallest, largest, budget.floor_bits)


def _filter(scores: NDArray[np.float32], budget: TokenBudget) -> NDArray[np.int32]:
    """Dynamic Token Filtering of one image: kept positions in raster order."""
    limits = _token_filter(scores.size, budget)
    try:
        indices, _ = kernels.dtf(
            scores[None],
            tau=limits.tau,
            min_tokens=limits.min_tokens,
            max_tokens=limits.max_tokens,
            floor_bits=limits.floor_bits,
        )
    except ValueError as error:
        raise InputError(f"patches cannot be ranked: {error}") from None
    return indices
