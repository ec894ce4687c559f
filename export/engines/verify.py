"""Compares a backend, the candidate, with the CPU reference: graph by graph, on real frames.

Every graph of the candidate gets the outputs of the reference's graphs, so one different code neither hides nor
amplifies later differences. The inputs have the sizes where engines are most often wrong: the smallest, best and
largest of every profile, token counts on both sides of every edge, and batches in which rows occur twice. Then both
backends encode and decode whole frames on their own.

The comparisons:

- *finite*: no output of a graph may hold a number that is not finite;
- *the same again*: the same call twice gives the same bits. TensorRT chooses its kernels at build time, and its kernels
  for these graphs add in a fixed order, so a difference is a race;
- *equal rows*: rows of a batch that hold the same numbers give the same codes, and numbers that differ by rounding
  at most;
- *tokens*, *kept sets*, *pixels*: as close as the precision allows.

The bounds and the verdict are in :mod:`.verdict`; the record of a success is in :mod:`.record`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError, TaTokError, one_line
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.export.engines.verdict import (
    EQUAL_ROWS,
    TAU,
    Bounds,
    GraphFigures,
    Overlap,
    Verification,
    code_steps,
    graph_failures,
    overlap,
    overlap_report,
    whole_failures,
)
from tatok_edge.geometry import CELL, MIN_SIDE, PATCH, PATCH_VALUES, WINDOW_VALUES, Image, patch_grid
from tatok_edge.model.bundle import Bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu import kernels as cpu_kernels
from tatok_edge.runtime.session import Backend, GraphName, Session
from tatok_edge.runtime.tensorrt.manifest import Profile
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.frame import TokenFrame

Arrays = Mapping[str, NDArray[Any]]
Score = Literal["residual", "entropy"]

_STEP = {"global_encoder": CELL, "cell_context": CELL, "context": PATCH, "decoder": PATCH}
_MAIN_INPUT = {"global_encoder": "cells", "cell_context": "codes", "decoder": "state"}


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
        reference: The session whose results count as right.
        candidate: The session whose results are checked.
        frames: RGB, uint8 (H, W, 3), at least one, of at least 32x32 pixels.
        profiles: Shapes that the candidate takes, by graph.
        bounds: Limits of its deviations.
        say: Takes one line about the next step.

    Raises:
        InputError: no frame.
        BackendError: the reference fails. An error of the candidate is a failure in the result.
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
        text for name, record in run.records.items() for text in graph_failures(name, record, records[name], bounds)
    ]
    failures += whole_failures(end_to_end, bounds)
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(frame.shape).encode() + np.ascontiguousarray(frame).tobytes())
    shapes = (*map(_size, sizes), *(f"{count} patches" for count in counts))
    return Verification(records, end_to_end, bounds, shapes, digest.hexdigest(), tuple(failures))


class _Run:
    """Both sessions, and the figures so far."""

    def __init__(
        self, bundle: Bundle, reference: Session, candidate: Session, profiles: Mapping[str, Sequence[Profile]]
    ) -> None:
        self.bundle = bundle
        self.reference = reference
        self.candidate = candidate
        self.profiles = profiles
        self.records: dict[GraphName, GraphFigures] = {
            "global_encoder": GraphFigures(),
            "cell_context": GraphFigures(),
            "context": GraphFigures(),
            "patch_encoder": GraphFigures(),
            "decoder": GraphFigures(),
        }

    # Inputs and calls.

    def sizes(self, frames: Sequence[Image]) -> list[tuple[int, int, int]]:
        """Batches of padded frames ``(B, H, W)``: those of the frames, and the corners of every profile."""
        found: dict[tuple[int, int, int], None] = {}
        for frame in frames:
            size = (1, *_padded(frame))
            if self.takes_frames(size):
                found[size] = None
        for graph, name in _MAIN_INPUT.items():
            step = _STEP[graph]
            for profile in self.profiles[graph]:
                ranges = profile[name]
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
        batch, rows, columns = size[0], size[1] // step, size[2] // step
        if graph == "context":  # it takes the patches in one row
            rows, columns = 1, rows * columns
        return any(
            all(ranges.holds((batch, ranges.max[1], rows, columns)) for ranges in profile.values())
            for profile in self.profiles[graph]
        )

    def frames(self, images: Sequence[Image]) -> None:
        """All graphs that take frames, on one batch; in a batch of several frames, the last repeats the first."""
        levels = self.bundle.levels
        height, width = images[0].shape[:2]
        size = (len(images), height, width)
        pairs = [(0, len(images) - 1)] if len(images) > 1 else []
        cells = np.stack([cpu_kernels.image_to_cells(image, False) for image in images])
        codes = self._run("global_encoder", {"cells": cells}, pairs, size)["codes"]
        of_cells, other_cells = self._both("cell_context", {"codes": np.ascontiguousarray(codes)}, pairs, size)
        coarse = _in_rows(of_cells["coarse"])
        prior, other = self._both("context", {"coarse": coarse}, pairs, size)
        if self._takes("context", (1, PATCH, PATCH)):  # a single patch, as in a stream
            self._both("context", {"coarse": np.ascontiguousarray(coarse[:1, :, :, :1])}, [], None)
        prior = {**prior, "mean": _in_rows(of_cells["mean"])}
        rows, columns = patch_grid(width, height)
        everything = np.arange(rows * columns, dtype=np.int32)
        basis = self.bundle.score_basis()
        states: list[NDArray[np.float32]] = []
        for number, image in enumerate(images):
            entropy, mean, expected = (
                np.ascontiguousarray(prior[name][number, :, 0]) for name in ("entropy", "mean", "expected")
            )
            kept = [_kept(entropy.T)]
            if other is not None:
                kept.append(_kept(other["entropy"][number, :, 0].T))
                self._add_kept("context", "entropy", *kept)
            if other_cells is not None:
                theirs = np.ascontiguousarray(other_cells["mean"][number].reshape(PATCH_VALUES, -1))
                scores = [
                    cpu_kernels.patch_scores(image, False, of, everything, everything, columns, basis)
                    for of in (mean, theirs)
                ]
                self._add_kept("cell_context", "residual", *map(_kept, scores))
            if len(images) > 1 and number == len(images) - 1:
                states.append(states[0])
                continue
            positions, tokens = np.nonzero(kept[0])
            different, row = np.unique(positions.astype(np.int32), return_inverse=True)
            features = self._features(image, prior, number, different)
            stacks = cast("NDArray[np.int32]", self.reference.run("patch_encoder", {"features": features})["codes"])
            chosen = stacks.reshape(len(different), -1, len(levels))[row, tokens]
            state = cpu_kernels.decoder_state(chosen, positions.astype(np.int32), expected, entropy, levels)
            states.append(state.reshape(-1, rows, columns))
        maps = {name: prior[name].reshape(len(images), -1, rows, columns) for name in ("context", "mean")}
        self._run("decoder", {"state": np.stack(states), **maps}, pairs, size)

    def rows(self, frames: Sequence[Image], most: int) -> NDArray[np.float32]:
        """Rows for the patch encoder, from as many frames as hold ``most`` patches."""
        gathered: list[NDArray[np.float32]] = []
        total = 0
        for frame in frames:
            cells = cpu_kernels.image_to_cells(frame, False)
            codes = self.reference.run("global_encoder", {"cells": cells[None]})["codes"]
            of_cells = self.reference.run("cell_context", {"codes": np.ascontiguousarray(codes)})
            prior = dict(self.reference.run("context", {"coarse": _in_rows(of_cells["coarse"])}))
            prior["mean"] = _in_rows(of_cells["mean"])
            everything = np.arange(prior["mean"].shape[-1], dtype=np.int32)
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
        cpu_kernels.gather_features(image, False, context, mean, positions, positions, columns, out=rows)
        return rows

    def count(self, pool: NDArray[np.float32], count: int) -> None:
        """The patch encoder on ``count`` rows; the last row repeats the first."""
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
        depth = self.bundle.depth
        for picture in pictures:
            right = first.encode(picture, budget=everything)
            try:
                theirs = second.encode(picture, budget=everything)
                kept = _places(second.encode(picture, budget=some), depth)
                image = second.decode(theirs)
                same = second.decode(right)
            except TaTokError as error:
                result["errors"].append(one_line(error))
                continue
            ids = [_ids_of(frame, depth) for frame in (right, theirs)]
            equal = ids[0] == ids[1]
            above = np.cumprod(np.pad(equal[:, :-1], ((0, 0), (1, 0)), constant_values=True), axis=1) > 0
            comparable = above & (ids[0] >= 0) & (ids[1] >= 0)
            totals["patch_tokens"] += int((comparable & equal).sum())
            totals["global_tokens"] += int((right.global_ids == theirs.global_ids).sum())
            totals["patches"] += int(comparable.sum())
            totals["cells"] += right.global_ids.size
            overlaps.append(overlap(_places(first.encode(picture, budget=some), depth), kept))
            decoded = first.decode(right)
            differences.append(float(np.mean((decoded.astype(np.float64) - same) ** 2)))
            quality.append((psnr(picture, decoded), psnr(picture, image)))
        result["pictures"] = len(quality)
        if quality:
            reference, candidate = np.mean(np.minimum(quality, 100.0), axis=0)
            result |= {
                "patch_tokens": round(totals["patch_tokens"] / max(totals["patches"], 1), 6),
                "global_tokens": round(totals["global_tokens"] / totals["cells"], 6),
                "kept": overlap_report(overlaps),
                "between_db": round(10 * math.log10(255**2 / max(float(np.mean(differences)), 1e-5)), 2),
                "reference_db": round(float(reference), 3),
                "candidate_db": round(float(candidate), 3),
                "loss_db": round(float(reference - candidate), 4),
            }
        return result

    # Comparison.

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
            dims = len(self.bundle.levels)
            stacks = [np.moveaxis(of["codes"], 1, -1).reshape(-1, of["codes"].shape[1]) for of in (got, expected)]
            got_stacks, right_stacks = (cast("NDArray[np.int32]", stack) for stack in stacks)
            steps = code_steps(got_stacks, right_stacks, dims)
            record.tokens += steps.size
            record.equal_tokens += int((steps == 0).sum())
            step = int(steps.max(initial=0))
            if step > record.code_step:
                record.code_step = step
                record.first["code_step"] = where
        for name in ("pixels", "mean"):
            if name in got:
                # Full scale is from -1 to 1; values beyond it are clipped in pictures.
                pixels = (np.clip(np.nan_to_num(outputs[name]), -1, 1) for outputs in (got, expected))
                difference = np.abs(next(pixels).astype(np.float64) - next(pixels)) / 2
                record.difference = max(record.difference, float(difference.max(initial=0.0)))
                record.absolute += float(difference.sum())
                record.squared += float((difference * difference).sum())
                record.pixels += difference.size
        return expected, got

    def _fault(self, record: GraphFigures, kind: str, count: int, output: str, where: str) -> None:
        if count:
            setattr(record, kind, getattr(record, kind) + count)
            record.first.setdefault(kind, f"{output} at {where}")

    def _add_kept(self, graph: GraphName, score: Score, mine: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> None:
        value = overlap(np.flatnonzero(mine), np.flatnonzero(theirs))
        self.records[graph].kept.setdefault(score, []).append(value)


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
    """Frames of one size, cut out of ``frames`` or continued by their mirror image; the last repeats the first."""
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
    """Mask (N, K) of the tokens that token filtering keeps; scores that cannot be ranked count as 0."""
    sound = np.maximum(np.nan_to_num(scores, posinf=0.0, neginf=0.0), 0.0).astype(np.float32)
    positions, depths, _ = cpu_kernels.dtf(np.ascontiguousarray(sound)[None], tau=TAU)
    kept = np.zeros(scores.shape, np.bool_)
    kept[positions, depths - 1] = True
    return kept


def _in_rows(grid: NDArray[Any]) -> NDArray[Any]:
    """A map (B, C, h, w) as (B, C, 1, h * w): the context takes patches in one row."""
    return grid.reshape(*grid.shape[:2], 1, -1)


def _places(frame: TokenFrame, depth: int) -> NDArray[np.int64]:
    """A number for each kept token that says its patch and depth."""
    places: NDArray[np.int64] = frame.positions.astype(np.int64) * depth + frame.depths - 1
    return places


def _ids_of(frame: TokenFrame, depth: int) -> NDArray[np.int32]:
    """The ids of a frame as stacks (N, K), with -1 where no token is kept."""
    ids = np.full((frame.n_patches, depth), -1, np.int32)
    ids[frame.positions, frame.depths - 1] = frame.ids
    return ids


def _differing(a: NDArray[Any], b: NDArray[Any], tolerance: float = 0.0) -> int:
    """How many values differ by more than ``tolerance``. Values that are not finite equal only themselves."""
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
