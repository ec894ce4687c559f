"""Figures of a comparison of two sessions, the bounds that they must keep, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Overlap = tuple[int, int]
"""Sizes of the intersection and the union of two sets."""
TAU = 0.5
"""Share of the score for the comparison of kept sets: here the threshold lies where scores are dense."""
EQUAL_ROWS = 2.0**-9
"""Largest difference of numbers (not codes) of equal rows, as a share of the largest number: two steps of fp16. Another
tile of the same kernel may sum a row, for example at the border of the batch."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of the deviations of a candidate."""

    tokens: float
    """Least share of equal tokens, global and patch. Codes are rounded: where the reference is close to the border of
    two levels, both levels are right."""
    code_step: int
    """Largest difference of a code in levels. Rounding explains one level, but not two."""
    kept: float
    """Least Jaccard index of the kept sets, over all frames together: a score near the threshold may fall either
    way."""
    pixel_difference: float
    """Largest difference of a decoded pixel, as a share of full scale."""
    psnr_db: float
    """Least PSNR between the reconstructions of the same tokens; 48 dB is one grey level."""
    loss_db: float
    """Largest loss of PSNR in dB against the reference, for whole frames encoded and decoded: the sum of all
    deviations, as users see it."""


BOUNDS = {
    # One rounding step of fp32 in sums of a thousand terms moves a code over a border once in some ten thousand.
    "fp32": Bounds(tokens=0.999, code_step=1, kept=0.995, pixel_difference=0.002, psnr_db=60.0, loss_db=0.01),
    # As the conversion is held to (:mod:`.precision`): models so far have 0.98 to 0.995 of the tokens, 80 dB
    # between the decoders, and lose up to 0.07 dB of a still scene of 38 dB, nothing of others.
    "fp16": Bounds(tokens=0.95, code_step=1, kept=0.95, pixel_difference=0.02, psnr_db=55.0, loss_db=0.2),
}
"""By precision."""


@dataclass(slots=True)
class GraphFigures:
    """Figures of one graph."""

    calls: int = 0
    values: int = 0
    """Output values compared."""
    not_finite: int = 0
    not_repeated: int = 0
    """Values that differ when the same call is made again."""
    not_equal: int = 0
    """Values of equal rows that differ by more than :data:`EQUAL_ROWS`, codes by anything."""
    tokens: int = 0
    equal_tokens: int = 0
    code_step: int = 0
    kept: dict[str, list[Overlap]] = field(default_factory=dict)
    """By score, one per frame."""
    difference: float = 0.0
    """Largest difference of pixels (of ``cell_context``: of mean pixels), share of full scale."""
    absolute: float = 0.0
    squared: float = 0.0
    pixels: int = 0
    errors: list[str] = field(default_factory=list)
    """Errors that the candidate raised."""
    first: dict[str, str] = field(default_factory=dict)
    """Where each kind of fault was first seen."""

    def report(self) -> dict[str, Any]:
        """The figures as JSON-compatible values; None where the graph has no such output."""
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
            "kept": {score: overlap_report(overlaps) for score, overlaps in self.kept.items()} or None,
            "pixels": pixels,
            "errors": self.errors,
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of :func:`verify`."""

    graphs: Mapping[str, Mapping[str, Any]]
    """Figures by graph, see :meth:`GraphFigures.report`."""
    end_to_end: Mapping[str, Any]
    """Figures of both, each on its own."""
    bounds: Bounds
    shapes: tuple[str, ...]
    """Frame batches and token counts that were run."""
    frames_sha256: str
    """Hash of the frames."""
    failures: tuple[str, ...]
    """Each names the graph, the figure and the bound."""

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


def code_steps(codes: NDArray[np.int32], expected: NDArray[np.int32], dims: int) -> NDArray[np.int64]:
    """By how many levels the codes of each comparable token differ at most.

    A token codes what the tokens above it leave, so it is comparable where they are all equal: one token that rounds
    the other way changes all below it.

    Args:
        codes: Codes of stacks, ``(P, K * D)``.
        expected: The right ones.
        dims: Dimensions of a code, ``D``.

    Returns:
        One number per comparable token, ``(T,)``.
    """
    differences = np.abs(codes.astype(np.int64) - expected).reshape(len(codes), codes.shape[1] // dims, dims)
    steps: NDArray[np.int64] = differences.max(2, initial=0)
    comparable: NDArray[np.int64] = steps[np.cumsum(steps, axis=1) - steps == 0]
    return comparable


def overlap(mine: NDArray[Any], theirs: NDArray[Any]) -> Overlap:
    """Sizes of the intersection and the union of two sets."""
    common = len(np.intersect1d(mine, theirs, assume_unique=True))
    return common, len(mine) + len(theirs) - common


def overlap_report(overlaps: Sequence[Overlap]) -> dict[str, float]:
    """Jaccard index of all sets together, and the share of sets that are equal."""
    common, union = np.sum(overlaps, axis=0)
    exact = sum(part == whole for part, whole in overlaps) / len(overlaps)
    return {"jaccard": round(float(common / union) if union else 1.0, 6), "exact": round(exact, 6)}


def graph_failures(name: str, record: GraphFigures, figures: Mapping[str, Any], bounds: Bounds) -> Iterator[str]:
    """One line for each bound that a graph breaks."""
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
        what = "mean pixels" if name == "cell_context" else "pixels"
        if pixels["max"] > bounds.pixel_difference:
            yield (
                f"{name}: {what} differ by up to {pixels['max']:.2%} of full scale, at most "
                f"{bounds.pixel_difference:.1%} is allowed"
            )
        if pixels["psnr_db"] < bounds.psnr_db:
            yield (f"{name}: {what} agree to {pixels['psnr_db']:.1f} dB, at least {bounds.psnr_db:g} dB are needed")


def whole_failures(figures: Mapping[str, Any], bounds: Bounds) -> Iterator[str]:
    """One line for each bound that whole frames break."""
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
