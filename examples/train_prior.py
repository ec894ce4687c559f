"""Trains a small causal transformer on a data set of tokens: frames of any number of tokens, no padding.

tatok dataset videos/ -o tokens --keep 1
python examples/train_prior.py tokens --steps 200

A frame is a sequence: its global tokens, then its patch tokens in raster order, the stack of each patch together. The
model is told where the next token lies (its position and depth) and predicts its id, one FSQ digit beside the other.
A patch has 0 to K tokens, so a frame takes as many steps as it has information. Needs PyTorch. On a GPU, attention runs
without padding (``torch.nn.attention.varlen``); on a CPU, frame by frame.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from tatok_edge.datasets import FrameTokens, TokenDataset, open_dataset
from tatok_edge.geometry import cell_grid, patch_grid

# --- the loader ----------------------------------------------------------------------------------


def sequence(frame: FrameTokens) -> tuple[np.ndarray, np.ndarray]:
    """Token ids ``(L,)`` and places ``(L, 3)`` of a frame: the depth (0 for global tokens), then y and x in patches."""
    cells, patches = cell_grid(frame.width, frame.height)[1], patch_grid(frame.width, frame.height)[1]
    raster = np.arange(frame.global_ids.size)
    where = np.concatenate(
        [
            np.stack([0 * raster, raster // cells * 4 + 2, raster % cells * 4 + 2], axis=1),
            np.stack([frame.depths, frame.positions // patches, frame.positions % patches], axis=1),
        ]
    )
    return np.concatenate([frame.global_ids, frame.ids]).astype(np.int64), where.astype(np.float32)


def collate(frames: list[FrameTokens]) -> dict[str, Tensor]:
    """Frames end to end: sequence ``b`` of the batch is ``ids[cu_seqlens[b]:cu_seqlens[b + 1]]``."""
    ids, places = zip(*(sequence(frame) for frame in frames), strict=True)
    return {
        "ids": torch.from_numpy(np.concatenate(ids)),
        "places": torch.from_numpy(np.concatenate(places)),
        "cu_seqlens": torch.tensor(np.cumsum([0, *map(len, ids)]), dtype=torch.int32),
    }


# --- the model -----------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Causal attention within each sequence; q, k and v are ``(T, heads, width)`` of all sequences end to end."""
    if q.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        longest = int(cu_seqlens.diff().max())
        half = [x.bfloat16() for x in (q, k, v)]
        out = varlen_attn(*half, cu_seqlens, cu_seqlens, longest, longest, window_size=(-1, 0))
        assert isinstance(out, Tensor)
        return out.to(q.dtype)
    parts = (x.transpose(0, 1).split(cu_seqlens.diff().tolist(), dim=1) for x in (q, k, v))
    frames = [functional.scaled_dot_product_attention(*qkv, is_causal=True) for qkv in zip(*parts, strict=True)]
    return torch.cat(frames, dim=1).transpose(0, 1)


class Block(nn.Module):
    """Attention and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).view(len(x), 3, self.heads, -1).unbind(1)
        x = x + self.out(attend(q, k, v, cu_seqlens).reshape(x.shape))
        mixed: Tensor = x + self.mlp(x)
        return mixed


class Prior(nn.Module):
    """Predicts the digits of every token from its place and from the tokens before it in its frame."""

    def __init__(self, levels: tuple[int, ...], stack: int, width: int = 96, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.levels = levels
        self.digit = nn.ModuleList(nn.Embedding(count + 1, width) for count in levels)  # one more: no token before
        self.depth = nn.Embedding(stack + 1, width)  # 0: a global token
        self.place = nn.Sequential(nn.Linear(2 * 2 * 6, width), nn.GELU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(levels)))

    def digits(self, ids: Tensor) -> Tensor:
        """The FSQ digits ``(T, D)`` of ids, dimension 0 least significant."""
        digits = []
        for count in self.levels:
            digits.append(ids % count)
            ids = ids // count
        return torch.stack(digits, 1)

    def forward(self, ids: Tensor, places: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Bits per token, a scalar."""
        digits = self.digits(ids)
        before = digits.roll(1, 0)
        before[cu_seqlens[:-1].long()] = torch.tensor(self.levels, device=ids.device)
        waves = places[:, 1:, None] * (math.pi / 2 ** torch.arange(2, 8, device=ids.device))
        spot = torch.cat([waves.sin().flatten(1), waves.cos().flatten(1)], 1)
        x = (
            self.place(spot)
            + self.depth(places[:, 0].long())
            + sum(table(before[:, d]) for d, table in enumerate(self.digit))
        )
        for block in self.blocks:
            x = block(x, cu_seqlens)
        logits = self.head(x).split(self.levels, 1)
        nats = sum(functional.cross_entropy(part, digits[:, d]) for d, part in enumerate(logits))
        return nats / math.log(2)


def train(dataset: TokenDataset, *, steps: int, batch: int, device: torch.device) -> list[float]:
    """Bits per token at every step."""
    torch.manual_seed(0)
    loader = DataLoader(dataset, batch_size=batch, shuffle=True, collate_fn=collate)  # type: ignore[arg-type, var-annotated]
    model = Prior(dataset.levels, dataset.depth).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[float] = []
    while len(losses) < steps:
        for items in loader:
            loss = model(**{name: tensor.to(device) for name, tensor in items.items()})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) % 10 == 1 or len(losses) == steps:
                tokens = len(items["ids"])
                print(f"step {len(losses):4d}: {losses[-1]:.2f} bits per token ({tokens} tokens, {batch} frames)")
            if len(losses) == steps:
                break
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="what 'tatok dataset' wrote")
    parser.add_argument("--steps", type=int, default=100, help="training steps (default: 100)")
    parser.add_argument("--batch", type=int, default=4, help="frames per step (default: 4)")
    args = parser.parse_args()

    dataset = open_dataset(args.dataset)
    print(
        f"{dataset}, up to {dataset.depth} for each patch; "
        f"without a model a token takes {math.log2(dataset.vocabulary):.2f} bits"
    )
    losses = train(
        dataset,
        steps=args.steps,
        batch=args.batch,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    tenth = max(len(losses) // 10, 1)
    print(f"mean of the first {tenth} steps {np.mean(losses[:tenth]):.2f}, of the last {np.mean(losses[-tenth:]):.2f}")


if __name__ == "__main__":
    main()
