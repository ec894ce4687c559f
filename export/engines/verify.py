"""Whether a backend computes the model: a candidate against the CPU reference, graph by graph, on real frames.

Every graph of the candidate gets what the reference's graphs made, so one different code neither hides nor amplifies
what comes after it. The inputs have the sizes at which engines go wrong: the smallest, best and largest of every
profile, token counts on both sides of every edge, and batches in which rows occur twice. Then both encode and decode
whole frames on their own.

What is compared, and the bounds (:class:`Bounds`):

- *finite*: no output of a graph may hold a number that is not finite;
- *the same again*: the same call twice gives the same bits. TensorRT chooses its kernels when it builds, and those
  that it may choose for these graphs add in a fixed order, so a difference is a race;
- *equal rows*: rows of a batch that hold the same numbers give the same codes, and numbers that differ by rounding
  at most;
- *tokens*, *kept sets*, *pixels*: as close as the precision allows.

A candidate that keeps all bounds is blessed with a record beside its engines (:func:`write_record`), which names the
hash of every engine; the record of one that does not is removed.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import BackendError, InputError, TaTokError, one_line
from tatok_edge.evaluation.folder import psnr
from tatok_edge.geometry import CELL, MIN_SIDE, PATCH, PATCH_VALUES, WINDOW_VALUES, Image, patch_grid
from tatok_edge.model.bundle import GRAPHS, Bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu import kernels as cpu_kernels
from tatok_edge.runtime.session import Backend, GraphName, Session
from tatok_edge.runtime.tensorrt.choice import EngineSet
from tatok_edge.runtime.tensorrt.manifest import Profile
from tatok_edge.runtime.tensorrt.store import write_whole
from tatok_edge.tokens.budget import TokenBudget

Arrays = Mapping[str, NDArray[Any]]
Score = Literal["residual", "entropy"]
Overlap = tuple[int, int]
"""Sizes of the intersection and the union of two sets."""

TAU = 0.5
"""Share of the score that token filtering keeps where kept sets are compared: it cuts where scores are dense."""
RECORD_VERSION = 1
RECORD_SUFFIX = ".verified.json"
MAX_RECORD_BYTES = 1 << 20
EQUAL_ROWS = 2.0**-9
"""How far numbers (not codes) of equal rows may lie apart, as a share of the largest number: two steps of fp16. A row
may be added up by another tile of the same kernel, at the border of the batch for one."""
_STEP = {"global_encoder": CELL, "context": CELL, "decoder": PATCH}
_MAIN_INPUT = {"global_encoder": "cells", "context": "codes", "decoder": "state"}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a candidate must keep."""

    tokens: float
    """Least share of equal tokens, global and patch. Codes are rounded, and where the reference is within the
    candidate's precision of the next level, both are right."""
    code_step: int
    """Largest difference of a code in levels. Rounding the other way is one level; two are another computation."""
    kept: float
    """Least Jaccard index of the kept sets, over all frames together: a score near the threshold may fall either
    way."""
    pixel_difference: float
    """Largest difference of a decoded pixel, as a share of full scale."""
    psnr_db: float
    """Least PSNR between the reconstructions of the same tokens; 48 dB is one grey level."""
    loss_db: float
    """How much worse than the reference the candidate may encode and decode the frames, in dB of PSNR: what users see
    when every deviation adds up."""


BOUNDS = {
    # One rounding step of fp32 in sums of a thousand terms moves a code over a border once in some ten thousand.
    "fp32": Bounds(tokens=0.999, code_step=1, kept=0.995, pixel_difference=0.002, psnr_db=60.0, loss_db=0.01),
    # As the conversion is held to (:mod:`.precision`): models so far have 0.98 to 0.995 of the tokens, 80 dB
    # between the decoders, and lose up to 0.07 dB of a still scene of 38 dB, nothing of others.
    "fp16": Bounds(tokens=0.95, code_step=1, kept=0.95, pixel_difference=0.02, psnr_db=55.0, loss_db=0.2),
}
"""By precision."""


@dataclass(slots=True)
class GraphRecord:
    """What was measured of one graph."""

    calls: int = 0
    values: int = 0
    """Output values compared."""
    not_finite: int = 0
    not_repeated: int = 0
    """Values that the same call gave differently."""
    not_equal: int = 0
    """Values of equal rows that differ by more than :data:`EQUAL_ROWS`, codes by anything."""
    tokens: int = 0
    equal_tokens: int = 0
    code_step: int = 0
    kept: dict[str, list[Overlap]] = field(default_factory=dict)
    """By score, one per frame."""
    difference: float = 0.0
    """Largest difference of pixels (of the context: of mean pixels), share of full scale."""
    absolute: float = 0.0
    squared: float = 0.0
    pixels: int = 0
    errors: list[str] = field(default_factory=list)
    """What the candidate raised."""
    first: dict[str, str] = field(default_factory=dict)
    """Where each kind of fault was first seen."""

    def report(self) -> dict[str, Any]:
        """The figures as JSON-compatible values; None for what this graph has not."""
        pixels = None
        if self.pixels:
            error = self.squared / self.pixels
            pixels = {
                "max": round(self.difference, 7),
                "mean": round(self.absolute / self.pixels, 8),
                "psnr_db": round(min(-10 * math.log10(max(error, 1e-20)), 200.0), 2),
            }
        return {
            "calls": self.calls,
            "values": self.values,
            "not_finite": self.not_finite,
            "not_repeated": self.not_repeated,
            "not_equal": self.not_equal,
            "tokens": round(self.equal_tokens / self.tokens, 6) if self.tokens else None,
            "code_step": self.code_step if self.tokens else None,
            "kept": {score: _overlap_report(overlaps) for score, overlaps in self.kept.items()} or None,
            "pixels": pixels,
            "errors": self.errors,
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of :func:`verify`."""

    graphs: Mapping[str, Mapping[str, Any]]
    """Figures by graph, see :meth:`GraphRecord.report`."""
    end_to_end: Mapping[str, Any]
    """Figures of both, each on its own."""
    bounds: Bounds
    shapes: tuple[str, ...]
    """Frame batches and token counts that were run."""
    frames_sha256: str
    """Hash of the frames."""
    failures: tuple[str, ...]
    """Each names the graph, what was measured and the bound."""

    @property
    def ok(self) -> bool:
        """Whether all bounds hold."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """For the record and ``--json``."""
        return {
            "ok": self.ok,
            "graphs": {name: dict(figures) for name, figures in self.graphs.items()},
            "end_to_end": dict(self.end_to_end),
            "bounds": asdict(self.bounds) | {"equal_rows": EQUAL_ROWS, "tau": TAU},
            "shapes": list(self.shapes),
            "frames_sha256": self.frames_sha256,
            "failures": list(self.failures),
        }


# --- the comparison -------------------------------------------------------------------------------


def verify(
    bundle: Bundle,
    reference: Session,
    candidate: Session,
    *,
    frames: Sequence[Image],
    profiles: Mapping[str, Sequence[Profile]],
    bounds: Bounds,
    say: Callable[[str], None] = lambda text: None,
) -> Verification:
    """Compares two sessions of one model.

    Args:
        bundle: The model.
        reference: Whose results are taken for right.
        candidate: Whose results are checked.
        frames: RGB, uint8 (H, W, 3), at least one, of at least 32x32 pixels.
        profiles: Shapes that the candidate takes, by graph.
        bounds: What it must keep.
        say: Takes one line about what happens next.

    Raises:
        InputError: no frame.
        BackendError: the reference fails. What the candidate raises is a failure in the result.
    """
    if not frames:
        raise InputError("frames must hold at least one picture to compare the backends on")
    run = _Run(bundle, reference, candidate, profiles)
    sizes = run.sizes(frames)
    for number, size in enumerate(sizes):
        say(f"frames {number + 1} of {len(sizes)}: {_size(size)}")
        run.frames(_batch(frames, size))
    counts = token_counts(profiles["patch_encoder"])
    rows = run.rows(frames, max(counts))
    for count in counts:
        say(f"patch encoder: {count} rows")
        run.count(rows, count)
    say("whole frames, encoded and decoded by each")
    end_to_end = run.whole(frames, sizes)
    records: dict[str, dict[str, Any]] = {name: record.report() for name, record in run.records.items()}
    failures = [
        text
        for name, record in run.records.items()
        for text in _graph_failures(name, record, records[name], bounds, candidate)
    ]
    failures += _whole_failures(end_to_end, bounds)
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(frame.shape).encode() + np.ascontiguousarray(frame).tobytes())
    shapes = (*map(_size, sizes), *(f"{count} patches" for count in counts))
    return Verification(records, end_to_end, bounds, shapes, digest.hexdigest(), tuple(failures))


class _Run:
    """Both sessions, and what was measured so far."""

    def __init__(
        self, bundle: Bundle, reference: Session, candidate: Session, profiles: Mapping[str, Sequence[Profile]]
    ) -> None:
        self.bundle = bundle
        self.reference = reference
        self.candidate = candidate
        self.profiles = profiles
        self.records: dict[GraphName, GraphRecord] = {
            "global_encoder": GraphRecord(),
            "context": GraphRecord(),
            "patch_encoder": GraphRecord(),
            "decoder": GraphRecord(),
        }

    # What is run.

    def sizes(self, frames: Sequence[Image]) -> list[tuple[int, int, int]]:
        """Batches of padded frames ``(B, H, W)``: those of the frames, and the corners of every profile."""
        found: dict[tuple[int, int, int], None] = {}
        for frame in frames:
            size = (1, *_padded(frame))
            if self.takes_frames(size):
                found[size] = None
        for graph, step in _STEP.items():
            for profile in self.profiles[graph]:
                ranges = profile[_MAIN_INPUT[graph]]
                low, best, high = ((s[0], s[2] * step, s[3] * step) for s in (ranges.min, ranges.opt, ranges.max))
                for size in (low, best, high, (high[0], *low[1:])):
                    # The decoder's grid has patches, that of the others cells: whole cells fit all.
                    if size[1] % CELL == 0 and size[2] % CELL == 0:
                        found[size] = None
        return sorted(found, key=lambda size: (math.prod(size), size))

    def takes_frames(self, size: tuple[int, int, int]) -> bool:
        """Whether all graphs that see frames take such a batch."""
        return all(self._takes(graph, size) for graph in _STEP)

    def _takes(self, graph: str, size: tuple[int, int, int]) -> bool:
        step = _STEP[graph]
        batch, height, width = size
        return any(
            all(ranges.holds((batch, ranges.max[1], height // step, width // step)) for ranges in profile.values())
            for profile in self.profiles[graph]
        )

    def frames(self, images: Sequence[Image]) -> None:
        """All graphs that see frames, on one batch of them; where it has several, the last is the first again."""
        levels = self.bundle.levels
        height, width = images[0].shape[:2]
        size = (len(images), height, width)
        pairs = [(0, len(images) - 1)] if len(images) > 1 else []
        cells = np.stack([cpu_kernels.image_to_cells(image, False) for image in images])
        codes = self._run("global_encoder", {"cells": cells}, pairs, size)["codes"]
        prior, other = self._both("context", {"codes": np.ascontiguousarray(codes)}, pairs, size)
        rows, columns = patch_grid(width, height)
        everything = np.arange(rows * columns, dtype=np.int32)
        states: list[NDArray[np.float32]] = []
        for number, image in enumerate(images):
            entropy, mean = prior["entropy"][number].reshape(-1), prior["mean"][number].reshape(PATCH_VALUES, -1)
            kept = [_kept(prior["entropy"][number])]
            if other is not None:
                theirs = other["mean"][number].reshape(mean.shape)
                kept.append(_kept(other["entropy"][number]))
                self._add_kept("entropy", *kept)
                residuals = [
                    cpu_kernels.patch_residual(image, False, np.ascontiguousarray(m), everything, everything, columns)
                    for m in (mean, np.nan_to_num(theirs))
                ]
                self._add_kept("residual", *map(_kept, residuals))
            if len(images) > 1 and number == len(images) - 1:
                states.append(states[0])
                continue
            positions = np.flatnonzero(kept[0]).astype(np.int32)
            features = self._features(image, prior, number, positions)
            chosen = cast("NDArray[np.int32]", self.reference.run("patch_encoder", {"features": features})["codes"])
            expected = np.ascontiguousarray(prior["expected"][number].reshape(len(levels), -1))
            state = cpu_kernels.decoder_state(chosen, positions, expected, np.ascontiguousarray(entropy), levels)
            states.append(state.reshape(-1, rows, columns))
        inputs = {"state": np.stack(states), "context": prior["context"], "mean": prior["mean"]}
        self._run("decoder", inputs, pairs, size)

    def rows(self, frames: Sequence[Image], most: int) -> NDArray[np.float32]:
        """Rows for the patch encoder, from as many frames as hold ``most`` patches."""
        gathered: list[NDArray[np.float32]] = []
        total = 0
        for frame in frames:
            cells = cpu_kernels.image_to_cells(frame, False)
            codes = self.reference.run("global_encoder", {"cells": cells[None]})["codes"]
            prior = self.reference.run("context", {"codes": np.ascontiguousarray(codes)})
            everything = np.arange(prior["entropy"].size, dtype=np.int32)
            gathered.append(self._features(frame, prior, 0, everything))
            total += len(everything)
            if total >= most:
                break
        return np.concatenate(gathered)

    def _features(self, image: Image, prior: Arrays, number: int, positions: NDArray[np.int32]) -> NDArray[np.float32]:
        """Rows of the patches ``positions`` of an image, with image ``number`` of a batch of priors."""
        columns = patch_grid(image.shape[1], image.shape[0])[1]
        maps = [prior[name][number] for name in ("context", "mean")]
        context, mean = (np.ascontiguousarray(value.reshape(len(value), -1)) for value in maps)
        rows = np.empty((len(positions), WINDOW_VALUES + self.bundle.context_width + PATCH_VALUES), np.float32)
        cpu_kernels.gather_features(image, False, context, mean, positions, columns, out=rows)
        return rows

    def count(self, pool: NDArray[np.float32], count: int) -> None:
        """The patch encoder on so many rows; the last is the first again."""
        # Other rows at every count, and the pool again where it is too small.
        features = np.take(pool, np.arange(count) + 7 * count, axis=0, mode="wrap")
        pairs = []
        if count > 1:
            features[-1] = features[0]
            pairs.append((0, count - 1))
        if count > 4:
            features[count // 2] = features[1]
            pairs.append((1, count // 2))
        self._both("patch_encoder", {"features": features}, pairs, None)

    def whole(self, frames: Sequence[Image], sizes: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
        """Both encode and decode frames of several sizes on their own."""
        single = [size for size in sizes if size[0] == 1 and self.takes_frames(size)]
        most = max(profile["features"].max[0] for profile in self.profiles["patch_encoder"])
        everything, some = TokenBudget(max_tokens=most), TokenBudget(tau=TAU, max_tokens=most)
        pictures = []
        for number, frame in enumerate(frames):
            height, width = _padded(frame)
            fits = self.takes_frames((1, height, width))
            if not fits and single:
                frame = _batch([frame], single[number % len(single)])[0]
            if fits or single:
                pictures.append(frame)
                smaller = frame[: frame.shape[0] - 5, : frame.shape[1] - 3]
                if min(smaller.shape[:2]) >= MIN_SIDE:  # an edge that is padded
                    pictures.append(smaller)
        result: dict[str, Any] = {"pictures": 0, "errors": [], "graphs_fail": False}
        if any(record.errors for record in self.records.values()):
            return result | {"graphs_fail": True}  # and are reported
        if not pictures:
            return result
        backend = Backend("verify", "", "", "", 0, "compared by tatok verify")
        first, second = (Tokenizer(self.bundle, session, backend) for session in (self.reference, self.candidate))
        totals = dict.fromkeys(("patch_tokens", "global_tokens", "patches", "cells"), 0)
        differences, quality = [], []
        overlaps: list[Overlap] = []
        for picture in pictures:
            right = first.encode(picture, budget=everything)
            try:
                theirs = second.encode(picture, budget=everything)
                kept = second.encode(picture, budget=some).positions
                image = second.decode(theirs)
                same = second.decode(right)
            except TaTokError as error:
                result["errors"].append(one_line(error))
                continue
            common, mine, other = np.intersect1d(right.positions, theirs.positions, True, return_indices=True)
            totals["patch_tokens"] += int((right.ids[mine] == theirs.ids[other]).sum())
            totals["global_tokens"] += int((right.global_ids == theirs.global_ids).sum())
            totals["patches"] += len(common)
            totals["cells"] += right.global_ids.size
            expected = first.encode(picture, budget=some).positions
            overlaps.append(_overlap(expected, kept))
            decoded = first.decode(right)
            differences.append(float(np.mean((decoded.astype(np.float64) - same) ** 2)))
            quality.append((psnr(picture, decoded), psnr(picture, image)))
        result["pictures"] = len(quality)
        if quality:
            reference, candidate = np.mean(np.minimum(quality, 100.0), axis=0)
            result |= {
                "patch_tokens": round(totals["patch_tokens"] / max(totals["patches"], 1), 6),
                "global_tokens": round(totals["global_tokens"] / totals["cells"], 6),
                "kept": _overlap_report(overlaps),
                "between_db": round(10 * math.log10(255**2 / max(float(np.mean(differences)), 1e-5)), 2),
                "reference_db": round(float(reference), 3),
                "candidate_db": round(float(candidate), 3),
                "loss_db": round(float(reference - candidate), 4),
            }
        return result

    # How it is compared.

    def _run(
        self, graph: GraphName, inputs: Arrays, pairs: Sequence[tuple[int, int]], size: tuple[int, int, int]
    ) -> Arrays:
        return self._both(graph, inputs, pairs, size)[0]

    def _both(
        self,
        graph: GraphName,
        inputs: Arrays,
        pairs: Sequence[tuple[int, int]],
        size: tuple[int, int, int] | None,
    ) -> tuple[Arrays, Arrays | None]:
        """Outputs of the reference and, where it takes the shape and does not fail, of the candidate."""
        expected = self.reference.run(graph, inputs)
        record = self.records[graph]
        if size is not None and not self._takes(graph, size):
            return expected, None
        where = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
        record.calls += 1
        try:
            # Outputs may be views that the next call overwrites.
            got = {name: np.array(value) for name, value in self.candidate.run(graph, inputs).items()}
            again = {name: np.array(value) for name, value in self.candidate.run(graph, inputs).items()}
        except TaTokError as error:
            record.errors.append(f"{where}: {one_line(error)}")
            return expected, None
        if problem := _wrong_outputs(expected, got):
            record.errors.append(f"{where}: {problem}")
            return expected, None
        for name, value in got.items():
            right = expected[name]
            record.values += value.size
            self._fault(record, "not_finite", int(value.size - np.isfinite(value).sum()), name, where)
            self._fault(record, "not_repeated", _differing(value, again[name]), name, where)
            scale = 0.0 if value.dtype.kind == "i" else EQUAL_ROWS * float(np.abs(right).max(initial=0.0))
            unequal = sum(_differing(value[i], value[j], scale) for i, j in pairs)
            self._fault(record, "not_equal", unequal, name, where)
        if "codes" in got:
            difference = np.abs(got["codes"].astype(np.int64) - expected["codes"])
            record.tokens += difference.size // difference.shape[1]
            record.equal_tokens += int((difference == 0).all(1).sum())
            step = int(difference.max(initial=0))
            if step > record.code_step:
                record.code_step = step
                record.first["code_step"] = where
        for name in ("pixels", "mean"):
            if name in got:
                # Full scale is from -1 to 1, and what is beyond it is not seen.
                pixels = (np.clip(np.nan_to_num(outputs[name]), -1, 1) for outputs in (got, expected))
                difference = np.abs(next(pixels).astype(np.float64) - next(pixels)) / 2
                record.difference = max(record.difference, float(difference.max(initial=0.0)))
                record.absolute += float(difference.sum())
                record.squared += float((difference * difference).sum())
                record.pixels += difference.size
        return expected, got

    def _fault(self, record: GraphRecord, kind: str, count: int, output: str, where: str) -> None:
        if count:
            setattr(record, kind, getattr(record, kind) + count)
            record.first.setdefault(kind, f"{output} at {where}")

    def _add_kept(self, score: Score, mine: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> None:
        value = _overlap(np.flatnonzero(mine), np.flatnonzero(theirs))
        self.records["context"].kept.setdefault(score, []).append(value)


def token_counts(profiles: Sequence[Profile]) -> list[int]:
    """Row counts on both sides of every edge of the patch encoder's profiles, and one inside each."""
    found: set[int] = set()
    for profile in profiles:
        low, high = profile["features"].min[0], profile["features"].max[0]
        found.update((low, (low + high) // 2, high))
    return sorted(found)


def _padded(frame: Image) -> tuple[int, int]:
    height, width = frame.shape[:2]
    return -(-height // CELL) * CELL, -(-width // CELL) * CELL


def _size(size: tuple[int, int, int]) -> str:
    return f"{size[0]} x {size[2]}x{size[1]}"


def _batch(frames: Sequence[Image], size: tuple[int, int, int]) -> list[Image]:
    """Frames of one size, cut out of ``frames`` or continued by their mirror image; the last is the first again."""
    batch, height, width = size
    images = []
    for number in range(batch):
        frame = frames[number % len(frames)]
        have = frame.shape[:2]
        missing = [(0, max(0, want - side)) for want, side in zip((height, width), have, strict=True)]
        frame = np.pad(frame, [*missing, (0, 0)], mode="symmetric")
        top, left = (
            (side - want) * (number % 3) // 2 for side, want in zip(frame.shape, (height, width), strict=False)
        )
        images.append(np.ascontiguousarray(frame[top : top + height, left : left + width]))
    return [*images[:-1], images[0]] if batch > 1 else images


def _kept(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The patches that token filtering keeps, as a mask over all; of broken scores those that can be ranked."""
    flat = np.maximum(np.nan_to_num(scores.reshape(1, -1), posinf=0.0, neginf=0.0), 0.0).astype(np.float32)
    indices, _ = cpu_kernels.dtf(np.ascontiguousarray(flat), tau=TAU)
    kept = np.zeros(flat.size, np.bool_)
    kept[indices] = True
    return kept


def _overlap(mine: NDArray[Any], theirs: NDArray[Any]) -> Overlap:
    common = len(np.intersect1d(mine, theirs, assume_unique=True))
    return common, len(mine) + len(theirs) - common


def _overlap_report(overlaps: Sequence[Overlap]) -> dict[str, float]:
    common, union = np.sum(overlaps, axis=0)
    exact = sum(part == whole for part, whole in overlaps) / len(overlaps)
    return {"jaccard": round(float(common / union) if union else 1.0, 6), "exact": round(exact, 6)}


def _differing(a: NDArray[Any], b: NDArray[Any], tolerance: float = 0.0) -> int:
    """How many values differ by more than ``tolerance``; what is not finite is equal to the same only."""
    if a.shape != b.shape:
        return max(a.size, b.size)
    different = a != b
    if a.dtype.kind == "f":
        different &= ~(np.isnan(a) & np.isnan(b))
        if tolerance:
            with np.errstate(invalid="ignore"):
                different &= ~(np.abs(a - b) <= tolerance)
    return int(np.count_nonzero(different))


def _wrong_outputs(expected: Arrays, got: Arrays) -> str:
    if set(expected) != set(got):
        return f"gives {', '.join(sorted(got))} where {', '.join(sorted(expected))} are needed"
    for name, value in expected.items():
        if (got[name].shape, got[name].dtype) != (value.shape, value.dtype):
            return f"gives {name} as {got[name].dtype} {got[name].shape}, {value.dtype} {value.shape} is needed"
    return ""


# --- the verdict ----------------------------------------------------------------------------------


def _graph_failures(
    name: str, record: GraphRecord, figures: Mapping[str, Any], bounds: Bounds, candidate: Session
) -> Iterator[str]:
    if record.errors:
        more = f" (and {len(record.errors) - 1} more)" if len(record.errors) > 1 else ""
        yield f"{name}: fails in {len(record.errors)} of {record.calls} calls, none may: {record.errors[0]}{more}"
    if not record.calls:
        yield f"{name}: was not run, none of the sizes is one that its profiles take"
    for kind, what in (
        ("not_finite", "are not finite"),
        ("not_repeated", "differ when the same call is made again"),
        ("not_equal", "differ between equal rows of a batch"),
    ):
        count = getattr(record, kind)
        if count:
            yield f"{name}: {count} of {record.values} values {what}, none may; first in {record.first[kind]}"
    if figures["tokens"] is not None and figures["tokens"] < bounds.tokens:
        yield (
            f"{name}: {figures['tokens']:.2%} of {record.tokens} tokens are those of the reference, at least "
            f"{bounds.tokens:.1%} are needed"
        )
    if record.code_step > bounds.code_step:
        yield (
            f"{name}: a code is {record.code_step} levels off, at most {bounds.code_step} is allowed; first in "
            f"{record.first['code_step']}"
        )
    for score, kept in (figures["kept"] or {}).items():
        if kept["jaccard"] < bounds.kept:
            yield (
                f"{name}: sets kept by {score} have a Jaccard index of {kept['jaccard']:.4f}, at least {bounds.kept:g} "
                "is needed"
            )
    pixels = figures["pixels"]
    if pixels is not None:
        what = "mean pixels" if name == "context" else "pixels"
        if pixels["max"] > bounds.pixel_difference:
            yield (
                f"{name}: {what} differ by up to {pixels['max']:.2%} of full scale, at most "
                f"{bounds.pixel_difference:.1%} is allowed"
            )
        if pixels["psnr_db"] < bounds.psnr_db:
            yield (f"{name}: {what} agree to {pixels['psnr_db']:.1f} dB, at least {bounds.psnr_db:g} dB are needed")


def _whole_failures(figures: Mapping[str, Any], bounds: Bounds) -> Iterator[str]:
    for error in figures["errors"][:1]:
        yield f"whole frames: {len(figures['errors'])} cannot be encoded and decoded, none may fail: {error}"
    if not figures["pictures"]:
        if not figures["errors"] and not figures["graphs_fail"]:
            yield "whole frames: none was encoded, none of the sizes is one that all graphs' profiles take"
        return
    if figures["loss_db"] > bounds.loss_db:
        yield (
            f"whole frames: {figures['candidate_db']:.2f} dB where the reference reaches "
            f"{figures['reference_db']:.2f} dB, at most {bounds.loss_db:g} dB less are allowed"
        )
    jaccard = figures["kept"]["jaccard"]
    if jaccard < bounds.kept:
        yield f"whole frames: kept sets have a Jaccard index of {jaccard:.4f}, at least {bounds.kept:g} is needed"


# --- the record -----------------------------------------------------------------------------------


def record_path(engine_set: EngineSet) -> Path:
    """Where the record of a set of engines is; its name carries the hash of all of them."""
    first = next(iter(engine_set.manifests.values()))
    model = Path(first.file).name.split(f".{first.graph}-")[0]
    return engine_set.folder / f"{model}.{_set_hash(engine_set)[:16]}{RECORD_SUFFIX}"


def _set_hash(engine_set: EngineSet) -> str:
    names = sorted(f"{graph} {manifest.engine_sha256}" for graph, manifest in engine_set.manifests.items())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def write_record(
    bundle: Bundle, engine_set: EngineSet, result: Verification, *, reference: Backend, candidate: Backend
) -> Path:
    """Writes the record of a successful verification beside the engines, whole or not at all.

    Raises:
        BackendError: a bound is broken (then an earlier record of these engines is removed), an engine is no longer
            what its manifest says, or the folder cannot be written.
    """
    path = record_path(engine_set)
    if not result.ok:
        remove_record(engine_set)
        raise BackendError(f"not blessed: {result.failures[0]}")
    for graph in engine_set.manifests:
        engine_set.load(graph)  # what is vouched for is what is on the disk
    first = next(iter(engine_set.manifests.values()))
    record = {
        "format_version": RECORD_VERSION,
        "model": bundle.name,
        "tag": bundle.tag.hex(),
        "onnx_sha256": {name: bundle.manifest["files"][name]["sha256"] for name in GRAPHS},
        "engines": {
            graph: {"file": manifest.file, "sha256": manifest.engine_sha256, "built_sha256": manifest.built_sha256}
            for graph, manifest in sorted(engine_set.manifests.items())
        },
        "set_sha256": _set_hash(engine_set),
        "precision": first.precision,
        "flavour": first.flavour,
        "version": first.version,
        "reference": asdict(reference),
        "candidate": asdict(candidate),
        "verified_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "result": result.to_json(),
    }
    data = (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
    try:
        write_whole(path, data)
    except OSError as error:
        raise BackendError(
            f"{path} cannot be written ({error.strerror or error}): the engines are good, though"
        ) from error
    return path


def remove_record(engine_set: EngineSet) -> None:
    """Removes what vouched for these engines, if anything did.

    Raises:
        BackendError: it cannot be removed.
    """
    path = record_path(engine_set)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise BackendError(f"{path} cannot be removed ({error.strerror or error}): remove it") from error


def is_verified(engine_set: EngineSet) -> bool:
    """Whether a record vouches for exactly these engines."""
    path = record_path(engine_set)
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            return False
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(record, dict) or record.get("format_version") != RECORD_VERSION:
        return False
    result = record.get("result")
    return isinstance(result, dict) and result.get("ok") is True and record.get("set_sha256") == _set_hash(engine_set)
