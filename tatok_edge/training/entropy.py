"""Fit the integer entropy model of :mod:`tatok_edge.format.entropy` to the codes of a trained model.

``python -m tatok_edge.training.entropy BUNDLE --data DIR`` fits the entropy model of a bundle again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tatok_edge.errors import TaTokError
from tatok_edge.format.entropy import (
    GRIDS,
    HIDDEN_MAX,
    HIDDEN_SHIFT,
    LOGIT_STEP,
    OUTPUT_SHIFT,
    PHASES,
    SHARES,
    exp_table,
    load_tables,
    save_tables,
    share_class,
)
from tatok_edge.geometry import PATCH
from tatok_edge.model.bundle import ENTROPY, MANIFEST, Bundle, content_tag, open_folder, replace_files
from tatok_edge.runtime.cpu.coder import INPUT_SCALE
from tatok_edge.training.data import CropSource, DataError, read_pictures
from tatok_edge.training.model import TaTok, pixels_to_grid

WIDTH = 160
KEEP_WIDTH = 48
CROP = 256
REACH = 2
BATCH = 8
TOKENS = 1536
"""Tokens of a batch that take part in a step."""

BEFORE = [(y, x) for y in range(-REACH, 1) for x in range(-REACH, REACH + 1) if (y, x) < (0, 0)]
"""The neighbours that come before a token, in the order of the network's inputs."""
AFTER = [(y, x) for y in range(REACH + 1) for x in range(-REACH, REACH + 1) if (y, x) > (0, 0)]


@dataclass(frozen=True, slots=True)
class Codes:
    """The codes of ``n`` crops of ``hc`` by ``wc`` cells."""

    cells: Tensor
    """uint8 ``(n, hc, wc, D)``."""
    patches: Tensor
    """uint8 ``(n, 4 * hc, 4 * wc, D)``."""
    scores: Tensor
    """Scores of the patches, ``(n, 4 * hc, 4 * wc)``: ``residual``, the default of budgets."""


@torch.no_grad()
def collect(model: TaTok, source: CropSource, images: int, seed: int) -> Codes:
    """Codes of random crops."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(max(1, images // 8)):
        crops = source.crops(8, CROP, generator)
        encoded = model.encode(crops)
        codes = (encoded.global_codes, encoded.codes)
        cells, patches = (part.permute(0, 2, 3, 1).to("cpu", torch.uint8) for part in codes)
        residual = (pixels_to_grid(crops, PATCH) - encoded.prior.mean).square().sum(1)
        parts.append((cells, patches, residual.float().cpu()))
    cells, patches, scores = (torch.cat(part) for part in zip(*parts, strict=True))
    return Codes(cells, patches, scores)


def centres(codes: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Codes ``(..., D)`` as inputs of a network, in (-1, 1)."""
    size = torch.tensor(levels)
    return ((2 * codes.long() + 1) * INPUT_SCALE // size - INPUT_SCALE).float() / INPUT_SCALE


def around(values: Tensor, there: Tensor) -> Tensor:
    """Inputs of a network from the neighbours of every token of a grid.

    Args:
        values: :func:`centres` ``(n, h, w, D)``.
        there: Whether there is a token, bool ``(n, h, w)``.

    Returns:
        ``(n, h, w, 12 * (D + 1) + 12)``: for each of the 12 neighbours before the token its values and 1, or zeros
        without a token; for each of the 12 neighbours after it, whether it has a token.
    """
    h, w = values.shape[1:3]
    entry = F.pad(torch.cat([values * there[..., None], there[..., None].float()], -1), (0, 0) + (REACH,) * 4)

    def shifted(y: int, x: int) -> Tensor:
        return entry[:, REACH + y : REACH + y + h, REACH + x : REACH + x + w]

    return torch.cat([*(shifted(*at) for at in BEFORE), *(shifted(*at)[..., -1:] for at in AFTER)], -1)


def cell_inputs(cells: Tensor, kept: Tensor, levels: tuple[int, ...]) -> Tensor:
    """First inputs of a network for patches: surrounding cells, share of kept patches, place in the cell.

    Args:
        cells: Codes ``(n, hc, wc, D)``.
        kept: Kept patches, bool ``(n, 4 * hc, 4 * wc)``.
        levels: Values of each code dimension.
    """
    n, hc, wc, _ = cells.shape
    padded = F.pad(centres(cells, levels).permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)
    nine = torch.cat([padded[:, y : y + hc, x : x + wc] for y in range(3) for x in range(3)], -1)
    nine = nine.repeat_interleave(4, 1).repeat_interleave(4, 2)
    classes = [share_class(count, kept[0].numel()) for count in kept.flatten(1).sum(1).tolist()]
    share = F.one_hot(torch.tensor(classes), SHARES).float()
    phase = torch.eye(PHASES).reshape(1, 4, 4, PHASES).tile(1, hc, wc, 1)
    grid = (n, 4 * hc, 4 * wc, -1)
    return torch.cat([nine, share[:, None, None].expand(grid), phase.expand(grid)], -1)


def draw_window(n: int, h: int, w: int, generator: torch.Generator) -> Tensor:
    """Random rectangles, bool ``(n, h, w)``."""

    def span(length: int) -> Tensor:
        size = 1 + (torch.rand(n, generator=generator) * length).long()
        start = (torch.rand(n, generator=generator) * (length - size + 1)).long()
        line = torch.arange(length)
        return (line >= start[:, None]) & (line < (start + size)[:, None])

    return span(h)[:, :, None] & span(w)[:, None]


def draw_kept(scores: Tensor, generator: torch.Generator) -> Tensor:
    """Kept maps with random shares of kept patches, bool ``(n, h, w)``."""
    n, h, w = scores.shape
    share = torch.exp(math.log(0.03) * torch.rand(n, generator=generator))
    share = torch.where(torch.rand(n, generator=generator) < 0.15, 1.0, share)
    count = (share * h * w).round().clamp(min=1)
    rank = scores.flatten(1).argsort(1, descending=True).argsort(1).reshape(n, h, w)
    return rank < count[:, None, None]


def draw_cells(n: int, h: int, w: int, generator: torch.Generator) -> Tensor:
    """Cells that a packet holds, bool ``(n, h, w)``: all of them, or some of a part of the picture."""
    chance = 0.3 + 0.7 * torch.rand(n, 1, 1, generator=generator)
    some = draw_window(n, h, w, generator) & (torch.rand(n, h, w, generator=generator) < chance)
    return some | (torch.rand(n, 1, 1, generator=generator) < 0.6)


class TokenNet(nn.Module):
    """The float twin of a network in integers: hidden activations in [0, 4), which become 0 to 255."""

    def __init__(self, inputs: int, states: int, width: int = WIDTH) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, states)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, sum(levels))``."""
        x = self.first(x).clamp(0, HIDDEN_MAX / INPUT_SCALE)
        x = self.second(x).clamp(0, HIDDEN_MAX / INPUT_SCALE)
        out: Tensor = self.third(x)
        return out

    def nats(self, x: Tensor, codes: Tensor, levels: tuple[int, ...]) -> Tensor:
        """Mean cost in nats of the codes ``(n, D)``."""
        parts = self(x).split(levels, 1)
        costs = [F.cross_entropy(logits, codes[:, d].long(), reduction="sum") for d, logits in enumerate(parts)]
        return torch.stack(costs).sum() / max(1, len(x))

    def integers(self) -> dict[str, NDArray[np.integer]]:
        """The weights as arrays of :class:`tatok_edge.runtime.cpu.coder.TokenModel`."""
        hidden, output = 1 << HIDDEN_SHIFT, (1 << OUTPUT_SHIFT) * LOGIT_STEP

        def scaled(values: Tensor, scale: float, dtype: type[np.integer]) -> NDArray[np.integer]:
            limit = np.iinfo(dtype).max
            return np.clip(np.round(values.detach().double().numpy() * scale), -limit, limit).astype(dtype)

        return {
            "w1": scaled(self.first.weight.T, hidden, np.int16),
            "b1": scaled(self.first.bias, hidden * INPUT_SCALE, np.int32),
            "w2": scaled(self.second.weight.T, hidden, np.int16),
            "b2": scaled(self.second.bias, hidden * INPUT_SCALE, np.int32),
            "w3": scaled(self.third.weight.T, output / INPUT_SCALE, np.int16),
            "b3": scaled(self.third.bias, output, np.int32),
        }


@dataclass(frozen=True, slots=True)
class Networks:
    """One network for each of :data:`tatok_edge.format.entropy.GRIDS`."""

    cells: TokenNet
    keep: TokenNet
    patches: TokenNet
    levels: tuple[int, ...]

    def cells_nats(self, cells: Tensor, there: Tensor) -> Tensor:
        """Mean cost in nats of the cells ``there`` that a packet holds."""
        return self.cells.nats(around(centres(cells, self.levels), there)[there], cells[there], self.levels)

    def keep_nats(self, cells: Tensor, kept: Tensor, at: Tensor) -> Tensor:
        """Mean cost in nats of the kept map at the patches ``at``, bool ``(n, h, w)``."""
        codes = kept[..., None].long()
        inputs = torch.cat([cell_inputs(cells, kept, self.levels), around(centres(codes, (2,)), kept | True)], -1)
        return self.keep.nats(inputs[at], codes[at], (2,))

    def patches_nats(self, cells: Tensor, patches: Tensor, kept: Tensor, at: Tensor) -> Tensor:
        """Mean cost in nats of the codes of the patches ``at``, bool ``(n, h, w)``."""
        inputs = torch.cat([cell_inputs(cells, kept, self.levels), around(centres(patches, self.levels), kept)], -1)
        return self.patches.nats(inputs[at], patches[at], self.levels)

    def tables(self) -> dict[str, NDArray[np.integer]]:
        """Arrays of :func:`tatok_edge.format.entropy.save_tables`."""
        tables: dict[str, NDArray[np.integer]] = {"exp": exp_table()}
        for grid, net in zip(GRIDS, (self.cells, self.keep, self.patches), strict=True):
            tables |= {f"{grid}_{name}": array for name, array in net.integers().items()}
        return tables


def fit_networks(codes: Codes, levels: tuple[int, ...], *, steps: int, seed: int) -> Networks:
    """Fit the networks to the codes."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    context, binary = (len(BEFORE) * (dims + 1) + len(AFTER) for dims in (len(levels), 1))
    above = 9 * len(levels) + SHARES + PHASES
    nets = Networks(
        TokenNet(context, sum(levels)),
        TokenNet(above + binary, 2, KEEP_WIDTH),
        TokenNet(above + context, sum(levels)),
        levels,
    )
    # There are sixteen times as many patches as cells to learn from.
    decay = {nets.cells: 1e-2, nets.keep: 1e-3, nets.patches: 1e-3}
    optimizer = torch.optim.AdamW(
        [{"params": net.parameters(), "weight_decay": weight} for net, weight in decay.items()], lr=3e-3
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    n, hc, wc, _ = codes.cells.shape
    for _ in range(steps):
        index = torch.randint(n, (BATCH,), generator=generator)
        cells, patches = codes.cells[index], codes.patches[index]
        kept = draw_kept(codes.scores[index], generator)
        some = torch.rand(kept.shape, generator=generator) < TOKENS / kept.numel()
        loss = nets.keep_nats(cells, kept, some)
        # Delta packets hold tokens of a part of the picture.
        whole = torch.rand(BATCH, 1, 1, generator=generator) < 0.7
        held = kept & (whole | draw_window(BATCH, 4 * hc, 4 * wc, generator))
        some = held & (torch.rand(held.shape, generator=generator) < TOKENS / held.sum())
        loss = loss + nets.patches_nats(cells, patches, held, some)
        loss = loss + nets.cells_nats(cells, draw_cells(BATCH, hc, wc, generator))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    return nets


def fit(model: TaTok, source: CropSource, *, images: int, steps: int, seed: int) -> dict[str, NDArray[np.integer]]:
    """Fit the tables on crops of the training pictures; some minutes on a CPU."""
    codes = collect(model, source, images, seed + 99)
    return fit_networks(codes, model.config.levels, steps=steps, seed=seed).tables()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tatok_edge.training.entropy", description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder; its entropy.npz, manifest and card are replaced")
    parser.add_argument("--data", type=Path, required=True, help="folder of training pictures")
    parser.add_argument("--use", choices=("ship", "all"), default="ship", help="manifest rows to use")
    parser.add_argument("--images", type=int, default=6000, help="number of crops (6000)")
    parser.add_argument("--steps", type=int, default=12000, help="number of steps (12000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (PyTorch's default)")
    args = parser.parse_args(argv)
    for name in ("images", "steps", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    from tatok_edge.training.bundle import load_from_bundle  # needs onnx, which training does not

    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        bundle = open_folder(args.bundle)
        model = load_from_bundle(bundle)
        source = CropSource(read_pictures(args.data, args.use), torch.device("cpu"), min_side=CROP)
        tables = fit(model, source, images=args.images, steps=args.steps, seed=args.seed)
        print(f"{bundle.path}: {bundle.tag.hex()} is now {replace_tables(bundle, tables).hex()}")
    except (TaTokError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def replace_tables(bundle: Bundle, tables: dict[str, NDArray[np.integer]]) -> bytes:
    """Put other tables into the folder of a bundle; returns its new tag."""
    data = save_tables(tables)
    load_tables(data, bundle.levels, bundle.name)
    entry = {**bundle.manifest["files"][ENTROPY], "sha256": hashlib.sha256(data).hexdigest()}
    files = {**bundle.manifest["files"], ENTROPY: entry}
    tag = content_tag(files)
    manifest = {**bundle.manifest, "files": files, "tag": tag.hex()}
    contents = {entry["file"]: data, MANIFEST: (json.dumps(manifest, indent=1) + "\n").encode()}
    card = bundle.path / "MODEL_CARD.md"
    if card.exists():
        contents[card.name] = card.read_bytes().replace(bundle.tag.hex().encode(), tag.hex().encode())
    replace_files(bundle.path, contents)
    return tag


if __name__ == "__main__":
    sys.exit(main())
