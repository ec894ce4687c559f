"""Frames of tokens to a batch of PyTorch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tatok_edge.datasets.tokens import FrameTokens
from tatok_edge.errors import BackendError, InputError
from tatok_edge.tokens.frame import TokenFrame

if TYPE_CHECKING:
    import torch

FIELDS = ("ids", "positions", "depths", "global_ids")


def collate(
    frames: Sequence[FrameTokens | TokenFrame], *, layout: Literal["padded", "ragged"] = "padded", padding: int = 0
) -> dict[str, torch.Tensor]:
    """Frames to a batch of PyTorch tensors: the ``collate_fn`` of a ``DataLoader``.

    Padded (``B`` frames, ``L`` tokens and ``G`` global tokens of the largest one): ``ids``, ``positions`` and
    ``depths``, int64 ``(B, L)``; ``mask``, bool ``(B, L)``, True at tokens; ``global_ids``, int64 ``(B, G)``;
    ``global_mask``, bool ``(B, G)``. Depths are 1 to K at tokens and 0 at padding.

    Ragged (``T`` tokens in all): ``ids``, ``positions`` and ``depths``, int64 ``(T,)``; ``cu_seqlens``, int32
    ``(B + 1,)``: frame ``b`` owns ``ids[cu_seqlens[b]:cu_seqlens[b + 1]]``; ``global_ids``, int64 ``(G,)``;
    ``cu_globals``, int32 ``(B + 1,)``. Variable-length attention takes them without padding.

    Both: ``sizes``, int64 ``(B, 2)``, width and height in pixels; ``timestamps_us`` and ``indices``, int64 ``(B,)``.

    Args:
        frames: Frames of a :class:`tatok_edge.datasets.TokenDataset`, or :class:`TokenFrame` objects.
        layout: ``"padded"`` or ``"ragged"``; ``functools.partial(collate, layout="ragged")`` is a ``collate_fn`` too.
        padding: Id behind the last token, with ``"padded"``. 0 is also a token: use the mask, or give the size of the
            vocabulary and an embedding with one row more.

    Returns:
        Tensors by name.

    Raises:
        InputError: There is no frame, or something that is none; the layout is unknown.
        BackendError: PyTorch is not installed.

    Example:
        >>> frames = [tokenizer.encode(image), tokenizer.encode(image, budget=tatok_edge.TokenBudget(keep=0.35))]
        >>> batch = tatok_edge.collate(frames)  # or DataLoader(dataset, batch_size=8, collate_fn=tatok_edge.collate)
        >>> batch["ids"].shape, batch["mask"].sum(dim=1)
    """
    if layout not in ("padded", "ragged"):
        raise InputError(f"layout must be 'padded' or 'ragged', got {layout!r}")
    if not len(frames):
        raise InputError("frames must hold at least one frame of tokens, got none")
    for number, frame in enumerate(frames):
        if not isinstance(frame, (FrameTokens, TokenFrame)):
            raise InputError(
                f"frames[{number}] must be a TokenFrame or a frame of a TokenDataset, got {type(frame).__name__}"
                f"{'; give its field tokens' if hasattr(frame, 'tokens') else ''}"
            )
    try:
        import torch
    except ModuleNotFoundError:
        raise BackendError("collate makes PyTorch tensors, and PyTorch is missing: pip install torch") from None
    made: dict[str, NDArray[Any]] = {}
    columns = {name: [np.asarray(getattr(frame, name)) for frame in frames] for name in FIELDS}
    lengths = {name: np.array([part.size for part in columns[name]]) for name in ("ids", "global_ids")}
    for name, parts in columns.items():
        if layout == "ragged":
            made[name] = np.concatenate(parts).astype(np.int64)
        else:
            fill = padding if name in ("ids", "global_ids") else 0
            made[name] = np.full((len(parts), max(part.size for part in parts)), fill, np.int64)
            for row, part in zip(made[name], parts, strict=True):
                row[: part.size] = part
    for name, of in (("ids", ("mask", "cu_seqlens")), ("global_ids", ("global_mask", "cu_globals"))):
        if layout == "ragged":
            made[of[1]] = np.cumsum([0, *lengths[name]]).astype(np.int32)
        else:
            made[of[0]] = np.arange(made[name].shape[1]) < lengths[name][:, None]
    made["sizes"] = np.array([(frame.width, frame.height) for frame in frames], np.int64)
    made["timestamps_us"] = np.array([frame.timestamp_us for frame in frames], np.int64)
    made["indices"] = np.array([frame.index for frame in frames], np.int64)
    return {name: torch.from_numpy(array) for name, array in made.items()}
