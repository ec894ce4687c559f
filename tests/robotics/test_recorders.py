"""Bags as recorders, converters and mergers leave them: every message is read, or its loss is said."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bags import (
    CAMERA,
    COMPRESSED,
    IMAGE,
    START,
    STORE,
    TOKENS,
    TYPES,
    Array,
    camera_bag,
    cdr,
    channel,
    compressed_message,
    content,
    fails,
    raw_message,
    records,
    report_of,
    rosbag,
    run,
    write_bag,
)
from hypothesis import given
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.writer import CompressionType, IndexType, Writer
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.robotics import TokenDecoder
from tatok_edge.robotics.bags import mcap as mcap_module
from tatok_edge.robotics.bags import sqlite as sqlite_module
from tatok_edge.robotics.bags.bag import Bag, is_bag
from tatok_edge.robotics.bags.records import Channel, Message
from tatok_edge.sources.bag import BagSource

STEP = 10**8
TEXT = "std_msgs/msg/String"
UNINDEXED = {
    "use_chunking": False,
    "index_types": IndexType.NONE,
    "use_statistics": False,
    "use_summary_offsets": False,
}


def text(number: int) -> bytes:
    return cdr(TYPES[TEXT](data=str(number)))


def mcap_of(path: Path, items: Iterable[tuple[str, str, int, bytes]], **options: Any) -> Path:
    """An MCAP file of (topic, type, log time, data), in that order."""
    with path.open("wb") as file:
        writer = Writer(file, **options)
        writer.start("ros2", "test")
        numbers: dict[tuple[str, str], int] = {}
        for topic, kind, time, data in items:
            if (topic, kind) not in numbers:
                definition = STORE.generate_msgdef(kind, ros_version=2)[0].encode()
                schema = writer.register_schema(kind, "ros2msg", definition)
                numbers[topic, kind] = writer.register_channel(topic, "cdr", schema)
            writer.add_message(numbers[topic, kind], time, data, time)
        writer.finish()
    return path


def image_items(images: Sequence[Array], order: Iterable[int]) -> list[tuple[str, str, int, bytes]]:
    """Pictures that move by a pixel, so that a stream has deltas to get wrong."""
    items = []
    for number in order:
        image = np.roll(images[number % len(images)][:64, :96], number, axis=1)
        items.append((CAMERA, IMAGE, START + number * STEP, cdr(raw_message(image, time=START + number * STEP))))
    return items


def times_of(path: Path, topic: str) -> list[int]:
    return [record.log_time - START for record in records(path, topic)]


# --- order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"chunk_size": 1}, {"chunk_size": 50_000}, {"use_chunking": False}, UNINDEXED])
def test_merged_bags_decode_in_the_order_of_players(
    tmp_path: Path, clip: list[Array], tokenizer: Tokenizer, options: dict[str, Any]
) -> None:
    """Recordings of three shifts, joined in the wrong order and interleaved."""
    order = [*range(8, 12), 4, 0, 5, 1, 6, 2, 7, 3]
    path = mcap_of(tmp_path / "in.mcap", image_items(clip, order), **options)
    assert run("encode", path, "-o", tmp_path / "o.mcap") == 0
    decoder = TokenDecoder(tokenizer)
    with (tmp_path / "o.mcap").open("rb") as file:
        found = [message for _, _, message in make_reader(file).iter_messages(log_time_order=True)]
    assert [message.log_time for message in found] == [START + number * STEP for number in range(12)]
    assert all(decoder.decode(STORE.deserialize_cdr(message.data, COMPRESSED))[0].complete for message in found)


@given(
    times=st.lists(st.integers(0, 9), max_size=30),
    chunk=st.sampled_from([1, 200, 1 << 20]),
    chunked=st.booleans(),
    summary=st.booleans(),
    compression=st.sampled_from(list(CompressionType)),
)
def test_messages_come_in_the_order_of_their_times(
    times: list[int],
    chunk: int,
    chunked: bool,
    summary: bool,
    compression: CompressionType,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every message once, equal times in the order of the file, with and without chunks, summary and compression."""
    items = [(f"/t{number % 3}", TEXT, time, text(number)) for number, time in enumerate(times)]
    options: dict[str, Any] = {"chunk_size": chunk, "use_chunking": chunked, "compression": compression}
    if not summary:
        options |= {"repeat_channels": False, "repeat_schemas": False, "use_statistics": False}
    path = mcap_of(tmp_path_factory.mktemp("order") / "in.mcap", items, **options)
    with Bag(path) as bag:
        found = [record.data for record in bag.records() if isinstance(record, Message)]
        assert bag.problems == []
        assert set(bag.topics()) == {topic for topic, *_ in items}
        assert bag.silent == set()
    assert found == [item[3] for item in sorted(items, key=lambda item: item[2])]
    path.unlink()


def test_order_is_given_up_before_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcap_module, "WAITING_BYTES", 100)
    items = [("/a", TEXT, 50 - number if number % 2 else number, text(number)) for number in range(40)]
    path = mcap_of(tmp_path / "in.mcap", items, chunk_size=300)
    assert sorted(record.data for record in records(path)) == sorted(item[3] for item in items)


def test_splits_are_read_in_numerical_order(tmp_path: Path, clip: list[Array]) -> None:
    """The tenth file comes after the ninth, with and without metadata, and where files overlap in time."""
    folder = tmp_path / "run"
    folder.mkdir()
    for number in range(11):
        mcap_of(folder / f"run_{number}.mcap", image_items(clip, [number]))
    assert times_of(folder, CAMERA) == [number * STEP for number in range(11)]
    for file in folder.iterdir():
        file.unlink()
    mcap_of(folder / "run_9.mcap", [("/a", TEXT, 5, text(0)), ("/a", TEXT, 9, text(3)), ("/a", TEXT, 9, text(4))])
    mcap_of(folder / "run_10.mcap", [("/a", TEXT, 7, text(1)), ("/a", TEXT, 8, text(2)), ("/a", TEXT, 9, text(5))])
    assert [record.data for record in records(folder)] == [text(number) for number in range(6)]


# --- metadata ---------------------------------------------------------------------------------------


def metadata(names: Sequence[str]) -> str:
    return f"rosbag2_bagfile_information: {{version: 5, relative_file_paths: [{', '.join(names)}]}}"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["run_0.mcap"], "older than run_1.mcap"),
        (["old/path/run_0.mcap", "run_1.mcap", "run_2.mcap"], "names run_2.mcap, which is missing"),
        (["before_0.mcap"], "names before_0.mcap, which is missing"),
    ],
)
def test_stale_metadata(
    tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str], names: list[str], says: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for number in range(2):
        mcap_of(folder / f"run_{number}.mcap", image_items(clip, [number]))
    (folder / "metadata.yaml").write_text(metadata(names))
    assert run("encode", folder, "-o", tmp_path / "o.mcap") == 1
    assert says in capsys.readouterr().err
    assert times_of(tmp_path / "o.mcap", TOKENS) == [0, STEP]


@pytest.mark.parametrize("plugin", list(StoragePlugin))
def test_compressed_messages_without_metadata(tmp_path: Path, clip: list[Array], plugin: StoragePlugin) -> None:
    """Only metadata.yaml says that messages are compressed, and a killed recorder writes none."""
    folder = rosbag(tmp_path / "in", clip, plugin, CompressionMode.MESSAGE)
    (folder / "metadata.yaml").unlink()
    assert run("encode", folder, "-o", tmp_path / "o.mcap") == 1
    assert len(records(tmp_path / "o.mcap", TOKENS)) == 3


def test_a_file_and_its_compressed_form_are_read_once(tmp_path: Path, clip: list[Array]) -> None:
    """A recorder that is killed while it compresses a file leaves both."""
    folder = rosbag(tmp_path / "in", clip, StoragePlugin.MCAP, CompressionMode.FILE)
    (packed,) = folder.glob("*.zst*")
    import zstandard

    with packed.open("rb") as source, (folder / packed.stem).open("wb") as out:
        zstandard.ZstdDecompressor().copy_stream(source, out)
    (folder / "metadata.yaml").unlink()
    with Bag(folder) as bag:
        assert sum(isinstance(record, Message) for record in bag.records()) == 6
        assert any(f"{packed.name} is left out beside {packed.stem}" in problem for problem in bag.problems)


@pytest.mark.parametrize("last", [b"", b"\x89MCAP0\r\n", "cut"])
def test_last_split_that_is_empty_or_cut_off(
    tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str], last: bytes | str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    mcap_of(folder / "run_0.mcap", image_items(clip, range(2)))
    mcap_of(folder / "run_1.mcap", image_items(clip, range(2, 5)), chunk_size=1)
    whole = (folder / "run_1.mcap").read_bytes()
    (folder / "run_1.mcap").write_bytes(whole[: len(whole) * 2 // 3] if isinstance(last, str) else last)
    (folder / "metadata.yaml").write_text(metadata(["run_0.mcap", "run_1.mcap"]))
    assert run("encode", folder, "-o", tmp_path / "o.mcap") == 1
    assert "run_1.mcap: is " in capsys.readouterr().err
    assert len(records(tmp_path / "o.mcap", TOKENS)) == (2 if isinstance(last, bytes) else 4)


def test_one_bad_chunk_costs_no_other(tmp_path: Path) -> None:
    path = mcap_of(
        tmp_path / "in.mcap",
        [("/a", TEXT, number, text(number)) for number in range(5)],
        chunk_size=1,
        compression=CompressionType.NONE,
    )
    data = bytearray(path.read_bytes())
    data[data.index(text(2)) + 8] ^= 1
    path.write_bytes(data)
    with Bag(path) as bag:
        found = [record.data for record in bag.records() if isinstance(record, Message)]
    assert found == [text(number) for number in (0, 1, 3, 4)]
    assert "CRC" in bag.problems[0]


# --- SQLite -----------------------------------------------------------------------------------------


def database(path: Path, *, journal: str = "wal") -> sqlite3.Connection:
    base = sqlite3.connect(path, isolation_level=None)
    base.execute(f"PRAGMA journal_mode={journal}")
    if journal == "wal":
        base.execute("PRAGMA wal_autocheckpoint=0")
    base.execute(
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT,"
        " offered_qos_profiles TEXT)"
    )
    base.execute("CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)")
    base.execute("CREATE INDEX timestamp_idx ON messages (timestamp ASC)")
    base.execute("INSERT INTO topics VALUES(1, '/a', ?, 'cdr', '')", (TEXT,))
    return base


def insert(base: sqlite3.Connection, numbers: Iterable[int]) -> None:
    base.execute("BEGIN")
    for number in numbers:
        base.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES(1, ?, ?)", (number, text(number)))
    base.execute("COMMIT")


def killed(live: Path, target: Path, *suffixes: str) -> Path:
    """What is on the disk when a recorder is killed."""
    for suffix in ("", *suffixes):
        shutil.copy(f"{live}{suffix}", f"{target}{suffix}")
    return target


def read(path: Path) -> tuple[list[bytes], list[str]]:
    with Bag(path) as bag:
        found = [record.data for record in bag.records() if isinstance(record, Message)]
        return found, bag.problems


@pytest.mark.parametrize("suffixes", [("-wal",), ("-wal", "-shm")])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_messages_in_the_write_ahead_log(tmp_path: Path, suffixes: tuple[str, ...], checkpoint: bool) -> None:
    """All of it in the log, even the tables, or a part; the files of the recorder stay as they are."""
    base = database(tmp_path / "live.db3")
    insert(base, range(3))
    if checkpoint:
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    insert(base, range(3, 7))
    path = killed(tmp_path / "live.db3", tmp_path / "bag.db3", *suffixes)
    base.close()
    before = [path.read_bytes(), Path(f"{path}-wal").read_bytes()]
    assert read(path) == ([text(number) for number in range(7)], [])
    assert [path.read_bytes(), Path(f"{path}-wal").read_bytes()] == before


def test_a_log_beside_a_database_that_is_still_written(tmp_path: Path) -> None:
    base = database(tmp_path / "live.db3")
    insert(base, range(4))
    assert read(tmp_path / "live.db3")[0] == [text(number) for number in range(4)]
    insert(base, range(4, 6))
    assert read(tmp_path / "live.db3")[0] == [text(number) for number in range(6)]
    base.close()


def test_a_folder_in_which_sqlite_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = database(tmp_path / "live.db3")
    insert(base, range(4))
    path = killed(tmp_path / "live.db3", tmp_path / "bag.db3", "-wal")
    base.close()
    monkeypatch.setattr(sqlite_module, "_with_log", lambda uri: None)
    assert read(path) == ([text(number) for number in range(4)], [])
    assert sorted(file.name for file in tmp_path.glob("bag*")) == ["bag.db3", "bag.db3-wal"]


@pytest.mark.parametrize(
    ("damage", "says", "kept"),
    [
        (lambda log: log[:20], "cut off at its start", 3),
        (lambda log: b"\0" * 32 + log[32:], "its messages are lost", 3),
        (lambda log: log[:-300], "is cut off", 6),
        (lambda log: log[:60] + b"\xff" * 40 + log[100:], "its later messages are lost", 3),
    ],
)
def test_a_log_that_is_damaged_is_said(tmp_path: Path, damage: Any, says: str, kept: int) -> None:
    """SQLite leaves out what it cannot read of a log without a word."""
    base = database(tmp_path / "live.db3")
    insert(base, range(3))
    base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for start in (3, 200, 400):
        insert(base, range(start, start + 3 if start == 3 else start + 190))
    path = killed(tmp_path / "live.db3", tmp_path / "bag.db3", "-wal")
    base.close()
    log = Path(f"{path}-wal")
    log.write_bytes(damage(log.read_bytes()))
    found, problems = read(path)
    assert found[:kept] == [text(number) for number in [*range(6)][:kept]]
    assert len(problems) == 1
    assert says in problems[0]


def test_an_unfinished_transaction_of_an_old_recorder(tmp_path: Path) -> None:
    """A hot journal: the database is half changed, and SQLite has to undo that."""
    base = database(tmp_path / "live.db3", journal="delete")
    insert(base, range(3))
    base.execute("PRAGMA cache_spill=1")
    base.execute("PRAGMA cache_size=2")
    base.execute("BEGIN")
    for number in range(3, 300):
        base.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES(1, ?, ?)", (number, text(number)))
    path = killed(tmp_path / "live.db3", tmp_path / "bag.db3", "-journal")
    base.close()
    before = path.read_bytes()
    assert read(path) == ([text(number) for number in range(3)], [])
    assert path.read_bytes() == before


def test_a_damaged_page_costs_only_its_messages(tmp_path: Path) -> None:
    base = database(tmp_path / "bag.db3", journal="delete")
    insert(base, range(2000))
    base.close()
    data = bytearray((tmp_path / "bag.db3").read_bytes())
    at = data.index(text(1000)) // 4096 * 4096
    data[at : at + 4096] = bytes(4096)
    (tmp_path / "bag.db3").write_bytes(data)
    found, problems = read(tmp_path / "bag.db3")
    assert 1500 < len(found) < 2000
    assert f"{2000 - len(found)} messages cannot be read" in problems[0]


def test_an_empty_database_beside_a_good_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    insert(database(folder / "run_0.db3", journal="delete"), range(3))
    (folder / "run_1.db3").touch()
    (folder / "metadata.yaml").write_text(metadata(["run_0.db3", "run_1.db3"]))
    found, problems = read(folder)
    assert found == [text(number) for number in range(3)]
    assert problems == ["run_1.db3: is empty"]


# --- topics -----------------------------------------------------------------------------------------


def test_several_types_on_one_topic(tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str]) -> None:
    """Two nodes, one name: pictures of both types become tokens, and texts stay."""
    small = clip[0][:64, :96]
    path = write_bag(
        tmp_path / "in.mcap",
        [
            (CAMERA, IMAGE, cdr(raw_message(small))),
            (CAMERA, TEXT, text(1)),
            (CAMERA, COMPRESSED, cdr(compressed_message(small))),
            (CAMERA, TEXT, text(2)),
        ],
    )
    assert run("encode", path, "-o", tmp_path / "o.mcap", "--json") == 0
    assert report_of(capsys)["topics"][CAMERA]["done"] == 2
    assert [record.data for record in records(tmp_path / "o.mcap", CAMERA)] == [text(1), text(2)]
    with BagSource(path) as source:
        assert [frame.index for frame in source] == [0, 1]
    line = fails(capsys, "decode", path, "-o", tmp_path / "d.mcap")
    assert f"{IMAGE} and {TEXT} and {COMPRESSED}" in line


@pytest.mark.parametrize("summary", [True, False])
def test_topics_without_messages(tmp_path: Path, clip: list[Array], summary: bool) -> None:
    """Drivers announce more topics than they publish: they are no choice, and they stay in the bag."""
    silent = (channel("/camera/theora", COMPRESSED), channel("/camera/depth", IMAGE))
    path = write_bag(tmp_path / "in.mcap", [(CAMERA, IMAGE, cdr(raw_message(clip[0])))], channels=silent)
    if not summary:
        path.write_bytes(path.read_bytes()[:-100])
    with Bag(path) as bag:
        assert bag.silent == {"/camera/theora", "/camera/depth"}
    assert run("encode", path, "-o", tmp_path / "o.mcap") == (0 if summary else 1)
    with Bag(tmp_path / "o.mcap") as bag:
        assert {"/camera/theora", "/camera/depth", TOKENS} <= set(bag.topics())
    both = ("--topic", CAMERA, "--topic", "/camera/depth")
    run("encode", path, *both, "-o", tmp_path / "both.mcap")
    with Bag(tmp_path / "both.mcap") as bag:
        assert "/camera/depth/tatok" in bag.silent


def test_only_silent_topics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bag(tmp_path / "in.mcap", [("/a", TEXT, text(1))], channels=(channel(CAMERA, IMAGE),))
    assert "holds no message" in fails(capsys, "encode", path, "-o", tmp_path / "o.mcap")
    assert "(sensor_msgs/msg/Image, no messages)" in fails(
        capsys, "encode", path, "--topic", "/b", "-o", tmp_path / "o.mcap"
    )


# --- stamps -----------------------------------------------------------------------------------------


def stamps_of(path: Path) -> list[int]:
    with BagSource(path) as source:
        return [frame.timestamp_us for frame in source]


@pytest.mark.parametrize(
    ("stamps", "becomes"),
    [
        ([0, 0, 0], [0, 1_000_000, 2_000_000]),
        ([0, START, START + STEP], [0, 1_000_000, 1_100_000]),
        ([START, 0, START + 15 * STEP], [0, 1_000_000, 1_500_000]),
        ([START, START, START], [0, 1_000_000, 2_000_000]),
        ([5 * 10**9, START, START + STEP], [0, 1_000_000, 1_100_000]),
        ([START, START - 50 * 10**9, START - 49 * 10**9], [0, 1_000_000, 2_000_000]),
    ],
)
def test_stamps_that_say_nothing(
    tmp_path: Path, clip: list[Array], stamps: list[int], becomes: list[int], tokenizer: Tokenizer
) -> None:
    """Never set, set late, lost, frozen, set by a time server, set back; the log times are a second apart."""
    path = camera_bag(tmp_path / "in.mcap", [raw_message(clip[0][:64, :96], time=time) for time in stamps])
    assert stamps_of(path) == becomes
    assert run("encode", path, "-o", tmp_path / "o.mcap") == 0
    decoder = TokenDecoder(tokenizer)
    decoded = [decoder.decode(content(record))[0] for record in records(tmp_path / "o.mcap", TOKENS)]
    assert [frame.timestamp_us for frame in decoded] == becomes
    assert [content(record).header.stamp.sec for record in records(tmp_path / "o.mcap", TOKENS)] == [
        time // 10**9 for time in stamps
    ]


# --- what is a bag ----------------------------------------------------------------------------------


def test_what_is_a_bag(tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> Path:
        made = tmp_path / name
        made.mkdir()
        for file in files:
            (made / file).write_text("rosbag2_bagfile_information: {}" if file == "metadata.yaml" else "")
        return made

    assert is_bag(folder("a", "run_0.mcap", "metadata.yaml", "notes.txt"))
    assert is_bag(folder("b", "run_0.db3", "run_0.db3-wal", ".DS_Store"))
    assert not is_bag(folder("c", "metadata.yaml"))
    assert not is_bag(folder("d", "run_0.mcap", "cover.jpg"))
    assert not is_bag(folder("e"))
    assert not is_bag(folder("f", "._run_0.mcap"))


def test_channels_of_foreign_encodings_do_not_stop_a_topic(tmp_path: Path, clip: list[Array]) -> None:
    """A JSON text of another program on the name of a camera."""
    foreign = Channel(CAMERA, "text", "json", "jsonschema", b"{}")
    messages = [(CAMERA, IMAGE, cdr(raw_message(clip[0])))]
    path = write_bag(tmp_path / "in.mcap", messages, channels=(foreign,))
    assert run("encode", path, "-o", tmp_path / "o.mcap") == 0
