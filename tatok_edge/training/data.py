"""Training pictures: read folders of images and videos, pack them, cut random crops on the device."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from tatok_edge.errors import SourceError
from tatok_edge.sources.video import open_video
from tatok_edge.training.held_out import HELD_OUT_FILES

Use = Literal["ship", "all"]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm"}
MAX_PACK_BYTES = 60 * 1024 * 1024
FRAMES_PER_CLIP = 24
HELD_OUT = 200


@dataclass(frozen=True, slots=True)
class Picture:
    """One training picture, still encoded (WebP, PNG or JPEG)."""

    name: str
    data: bytes
    source: str = ""
    """Source repository, for the credits of the model card."""


class DataError(ValueError):
    """A training folder that cannot be used; says what is missing."""


def held_out_names(names: Sequence[str]) -> set[str]:
    """The fixed part of a data set that is never trained on.

    In the shared training set, the pictures of :data:`~tatok_edge.training.held_out.HELD_OUT_FILES`; in any other, the
    first 200 names (at most a tenth) by their SHA-256.
    """
    if listed := HELD_OUT_FILES.intersection(names):
        return set(listed)
    count = min(HELD_OUT, len(names) // 10)
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:count])


def _manifest(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "file" not in rows[0]:
        raise DataError(f"{path}: a manifest needs a header with a 'file' column")
    return rows


def _files(root: Path, suffixes: set[str], use: Use) -> tuple[dict[Path, str], set[Path]]:
    """Files of one kind below ``root`` with their source (by its manifest, if any), and the held-out files."""
    manifest = root / "manifest.csv"
    if manifest.exists():
        rows = [row for row in _manifest(manifest) if Path(row["file"]).suffix.lower() in suffixes]
        held = held_out_names([row["file"] for row in rows])
        allowed = {"ship"} if use == "ship" else {row.get("use") for row in rows} - {"evaluate"}
        chosen = [row for row in rows if row.get("use") in allowed]
        return {root / row["file"]: row.get("source_repo", "") for row in chosen}, {root / name for name in held}
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in suffixes) if root.is_dir() else []
    held = held_out_names([str(p.relative_to(root)) for p in found])
    return dict.fromkeys(found, root.name), {root / name for name in held}


def _roots(data: Path) -> tuple[Path, Path]:
    """Image root and video root of a data folder (the layout with ``train/`` and ``videos/``, or one plain folder)."""
    if (data / "train").is_dir() or (data / "videos").is_dir():
        return data / "train", data / "videos"
    return data, data


def clip_frames(path: Path, count: int = FRAMES_PER_CLIP) -> Iterator[NDArray[np.uint8]]:
    """``count`` frames of a video at equal distances, RGB; all frames of a video that has fewer.

    Raises:
        DataError: The video cannot be read.
    """
    try:
        with open_video(path) as source:
            total = source.frames or sum(1 for _ in source)
        wanted = set(np.linspace(0, max(total - 1, 0), count).astype(int).tolist())
        with open_video(path) as source:
            for frame in source:
                if frame.index in wanted:
                    yield frame.image
    except SourceError as error:
        raise DataError(str(error)) from None


def read_pictures(data: Path, use: Use, *, held_out: bool = False) -> list[Picture]:
    """Encoded pictures of a data folder.

    Args:
        data: Folder with ``train/manifest.csv`` and ``videos/manifest.csv``, or any folder of images and videos.
        use: ``"ship"`` takes only manifest rows whose terms allow shipping a model trained on them; ``"all"`` takes
            every row except those with ``use`` = ``evaluate``.
        held_out: Return the held-out stills instead of the training pictures.
    """
    if sorted(data.glob("pack-*.safetensors")):
        return [p for p in read_packs(data, use) if p.name.startswith("held:") == held_out]
    image_root, video_root = _roots(data)
    images, held = _files(image_root, IMAGE_SUFFIXES, use)
    if held_out:
        return [Picture(p.name, p.read_bytes(), source) for p, source in images.items() if p in held]
    pictures = [Picture(p.name, p.read_bytes(), source) for p, source in images.items() if p not in held]
    videos, _ = _files(video_root, VIDEO_SUFFIXES, use)
    for video, source in videos.items():
        for number, frame in enumerate(clip_frames(video)):
            ok, encoded = cv2.imencode(".webp", frame[:, :, ::-1], [cv2.IMWRITE_WEBP_QUALITY, 95])
            if not ok:
                raise DataError(f"{video}: frame {number} could not be encoded")
            pictures.append(Picture(f"{video.name}#{number}", encoded.tobytes(), source))
    if not pictures:
        raise DataError(f"{data}: no images {sorted(IMAGE_SUFFIXES)} or videos {sorted(VIDEO_SUFFIXES)} in it")
    return pictures


def write_packs(data: Path, out: Path, use: Use) -> list[Path]:
    """Pack a data folder into files of at most 60 MiB, to move it to a GPU machine and train on ``out`` there."""
    if sorted(out.glob("pack-*.safetensors")):
        raise DataError(f"{out}: holds packs already; remove them or give another --out")
    pictures = read_pictures(data, use)
    out.mkdir(parents=True, exist_ok=True)
    pictures += [Picture("held:" + p.name, p.data, p.source) for p in read_pictures(data, use, held_out=True)]
    paths: list[Path] = []
    batch: list[Picture] = []

    def flush() -> None:
        if not batch:
            return
        path = out / f"pack-{len(paths):03d}.safetensors"
        tensors: dict[str, NDArray[Any]] = {
            "data": np.frombuffer(b"".join(p.data for p in batch), np.uint8),
            "sizes": np.array([len(p.data) for p in batch], np.int64),
            "names": np.frombuffer("\n".join(f"{p.name}\t{p.source}" for p in batch).encode(), np.uint8),
        }
        save_file(tensors, str(path), metadata={"use": use})
        paths.append(path)
        batch.clear()

    size = 0
    for picture in pictures:
        size += len(picture.data) + 2 * len(picture.name) + len(picture.source) + 16
        if size > MAX_PACK_BYTES - 4096:
            flush()
            size = len(picture.data) + 2 * len(picture.name) + len(picture.source) + 16
        batch.append(picture)
    flush()
    return paths


def read_packs(folder: Path, use: Use) -> list[Picture]:
    """The pictures of the packs that :func:`write_packs` wrote.

    Raises:
        DataError: a damaged pack, or ``use`` is ``"ship"`` and the packs hold pictures that may not be shipped.
    """
    pictures: list[Picture] = []
    for path in sorted(folder.glob("pack-*.safetensors")):
        try:
            with safe_open(str(path), "np") as file:
                packed = (file.metadata() or {}).get("use")
            tensors = load_file(str(path))
        except SafetensorError as error:
            raise DataError(f"{path}: not a readable pack ({error}); pack the folder again") from error
        if use == "ship" and packed != "ship":
            raise DataError(f"{path}: was packed with --use {packed}; train with --use all, or pack with --use ship")
        stream = io.BytesIO(tensors["data"].tobytes())
        lines = tensors["names"].tobytes().decode().split("\n")
        for line, size in zip(lines, tensors["sizes"].tolist(), strict=True):
            name, _, source = line.partition("\t")
            pictures.append(Picture(name, stream.read(size), source))
    return pictures


def decode_picture(picture: Picture) -> NDArray[np.uint8]:
    """Decode to RGB ``(H, W, 3)``."""
    image = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{picture.name}: not a picture that OpenCV can decode")
    return np.ascontiguousarray(image[:, :, ::-1].astype(np.uint8, copy=False))


class CropSource:
    """All pictures as one uint8 tensor on the device; cuts random crops there."""

    def __init__(self, pictures: Sequence[Picture], device: torch.device, *, min_side: int) -> None:
        arrays = [decode_picture(p) for p in pictures]
        arrays = [a for a in arrays if min(a.shape[:2]) >= min_side]
        if not arrays:
            raise DataError(f"no picture is at least {min_side} pixels high and wide")
        sizes = np.array([a.shape[0] * a.shape[1] for a in arrays], np.int64)
        flat = torch.empty((int(sizes.sum()), 3), dtype=torch.uint8)
        end = 0
        for array in arrays:
            flat[end : end + array.shape[0] * array.shape[1]] = torch.from_numpy(array.reshape(-1, 3))
            end += array.shape[0] * array.shape[1]
        self.pixels = flat.to(device)
        self.starts = torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)[:-1]])).to(device)
        self.heights = torch.tensor([a.shape[0] for a in arrays], device=device)
        self.widths = torch.tensor([a.shape[1] for a in arrays], device=device)
        # Larger pictures are drawn more often, but only with the square root of their size.
        self.weights = torch.from_numpy(np.sqrt(sizes)).double()
        self.sides = torch.tensor([min(a.shape[:2]) for a in arrays])
        self.device = device

    def __len__(self) -> int:
        return len(self.starts)

    def crops(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """Random crops ``(count, 3, side, side)`` in [-1, 1], flipped at random.

        Six of ten batches are scaled by a factor between 1/2 and 2, because cameras of all sizes deliver smoother
        and busier pictures than the training pictures are. ``generator`` lives on the CPU, so that a run
        draws the same crops on every device.
        """
        octaves = float(torch.rand((), generator=generator)) / 0.3 - 1  # above 1: at the size that they have
        scale = 2.0**octaves if octaves < 1 else 1.0
        cut = min(round(side / scale), int(self.sides.max()))
        weights = torch.where(self.sides >= cut, self.weights, 0.0)  # only pictures that are large enough
        index = torch.multinomial(weights, count, replacement=True, generator=generator)
        uniform = torch.rand(4, count, generator=generator)
        index, uniform = index.to(self.device), uniform.to(self.device)
        width = self.widths[index]
        top = (uniform[0] * (self.heights[index] - cut + 1)).long()
        left = (uniform[1] * (width - cut + 1)).long()
        line = torch.arange(cut, device=self.device)
        columns = torch.where(uniform[2, :, None] < 0.5, line, cut - 1 - line)
        offset = self.starts[index] + top * width + left
        address = offset[:, None, None] + line[None, :, None] * width[:, None, None] + columns[:, None, :]
        crops = self.pixels[address.reshape(-1)].reshape(count, cut, cut, 3)
        crops = crops.permute(0, 3, 1, 2).float() / 127.5 - 1
        if cut != side:
            smooth = F.interpolate(crops, size=(side, side), mode="bicubic", align_corners=False, antialias=cut > side)
            crops = smooth.clamp(-1, 1)
        return crops.contiguous()


def centre_crops(pictures: Sequence[Picture], side: int) -> Tensor:
    """Centre crops ``(n, 3, side, side)`` in [-1, 1] of the pictures that are large enough."""
    crops = []
    for picture in pictures:
        image = decode_picture(picture)
        h, w = image.shape[:2]
        if min(h, w) < side:
            continue
        top, left = (h - side) // 2, (w - side) // 2
        crops.append(image[top : top + side, left : left + side])
    if not crops:
        raise DataError(f"no picture is at least {side} pixels high and wide")
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
