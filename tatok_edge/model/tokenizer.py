"""The tokenizer: images to token frames and back."""

from __future__ import annotations

import copyreg
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from tatok_edge.closing import Closing
from tatok_edge.errors import BackendError, InputError
from tatok_edge.format.entropy import IntegerEntropyModel
from tatok_edge.format.packet import pack, unpack
from tatok_edge.geometry import Image, patch_grid
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.model.bundle import DEFAULT_MODEL, PRECISIONS, REFINER, Bundle, Precision, open_bundle
from tatok_edge.model.decode import decode_on_cpu, decode_request, decoder_inputs
from tatok_edge.model.encode import Coding, encode_images, refine_tokens, token_frame
from tatok_edge.model.filtering import filter_tokens, fit_bits, subset, token_filter
from tatok_edge.model.networks import Clock, Networks
from tatok_edge.model.pictures import AnyImage, check_image, on_device
from tatok_edge.model.refine import Refiner
from tatok_edge.runtime.cpu import kernels
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.runtime.open import open_session
from tatok_edge.runtime.session import Backend, EncodeRequest, Session
from tatok_edge.tokens.batch import TokenBatch
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.checks import depths_of
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

if TYPE_CHECKING:
    from tatok_edge.runtime.cuda.arrays import DeviceArray, OnDevice

AnyFrame = TokenFrame | bytes | bytearray | memoryview
"""A frame, or its packet."""
Frames = TokenBatch | Sequence[AnyFrame]
"""Several frames."""

ALL_TOKENS = TokenBudget()
"""The default budget keeps every patch token."""


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """Tokens of one image, their scores, and the time that each stage took.

    Example:
        >>> result = tokenizer.encode_detailed(image)
        >>> result.scores.shape, result.seconds
        >>> fewer = tokenizer.reduce(result, tatok_edge.TokenBudget(keep=0.5))
    """

    frame: TokenFrame
    scores: NDArray[np.float32]
    """Scores of the tokens of each patch, ``(h, w, depth)``, never rising over depth: bits, or grey levels squared for
    the scores ``residual`` and ``visual``."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time per stage."""


class Tokenizer(Closing):
    """Turns images into tokens and back; safe to call from several threads.

    Make one with :meth:`load`; it is a context manager, and :meth:`close` frees the networks.

    Example:
        >>> tokenizer = tatok_edge.Tokenizer.load()
        >>> frame = tokenizer.encode(image, budget=tatok_edge.TokenBudget(keep=1.0))
        >>> packet = tokenizer.pack(frame)  # bytes
        >>> picture = tokenizer.decode(packet)  # uint8 (H, W, 3)
    """

    def __init__(self, bundle: Bundle, session: Session, backend: Backend, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.bundle = bundle
        """The model bundle."""
        self.limits = limits
        """Largest packet and picture that is decoded."""
        self.backend = backend
        """The backend of the networks, and why it was chosen."""
        self.name: Final = bundle.name
        """Name of the model."""
        self.tag: Final = bundle.tag
        """Eight bytes that name the model's content; token frames carry them."""
        self.levels: Final = bundle.levels
        """FSQ levels per code dimension."""
        self.depth: Final = bundle.depth
        """Most tokens of a patch."""
        self.vocabulary: Final = math.prod(bundle.levels)
        """Number of different token ids."""
        self.entropy_model: IntegerEntropyModel = bundle.entropy_model()
        """Integer frequencies for packets."""
        self.networks = Networks(session, bundle.context_width)
        """The networks."""
        self.coding = Coding(bundle.levels, bundle.depth, bundle.score_basis())
        """How the bundle codes patches."""
        self._refiner: Refiner | None = None
        self._refiner_session: OnnxSession | None = None
        self._opening = threading.Lock()
        self._loaded: tuple[str | Path, dict[str, Any]] | None = None

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
        limits: Limits = DEFAULT_LIMITS,
    ) -> Tokenizer:
        """Load a model.

        Args:
            name_or_path: A shipped model's name, or the path of a bundle folder or zip.
            backend: ``"auto"``, ``"onnxruntime"`` (the CPU), ``"tensorrt"`` or ``"tensorrt-rtx"``. Auto takes TensorRT
                where ``tatok build`` has made engines for this machine's GPU; :attr:`backend` says which runs and why.
            threads: CPU threads of the networks; by default the cores of this process, at most 8.
            precision: ``"fp32"``, or ``"int8"``: networks in int8, faster on CPUs. Their tokens differ from those of
                fp32 but are as good, and both precisions decode both. On a GPU, ``tatok build`` chooses the precision
                of the engines.
            engines: Folder of the TensorRT engines; by default the user's cache, where ``tatok build`` puts them.
            stream: CUDA stream to work on, of PyTorch, CuPy, pycuda or cuda-python, or its handle; by default one of
                the tokenizer's own.
            limits: Largest packet and picture that is decoded.

        Raises:
            BundleError: unknown model, damaged bundle, newer format, no int8 graphs in it.
            InputError: an unknown precision.
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
        tokenizer = cls(bundle, session, chosen, limits=limits)
        if stream is None:
            options = {"backend": backend, "threads": threads, "precision": precision, "limits": limits}
            engines = None if engines is None else Path(engines).absolute()
            tokenizer._loaded = bundle.path.absolute(), options | {"engines": engines}
        return tokenizer

    def with_session(self, session: Session) -> Tokenizer:
        """A tokenizer of the same bundle on another session. Each tokenizer closes its own session."""
        return Tokenizer(self.bundle, session, self.backend, limits=self.limits)

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
                on that GPU, through ``__cuda_array_interface__`` or DLPack, without a copy.
            budget: How many patch tokens to keep; all of them by default, which is as many per patch as the model has
                depth.
            bgr: The channels are in BGR order, as OpenCV delivers them.
            index: Frame number that the result carries.
            timestamp_us: Time in microseconds that the result carries.

        Raises:
            InputError: the image has a wrong type, shape or size, or its patches cannot be ranked.
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
        """Encode several images of any sizes into one ragged batch. One call encodes the patches of all images.

        The budget holds for each image. Every image gets the tokens that :meth:`encode` gives it.

        Raises:
            InputError: no image, or a wrong one; the message names it.
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
        if not isinstance(budget, TokenBudget):
            raise InputError(f"budget must be a TokenBudget, such as TokenBudget(keep=0.35), got {budget!r:.80}")
        names = ["image"] if len(images) == 1 else [f"images[{number}]" for number in range(len(images))]
        session = self.networks.session.frames
        refiner = self.refiner() if budget.refine else None
        frames: Sequence[Image | DeviceArray]
        if session is None:
            frames = hosted = [check_image(image, name) for image, name in zip(images, names, strict=True)]
            refine = None
            if refiner is not None:
                refine = partial(refine_tokens, refiner, self.bundle, self.entropy_model, budget, bgr, clock)
            encoded = encode_images(self.networks, hosted, budget, bgr, self.coding, clock, refine)
        else:
            frames = [on_device(image, name, session.stream) for image, name in zip(images, names, strict=True)]
            patches = [int(np.prod(patch_grid(frame.shape[1], frame.shape[0]))) for frame in frames]
            request = EncodeRequest(
                filters=[token_filter(count, budget, self.depth) for count in patches],
                levels=self.levels,
                depth=budget.depth(self.depth),
                basis=self.coding.basis,
                score=budget.score,
                with_scores=detailed or budget.max_bits is not None,
                bgr=bgr,
            )
            encoded = session.encode_frames(frames, request, clock.stage)
        results = []
        for number, (taken, tokens) in enumerate(zip(frames, encoded, strict=True)):
            height, width = taken.shape[:2]
            scores = np.empty(0, np.float32) if tokens.scores is None else tokens.scores
            with clock.stage("ids"):
                frame = token_frame(tokens, self.bundle, (width, height), indices[number], timestamps_us[number])
            if budget.max_bits is not None:
                with clock.stage("max_bits"):
                    frame = fit_bits(frame, scores, budget.max_bits, self.entropy_model)
            results.append((frame, scores.reshape(*patch_grid(width, height), -1) if scores.size else scores))
        return results

    def refiner(self) -> Refiner:
        """The refiner, opened on first use.

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

    def reduce(self, result: EncodeResult, budget: TokenBudget) -> TokenFrame:
        """Filter an encoded image again: the tokens that :meth:`encode` would keep with ``budget``.

        Args:
            result: An image encoded with the same ``score``, and with all tokens kept.
            budget: The new budget.

        Raises:
            InputError: ``result`` does not hold all tokens, or the global tokens alone exceed ``max_bits``.
        """
        if not isinstance(budget, TokenBudget):
            raise InputError(f"budget must be a TokenBudget, such as TokenBudget(keep=0.35), got {budget!r:.80}")
        frame, most = result.frame, result.frame.n_patches * self.depth
        if frame.n_tokens != most:
            raise InputError(f"result holds {frame.n_tokens} of {most} tokens; encode with all of them before reducing")
        scores = np.ascontiguousarray(result.scores.reshape(-1, self.depth)[:, : budget.depth(self.depth)])
        positions = filter_tokens(scores, token_filter(frame.n_patches, budget, self.depth))
        reduced = subset(frame, positions * np.int32(self.depth) + depths_of(positions) - 1)
        return reduced if budget.max_bits is None else fit_bits(reduced, scores, budget.max_bits, self.entropy_model)

    # --- decode -----------------------------------------------------------------------------------

    @overload
    def decode(self, frame: TokenFrame | bytes | bytearray | memoryview, *, bgr: bool = False) -> Image: ...
    @overload
    def decode(self, frame: Frames, *, bgr: bool = False) -> list[Image]: ...
    def decode(self, frame: AnyFrame | Frames, *, bgr: bool = False) -> Image | list[Image]:
        """Decode a frame to an image, uint8 ``(H, W, 3)``, RGB (or BGR); or several frames to a list of images.

        Args:
            frame: A :class:`TokenFrame`, or its packet (bytes); or a :class:`TokenBatch`, or a list of frames and
                packets.
            bgr: Write the channels in BGR order.

        Raises:
            InputError: it is none of these, belongs to another model, has ids outside the vocabulary, or is larger
                than :attr:`limits`. A delta of a stream needs the frames before it: :class:`StreamDecoder` decodes
                its packets.
            FormatError: a packet is damaged, of another model, or a delta.
        """
        if isinstance(frame, (TokenBatch, list, tuple)):
            return [self._decode(_given(self, one, f"frame[{n}]"), bgr, Clock()) for n, one in enumerate(frame)]
        return self._decode(_given(self, frame, "frame"), bgr, Clock())

    def decode_into(self, frame: TokenFrame, out: OnDevice, *, bgr: bool = False) -> None:
        """As :meth:`decode`, into an array on the tokenizer's GPU.

        Args:
            frame: The tokens.
            out: uint8 ``(H, W, 3)`` in C order, with ``__cuda_array_interface__`` or DLPack: of PyTorch, CuPy, ...
            bgr: Write the channels in BGR order.

        Raises:
            InputError: ``out`` has a wrong shape, dtype or layout, or ``frame`` does not fit the model.
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
        session.decode_into(decode_request(frame, self.bundle, bgr, clock, self.limits), target, clock.stage)

    def decode_detailed(self, frame: TokenFrame, *, bgr: bool = False) -> tuple[Image, dict[str, float]]:
        """As :meth:`decode`, with the wall time of each stage."""
        clock = Clock()
        return self._decode(frame, bgr, clock), clock.seconds

    def values(self, frame: TokenFrame) -> NDArray[np.float32]:
        """The vectors of the tokens, for policies and probes: float32 ``(T, D)``, in (-1, 1).

        Row ``t`` has the centres of the levels of ``frame.ids[t]``: what the quantizer rounded to. Close codes have
        close vectors.

        Raises:
            InputError: the frame has ids outside the vocabulary.
        """
        try:
            codes = kernels.codes_from_ids(frame.ids, self.levels)
        except ValueError as error:
            raise InputError(f"the frame does not fit model {self.name}: {error}") from None
        doubled = (2 * codes + 1).astype(np.float32)
        values: NDArray[np.float32] = np.subtract(doubled / np.array(self.levels, np.float32), 1, dtype=np.float32)
        return values

    def features(self, frame: TokenFrame) -> NDArray[np.float32]:
        """What the decoder knows of every patch, for policies and probes: float32 ``(h, w, C)``.

        The channels of a patch are, for a model of depth K with D code dimensions: ``K * D`` code values, of dropped
        tokens their conditional mean; K bits, 1 for a kept token; K conditional entropies over 16 bits; the context,
        which comes from the global tokens; 192 mean pixels in [-1, 1], in (y, x, rgb) order.

        Raises:
            InputError: the frame belongs to another model, or has ids outside the vocabulary.
        """
        clock = Clock()
        request = decode_request(frame, self.bundle, False, clock, self.limits)
        parts = np.concatenate(decoder_inputs(self.networks, request, clock))
        return np.ascontiguousarray(parts.T).reshape(*frame.grid, -1)

    def _decode(self, frame: TokenFrame, bgr: bool, clock: Clock) -> Image:
        request = decode_request(frame, self.bundle, bgr, clock, self.limits)
        session = self.networks.session.frames
        if session is None:
            return decode_on_cpu(self.networks, request, clock)
        return session.decode_frame(request, clock.stage)

    # --- packets ----------------------------------------------------------------------------------

    def pack(self, frame: TokenFrame) -> bytes:
        """The frame as one self-delimiting, CRC-checked packet (``docs/format.md``)."""
        return pack(frame, self.entropy_model)

    def unpack(self, data: bytes | bytearray | memoryview) -> TokenFrame:
        """The frame of a packet.

        Raises:
            FormatError: damaged, truncated or foreign data, or larger than :attr:`limits`.
        """
        return unpack(data, self.entropy_model, limits=self.limits)

    # --- the rest ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the networks."""
        self.networks.session.close()
        if self._refiner_session is not None:
            self._refiner_session.close()

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, tag={self.tag.hex()}, backend={self.backend})"


def _given(tokenizer: Tokenizer, given: object, name: str) -> TokenFrame:
    """A frame that is given as such, or as a packet.

    Raises:
        InputError: It is neither; the message says what to do.
    """
    if isinstance(given, TokenFrame):
        return given
    if isinstance(given, (bytes, bytearray, memoryview)):
        return tokenizer.unpack(given)
    hint = ""
    if isinstance(given, DeltaFrame):
        hint = ": it changes the picture before it; StreamDecoder decodes the packets of a stream"
    elif isinstance(given, EncodeResult):
        hint = ": give its field frame"
    elif isinstance(given, (str, Path)):
        hint = ": tatok_edge.open reads token files"
    raise InputError(
        f"{name} must be a TokenFrame, its packet (bytes), a TokenBatch or a list, got {type(given).__name__}{hint}"
    )


def _pickled(tokenizer: Tokenizer) -> tuple[Any, ...]:
    """How another process (a spawned worker, a data loader) gets the tokenizer: it loads the model again."""
    if tokenizer._loaded is None:
        raise TypeError("this Tokenizer cannot be pickled: only one that Tokenizer.load made without a stream can")
    return _load_again, tokenizer._loaded


def _load_again(path: str | Path, options: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a pickle."""
    return Tokenizer.load(path, **options)


copyreg.pickle(Tokenizer, _pickled)
