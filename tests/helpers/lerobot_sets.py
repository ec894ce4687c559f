"""Small LeRobot data sets, layout v3.0, written as LeRobot writes them: one video per camera with all episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tatok_edge.geometry import Image
from tatok_edge.sources.synthetic import Scene, render

CAMERAS = ("observation.images.top", "observation.images.wrist")
FPS = 10
TASKS = ("push the block", "open the drawer")


def codec() -> tuple[str, dict[str, str]]:
    """AV1, LeRobot's default, where this PyAV encodes it; else H.264."""
    import av

    try:
        av.Codec("libsvtav1", "w")
    except ValueError:
        return "libx264", {"crf": "18", "g": "2"}
    return "libsvtav1", {"crf": "30", "g": "2", "preset": "12"}


def write_video(path: Path, pictures: Sequence[Image], name: str, options: dict[str, str]) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(name, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))


def picture_of(camera: int, number: int) -> Image:
    """Frame ``number`` of the video of a camera: a scene whose brightness tells the number."""
    image = render(Scene(width=96, height=64, seed=camera), number)
    image[:16] = 10 * number + 20
    return image


def write_lerobot(folder: Path, lengths: Sequence[int] = (4, 3, 5), **changes: Any) -> Path:
    """A data set with two cameras, actions of 3 numbers and states of 2; ``changes`` are made to info.json."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tatok_edge.datasets.lerobot import task_table

    rng = np.random.default_rng(0)
    total = sum(lengths)
    for number, camera in enumerate(CAMERAS):
        pictures = [picture_of(number, frame) for frame in range(total)]
        write_video(folder / f"videos/{camera}/chunk-000/file-000.mp4", pictures, *codec())
    episode = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.concatenate([np.arange(length) for length in lengths])
    table = pa.table(
        {
            "action": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(3 * total, np.float32)), 3),
            "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(2 * total, np.float32)), 2),
            "next.done": pa.array((frame + 1 == np.asarray(lengths)[episode]).tolist()),
            "timestamp": pa.array((frame / FPS).astype(np.float32)),
            "frame_index": pa.array(frame),
            "episode_index": pa.array(episode),
            "index": pa.array(np.arange(total)),
            "task_index": pa.array(episode % 2),
        }
    )
    (folder / "data/chunk-000").mkdir(parents=True)
    pq.write_table(table, folder / "data/chunk-000/file-000.parquet")
    ends = np.cumsum(lengths)
    rows = [
        {
            "episode_index": number,
            "tasks": [TASKS[number % 2]],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": int(end) - length,
            "dataset_to_index": int(end),
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            "stats/action/mean": [0.5, 0.5, 0.5],
        }
        | {f"videos/{camera}/{name}_index": 0 for camera in CAMERAS for name in ("chunk", "file")}
        | {f"videos/{camera}/from_timestamp": float(end - length) / FPS for camera in CAMERAS}
        | {f"videos/{camera}/to_timestamp": float(end) / FPS for camera in CAMERAS}
        for number, (length, end) in enumerate(zip(lengths, ends, strict=True))
    ]
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(task_table(TASKS), folder / "meta/tasks.parquet")

    def feature(kind: str, *shape: int, names: list[str] | None = None) -> dict[str, Any]:
        return {"dtype": kind, "shape": list(shape or (1,)), "names": names}

    info = {
        "codebase_version": "v3.0",
        "robot_type": "so100",
        "total_episodes": len(lengths),
        "total_frames": total,
        "total_tasks": 2,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "action": feature("float32", 3, names=["x", "y", "z"]),
            "observation.state": feature("float32", 2),
            "next.done": feature("bool"),
            **{camera: feature("video", 64, 96, 3, names=["height", "width", "channels"]) for camera in CAMERAS},
            "timestamp": feature("float32"),
            **{name: feature("int64") for name in ("frame_index", "episode_index", "index", "task_index")},
        },
    }
    (folder / "meta/info.json").write_text(json.dumps(info | changes))
    (folder / "meta/stats.json").write_text("{}")
    return folder
