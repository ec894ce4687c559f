"""The formats, one by one, and damaged data sets."""

import io
import json
import multiprocessing
import pickle
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_runs import BUDGET, FRAMES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tatok_edge import Limits, TokenFrame
from tatok_edge.cli.main import main
from tatok_edge.datasets import FrameTokens, RaggedTokens, TokenDataset, open_dataset
from tatok_edge.datasets.assembly import Assembly
from tatok_edge.datasets.build import Options, _metadata, _plan, make_dataset
from tatok_edge.datasets.formats import FORMATS, METADATA, module_of
from tatok_edge.datasets.parts import Part, PartWriter
from tatok_edge.errors import FormatError, InputError, TaTokError
from tatok_edge.geometry import cell_grid, patch_grid
from tatok_edge.model.bundle import open_bundle


@st.composite
def frames_of_clips(draw: st.DrawFn) -> list[list[TokenFrame]]:
    """Frames with any number of tokens, down to none, in clips of any length."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    clips = []
    for _ in range(draw(st.integers(1, 4))):
        clip = []
        for index in range(draw(st.integers(1, 6))):
            width, height = draw(st.sampled_from([(32, 32), (96, 64), (100, 45), (2112, 2080)]))
            rows, columns = patch_grid(width, height)
            depth = open_bundle("tatok-s8").depth
            count = draw(st.integers(0, min(depth * rows * columns, 40)))
            # From few places, so that stacks are deep.
            places = rng.choice(min(depth * rows * columns, 64), count, replace=False) // depth
            cells = cell_grid(width, height)
            clip.append(
                TokenFrame(
                    ids=rng.integers(0, 64000, count, dtype=np.int32),
                    positions=np.sort(places).astype(np.int32),
                    global_ids=rng.integers(0, 64000, cells[0] * cells[1], dtype=np.int32),
                    width=width,
                    height=height,
                    model=open_bundle("tatok-s8").tag,
                    index=3 * index,
                    timestamp_us=40_000 * index,
                )
            )
        clips.append(clip)
    return clips


def write(folder: Path, clips: list[list[TokenFrame]], name: str, shard_bytes: int) -> Path:
    """A data set of given tokens, without a tokenizer."""
    for number, clip in enumerate(clips):
        writer = PartWriter(folder / "parts", number, 64000)
        for frame in clip:
            writer.write(frame)
        writer.commit(name=f"clip {number}", source="-", fps=25.0, problem=None)
    parts = [Part.find(folder / "parts", number) for number in range(len(clips))]
    whole = [part for part in parts if part is not None]
    assert len(whole) == len(clips)
    options = Options(format=name)
    bundle = open_bundle("tatok-s8")
    metadata = _metadata(whole, bundle, _plan([], bundle, options), options)
    out = folder / name
    out.mkdir()
    module_of(name).write(Assembly(whole, out, metadata, shard_bytes, lambda done: None))
    place = out / ("meta/tatok.json" if name == "lerobot" else METADATA)
    place.write_text(json.dumps(metadata))
    return out


@pytest.mark.parametrize("name", FORMATS)
@given(clips=frames_of_clips(), shard_bytes=st.sampled_from([1, 20_000, 1 << 30]))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_what_is_written_is_read(
    name: str, clips: list[list[TokenFrame]], shard_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if name in ("parquet", "lerobot"):
        pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("written")
    dataset = open_dataset(write(folder, clips, name, shard_bytes))
    frames = [frame for clip in clips for frame in clip]
    assert [frame.token_frame(dataset.model_tag) for frame in dataset] == frames
    for number in (0, len(frames) // 2, len(frames) - 1):
        assert dataset[number].token_frame(dataset.model_tag) == frames[number]
    assert [frame.depths.tolist() for frame in dataset] == [frame.depths.tolist() for frame in frames]
    assert dataset[0].depths.dtype == dataset.clip(0).depths.dtype == np.uint8
    everywhere = np.concatenate([frame.depth_map().ravel() for frame in frames])
    assert dataset.depth == open_bundle("tatok-s8").depth
    assert dataset.metadata["patches_by_depth"] == np.bincount(everywhere, minlength=dataset.depth + 1).tolist()
    large = any(frame.n_patches > 65536 for frame in frames)
    assert dataset[0].positions.dtype == (np.uint32 if large else np.uint16)
    last = dataset.clip(-1)
    assert [len(clip) for clip in dataset.iter_clips()] == [len(clip) for clip in clips]
    assert isinstance(last, RaggedTokens)
    assert last.depths.tolist() == [depth for frame in clips[-1] for depth in frame.depths]
    assert last.cu_seqlens.tolist() == np.cumsum([0, *(frame.n_tokens for frame in clips[-1])]).tolist()
    shutil.rmtree(folder)


def test_flat_layout_is_what_the_docs_say(flat: Path, expected: list[TokenFrame]) -> None:
    ids = np.fromfile(flat / "ids.bin", "<u2")
    positions = np.fromfile(flat / "positions.bin", "<u2")
    depths = np.fromfile(flat / "depths.bin", np.uint8)
    cells = np.fromfile(flat / "globals.bin", "<u2")
    offsets = np.fromfile(flat / "offsets.bin", "<i8").reshape(-1, 2)
    frames = np.frombuffer((flat / "frames.bin").read_bytes(), "<i8,<i8,<u4,<u2,<u2")
    assert len(offsets) == len(frames) + 1 == len(expected) + 1
    for number in (0, 7, 18):
        (token, cell), (last_token, last_cell) = offsets[number], offsets[number + 1]
        assert ids[token:last_token].tolist() == expected[number].ids.tolist()
        assert positions[token:last_token].tolist() == expected[number].positions.tolist()
        assert depths[token:last_token].tolist() == expected[number].depths.tolist()
        assert cells[cell:last_cell].tolist() == expected[number].global_ids.tolist()
        row = expected[number]
        assert frames[number].item()[:2] == (row.timestamp_us, row.index)
        assert frames[number].item()[3:] == (row.width, row.height)


def test_random_access_is_quick(flat: Path) -> None:
    dataset = open_dataset(flat)

    def seconds() -> float:
        start = time.perf_counter()
        for number in range(0, 19, 3):
            dataset[number]
        return (time.perf_counter() - start) / 7

    # The best of many, so that a busy machine does not matter; what it takes when quiet is in the benchmarks.
    assert min(seconds() for _ in range(200)) < 50e-6


def test_loader_cannot_write_and_survives_pickling(flat: Path) -> None:
    dataset = open_dataset(flat)
    with pytest.raises(ValueError, match="read-only"):
        dataset[0].ids[0] = 1
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert isinstance(copy, TokenDataset)
    assert copy[5].ids.tolist() == dataset[5].ids.tolist()
    for number in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[number]
    with pytest.raises(InputError, match="at least one frame"):
        dataset.batch([])


def test_webdataset_reads_the_shards(clips: Path, tmp_path: Path, expected: list[TokenFrame]) -> None:
    webdataset = pytest.importorskip("webdataset")
    arguments = ["dataset", str(clips), "-o", str(tmp_path / "tokens"), "--format", "webdataset", *BUDGET]
    assert main([*arguments, "--fps", "25", "--workers", "1"]) == 0
    shards = sorted(map(str, (tmp_path / "tokens").glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == ["000000", "000001", "000002"]
    assert [sample["json"]["clip"]["name"] for sample in samples] == list(FRAMES)
    first = samples[0]
    start, stop = first["cu_seqlens.npy"][2:4]
    assert first["ids.npy"].dtype == np.uint16
    assert first["ids.npy"][start:stop].tolist() == expected[2].ids.tolist()
    assert first["depths.npy"].dtype == np.uint8
    assert first["depths.npy"][start:stop].tolist() == expected[2].depths.tolist()
    assert first["json"]["depth"] == open_bundle("tatok-s8").depth
    with tarfile.open(shards[0]) as tar:
        assert {(member.mtime, member.uid) for member in tar} == {(0, 0)}


def test_parquet_columns(clips: Path, tmp_path: Path, expected: list[TokenFrame]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arguments = ["dataset", str(clips), "-o", str(tmp_path / "tokens"), "--format", "parquet", *BUDGET]
    assert main([*arguments, "--fps", "25", "--workers", "1"]) == 0
    (path,) = (tmp_path / "tokens").glob("*.parquet")
    table = parquet.read_table(path)
    assert str(table.schema.field("ids").type) == "list<element: uint16>"
    assert table.column("clip").to_pylist() == [name for name, count in FRAMES.items() for _ in range(count)]
    assert table.column("ids").to_pylist() == [frame.ids.tolist() for frame in expected]
    assert str(table.schema.field("depths").type) == "list<element: uint8>"
    assert table.column("depths").to_pylist() == [frame.depths.tolist() for frame in expected]
    assert json.loads(table.schema.metadata[b"tatok"])["model"]["name"] == "tatok-s8"
    file = parquet.ParquetFile(path)
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [9, 6, 4]
    assert file.metadata.row_group(0).column(6).compression == "ZSTD"


def test_lerobot_layout(clips: Path, tmp_path: Path, expected: list[TokenFrame]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "tokens"
    arguments = ["dataset", str(clips), "-o", str(out), "--format", "lerobot", *BUDGET]
    assert main([*arguments, "--fps", "25", "--workers", "1"]) == 0
    info = json.loads((out / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["fps"], info["total_episodes"], info["total_frames"], info["total_tasks"]) == (25, 3, 19, 1)
    assert info["splits"] == {"train": "0:3"}
    widest = max(frame.n_tokens for frame in expected)
    assert info["features"]["observation.tokens"] == {"dtype": "int32", "shape": [widest], "names": None}
    data = parquet.read_table(out / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(data.column_names) == set(info["features"])
    assert data.column("index").to_pylist() == list(range(19))
    assert data.column("episode_index").to_pylist() == [0] * 9 + [1] * 6 + [2] * 4
    for row, frame in zip(data.to_pylist(), expected, strict=True):
        assert row["observation.n_tokens"] == frame.n_tokens
        assert row["observation.tokens"] == frame.ids.tolist() + [-1] * (widest - frame.n_tokens)
        assert row["observation.depths"] == frame.depths.tolist() + [-1] * (widest - frame.n_tokens)
        assert row["timestamp"] == pytest.approx(row["frame_index"] / info["fps"])
    episodes = parquet.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(e["dataset_from_index"], e["dataset_to_index"]) for e in episodes] == [(0, 9), (9, 15), (15, 19)]
    statistics = json.loads((out / "meta/stats.json").read_text())
    counts = [frame.n_tokens for frame in expected]
    assert statistics["observation.n_tokens"]["mean"] == pytest.approx([np.mean(counts)])
    assert statistics["observation.n_tokens"]["std"] == pytest.approx([np.std(counts)])
    pandas = pytest.importorskip("pandas")
    tasks = pandas.read_parquet(out / "meta/tasks.parquet")
    assert tasks.iloc[0].name == "video"
    assert tasks.loc["video"].task_index == 0


def test_depths_that_do_not_fit_are_noticed(tmp_path: Path, expected: list[TokenFrame]) -> None:
    out = write(tmp_path, [expected[:2]], "flat", 1)
    depths = np.fromfile(out / "depths.bin", np.uint8)
    depths[3] += 1
    depths.tofile(out / "depths.bin")
    frame = open_dataset(out)[0]
    with pytest.raises(InputError, match="frame 0 of clip 0: depths do not fit positions; the data set is damaged"):
        frame.token_frame(open_dataset(out).model_tag)
    depths[:-1].tofile(out / "depths.bin")
    with pytest.raises(FormatError, match=r"ids\.bin and depths\.bin differ in length"):
        open_dataset(out)


@pytest.fixture(scope="session", params=["flat", "webdataset"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, expected: list[TokenFrame]) -> Path:
    """A small data set; leave it as it was."""
    return write(tmp_path_factory.mktemp("whole"), [expected[:3], expected[3:5]], request.param, 1)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_an_error_that_says_so(data: st.DataObject, whole: Path) -> None:
    victim = data.draw(st.sampled_from(sorted(path for path in whole.iterdir() if path.is_file())))
    original = victim.read_bytes()
    content = bytearray(original)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    victim.unlink()
    victim.write_bytes(content)
    problem = ""
    try:
        dataset = open_dataset(whole)
        for frame in dataset:
            assert isinstance(frame, FrameTokens)
            frame.token_frame(dataset.model_tag)
    except TaTokError as error:
        problem = str(error)
    finally:
        victim.unlink()  # what is still mapped keeps the old file
        victim.write_bytes(original)
    assert "\n" not in problem


def test_pickles_in_a_shard_are_not_loaded(clips: Path, tmp_path: Path) -> None:
    arguments = ["dataset", str(clips / "a.mp4"), "-o", str(tmp_path / "tokens"), "--format", "webdataset"]
    assert main([*arguments, "--frames", "2", "--workers", "1"]) == 0
    shard = tmp_path / "tokens" / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    evil = io.BytesIO()
    np.save(evil, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    files["000000.ids.npy"] = evil.getvalue()
    with tarfile.open(shard, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(FormatError, match=r"ids (is object|has a damaged header)"):
        open_dataset(tmp_path / "tokens")[0]


def test_newer_or_missing_data_sets(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no data set of tokens"):
        open_dataset(tmp_path)
    out = tmp_path / "tokens"
    shutil.copytree(flat, out)
    metadata = json.loads((out / METADATA).read_text())
    (out / METADATA).write_text(json.dumps(metadata | {"format_version": 99}))
    with pytest.raises(FormatError, match="upgrade tatok-edge"):
        open_dataset(out)
    (out / METADATA).write_text(json.dumps(metadata | {"format": "../../evil"}))
    with pytest.raises(FormatError, match="impossible value"):
        open_dataset(out)


def test_metadata_that_are_too_large(flat: Path, clips: Path, tmp_path: Path) -> None:
    size = (flat / METADATA).stat().st_size
    with pytest.raises(
        FormatError, match=rf"has {size} bytes, and the limit max_metadata is 99.*Limits\(max_metadata="
    ):
        open_dataset(flat, limits=Limits(max_metadata=99))
    dataset = open_dataset(flat, limits=Limits(max_metadata=size))
    assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset)
    options = Options(workers=1, threads=1, frames=1, limits=Limits(max_metadata=99))
    made = make_dataset([str(clips / "pictures")], tmp_path / "tokens", options)
    (note,) = made["run"]["notes"]
    assert "open it with limits=Limits(max_metadata=" in note


def test_spawned_workers_of_a_data_loader(flat: Path, tmp_path: Path) -> None:
    dataset = open_dataset(flat)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(len, (dataset,)) == len(dataset)


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ([0, 40, 80, 120], None),
        ([0, 41, 79, 121], None),
        ([0, 40, 120, 160], None),  # one frame was lost
        ([0, 40, 80, 500], "frame 3 is due at 0.120 s and comes at 0.500 s"),
        ([0, 200, 400, 600], "frame 1 is due at 0.040 s"),
        ([0, 0, 0, 0], None),
    ],
)
def test_lerobot_takes_constant_rates_only(tmp_path: Path, times: list[int], says: str | None) -> None:
    lerobot = pytest.importorskip("tatok_edge.datasets.lerobot")
    tag, empty = open_bundle("tatok-s8").tag, np.zeros(0, np.int32)
    writer = PartWriter(tmp_path, 0, 64000)
    for index, time_ms in enumerate(times):
        cells = np.zeros(1, np.int32)
        writer.write(TokenFrame(empty, empty, cells, 32, 32, model=tag, index=index, timestamp_us=1000 * time_ms))
    writer.commit(name="a.mp4", source="-", fps=25.0, problem=None)
    part = Part.find(tmp_path, 0)
    assert part is not None
    problem = lerobot.unsteady(part)
    assert (problem is None) == (says is None)
    if says is not None:
        assert says in problem
        assert "ffmpeg" in problem
