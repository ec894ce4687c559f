"""Train a TaTok model: ``python -m tatok_edge.training.train --data DIR --out DIR``."""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from tatok_edge.errors import TaTokError
from tatok_edge.training.checkpoint import (
    CheckpointError,
    State,
    load_model,
    load_state,
    read_metadata,
    save_checkpoint,
)
from tatok_edge.training.config import CONFIGS, ModelConfig, Variant, variant_of
from tatok_edge.training.curves import plot_curves
from tatok_edge.training.data import CropSource, DataError, Picture, centre_crops, read_pictures, write_packs
from tatok_edge.training.entropy import CROP as FIT_CROP
from tatok_edge.training.entropy import fit as fit_entropy
from tatok_edge.training.evaluation import evaluate, evaluate_pictures, read_watched
from tatok_edge.training.model import TaTok, analytic_start, deepen
from tatok_edge.training.objective import loss
from tatok_edge.training.options import Options
from tatok_edge.training.progress import Progress, append_row, rewind


def learning_rate(progress: float, step: int, peak: float, hold: float = 0.0) -> float:
    """Linear warm-up over 200 steps, the peak until ``progress`` is ``hold``, then cosine to 1 % of it at 1."""
    falling = max(0.0, min(progress, 1.0) - hold) / (1 - hold)
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling))
    return peak * min(1.0, (step + 1) / 200) * cosine


def config_of(options: Options) -> ModelConfig:
    """The config of the model that the options ask for."""
    config = CONFIGS[options.config]
    return variant_of(config if options.depth is None else replace(config, depth=options.depth), options.variant)


def new_state(options: Options, source: CropSource, device: torch.device, start: TaTok | None = None) -> State:
    """A model at its start, with its optimizer.

    The start is analytic, or the weights of ``start``, a model of the same config or of one token per patch.
    """
    torch.manual_seed(options.seed)
    config = config_of(options)
    model, ema = TaTok(config), TaTok(config)
    generator = torch.Generator().manual_seed(options.seed)
    samples = torch.cat([source.crops(64, options.crop, generator).cpu() for _ in range(4)])
    if start is None:
        analytic_start(model, samples)
    elif start.config == config:
        model.load_state_dict(start.state_dict())
    else:
        deepen(model, start, samples)
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
    rate = learning_rate(progress, state.step, options.lr, options.hold)
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


def start_from(state: State, init: Path) -> None:
    """Take the averaged weights of the checkpoint ``init``."""
    start, _ = load_model(init)
    if start.config != state.model.config:
        raise CheckpointError(
            f"{init}: made with config {start.config.name!r}; give the same --config, and no --variant"
        )
    for model in (state.model, state.ema):
        model.load_state_dict(start.state_dict())


def record_of(source: CropSource, pictures: list[Picture], state: State, init: Path | None) -> dict[str, object]:
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


def for_export(options: Options, state: State, source: CropSource, held: Tensor) -> dict[str, Tensor]:
    """What the export needs beside the weights: the fitted entropy model, and samples to compare the graphs with."""
    if options.variant != "tatok":
        return {}
    tables = fit_entropy(
        state.ema, source, images=options.entropy_images, steps=options.entropy_steps, seed=options.seed
    )
    final = {f"entropy.{name}": torch.from_numpy(table).contiguous() for name, table in tables.items()}
    final["samples"] = ((held[:8] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return final


def training_pictures(options: Options, data: Path, device: torch.device) -> tuple[list[Picture], CropSource, Tensor]:
    """The pictures to train on, their random crops, and held-out crops ``(B, 3, 256, 256)``.

    Raises:
        DataError: No picture is large enough for the entropy model.
    """
    pictures = read_pictures(data, options.use)
    source = CropSource(pictures, device, min_side=options.crop)
    if int(source.sides.max()) < FIT_CROP:  # better an error now than after hours of training
        raise DataError(f"{data}: the entropy model needs training pictures of at least {FIT_CROP}x{FIT_CROP} pixels")
    held = read_pictures(data, options.use, held_out=True)[:24] or pictures[:16]
    return pictures, source, centre_crops(held, 256).to(device)


def run(
    options: Options,
    data: Path,
    out: Path,
    *,
    device: torch.device,
    resume: bool,
    init: Path | None = None,
    start: TaTok | None = None,
    watch: Path | None = None,
    checkpoint_minutes: float = 8.0,
    evaluation_minutes: float = 0.0,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, object]:
    """Train until the minutes or steps of ``options`` are used up; returns the final evaluation.

    Args:
        options: What to compute.
        data: Training pictures.
        out: Folder of checkpoint, curves and summary.
        device: Where to train.
        resume: Go on from the checkpoint in ``out``.
        init: Checkpoint of the same config whose averaged weights are the start.
        start: Model whose weights are the start: of the same config, or of one token per patch.
        watch: Folder of whole pictures that are evaluated at every checkpoint, into ``pictures.csv``.
        checkpoint_minutes: Training time between checkpoints.
        evaluation_minutes: Least training time between evaluations; 0: one at every checkpoint.
        on_step: Called after every step with its number.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.safetensors"
    log_path, evaluation_path, pictures_path = (out / f"{name}.csv" for name in ("training", "evaluation", "pictures"))
    watched = read_watched(watch) if watch is not None else []
    if checkpoint.exists() and not resume:
        raise CheckpointError(f"{checkpoint} exists: give --resume to go on, or another --out")
    pictures, source, held = training_pictures(options, data, device)
    state = new_state(options, source, device, None if checkpoint.exists() else start)
    if checkpoint.exists():
        load_state(checkpoint, state)
        for path in (log_path, evaluation_path, pictures_path):
            rewind(path, state.step)
    else:
        for path in (log_path, evaluation_path, pictures_path):
            path.unlink(missing_ok=True)
        if init is not None:
            start_from(state, init)
    record = record_of(source, pictures, state, init)
    print(json.dumps({**record, **asdict(options)}), flush=True)
    results: dict[str, float] = {}
    evaluated = -math.inf

    def checkpoint_now(final: dict[str, Tensor] | None = None, *, due: bool = True) -> None:
        nonlocal results, evaluated
        if due or state.seconds - evaluated >= evaluation_minutes * 60:
            evaluated = state.seconds
            results = evaluate(state.ema, held)
            append_row(evaluation_path, {"step": state.step, "seconds": round(state.seconds, 1), **results})
            if watched:
                row = evaluate_pictures(state.ema, watched)
                append_row(pictures_path, {"step": state.step, "seconds": round(state.seconds, 1), **row})
        save_checkpoint(checkpoint, state, options, {"record": record, "evaluation": results}, final)
        plot_curves(log_path, evaluation_path, out / "curves.png")

    progress = Progress(options, state, log_path)
    since_checkpoint = 0.0
    while progress.share() < 1.0:
        since_checkpoint += progress.count(train_step(state, source, options, progress.share()))
        if on_step is not None:
            on_step(state.step)
        if since_checkpoint > checkpoint_minutes * 60:
            checkpoint_now(due=False)
            since_checkpoint = 0.0
            progress.skip()
    progress.close()
    checkpoint_now()
    checkpoint_now(for_export(options, state, source, held))
    run_time = {"step": state.step, "hours": state.seconds / 3600}
    summary: dict[str, object] = {**record, **asdict(options), **run_time, **results}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def load_start(bundle: str) -> TaTok:
    """The weights of a bundle to start from, by name or folder."""
    from tatok_edge.model.bundle import open_bundle
    from tatok_edge.training.bundle import load_from_bundle  # needs onnx, which training does not

    return load_from_bundle(open_bundle(bundle))


def pick_device(name: Literal["auto", "cpu", "cuda"] | str) -> torch.device:
    """``auto`` takes CUDA when PyTorch sees a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu or auto")
    if name == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return torch.device(name)


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
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
    parser.add_argument("--depth", type=int, help="most tokens of a patch (default: that of --config)")
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
    parser.add_argument(
        "--hold", type=float, default=defaults.hold, help="share of the run at the peak rate, before the rate falls"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--init", type=Path, help="start from the averaged weights of this checkpoint (fine-tuning)")
    parser.add_argument(
        "--start",
        help="start from the weights of this bundle, by name or folder; of the same config or one token per patch",
    )
    parser.add_argument(
        "--watch", type=Path, help="folder of whole pictures that are evaluated at every checkpoint, into pictures.csv"
    )
    parser.add_argument("--checkpoint-minutes", type=float, default=8.0, help="training time between checkpoints")
    parser.add_argument(
        "--evaluation-minutes",
        type=float,
        default=0.0,
        help="least training time between evaluations (default: one at every checkpoint)",
    )
    parser.add_argument("--pack", action="store_true", help="only pack --data into files of at most 60 MiB in --out")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = command_line().parse_args(arguments)
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
            depth=args.depth,
            use=args.use,
            seed=args.seed,
            batch=args.batch,
            crop=args.crop,
            lr=args.lr,
            rate_weight=args.rate_weight,
            prior_weight=args.prior_weight,
            hold=args.hold,
            minutes=args.minutes,
            steps=args.steps,
        )
        summary = run(
            options,
            args.data,
            args.out,
            device=pick_device(args.device),
            resume=args.resume,
            init=args.init,
            start=load_start(args.start) if args.start else None,
            watch=args.watch,
            checkpoint_minutes=args.checkpoint_minutes,
            evaluation_minutes=args.evaluation_minutes,
        )
    except (DataError, CheckpointError, TaTokError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
