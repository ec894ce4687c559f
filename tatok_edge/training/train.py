"""Train a TaTok model: ``python -m tatok_edge.training.train --data DIR --out DIR``."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from tatok_edge.geometry import PATCH
from tatok_edge.training.config import CONFIGS, ModelConfig, Variant, variant_of
from tatok_edge.training.curves import plot_curves
from tatok_edge.training.data import CropSource, DataError, Picture, Use, centre_crops, read_pictures, write_packs
from tatok_edge.training.entropy import CROP as FIT_CROP
from tatok_edge.training.entropy import fit as fit_entropy
from tatok_edge.training.model import TaTok, analytic_start, grid_to_pixels

CHECKPOINT_FORMAT = 1
EVALUATION_SHARES = (1.0, 0.5, 0.35, 0.25, 0.1)


@dataclass(slots=True)
class Options:
    """Everything that decides what a run computes."""

    config: str = "tatok-s8"
    variant: Variant = "tatok"
    """The model, or a baseline to compare it with."""
    use: Use = "ship"
    seed: int = 0
    batch: int = 16
    crop: int = 128
    lr: float = 1.5e-3
    prior_weight: float = 2e-4
    """Loss per bit and patch, felt by the prior and the globals."""
    rate_weight: float = 2e-5
    """Loss per bit and patch, felt by the patch encoder."""
    mean_weight: float = 0.1
    seam_weight: float = 0.15
    """Loss for steps of the error across patch borders, which show as a grid in smooth areas."""
    ema: float = 0.999
    entropy_images: int = 2000
    """Crops that the entropy model is fitted to at the end; :mod:`tatok_edge.training.entropy` fits it for longer."""
    entropy_steps: int = 3000
    """Steps of that fit."""
    minutes: float | None = None
    steps: int | None = None


# --- objective ---------------------------------------------------------------------------------------


def select(scores: Tensor, share: Tensor) -> Tensor:
    """Keep the ``share`` (per image) of patches with the highest scores ``(B, h, w)``."""
    flat = scores.flatten(1)
    order = flat.argsort(dim=1, descending=True)
    rank = torch.empty_like(order)
    positions = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    rank.scatter_(1, order, positions)
    kept = rank < (share[:, None] * flat.shape[1]).round()
    return kept.reshape(scores.shape)


def training_shares(count: int, generator: torch.Generator) -> Tensor:
    """Shares of kept patches: all of them for 30 % of the images, else log-uniform down to 4 %."""
    uniform = torch.rand(2, count, generator=generator)
    partial = torch.exp(uniform[1] * math.log(0.04))
    return torch.where(uniform[0] < 0.3, torch.ones(count), partial)


def seam_error(error: Tensor, patch: int = PATCH) -> Tensor:
    """Mean squared step of an error image ``(B, C, H, W)`` across the borders between patches, per image."""
    across = error[:, :, :, patch::patch] - error[:, :, :, patch - 1 : -1 : patch]
    down = error[:, :, patch::patch] - error[:, :, patch - 1 : -1 : patch]
    return (across.pow(2).mean((1, 2, 3)) + down.pow(2).mean((1, 2, 3))) / 2


def loss(model: TaTok, image: Tensor, options: Options, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The training objective and its parts for images ``(B, 3, H, W)`` in [-1, 1]."""
    encoded = model.encode(image)
    share = training_shares(len(image), generator).to(image.device)
    if model.config.fixed_rate:
        share = torch.ones_like(share)
    by_information = encoded.information.detach()
    by_entropy = encoded.prior.entropy.detach()
    # A quarter of the images are filtered by entropy, so that the decoder knows both scores.
    use_entropy = torch.rand(len(image), generator=generator).to(image.device)[:, None, None] < 0.25
    keep = select(torch.where(use_entropy, by_entropy, by_information), share)
    output = model.decode(encoded, keep)
    error = (output - image) / 2
    mse = error.pow(2).mean((1, 2, 3))
    mean = grid_to_pixels(encoded.prior.mean, model.config.patch)
    mean_mse = ((mean - image) / 2).pow(2).mean((1, 2, 3))
    bits = encoded.information.mean((1, 2))
    # The root gives smooth pictures, whose error is small but visible, the weight that PSNR gives them;
    # at an error of 0.003 (25 dB) it has the slope of the plain squared error.
    seams = seam_error(error, model.config.patch)
    distortion = (mse + options.seam_weight * seams + 1e-5).sqrt() * (2 * math.sqrt(0.003))
    total = distortion + options.mean_weight * mean_mse + options.prior_weight * bits
    total = total + options.rate_weight * encoded.slope.mean((1, 2))
    parts = {"mse": mse.mean().detach(), "mean_mse": mean_mse.mean().detach(), "bits": bits.mean().detach()}
    full = (share >= 1).float()
    # NaN where no image keeps all; nothing here waits for the device.
    parts["psnr_all"] = (-10 * torch.log10(mse.detach()) * full).sum() / full.sum()
    parts["loss"] = total.mean().detach()
    return total.mean(), parts


@torch.no_grad()
def evaluate(model: TaTok, images: Tensor, *, batch: int = 8) -> dict[str, float]:
    """Mean PSNR in dB per kept share, by information, entropy and at random, of images in [-1, 1].

    A fixed-rate tokenizer keeps everything: ``psnr_information_1`` is all that it has.
    """
    results: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(1)

    def add(key: str, values: Tensor) -> None:
        results.setdefault(key, []).extend(values.tolist())

    def psnr(output: Tensor, image: Tensor) -> Tensor:
        pixels = ((output.clamp(-1, 1) + 1) * 127.5).round()
        target = ((image + 1) * 127.5).round()
        mse = ((pixels - target) / 255).pow(2).mean((1, 2, 3))
        return -10 * torch.log10(mse.clamp_min(1e-10))

    for start in range(0, len(images), batch):
        image = images[start : start + batch]
        encoded = model.encode(image)
        if model.config.fixed_rate:
            everything = torch.ones_like(encoded.information)
            add("psnr_information_1", psnr(model.decode(encoded, everything), image))
            continue
        noise = torch.rand(encoded.information.shape, generator=generator).to(image.device)
        add("bits_per_token", encoded.information.mean((1, 2)))
        add("entropy_per_token", encoded.prior.entropy.mean((1, 2)))
        add("psnr_mean_only", psnr(grid_to_pixels(encoded.prior.mean, PATCH), image))
        for share in EVALUATION_SHARES:
            shares = torch.full((len(image),), share, device=image.device)
            for name, score in (
                ("information", encoded.information),
                ("entropy", encoded.prior.entropy),
                ("random", noise),
            ):
                if share == 1.0 and name != "information":
                    continue
                add(f"psnr_{name}_{share:g}", psnr(model.decode(encoded, select(score, shares)), image))
        none = torch.zeros((len(image),), device=image.device)
        add("psnr_globals_only", psnr(model.decode(encoded, select(noise, none)), image))
    return {key: sum(values) / len(values) for key, values in results.items()}


# --- checkpoints --------------------------------------------------------------------------------------


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; says why."""


@dataclass(slots=True)
class State:
    """All that a run needs to go on exactly where it was."""

    model: TaTok
    ema: TaTok
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0


def save_checkpoint(
    path: Path,
    state: State,
    options: Options,
    extra: dict[str, object] | None = None,
    final: dict[str, Tensor] | None = None,
) -> None:
    """Write a safetensors checkpoint to a temporary name and rename it; ``final`` adds what the export needs."""
    tensors: dict[str, Tensor] = dict(final or {})
    for name, value in state.model.state_dict().items():
        tensors[f"model.{name}"] = value.contiguous()
    for name, value in state.ema.state_dict().items():
        tensors[f"ema.{name}"] = value.contiguous()
    for index, entry in state.optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).contiguous()
    metadata = {
        "format": CHECKPOINT_FORMAT,
        "config": state.model.config.to_dict(),
        "options": asdict(options),
        "step": state.step,
        "seconds": state.seconds,
        **(extra or {}),
    }
    temporary = path.with_name(path.name + ".tmp")
    save_file({k: v.detach().cpu() for k, v in tensors.items()}, str(temporary), {"tatok": json.dumps(metadata)})
    os.replace(temporary, path)


def read_metadata(path: Path) -> dict[str, object]:
    """The JSON metadata of a checkpoint."""
    try:
        with safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get("tatok")
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable safetensors checkpoint ({error})") from error
    if text is None:
        raise CheckpointError(f"{path}: a safetensors file, but not a TaTok checkpoint")
    metadata: dict[str, object] = json.loads(text)
    if metadata.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {metadata.get('format')}, this version reads {CHECKPOINT_FORMAT}"
        )
    return metadata


def load_model(path: Path, *, baselines: bool = False) -> tuple[TaTok, dict[str, object]]:
    """The averaged weights of a checkpoint as a model in evaluation mode, and the checkpoint's metadata.

    Raises:
        CheckpointError: unreadable, or of another variant than ``"tatok"`` unless ``baselines`` asks for those too.
    """
    metadata = read_metadata(path)
    config = metadata["config"]
    assert isinstance(config, dict)
    model = TaTok(ModelConfig.from_dict(config))
    if model.config.variant != "tatok" and not baselines:
        raise CheckpointError(
            f"{path}: a baseline (--variant {model.config.variant}), which is compared by benchmarks/ablations.py "
            "and neither exported nor fine-tuned; give a checkpoint of --variant tatok"
        )
    with safe_open(str(path), "pt") as file:
        model.load_state_dict({k[4:]: file.get_tensor(k) for k in file.keys() if k.startswith("ema.")})
    return model.eval(), metadata


def load_state(path: Path, state: State) -> None:
    """Restore a run in place."""
    metadata = read_metadata(path)
    config = metadata["config"]
    assert isinstance(config, dict)
    if ModelConfig.from_dict(config) != state.model.config:
        raise CheckpointError(
            f"{path}: made with another model config; use the same --config and --variant, or another --out"
        )
    entries: dict[int, dict[str, Tensor]] = {}
    with safe_open(str(path), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    state.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    state.ema.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            entries.setdefault(int(index), {})[name] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": entries, "param_groups": groups})
    # The fused optimizer walks memory: moments must lie as their parameter does (channels last), not as the file does.
    for parameter, moments in state.optimizer.state.items():
        for key, value in moments.items():
            if value.shape == parameter.shape:
                moments[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
    step, seconds = metadata["step"], metadata["seconds"]
    assert isinstance(step, int) and isinstance(seconds, (int, float))
    state.step, state.seconds = step, float(seconds)


# --- the run -------------------------------------------------------------------------------------------


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Linear warm-up over 200 steps, then cosine to 1 % of the peak at ``progress`` 1."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * min(1.0, (step + 1) / 200) * cosine


def new_state(options: Options, source: CropSource, device: torch.device) -> State:
    """A model at its analytic start, with its optimizer."""
    torch.manual_seed(options.seed)
    config = variant_of(CONFIGS[options.config], options.variant)
    model, ema = TaTok(config), TaTok(config)
    generator = torch.Generator().manual_seed(options.seed)
    samples = torch.cat([source.crops(64, options.crop, generator).cpu() for _ in range(4)])
    analytic_start(model, samples)
    ema.load_state_dict(model.state_dict())
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema.to(device, memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    return State(model, ema, make_optimizer(model, options))


def make_optimizer(model: TaTok, options: Options) -> torch.optim.AdamW:
    """AdamW; weight decay on weights only."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), fused=True)


def train_step(state: State, source: CropSource, options: Options, progress: float) -> dict[str, Tensor]:
    """One optimisation step; every random draw depends on seed and step only, so a resumed run is the same run."""
    device = source.device
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + state.step + 1)
    image = source.crops(options.batch, options.crop, generator)
    image = image.contiguous(memory_format=torch.channels_last)
    rate = learning_rate(progress, state.step, options.lr)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(device.type, torch.bfloat16):
        total, parts = loss(state.model, image, options, generator)
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), 0.5)
    state.optimizer.step()
    decay = min(options.ema, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.ema.parameters()), list(state.model.parameters()), 1 - decay)
    state.step += 1
    parts["lr"] = torch.tensor(rate)
    parts["grad_norm"] = norm.detach()
    return parts


LOG_COLUMNS = ("step", "seconds", "loss", "mse", "mean_mse", "bits", "psnr_all", "grad_norm", "lr")


class _Progress:
    """How far a run is: the steps or minutes of its options, the log, and the progress bar."""

    def __init__(self, options: Options, state: State, log: Path) -> None:
        self._options, self._state, self._log = options, state, log
        self._sums: dict[str, list[float]] = {}
        self._last = time.monotonic()
        self._bar = tqdm(
            total=100.0, unit="%", disable=not sys.stderr.isatty(), bar_format="{l_bar}{bar}| {elapsed}{postfix}"
        )

    def share(self) -> float:
        """Used share of the steps or minutes; 1 at the end."""
        options, state = self._options, self._state
        by_steps = state.step / options.steps if options.steps else 0.0
        by_time = state.seconds / (options.minutes * 60) if options.minutes else 0.0
        return max(by_steps, by_time)

    def count(self, parts: dict[str, Tensor]) -> float:
        """Count a step; returns its seconds. Every 50 steps, the means go to the log and the bar.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        state = self._state
        for key, value in parts.items():
            number = float(value)
            if not math.isnan(number):
                self._sums.setdefault(key, []).append(number)
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        state.seconds += seconds
        if state.step % 50 == 0:
            means = {key: sum(v) / len(v) for key, v in self._sums.items() if v}
            row = {"step": state.step, "seconds": round(state.seconds, 1), **means}
            _append(self._log, {key: row.get(key, math.nan) for key in LOG_COLUMNS})
            self._sums.clear()
            self._bar.n = min(100.0, 100 * self.share())
            self._bar.set_postfix_str(f"step {state.step} loss {means['loss']:.4f} bits {means['bits']:.1f}")
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(f"the loss is {means['loss']} at step {state.step}: lower --lr")
        return seconds

    def skip(self) -> None:
        """Leave out the time since the last step: evaluating is not training time."""
        self._last = time.monotonic()

    def close(self) -> None:
        """End the bar; a run too short for the log gets one row."""
        self._bar.close()
        if not self._log.exists():
            _append(self._log, dict.fromkeys(LOG_COLUMNS, math.nan) | {"step": self._state.step})


def _start_from(state: State, init: Path) -> None:
    """Take the averaged weights of the checkpoint ``init``."""
    start, _ = load_model(init)
    if start.config != state.model.config:
        raise CheckpointError(
            f"{init}: made with config {start.config.name!r}; give the same --config, and no --variant"
        )
    for model in (state.model, state.ema):
        model.load_state_dict(start.state_dict())


def _record(source: CropSource, pictures: list[Picture], state: State, init: Path | None) -> dict[str, object]:
    """Facts about a run for its checkpoints and summary: pictures, size of the model, hardware, earlier runs."""
    record: dict[str, object] = {
        "pictures": len(source),
        "sources": dict(Counter(p.source for p in pictures)),
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "hardware": torch.cuda.get_device_name()
        if source.device.type == "cuda"
        else f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    if init is not None:
        before = read_metadata(init)
        earlier = before.get("record")
        record["init"] = {
            "steps": before["step"],
            "hours": round(float(before["seconds"]) / 3600, 3),  # type: ignore[arg-type]
            **({"init": earlier["init"]} if isinstance(earlier, dict) and "init" in earlier else {}),
        }
    return record


def _for_export(options: Options, state: State, source: CropSource, held: Tensor) -> dict[str, Tensor]:
    """What the export needs beside the weights: the fitted entropy model, and samples to compare the graphs with."""
    if options.variant != "tatok":
        return {}
    tables = fit_entropy(
        state.ema, source, images=options.entropy_images, steps=options.entropy_steps, seed=options.seed
    )
    final = {f"entropy.{name}": torch.from_numpy(table).contiguous() for name, table in tables.items()}
    final["samples"] = ((held[:8] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return final


def run(
    options: Options,
    data: Path,
    out: Path,
    *,
    device: torch.device,
    resume: bool,
    init: Path | None = None,
    checkpoint_minutes: float = 8.0,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, object]:
    """Train until the minutes or steps of ``options`` are used up; returns the final evaluation."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.safetensors"
    log_path, evaluation_path = out / "training.csv", out / "evaluation.csv"
    if checkpoint.exists() and not resume:
        raise CheckpointError(f"{checkpoint} exists: give --resume to go on, or another --out")
    pictures = read_pictures(data, options.use)
    source = CropSource(pictures, device, min_side=options.crop)
    if int(source.sides.max()) < FIT_CROP:  # better said now than after hours of training
        raise DataError(f"{data}: the entropy model needs training pictures of at least {FIT_CROP}x{FIT_CROP} pixels")
    held = centre_crops(read_pictures(data, options.use, held_out=True)[:24] or pictures[:16], 256).to(device)
    state = new_state(options, source, device)
    if checkpoint.exists():
        load_state(checkpoint, state)
    else:
        for path in (log_path, evaluation_path):
            path.unlink(missing_ok=True)
        if init is not None:
            _start_from(state, init)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    record = _record(source, pictures, state, init)
    print(json.dumps({**record, **asdict(options)}), flush=True)

    def checkpoint_now(final: dict[str, Tensor] | None = None) -> dict[str, float]:
        results = evaluate(state.ema, held)
        _append(evaluation_path, {"step": state.step, "seconds": round(state.seconds, 1), **results})
        save_checkpoint(checkpoint, state, options, {"record": record, "evaluation": results}, final)
        plot_curves(log_path, evaluation_path, out / "curves.png")
        return results

    progress = _Progress(options, state, log_path)
    since_checkpoint = 0.0
    while progress.share() < 1.0:
        since_checkpoint += progress.count(train_step(state, source, options, progress.share()))
        if on_step is not None:
            on_step(state.step)
        if since_checkpoint > checkpoint_minutes * 60:
            checkpoint_now()
            since_checkpoint = 0.0
            progress.skip()
    progress.close()
    checkpoint_now()
    results = checkpoint_now(_for_export(options, state, source, held))
    hours = {"step": state.step, "hours": state.seconds / 3600}
    summary: dict[str, object] = {**record, **asdict(options), **hours, **results}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _append(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def pick_device(name: Literal["auto", "cpu", "cuda"] | str) -> torch.device:
    """``auto`` takes CUDA when PyTorch sees a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu or auto")
    return torch.device(name)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    defaults = Options()
    parser = argparse.ArgumentParser("python -m tatok_edge.training.train", description="Train a TaTok model.")
    parser.add_argument("--data", type=Path, required=True, help="folder of images and videos, or of packs")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, curves and summary")
    parser.add_argument("--config", choices=sorted(CONFIGS), default=defaults.config)
    parser.add_argument(
        "--variant",
        choices=get_args(Variant),
        default=defaults.variant,
        help="train a baseline to compare the model with",
    )
    parser.add_argument("--use", choices=("ship", "all"), default=defaults.use, help="manifest rows to train on")
    parser.add_argument("--minutes", type=float, help="training time (default 30 when --steps is not given)")
    parser.add_argument("--steps", type=int, help="training steps; a run of fixed steps can be repeated exactly")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--crop", type=int, default=defaults.crop, help="side of the square crops, a multiple of 32")
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument(
        "--rate-weight", type=float, default=defaults.rate_weight, help="loss per bit, for the patch encoder"
    )
    parser.add_argument("--prior-weight", type=float, default=defaults.prior_weight, help="loss per bit, for the prior")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--init", type=Path, help="start from the averaged weights of this checkpoint (fine-tuning)")
    parser.add_argument("--pack", action="store_true", help="only pack --data into files of at most 60 MiB in --out")
    args = parser.parse_args(arguments)
    try:
        if not args.data.is_dir():
            raise DataError(f"--data {args.data}: no such folder")
        if args.crop % 32 or args.crop < 32:
            raise DataError(f"--crop {args.crop}: must be a multiple of 32, at least 32")
        if args.pack:
            for path in write_packs(args.data, args.out, args.use):
                print(path)
            return 0
        if args.threads:
            torch.set_num_threads(args.threads)
        if args.minutes is None and args.steps is None:
            args.minutes = 30.0
        options = Options(
            config=args.config,
            variant=args.variant,
            use=args.use,
            seed=args.seed,
            batch=args.batch,
            crop=args.crop,
            lr=args.lr,
            rate_weight=args.rate_weight,
            prior_weight=args.prior_weight,
            minutes=args.minutes,
            steps=args.steps,
        )
        summary = run(options, args.data, args.out, device=pick_device(args.device), resume=args.resume, init=args.init)
    except (DataError, CheckpointError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
