"""Profiles: the frame sizes and the ragged token counts that engines are built for, and how to choose them.

The patch encoder takes a flat batch of as many patches as the frame needs. A captured CUDA graph runs a fixed number of
rows, so a count is padded to the next *edge*. :func:`count_tokens` records a histogram of counts on the user's own
video; :func:`optimal_buckets` places the edges that waste least on this histogram.

A profile file is JSON::

    {"format_version": 1,
     "tokens": [128, 512, 2048, 4800],
     "frames": [{"batch": [1, 1, 4], "height": [32, 480, 480], "width": [32, 640, 640]}]}

``tokens`` holds the edges, ascending: rows of the patch encoder, one for each patch with tokens. ``frames`` holds the
smallest, best and largest value of each dimension, heights and widths being multiples of 32.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError
from tatok_edge.files import read_json
from tatok_edge.geometry import CELL, MAX_SIDE, PATCH, PATCH_VALUES, WINDOW_VALUES, patch_grid
from tatok_edge.runtime.session import GraphName, Session, Tensors
from tatok_edge.runtime.tensorrt.choice import smallest_fitting
from tatok_edge.runtime.tensorrt.manifest import Profile, ShapeRange

if TYPE_CHECKING:
    from tatok_edge.model.bundle import Bundle
    from tatok_edge.model.tokenizer import Tokenizer
    from tatok_edge.tokens.budget import TokenBudget

__all__ = [
    "FrameRange",
    "ProfileSet",
    "calibrate",
    "calibrated_edges",
    "count_tokens",
    "default_profiles",
    "equal_width",
    "graph_profiles",
    "histogram_of",
    "load_profiles",
    "optimal_buckets",
    "parse_profiles",
    "smallest_fitting",
    "waste",
]

FORMAT_VERSION = 1
MAX_TOKENS = 1 << 20
MAX_BUCKETS = 32
MAX_FRAMES = 16
MAX_FILE_BYTES = 1 << 20
BUCKETS = 8
"""Buckets of a calibration. With four, streams compute too many padded rows (``benchmarks/results/profiles.md``)."""
NEAR = {0.8: 60, 0.9: 60, 1.1: 60, 1.25: 60, 1.5: 60}
"""By multiple of a count: thousandths of its frames that a calibration expects there."""
LADDER_STEP, LADDER_END, LADDER_SHARE = 1.35, 8, 100
"""Ratio of neighbouring counts of the ladder, its last one, and the thousandths of all frames expected on it."""
CountAs = Literal["stream", "frames"]
COUNT_AS: tuple[CountAs, ...] = ("stream", "frames")
MAX_PATCHES = 1 << 21
"""Patches of a batch of frames: above it, the widest layer has more values than TensorRT can index."""


# --- edges ----------------------------------------------------------------------------------------


def optimal_buckets(histogram: Mapping[int, int], k: int, low: int, high: int) -> list[int]:
    """The edges of at most ``k`` buckets that minimise the expected padded work; exact, by dynamic programming.

    A count ``t`` is padded to the smallest edge that is at least ``t``. Given the histogram, the padding of all counts
    is the sum of ``edge - t``, and some best set of edges lies on counts that occur, with ``high`` as the last one.

    Args:
        histogram: How often each count of patches occurred; counts of 0 cost nothing and are left out.
        k: Largest number of buckets.
        low: Smallest count that may occur.
        high: Largest count that may occur: the last edge.

    Raises:
        InputError: counts outside ``low`` to ``high``, or limits that make no sense.
    """
    counts = _check_histogram(histogram, low, high)
    if not 1 <= k <= MAX_BUCKETS:
        raise InputError(f"the number of buckets must be 1 to {MAX_BUCKETS}, got {k}")
    values = sorted({*counts, high})
    # total[j]: how many frames have a count among the first j values.
    total = [0]
    for value in values:
        total.append(total[-1] + counts.get(value, 0))
    size = len(values)
    # best[j]: least sum of edge * frames over the first j values, with edges among them, the last at value j - 1.
    best: list[float] = [0.0] + [float("inf")] * size
    origins: list[list[int]] = []
    for _ in range(min(k, size)):
        best, origin = _add_edge(values, total, best)
        origins.append(origin)
    # More edges never cost more, but as many as needed are enough: the extra ones hold no frame.
    edges, j = [], size
    for origin in reversed(origins):
        if j == 0:
            break
        edges.append(values[j - 1])
        j = origin[j]
    return edges[::-1]


def _add_edge(values: Sequence[int], total: Sequence[int], best: Sequence[float]) -> tuple[list[float], list[int]]:
    """One more bucket: ``min over i < j of best[i] + values[j - 1] * (total[j] - total[i])`` for every ``j``.

    As functions of the edge, the terms are lines with falling slopes ``-total[i]``, asked at rising edges, so their
    lower envelope gives all minima in linear time.
    """
    new: list[float] = [float("inf")] * len(best)
    origin = [0] * len(best)
    new[0] = 0.0  # fewer edges than allowed
    hull: list[int] = []
    first = 0

    def worse(a: int, b: int, c: int) -> bool:
        """Whether line b is nowhere below both a and c."""
        return (best[c] - best[a]) * (total[b] - total[a]) <= (best[b] - best[a]) * (total[c] - total[a])

    for j in range(1, len(best)):
        i = j - 1
        if best[i] != float("inf"):
            while len(hull) - first >= 2 and worse(hull[-2], hull[-1], i):
                hull.pop()
            hull.append(i)
        edge = values[j - 1]
        while len(hull) - first >= 2 and _line(best, total, hull[first + 1], edge) <= _line(
            best, total, hull[first], edge
        ):
            first += 1
        if len(hull) > first:
            origin[j] = hull[first]
            new[j] = _line(best, total, hull[first], edge) + edge * total[j]
    return new, origin


def _line(best: Sequence[float], total: Sequence[int], i: int, edge: int) -> float:
    return best[i] - edge * total[i]


def equal_width(k: int, low: int, high: int) -> list[int]:
    """Edges of ``k`` buckets of the same width up to ``high``, for comparison."""
    if not 1 <= low <= high or k < 1:
        raise InputError(f"equal buckets need 1 <= low <= high and k >= 1, got {low}, {high}, {k}")
    width = high - low + 1
    return sorted({low - 1 + -(-width * (i + 1) // k) for i in range(k)})


def waste(histogram: Mapping[int, int], edges: Sequence[int]) -> float:
    """Padded rows per needed row: 0.1 means one wasted row for ten needed ones.

    Raises:
        InputError: a count above the last edge.
    """
    counts = _check_histogram(histogram, 1, edges[-1])
    needed = sum(t * n for t, n in counts.items())
    padded = sum((edges[smallest_fitting(edges, t)] - t) * n for t, n in counts.items())
    return padded / needed if needed else 0.0


def calibrated_edges(histogram: Mapping[int, int], k: int, high: int) -> list[int]:
    """The edges of at most ``k`` buckets, from a histogram that is only a sample.

    Edges that fit a sample exactly are bad for later frames: a frame with one row more than the largest count so far is
    padded to ``high``. So a part of every count is spread over its neighbourhood (:data:`NEAR`), and a part of all
    counts over a ladder up to ``high``. Trained on the first halves of clips, these edges waste a third as much on the
    second halves as exact edges (``benchmarks/results/profiles.md``).

    Args:
        histogram: How often each count of patches occurred.
        k: Largest number of buckets.
        high: Largest count that may occur: the last edge.

    Raises:
        InputError: counts outside 1 to ``high``.
    """
    weights: Counter[int] = Counter()
    for t, n in _check_histogram(histogram, 1, high).items():
        weights[t] += n * (1000 - sum(NEAR.values()))
        for factor, share in NEAR.items():
            weights[min(high, max(1, round(t * factor)))] += n * share
    ladder = [high]
    while ladder[-1] > LADDER_END:
        ladder.append(max(LADDER_END, round(ladder[-1] / LADDER_STEP)))
    anywhere = sum(weights.values()) * LADDER_SHARE // 1000
    for t in ladder:
        weights[t] += anywhere // len(ladder)
    return optimal_buckets(weights, k, 1, high)


def _check_histogram(histogram: Mapping[int, int], low: int, high: int) -> dict[int, int]:
    if not 1 <= low <= high <= MAX_TOKENS:
        raise InputError(f"token counts must be from 1 to {MAX_TOKENS}, rising, got {low} to {high}")
    for t, n in histogram.items():
        if n < 0 or t < 0 or (n and t and not low <= t <= high):
            raise InputError(f"the histogram has {n} frames of {t} tokens; counts must be from {low} to {high}")
    return {t: n for t, n in histogram.items() if t and n}


# --- profile sets ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrameRange:
    """Sizes of frames, padded to multiples of 32, that one profile takes: smallest, best, largest."""

    batch: tuple[int, int, int]
    height: tuple[int, int, int]
    width: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ProfileSet:
    """All profiles of a model's engines."""

    tokens: tuple[int, ...]
    """Edges of the buckets of the patch encoder, ascending."""
    frames: tuple[FrameRange, ...]
    """Ranges for the graphs that take whole frames."""
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Origin of the edges, for people."""

    def to_json(self) -> dict[str, Any]:
        """The content of a profile file."""
        return {
            "format_version": FORMAT_VERSION,
            "tokens": list(self.tokens),
            "frames": [{"batch": list(f.batch), "height": list(f.height), "width": list(f.width)} for f in self.frames],
        }

    @property
    def tag(self) -> str:
        """SHA-256 that names the set."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def default_profiles() -> ProfileSet:
    """The profiles without a calibration: small pictures, VGA, 720p and 1080p, and edges that grow fourfold."""
    frames = (
        FrameRange((1, 1, 4), (32, 256, 512), (32, 256, 512)),
        FrameRange((1, 1, 4), (32, 480, 640), (32, 640, 640)),
        FrameRange((1, 1, 1), (32, 736, 736), (32, 1280, 1280)),
        FrameRange((1, 1, 1), (32, 1088, 1088), (32, 1920, 1920)),
    )
    return ProfileSet((128, 512, 2048, 8192, _most_patches(frames)), frames, {"source": "default"})


def load_profiles(path: Path) -> ProfileSet:
    """Reads a profile file.

    Raises:
        InputError: the file cannot be read, or no engine can be built for its content.
    """
    return parse_profiles(read_json(path, MAX_FILE_BYTES, InputError), str(path))


def parse_profiles(data: Any, where: str) -> ProfileSet:
    """Checks the content of a profile file. TensorRT itself checks little of this.

    Raises:
        InputError: an entry is wrong; the message names it, its value and the allowed values.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: must be a JSON object with 'tokens' and 'frames'")
    if data.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{where}: 'format_version' is {data.get('format_version')!r}, this version reads {FORMAT_VERSION}"
        )
    unknown = set(data) - {"format_version", "tokens", "frames"}
    if unknown:
        raise InputError(f"{where}: unknown entry {min(unknown)!r}; it takes 'tokens' and 'frames'")
    tokens, frames = data.get("tokens"), data.get("frames")
    if not isinstance(tokens, list) or not 1 <= len(tokens) <= MAX_BUCKETS:
        raise InputError(f"{where}: 'tokens' must be a list of 1 to {MAX_BUCKETS} edges")
    for number, edge in enumerate(tokens):
        if not _is_int(edge) or not 1 <= edge <= MAX_TOKENS:
            raise InputError(f"{where}: tokens[{number}] must be an integer from 1 to {MAX_TOKENS}, got {edge!r}")
        if number and edge <= tokens[number - 1]:
            raise InputError(f"{where}: 'tokens' must rise, but {edge} follows {tokens[number - 1]}")
    if not isinstance(frames, list) or not 1 <= len(frames) <= MAX_FRAMES:
        raise InputError(f"{where}: 'frames' must be a list of 1 to {MAX_FRAMES} entries")
    ranges = tuple(_frame_range(frame, f"{where}: frames[{number}]") for number, frame in enumerate(frames))
    return ProfileSet(tuple(tokens), ranges, {"source": where})


def _frame_range(data: Any, where: str) -> FrameRange:
    if not isinstance(data, dict) or set(data) != {"batch", "height", "width"}:
        raise InputError(f"{where} must have exactly 'batch', 'height' and 'width'")
    for key in ("batch", "height", "width"):
        limit, step = (1024, 1) if key == "batch" else (MAX_SIDE, CELL)
        value = data[key]
        if not isinstance(value, list) or len(value) != 3 or not all(_is_int(v) for v in value):
            raise InputError(f"{where}.{key} must be three integers [min, opt, max], got {value!r}")
        if not step <= value[0] <= value[1] <= value[2] <= limit:
            raise InputError(f"{where}.{key} must rise from at least {step} to at most {limit}, got {value}")
        if any(v % step for v in value):
            raise InputError(f"{where}.{key} must be multiples of {step} (frames are padded to them), got {value}")
    found = FrameRange(tuple(data["batch"]), tuple(data["height"]), tuple(data["width"]))
    if _most_patches((found,)) > MAX_PATCHES:
        raise InputError(
            f"{where} allows {_most_patches((found,))} patches at once, more than the {MAX_PATCHES} that TensorRT can "
            "index: make batch, height or width smaller"
        )
    return found


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _most_patches(frames: Sequence[FrameRange]) -> int:
    return max(f.batch[2] * (f.height[2] // PATCH) * (f.width[2] // PATCH) for f in frames)


def graph_profiles(profiles: ProfileSet, bundle: Bundle) -> dict[str, tuple[Profile, ...]]:
    """The TensorRT profiles of each graph of ``bundle``."""
    dims, depth, width = len(bundle.levels), bundle.depth, bundle.context_width

    def grids(channels: Mapping[str, int], step: int) -> tuple[Profile, ...]:
        return tuple(
            {
                name: ShapeRange(
                    *((f.batch[i], count, f.height[i] // step, f.width[i] // step) for i in range(3)),
                )
                for name, count in channels.items()
            }
            for f in profiles.frames
        )

    def patches(name: str, channels: int) -> tuple[Profile, ...]:
        """Patches in one row, from a single one: streams renew few."""
        counts = [[f.height[i] // PATCH * (f.width[i] // PATCH) for i in range(3)] for f in profiles.frames]
        return tuple(
            {name: ShapeRange((f.batch[0], channels, 1, 1), *((f.batch[i], channels, 1, of[i]) for i in (1, 2)))}
            for f, of in zip(profiles.frames, counts, strict=True)
        )

    values = WINDOW_VALUES + width + PATCH_VALUES
    buckets = zip((0, *profiles.tokens), profiles.tokens, strict=False)
    return {
        "global_encoder": grids({"cells": PATCH_VALUES}, CELL),
        "cell_context": grids({"codes": dims}, CELL),
        "context": patches("coarse", width),
        "patch_encoder": tuple(
            {"features": ShapeRange((low + 1, values), (high, values), (high, values))} for low, high in buckets
        ),
        "decoder": grids({"state": depth * (dims + 2), "context": width, "mean": PATCH_VALUES}, PATCH),
    }


# --- calibration ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Token counts of one video."""

    counts: tuple[int, ...]
    """Patches that go through the patch encoder, frame by frame."""
    width: int
    """Size of the padded frames."""
    height: int
    probes: int = 0
    """Calls of the patch encoder with all patches of a frame, for keyframes and probes."""


def count_tokens(
    video: str,
    tokenizer: Tokenizer,
    budget: TokenBudget,
    *,
    frames: int | None = None,
    count_as: CountAs = "frames",
) -> TokenCounts:
    """How many patches of each frame of ``video`` go through the patch encoder.

    Args:
        video: As :func:`tatok_edge.sources.open.open_source` takes it.
        tokenizer: The model.
        budget: The budget of the later runs. With the score ``information``, all patches of a single frame are encoded,
            otherwise only the kept patches.
        frames: Stop after this number of frames.
        count_as: ``"frames"`` encodes each frame by itself; ``"stream"`` encodes the changes of a stream, with the
            default loss and keyframes.

    Raises:
        SourceError: the video cannot be opened, or holds no frame.
        InputError: the frames change size, or an unknown ``count_as``.
    """
    from tatok_edge.sources.open import open_source

    if count_as not in COUNT_AS:
        raise InputError(f"count_as must be one of {', '.join(map(repr, COUNT_AS))}, got {count_as!r}")
    encode, probed = _frame_counter(tokenizer, budget) if count_as == "frames" else _stream_counter(tokenizer, budget)
    counts: list[int] = []
    size: tuple[int, int] | None = None
    with open_source(video) as source:
        for frame in source:
            height, width = frame.image.shape[:2]
            rows, columns = patch_grid(width, height)
            if size not in (None, (rows, columns)):
                raise InputError(f"{video}: its frames change size; calibrate with videos of one size each")
            size = rows, columns
            counts.append(encode(frame.image))
            if len(counts) == frames:
                break
    assert size is not None  # a source that opens delivers a frame
    return TokenCounts(tuple(counts), width=size[1] * PATCH, height=size[0] * PATCH, probes=probed())


def _frame_counter(
    tokenizer: Tokenizer, budget: TokenBudget
) -> tuple[Callable[[NDArray[np.uint8]], int], Callable[[], int]]:
    def encode(image: NDArray[np.uint8]) -> int:
        frame = tokenizer.encode(image, budget=budget)
        # A patch has no information before it is encoded.
        return frame.n_patches if budget.score == "information" else int(np.count_nonzero(frame.depth_map()))

    return encode, lambda: 0


def _stream_counter(
    tokenizer: Tokenizer, budget: TokenBudget
) -> tuple[Callable[[NDArray[np.uint8]], int], Callable[[], int]]:
    from tatok_edge.stream.encoder import StreamEncoder

    calls = _Calls(tokenizer.networks.session)
    encoder = StreamEncoder(tokenizer.with_session(calls), budget=budget)
    encoded = 0

    def encode(image: NDArray[np.uint8]) -> int:
        nonlocal encoded
        count = encoder.encode(image).n_encoded
        encoded += count > 0
        return count

    return encode, lambda: calls.count - encoded


class _Calls(Session):
    """A session that counts the calls of the patch encoder."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.count = 0

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        self.count += graph == "patch_encoder"
        return self._session.run(graph, inputs)

    def close(self) -> None:
        self._session.close()


def histogram_of(videos: Sequence[TokenCounts]) -> tuple[Counter[int], Counter[int]]:
    """How often each number of patches goes through the patch encoder in one call.

    Returns:
        One histogram for single cameras, and one for steps of several cameras: the sums over all cameras.
    """
    frames = Counter(t for video in videos for t in video.counts)
    for video in videos:
        if video.probes:
            frames[(video.width // PATCH) * (video.height // PATCH)] += video.probes
    steps: Counter[int] = Counter()
    if len(videos) > 1:
        steps.update(map(sum, zip(*(video.counts for video in videos), strict=False)))
    return frames, steps


def calibrate(videos: Mapping[str, TokenCounts], *, buckets: int = BUCKETS, budget: str = "") -> ProfileSet:
    """Profiles for the token counts of ``videos``. Several videos are the cameras of one rig.

    Frames get one exact profile per size, for 1 to as many cameras at once. The edges fit the counts of single frames
    and of steps, the sums over all cameras.

    Args:
        videos: Counts by name.
        buckets: Largest number of edges.
        budget: The budget of the counts, for the notes.
    """
    if not videos:
        raise InputError("a calibration needs at least one video")
    frames, steps = histogram_of(list(videos.values()))
    histogram = {t: n for t, n in sorted((frames + steps).items()) if t}
    patches = {name: (video.width // PATCH) * (video.height // PATCH) for name, video in videos.items()}
    most = sum(patches.values())
    edges = calibrated_edges(histogram, buckets, most)
    sizes = Counter((video.height, video.width) for video in videos.values())
    ranges = tuple(
        FrameRange((1, 1, cameras), (height, height, height), (width, width, width))
        for (height, width), cameras in sorted(sizes.items())
    )
    notes = {
        "source": "calibration",
        "videos": list(videos),
        "budget": budget,
        "frames": sum(len(video.counts) for video in videos.values()),
        "probes": sum(video.probes for video in videos.values()),
        "steps": sum(steps.values()),
        "histogram": [[t, n] for t, n in sorted(frames.items())],
        "step_histogram": [[t, n] for t, n in sorted(steps.items())],
        "edges": edges,
        "waste": round(waste(histogram, edges), 6),
        "waste_of_equal_widths": round(waste(histogram, equal_width(len(edges), 1, most)), 6),
    }
    return ProfileSet(tuple(edges), ranges, notes)
