"""Checkpoints of a training run: safetensors with JSON metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tatok_edge.files import put_in_place
from tatok_edge.training.config import ModelConfig
from tatok_edge.training.model import TaTok
from tatok_edge.training.options import Options

CHECKPOINT_FORMAT = 1


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
    put_in_place(temporary, path)


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
