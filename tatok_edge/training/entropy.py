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
    HIDDEN_MAX,
    HIDDEN_SHIFT,
    LOGIT_BITS,
    PHASES,
    SHARES,
    NetworkKind,
    exp_table,
    load_tables,
    network_kinds,
    save_tables,
    share_class,
)
from tatok_edge.model.bundle import ENTROPY, MANIFEST, Bundle, content_tag, open_folder, replace_files
from tatok_edge.runtime.cpu.coder import INPUT_SCALE, input_sizes
from tatok_edge.training.data import CropSource, DataError, read_pictures
from tatok_edge.training.filtering import fixed_point, residual_scores
from tatok_edge.training.model import TaTok

WIDTHS = {"cells": (96, 64), "depths": (32, 32), "patches": (128, 64), "deeper": (128, 64)}
"""Hidden units of the two layers of each network."""
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
    """The codes of ``n`` crops of ``hc`` by ``wc`` cells, by a model of up to ``K`` tokens per patch."""

    cells: Tensor
    """uint8 ``(n, hc, wc, D)``."""
    patches: Tensor
    """uint8 ``(n, 4 * hc, 4 * wc, K, D)``."""
    scores: Tensor
    """Scores of the tokens, ``(n, K, 4 * hc, 4 * wc)``: ``residual``, the default of budgets."""
    earlier: Tensor
    """Codes of the patches as they may have been in a frame before, uint8 ``(n, 4 * hc, 4 * wc, K, D)``."""


@torch.no_grad()
def collect(model: TaTok, source: CropSource, images: int, seed: int) -> Codes:
    """Codes of random crops."""
    generator = torch.Generator().manual_seed(seed)
    depth, dims = model.config.depth, model.config.dims
    parts = []

    def stacks(codes: Tensor) -> Tensor:
        n, _, h, w = codes.shape
        return codes.reshape(n, depth, dims, h, w).permute(0, 3, 4, 1, 2).to("cpu", torch.uint8)

    for _ in range(max(1, images // BATCH)):
        crops = source.crops(BATCH, CROP, generator)
        encoded, earlier = model.encode(crops), model.encode(disturbed(crops, generator))
        cells = encoded.global_codes.permute(0, 2, 3, 1).to("cpu", torch.uint8)
        scores = residual_scores(model, crops, encoded).float().cpu()
        parts.append((cells, stacks(encoded.codes), scores, stacks(earlier.codes)))
    return Codes(*(torch.cat(part) for part in zip(*parts, strict=True)))


def disturbed(crops: Tensor, generator: torch.Generator) -> Tensor:
    """The crops as a camera may have seen them a moment before: other light, noise, half a pixel aside."""
    n, device = len(crops), crops.device

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)).to(device)

    aside = (crops + torch.roll(crops, 1, 3)) / 2
    crops = torch.where(draw(0, 1) < 0.4, aside, crops)
    aside = (crops + torch.roll(crops, 1, 2)) / 2
    crops = torch.where(draw(0, 1) < 0.4, aside, crops)
    noise = torch.randn(crops.shape, generator=generator).to(device)
    return (crops * draw(0.93, 1.07) + draw(-0.04, 0.04) + noise * draw(0.0, 0.03)).clamp(-1, 1)


def centres(codes: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Codes ``(..., D)`` as inputs of a network, in (-1, 1)."""
    size = torch.tensor(levels)
    return ((2 * codes.long() + 1) * INPUT_SCALE // size - INPUT_SCALE).float() / INPUT_SCALE


def around(values: Tensor, there: Tensor, at: Tensor) -> Tensor:
    """Inputs of a network from the neighbours of some tokens of a grid.

    Args:
        values: :func:`centres` ``(n, h, w, D)``.
        there: Whether there is a token, bool ``(n, h, w)``.
        at: The tokens, bool ``(n, h, w)``.

    Returns:
        ``(t, 12 * (D + 1) + 12)``: for each of the 12 neighbours before the token its values and 1, or zeros
        without a token; for each of the 12 neighbours after it, whether it has a token.
    """
    entry = F.pad(torch.cat([values * there[..., None], there[..., None].float()], -1), (0, 0) + (REACH,) * 4)
    b, y, x = at.nonzero(as_tuple=True)
    before = [entry[b, REACH + y + dy, REACH + x + dx] for dy, dx in BEFORE]
    return torch.cat([*before, *(entry[b, REACH + y + dy, REACH + x + dx, -1:] for dy, dx in AFTER)], -1)


def cell_inputs(cells: Tensor, tokens: Tensor, levels: tuple[int, ...], at: Tensor) -> Tensor:
    """First inputs of a network for some patches: surrounding cells, class of the tokens per patch, place in the cell.

    Args:
        cells: Codes ``(n, hc, wc, D)``.
        tokens: Number of tokens of each picture ``(n,)``.
        levels: Values of each code dimension.
        at: The patches, bool ``(n, 4 * hc, 4 * wc)``.
    """
    hc, wc = cells.shape[1:3]
    b, y, x = at.nonzero(as_tuple=True)
    padded = F.pad(centres(cells, levels).permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)
    nine = torch.cat([padded[:, dy : dy + hc, dx : dx + wc] for dy in range(3) for dx in range(3)], -1)
    classes = torch.tensor([share_class(count, hc * wc * PHASES) for count in tokens.tolist()])
    phase = torch.eye(PHASES)[y % 4 * 4 + x % 4]
    return torch.cat([nine[b, y // 4, x // 4], torch.eye(SHARES)[classes[b]], phase], -1)


def draw_window(n: int, h: int, w: int, generator: torch.Generator) -> Tensor:
    """Random rectangles, bool ``(n, h, w)``."""

    def span(length: int) -> Tensor:
        size = 1 + (torch.rand(n, generator=generator) * length).long()
        start = (torch.rand(n, generator=generator) * (length - size + 1)).long()
        line = torch.arange(length)
        return (line >= start[:, None]) & (line < (start + size)[:, None])

    return span(h)[:, :, None] & span(w)[:, None]


def ranks_of(scores: Tensor) -> Tensor:
    """Rank of each token of a picture by the rule of Dynamic Token Filtering, int32, of the shape of the scores."""
    order = fixed_point(scores).flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return ranks.to(torch.int32).reshape(scores.shape)


def draw_depths(ranks: Tensor, generator: torch.Generator) -> Tensor:
    """Depth maps of random budgets ``(n, h, w)``.

    In some pictures, a part has another budget than the rest, as in a stream.

    Args:
        ranks: Those of :func:`ranks_of`, ``(n, K, h, w)``.
    """
    n, depth, h, w = ranks.shape

    def draw() -> Tensor:
        share = 0.03 * torch.exp(math.log(depth / 0.03) * torch.rand(n, generator=generator))
        share = torch.where(torch.rand(n, generator=generator) < 0.1, float(depth), share)
        return (ranks < (share * h * w).round()[:, None, None, None]).sum(1)

    part = draw_window(n, h, w, generator) & (torch.rand(n, 1, 1, generator=generator) < 0.25)
    return torch.where(part, draw(), draw())


def draw_held(codes: Codes, ranks: Tensor, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens that the patches may have held before: codes ``(n, h, w, K, D)`` and depth maps ``(n, h, w)``.

    Half of the pictures hold nothing, as in key packets. In the others, a part of the patches holds the tokens of the
    same patch in an earlier picture, the rest those of another picture.
    """
    other = torch.randint(len(codes.cells), index.shape, generator=generator)
    n, _, h, w = codes.scores[index].shape
    same = torch.rand(n, h, w, generator=generator) < 0.2 + 0.8 * torch.rand(n, 1, 1, generator=generator)
    held = torch.where(same[..., None, None], codes.earlier[index], codes.patches[other])
    depths = torch.where(same, draw_depths(ranks[index], generator), draw_depths(ranks[other], generator))
    return held, depths * (torch.rand(n, 1, 1, generator=generator) < 0.5)


def draw_cells(n: int, h: int, w: int, generator: torch.Generator) -> Tensor:
    """Cells that a packet holds, bool ``(n, h, w)``: all of them, or some of a part of the picture."""
    chance = 0.3 + 0.7 * torch.rand(n, 1, 1, generator=generator)
    some = draw_window(n, h, w, generator) & (torch.rand(n, h, w, generator=generator) < chance)
    return some | (torch.rand(n, 1, 1, generator=generator) < 0.6)


class TokenNet(nn.Module):
    """The float twin of a network in integers: hidden activations in [0, 4), which become 0 to 255."""

    def __init__(self, inputs: int, states: int, widths: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, widths[0])
        self.second = nn.Linear(widths[0], widths[1])
        self.third = nn.Linear(widths[1], states)

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
        hidden, output = 1 << HIDDEN_SHIFT, 1 << LOGIT_BITS

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


class Networks:
    """The networks of :func:`tatok_edge.format.entropy.network_kinds`."""

    def __init__(self, levels: tuple[int, ...], depth: int) -> None:
        self.levels = levels
        self.depth = depth
        self.nets: dict[str, TokenNet] = {}
        for name, kind in network_kinds(levels, depth).items():
            inputs = sum(_sizes(kind, levels))
            self.nets[name] = TokenNet(inputs, sum(kind.levels), WIDTHS[name])

    def cells_nats(self, cells: Tensor, there: Tensor) -> Tensor:
        """Mean cost in nats of the cells ``there`` that a packet holds."""
        inputs = around(centres(cells, self.levels), there, there)
        return self.nets["cells"].nats(inputs, cells[there], self.levels)

    def depths_nats(self, cells: Tensor, depths: Tensor, at: Tensor) -> Tensor:
        """Mean cost in nats of the depth map ``(n, h, w)`` at the patches ``at``, bool ``(n, h, w)``."""
        codes, levels = depths[..., None].long(), (self.depth + 1,)
        above = cell_inputs(cells, depths.flatten(1).sum(1), self.levels, at)
        inputs = torch.cat([above, around(centres(codes, levels), depths >= 0, at)], -1)
        return self.nets["depths"].nats(inputs, codes[at], levels)

    def patches_nats(
        self, cells: Tensor, patches: Tensor, depths: Tensor, held: tuple[Tensor, Tensor], of: Tensor, at: Tensor
    ) -> Tensor:
        """Mean cost in nats of patch tokens of one depth in each picture.

        Args:
            cells: Codes ``(n, hc, wc, D)``.
            patches: Codes ``(n, h, w, K, D)``.
            depths: Depth maps ``(n, h, w)``.
            held: Codes and depth maps of the tokens before, of these shapes.
            of: The depth ``(n,)``: 1 for all pictures, or 2 to K.
            at: The patches that count, bool ``(n, h, w)``; all of them have a token of that depth.
        """
        wide, deeper = of[:, None, None], int(of[0]) > 1
        b, y, x = at.nonzero(as_tuple=True)
        values, depth = centres(patches[b, y, x], self.levels), of[b]
        parts = [cell_inputs(cells, depths.flatten(1).sum(1), self.levels, at)]
        if deeper:
            parts.append(F.one_hot(depth - 2, self.depth - 1).float())
            known = torch.arange(1, self.depth) < depth[:, None]
            parts.append((values[:, : self.depth - 1] * known[..., None]).flatten(1))
        before = (held[1][b, y, x] >= depth)[:, None].float()
        parts += [centres(held[0][b, y, x, depth - 1], self.levels) * before, before]
        plane = patches[torch.arange(len(of)), :, :, of - 1]
        parts.append(around(centres(plane, self.levels), depths >= wide, at))
        net = self.nets["deeper" if deeper else "patches"]
        return net.nats(torch.cat(parts, -1), plane[at], self.levels)

    def tables(self) -> dict[str, NDArray[np.integer]]:
        """Arrays of :func:`tatok_edge.format.entropy.save_tables`."""
        tables: dict[str, NDArray[np.integer]] = {"exp": exp_table()}
        for name, net in self.nets.items():
            tables |= {f"{name}_{layer}": array for layer, array in net.integers().items()}
        return tables


def _sizes(kind: NetworkKind, levels: tuple[int, ...]) -> tuple[int, ...]:
    """Inputs of each part of the first layer of a network."""
    around_patch = (len(levels), SHARES) if kind.of_patches else (0, 0)
    return input_sizes(len(kind.levels), *around_patch, kind.shallower, kind.held)


def fit_networks(codes: Codes, levels: tuple[int, ...], *, steps: int, seed: int) -> Networks:
    """Fit the networks to the codes."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    n, hc, wc, _ = codes.cells.shape
    depth, ranks = codes.scores.shape[1], ranks_of(codes.scores)
    nets = Networks(levels, depth)
    # There are sixteen times as many patches as cells to learn from.
    groups = [
        {"params": net.parameters(), "weight_decay": 1e-2 if name == "cells" else 1e-3}
        for name, net in nets.nets.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)

    def some(there: Tensor) -> Tensor:
        return there & (torch.rand(there.shape, generator=generator) < TOKENS / max(1, int(there.sum())))

    for _ in range(steps):
        index = torch.randint(n, (BATCH,), generator=generator)
        cells, patches = codes.cells[index], codes.patches[index]
        depths = draw_depths(ranks[index], generator)
        held = draw_held(codes, ranks, index, generator)
        loss = nets.cells_nats(cells, draw_cells(BATCH, hc, wc, generator))
        loss = loss + nets.depths_nats(cells, depths, some(depths >= 0))
        first = torch.ones(BATCH, dtype=torch.long)
        loss = loss + nets.patches_nats(cells, patches, depths, held, first, some(depths > 0))
        if depth > 1:
            of = torch.randint(2, depth + 1, (BATCH,), generator=generator)
            loss = loss + nets.patches_nats(cells, patches, depths, held, of, some(depths >= of[:, None, None]))
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
    load_tables(data, bundle.levels, bundle.depth, bundle.name)
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
