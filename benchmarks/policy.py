"""Does a policy need all tokens? The same small transformer learns to reach on fixed-rate tokens and on filtered ones.

``python benchmarks/policy.py --out benchmarks/results`` renders a table with a textured cloth, a gripper (white), a
goal (red) and distractors, seen by a camera from above. A scripted controller shows how to reach the goal. The policy
sees the tokens of one picture and nothing else, and gives the next motion. It is trained by imitation, with the same
examples, steps and seeds for each budget, and then tried in episodes that it has not seen. Times are CPU times of this
process on one thread, so that other programs do not change the ratios. Writes policy.json, policy.md and policy.png.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import common
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tatok_edge import TokenBudget, TokenFrame, Tokenizer
from tatok_edge.evaluation.speed import machine
from tatok_edge.geometry import CELL, PATCH, Image

SPEED = 0.08
"""Longest motion of a step; the table is 1 wide."""
REACHED = 0.08
"""Distance from the goal that counts as success."""
BANDS = 6
"""Frequencies of the encoding of a coordinate."""
LARGE = {"width": 384, "layers": 6, "heads": 6}
"""A policy of the size that robots use. Its inference is timed without training, which does not change the time."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Options of a run; the same for every budget."""

    side: int = 64
    """Pictures are squares of this many pixels."""
    keep: float = 0.2
    """Tokens per patch of the filtered budget."""
    demonstrations: int = 1500
    """Demonstrations, each with its own cloth and goal; with few, the policy learns goals by heart."""
    demonstration_length: int = 4
    """Steps of a demonstration."""
    episodes: int = 150
    """Episodes to try a policy in."""
    length: int = 20
    """Steps of an episode."""
    steps: int = 1200
    batch: int = 32
    lr: float = 2e-3
    width: int = 64
    layers: int = 2
    heads: int = 4
    seeds: int = 2

    def budgets(self) -> dict[str, TokenBudget]:
        """What is compared."""
        return {
            "fixed rate": TokenBudget(max_depth=1),
            f"filtered, keep {self.keep:g}": TokenBudget(keep=self.keep),
        }


# --- the task -----------------------------------------------------------------------------------------


class Table:
    """Episodes side by side: where gripper and goal are, and how it looks.

    Args:
        count: Number of episodes.
        side: Pixels of a picture.
        seed: Decides everything.
    """

    def __init__(self, count: int, side: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._side = side
        self.goal = rng.uniform(0.12, 0.88, (count, 2))
        """Places of the goals, (x, y) from 0 to 1."""
        self.gripper = rng.uniform(0.08, 0.92, (count, 2))
        """Places of the grippers."""
        self._cloth = [self._picture(rng, goal) for goal in self.goal]

    def _picture(self, rng: np.random.Generator, goal: NDArray[np.float64]) -> Image:
        side = self._side
        cloth = np.zeros((side, side, 3), np.float32)
        for cells, strength in ((3, 26.0), (12, 16.0), (side // 2, 12.0)):  # folds, pattern, weave
            noise = rng.standard_normal((cells, cells, 3)).astype(np.float32) * strength
            cloth += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
        image = np.clip(cloth + rng.uniform(70, 150, 3), 0, 255).astype(np.uint8)
        for color in ((60, 90, 210), (60, 170, 80), (220, 190, 60), (150, 80, 180)):
            place = rng.uniform(0.05, 0.95, 2)
            if np.linalg.norm(place - goal) > 0.25:
                self._disc(image, place, 0.1, color)
        self._disc(image, goal, 0.1, (220, 40, 40))
        return image

    def _disc(self, image: Image, place: NDArray[np.float64], radius: float, color: tuple[int, int, int]) -> None:
        shift = 4  # places and radii in sixteenths of a pixel
        x, y, r = (round(float(v) * self._side * (1 << shift)) for v in (*place, radius))
        cv2.circle(image, (x, y), r, color, -1, cv2.LINE_AA, shift)

    def render(self) -> list[Image]:
        """The picture of every episode."""
        images = [cloth.copy() for cloth in self._cloth]
        for image, place in zip(images, self.gripper, strict=True):
            self._disc(image, place, 0.08, (245, 245, 245))
            self._disc(image, place, 0.04, (20, 20, 20))
        return images

    def expert(self) -> NDArray[np.float64]:
        """The motion of the scripted controller, ``(count, 2)`` in [-1, 1]: straight to the goal."""
        ahead = (self.goal - self.gripper) / SPEED
        return ahead / np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1)

    def move(self, motion: NDArray[Any]) -> None:
        """Move all grippers; a motion is at most 1 long."""
        motion = motion / np.maximum(np.linalg.norm(motion, axis=1, keepdims=True), 1)
        self.gripper = np.clip(self.gripper + SPEED * motion, 0, 1)

    def reached(self) -> NDArray[np.bool_]:
        """Which grippers are at their goals."""
        near: NDArray[np.bool_] = np.linalg.norm(self.goal - self.gripper, axis=1) < REACHED
        return near


def demonstrations(setup: Setup) -> tuple[list[Image], NDArray[np.float32]]:
    """Pictures and motions of the controller, which is pushed aside now and then, so that it shows how to come back."""
    table = Table(setup.demonstrations, setup.side, seed=1)
    rng = np.random.default_rng(2)
    images, motions = [], []
    for _ in range(setup.demonstration_length):
        images += table.render()
        motions.append(table.expert())
        table.move(motions[-1] + rng.normal(0, 0.5, motions[-1].shape))
    return images, np.concatenate(motions).astype(np.float32)


# --- observations -------------------------------------------------------------------------------------


class Observations(NamedTuple):
    """Tokens of pictures, padded: global tokens, then patch tokens."""

    values: Tensor
    """``(B, T, 2 * D)`` of the token, and of the global token of its cell."""
    places: Tensor
    """``(B, T, 2)`` centre of the cell or patch in the picture, from 0 to 1."""
    depths: Tensor
    """``(B, T)`` 0 for a global token, else the depth in the stack."""
    lengths: Tensor
    """``(B,)``."""

    def take(self, rows: Tensor) -> Observations:
        """Some pictures, without needless padding."""
        most = int(self.lengths[rows].max())
        return Observations(*(part[rows, :most] for part in self[:3]), self.lengths[rows])


def observe(tokenizer: Tokenizer, images: Sequence[Image], budget: TokenBudget) -> Observations:
    """Tokens of pictures of one size."""
    rows = [_tokens(tokenizer, tokenizer.encode(image, budget=budget)) for image in images]
    lengths = torch.tensor([len(values) for values, _, _ in rows])
    parts = [nn.utils.rnn.pad_sequence([torch.from_numpy(row[i]) for row in rows], True) for i in range(3)]
    return Observations(parts[0], parts[1], parts[2], lengths)


def _tokens(tokenizer: Tokenizer, frame: TokenFrame) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    cells = np.arange(frame.n_globals, dtype=np.int32)
    globals_as_ids = replace(frame, ids=frame.global_ids, positions=cells)
    values = np.concatenate([tokenizer.values(globals_as_ids), tokenizer.values(frame)])
    row, column = np.divmod(frame.positions, frame.grid[1])
    cell = row * PATCH // CELL * (frame.grid[1] * PATCH // CELL) + column * PATCH // CELL
    values = np.concatenate([values, values[np.concatenate([cells, cell])]], 1)
    places = np.concatenate([_centres(cells, CELL, frame), _centres(frame.positions, PATCH, frame)])
    return values, places, np.concatenate([np.zeros(len(cells), np.int64), frame.depths.astype(np.int64)])


def _centres(numbers: NDArray[np.int32], side: int, frame: TokenFrame) -> NDArray[np.float32]:
    columns = frame.grid[1] * PATCH // side
    row, column = np.divmod(numbers, columns)
    return np.stack([(column + 0.5) * side / frame.width, (row + 0.5) * side / frame.height], 1).astype(np.float32)


# --- the policy ---------------------------------------------------------------------------------------


class Policy(nn.Module):
    """A transformer over tokens that gives a motion ``(B, 2)``.

    Args:
        dims: Numbers of a token and of its global token.
        depth: Most tokens of a patch.
        setup: Its size.
    """

    def __init__(self, dims: int, depth: int, setup: Setup) -> None:
        super().__init__()
        self.value = nn.Sequential(nn.Linear(dims, 2 * setup.width), nn.GELU(), nn.Linear(2 * setup.width, setup.width))
        self.place = nn.Linear(2 + 4 * BANDS, setup.width)
        self.depth = nn.Embedding(depth + 1, setup.width)
        self.ask = nn.Parameter(0.02 * torch.randn(setup.width))
        layer = nn.TransformerEncoderLayer(
            setup.width, setup.heads, 4 * setup.width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, setup.layers, enable_nested_tensor=False)
        self.motion = nn.Sequential(nn.LayerNorm(setup.width), nn.Linear(setup.width, 2))

    def forward(self, seen: Observations) -> Tensor:
        waves = seen.places[..., None] * (torch.pi * 2.0 ** torch.arange(BANDS))
        place = torch.cat([seen.places[..., None], waves.sin(), waves.cos()], -1).flatten(-2)
        x = self.value(seen.values) + self.place(place) + self.depth(seen.depths)
        x = torch.cat([self.ask.expand(len(x), 1, -1), x], 1)
        padding = torch.arange(x.shape[1]) > seen.lengths[:, None]
        hidden = self.layers(x, src_key_padding_mask=padding if padding.any() else None)
        motion: Tensor = self.motion(hidden[:, 0])
        return motion


def train(setup: Setup, seen: Observations, motions: Tensor, depth: int, seed: int) -> tuple[Policy, float]:
    """A policy by imitation, and the CPU seconds of the training."""
    torch.manual_seed(seed)
    policy = Policy(seen.values.shape[2], depth, setup)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=setup.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, setup.lr, total_steps=setup.steps, pct_start=0.1)
    start = time.process_time()
    for _ in range(setup.steps):
        rows = torch.randint(len(motions), (setup.batch,))
        loss = nn.functional.mse_loss(policy(seen.take(rows)), motions[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return policy.eval(), time.process_time() - start


@torch.no_grad()
def success(policy: Policy, setup: Setup, tokenizer: Tokenizer, budget: TokenBudget, seed: int) -> float:
    """Share of new episodes in which the policy reaches the goal."""
    table = Table(setup.episodes, setup.side, seed=1000 + seed)
    for _ in range(setup.length):
        table.move(policy(observe(tokenizer, table.render(), budget)).double().numpy())
    return float(table.reached().mean())


@torch.no_grad()
def inference_ms(policy: Policy, seen: Observations, calls: int = 50) -> float:
    """Median CPU milliseconds of one call with one observation."""
    times = []
    for number in range(calls + 5):
        one = seen.take(torch.tensor([number % len(seen.lengths)]))
        start = time.process_time()
        policy(one)
        times.append(time.process_time() - start)
    return float(np.median(times[5:])) * 1000


# --- the run ------------------------------------------------------------------------------------------


def run(setup: Setup, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """A row for each budget; every seed trains all of them in turn."""
    images, motions = demonstrations(setup)
    budgets, depth = setup.budgets(), tokenizer.bundle.depth
    seen = {name: observe(tokenizer, images, budget) for name, budget in budgets.items()}
    rows: dict[str, dict[str, Any]] = {
        name: {
            "name": name,
            "tokens": round(float(observations.lengths.float().mean()), 1),
            **{key: [] for key in ("success", "training_seconds", "inference_ms", "large_inference_ms")},
        }
        for name, observations in seen.items()
    }
    for seed in range(setup.seeds):
        for name, row in rows.items():
            policy, seconds = train(setup, seen[name], torch.from_numpy(motions), depth, seed)
            large = Policy(seen[name].values.shape[2], depth, replace(setup, **LARGE)).eval()
            row["success"].append(round(success(policy, setup, tokenizer, budgets[name], seed), 4))
            row["training_seconds"].append(round(seconds, 2))
            row["inference_ms"].append(round(inference_ms(policy, seen[name]), 3))
            row["large_inference_ms"].append(round(inference_ms(large, seen[name]), 3))
            print(
                f"{name}, seed {seed}: {100 * row['success'][-1]:.0f}% reached, trained in {seconds:.0f} s", flush=True
            )
    return list(rows.values())


def spread(values: Sequence[float], factor: float, digits: int) -> str:
    """Mean and standard deviation over seeds."""
    scaled = factor * np.asarray(values)
    return f"{scaled.mean():.{digits}f} ± {scaled.std():.{digits}f}"


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    setup = report["setup"]
    lines = [
        f"tatok-s8 `{report['tag']}`, {report['machine']['cpu']}. Times are CPU times of the process on one thread, "
        "on a machine that other programs shared; the budgets took turns. They leave out the tokenizer.",
        "",
        "| tokens | per picture | success, % | training, s | inference, ms | inference of a larger policy, ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        lines.append(
            f"| {row['name']} | {row['tokens']:.0f} | {spread(row['success'], 100, 1)} | "
            f"{spread(row['training_seconds'], 1, 0)} | {spread(row['inference_ms'], 1, 2)} | "
            f"{spread(row['large_inference_ms'], 1, 1)} |"
        )
    fixed, ours = report["results"]
    points = 100 * (np.mean(ours["success"]) - np.mean(fixed["success"]))

    def faster(key: str) -> float:
        return float(np.mean(fixed[key]) / np.mean(ours[key]))

    lines += [
        "",
        f"{fixed['tokens'] / ours['tokens']:.1f} times fewer tokens, {points:+.1f} points of success, training "
        f"{faster('training_seconds'):.1f} times, inference {faster('inference_ms'):.1f} times and that of the larger "
        f"policy {faster('large_inference_ms'):.1f} times as fast. Global tokens count. Mean ± standard deviation over "
        f"{setup['seeds']} seeds, {setup['episodes']} episodes each; a transformer of width {setup['width']} with "
        f"{setup['layers']} layers, {setup['steps']:,} steps of {setup['batch']} examples from "
        f"{setup['demonstrations']:,} demonstrations; pictures of {setup['side']}x{setup['side']}. The larger policy "
        f"has width {LARGE['width']} and {LARGE['layers']} layers; it was timed, not trained.",
    ]
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Success and inference times over tokens."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    shown = (
        ("success", 100, "success, %"),
        ("inference_ms", 1, "inference, CPU ms"),
        ("large_inference_ms", 1, "inference of a larger policy, CPU ms"),
    )
    for axis, (key, factor, label) in zip(axes, shown, strict=True):
        for row in report["results"]:
            values = factor * np.asarray(row[key])
            axis.errorbar(row["tokens"], values.mean(), values.std(), fmt="o", capsize=4, label=row["name"])
        axis.set(xlabel="tokens per picture", ylabel=label, xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Command line."""
    defaults = Setup()
    parser = common.parser(__doc__)
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = parser.parse_args()
    setup = Setup(**{name: getattr(args, name) for name in asdict(defaults)})
    if setup.side % CELL or setup.width % setup.heads:
        parser.error("--side must be a multiple of 32, and --width one of --heads")
    torch.set_num_threads(1)
    with Tokenizer.load(threads=1) as tokenizer:
        report = {
            "machine": machine(),
            "tag": tokenizer.tag.hex(),
            "setup": asdict(setup),
            "results": run(setup, tokenizer),
        }
    common.publish("policy", report, markdown(report), args.out)
    if args.out is not None:
        plot(report, args.out / "policy.png")


if __name__ == "__main__":
    main()
