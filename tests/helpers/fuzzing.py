"""Damaged inputs for the readers of untrusted bytes: seeds, mutations that keep checksums right, and targets.

A target takes bytes and may raise errors of the project only. Every input is named by target, seed and number, so a
failure can be made again.
"""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from helpers.bags import CAMERA, IMAGE, cdr, raw_message, write_bag
from tatok_edge import Limits, Reader, StreamDecoder, StreamEncoder, TaTokError, Tokenizer, Writer, open_source
from tatok_edge.cli.pipes import read_packets
from tatok_edge.datasets.build import Options, make_dataset
from tatok_edge.datasets.reading import open_dataset
from tatok_edge.demo.feeds import decode_jpeg
from tatok_edge.demo.messages import Settings, parse
from tatok_edge.format.entropy import load_tables
from tatok_edge.format.header import peek
from tatok_edge.format.packet import unpack_delta
from tatok_edge.model.bundle import MANIFEST, load_scores, open_bundle
from tatok_edge.robotics.bags.bag import Bag
from tatok_edge.robotics.bags.cdr import Cdr
from tatok_edge.robotics.bags.records import Message
from tatok_edge.robotics.images import IMAGE_TYPES, image_from_message
from tatok_edge.runtime.onnx_graph import check_graph
from tatok_edge.sources.images import read_image
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.state import held_ahead

LIMITS = Limits(max_pixels=1 << 18, max_packet=1 << 20, max_file=1 << 22, max_chunk=1 << 22)
"""Small, so that each input is quick."""
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
VALUES: tuple[Any, ...] = (None, True, -1, 0, 1e308, 2**70, "", "\ud800", "../x", "a" * 300, [], {}, [[]], {"a": {}})

Target = Callable[[bytes], None]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four changes: flipped, set, repeated, left out, moved, or cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not changed:
            return bytes(changed)
        at = rng.randrange(len(changed))
        length = min(rng.choice((1, 2, 4, 8, 32)), len(changed) - at)
        kind = rng.randrange(7)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            number = rng.choice(NUMBERS)
            order = rng.choice(("little", "big"))
            changed[at : at + length] = (number & ((1 << 8 * length) - 1)).to_bytes(length, order)  # type: ignore[arg-type]
        elif kind == 2:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 3:
            changed[at:at] = changed[at : at + length] * rng.randint(1, 8)
        elif kind == 4:
            del changed[at : at + length]
        elif kind == 5:
            there = rng.randrange(len(changed))
            changed[at : at + length] = changed[there : there + length]
        elif rng.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def damaged_packet(data: bytes, rng: random.Random) -> bytes:
    """A damaged packet whose length and CRC are right."""
    body = damaged(data[3:-4] if data[2] < 0x80 else data[4:-4], rng)
    size = len(body) + 4
    length = bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])
    head = bytes([data[0], data[1] ^ (rng.choice((0, 0, 0, 1, 2, 4, 8)))]) + length
    packet = head + body
    return packet + zlib.crc32(packet).to_bytes(4, "little")


def damaged_json(text: bytes, rng: random.Random) -> bytes:
    """A JSON document in which some values are others; now and then damaged bytes."""
    if rng.random() < 0.2:
        return damaged(text, rng)
    root: Any = [json.loads(text)]
    for _ in range(rng.randint(1, 3)):
        node, key = root, 0
        while node[key] and isinstance(node[key], (dict, list)) and rng.random() < 0.85:
            node = node[key]
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if isinstance(node, dict) and rng.random() < 0.2:
            del node[key]
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(root[0]).encode()


class Fuzzer:
    """Seeds, mutations and targets.

    Args:
        tokenizer: The model.
        folder: A folder to work in.
    """

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        self.tokenizer = tokenizer
        self.folder = folder
        scene = [render(Scene(width=64, height=64), 3 * number) for number in range(6)]
        encoder = StreamEncoder(tokenizer, keyframe_interval=4)
        self.packets = [encoder.encode(image, timestamp_us=number).packet for number, image in enumerate(scene)]
        decoder, self.held = StreamDecoder(tokenizer), []
        for packet in self.packets:
            decoder.push(packet)
            assert decoder.state is not None
            self.held.append(decoder.state.held)
        self.files = self._files(scene)
        self._dataset = self._make_dataset()
        self.targets: dict[str, tuple[Callable[[random.Random], bytes], Target]] = {
            "packet": (lambda rng: damaged_packet(rng.choice(self.packets), rng), self.packet),
            "stream": (self._sequence, self.stream),
            "pipe": (lambda rng: damaged(b"".join(self.packets), rng), self.pipe),
            "ttk": (self._ttk, self.ttk),
            "manifest": (lambda rng: damaged_json(self.files["manifest"], rng), self.manifest),
            "graph": (lambda rng: damaged(self.files["graph"], rng), self.graph),
            "tables": (lambda rng: damaged(self.files["tables"], rng), self.tables),
            "bag": (lambda rng: damaged(self.files[rng.choice(("mcap", "db3"))], rng), self.bag),
            "index": (self._index, self.index),
            "message": (self._message, self.message),
            "picture": (
                lambda rng: damaged(self.files[rng.choice((".png", ".jpg", ".webp", ".bmp"))], rng),
                self.picture,
            ),
            "video": (lambda rng: damaged(self.files["y4m"], rng), self.video),
        }

    def input(self, name: str, seed: int, number: int) -> bytes:
        """One input of a target."""
        return self.targets[name][0](random.Random(f"{name} {seed} {number}"))

    def run(self, name: str, data: bytes) -> None:
        """Feeds an input to its target. Errors of the project are right; others are raised."""
        with suppress(TaTokError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.targets[name][1](data)

    # --- seeds -----------------------------------------------------------------------------------

    def _files(self, scene: list[np.ndarray[Any, Any]]) -> dict[str, bytes]:
        path = self.folder / "seed.ttk"
        with Writer(path, self.tokenizer.entropy_model, name=self.tokenizer.name, fps=30) as writer:
            for packet in self.packets:
                writer.write_packet(packet)
        bundle = self.tokenizer.bundle
        files = {
            "ttk": path.read_bytes(),
            "manifest": json.dumps(dict(bundle.manifest)).encode(),
            "graph": bundle.read("global_encoder"),
            "tables": bundle.read("scores"),
        }
        for suffix in (".png", ".jpg", ".webp", ".bmp"):
            files[suffix] = cv2.imencode(suffix, scene[0])[1].tobytes()
        picture = bytes(64 * 64 * 3 // 2)
        files["y4m"] = b"YUV4MPEG2 W64 H64 F25:1 Ip A1:1 C420jpeg\n" + 3 * (b"FRAME\n" + picture)
        bag = write_bag(self.folder / "seed.mcap", [(CAMERA, IMAGE, cdr(raw_message(image))) for image in scene[:2]])
        files["mcap"] = bag.read_bytes()
        files["db3"] = self._database(cdr(raw_message(scene[0])))
        return files

    def _database(self, message: bytes) -> bytes:
        import sqlite3

        path = self.folder / "seed.db3"
        with sqlite3.connect(path) as base:
            base.execute("CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT)")
            base.execute(
                "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)"
            )
            base.execute("INSERT INTO topics VALUES(1, ?, ?, 'cdr')", (CAMERA, IMAGE))
            base.executemany("INSERT INTO messages VALUES(?, 1, ?, ?)", [(n, n, message) for n in range(3)])
        base.close()
        return path.read_bytes()

    def _make_dataset(self) -> dict[str, bytes]:
        out = self.folder / "tokens"
        options = Options(format="webdataset", workers=1, threads=1)
        make_dataset(["synthetic:frames=2,width=64,height=64"], out, options)
        return {entry.name: entry.read_bytes() for entry in out.iterdir()}

    def _sequence(self, rng: random.Random) -> bytes:
        parts = []
        for _ in range(rng.randint(1, 8)):
            packet = rng.choice(self.packets)
            parts.append(damaged_packet(packet, rng) if rng.random() < 0.4 else packet)
        return b"".join(struct.pack("<I", len(part)) + part for part in parts)

    def _ttk(self, rng: random.Random) -> bytes:
        data = self.files["ttk"]
        if rng.random() < 0.5:
            return damaged(data, rng)
        length = int.from_bytes(data[9:13], "little")
        payload = damaged(data[13 : 13 + length], rng)  # with a right CRC
        head = data[:9] + struct.pack("<I", len(payload)) + payload
        return head + zlib.crc32(head).to_bytes(4, "little") + data[17 + length :]

    def _index(self, rng: random.Random) -> bytes:
        name = rng.choice(sorted(self._dataset))
        data = self._dataset[name]
        made = damaged_json(data, rng) if name.endswith(".json") else damaged(data, rng)
        return name.encode() + b"\0" + made

    def _message(self, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return damaged(self.files[".jpg"], rng)
        seeds = (b'{"type": "settings", "tau": 0.8, "keep": 1, "mode": "fixed"}', b'{"type": "seek", "frame": 3}')
        return damaged_json(rng.choice(seeds), rng)

    # --- targets ---------------------------------------------------------------------------------

    def packet(self, data: bytes) -> None:
        """One packet; a delta packet updates the frame that it names, where that is a frame of the stream."""
        info = peek(data)
        if info.reference is None:
            self.tokenizer.decode(self.tokenizer.unpack(data))
        else:
            held = self.held[info.reference if info.reference < len(self.held) else 0]
            unpack_delta(data, self.tokenizer.entropy_model, held_ahead(held, info.n_updated_cells or 0))

    def stream(self, data: bytes) -> None:
        """Packets of a stream; each has its size before it."""
        decoder = StreamDecoder(self.tokenizer, limits=LIMITS)
        at = 0
        while at + 4 <= len(data):
            (size,) = struct.unpack_from("<I", data, at)
            with suppress(TaTokError):
                decoder.decode(data[at + 4 : at + 4 + size])
            at += 4 + size

    def pipe(self, data: bytes) -> None:
        """Packets from standard input."""
        for packet in read_packets(io.BytesIO(data)):
            peek(packet)

    def ttk(self, data: bytes) -> None:
        """A token file."""
        with Reader(self._file("x.ttk", data), self.tokenizer.entropy_model, limits=LIMITS) as reader:
            repr(reader)
            json.dumps(reader.metadata)
            for _ in reader.frames(on_error="skip"):
                pass

    def manifest(self, data: bytes) -> None:
        """The manifest of a bundle; its files are missing."""
        bundle = open_bundle(self._file(f"bundle/{MANIFEST}", data).parent)
        bundle.graphs("int8")

    def graph(self, data: bytes) -> None:
        """An ONNX graph, before ONNX Runtime reads it."""
        check_graph(data, "graph")

    def tables(self, data: bytes) -> None:
        """The arrays of a bundle."""
        with suppress(TaTokError):
            load_scores(data, len(self.tokenizer.levels), self.tokenizer.depth, "bundle")
        load_tables(data, self.tokenizer.levels, self.tokenizer.depth, "bundle")

    def bag(self, data: bytes) -> None:
        """An MCAP or SQLite file with pictures."""
        cdr_reader = Cdr()
        with Bag(self._file("x.db3" if data.startswith(b"SQLite") else "x.mcap", data), limits=LIMITS) as bag:
            for record in bag.records():
                if isinstance(record, Message) and record.channel.type in IMAGE_TYPES:
                    with suppress(TaTokError):
                        image_from_message(cdr_reader.read(record), limits=LIMITS)

    def index(self, data: bytes) -> None:
        """A data set with one other file."""
        name, _, content = data.partition(b"\0")
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            for entry, good in self._dataset.items():
                (Path(folder) / entry).write_bytes(content if entry == name.decode() else good)
            for frame in open_dataset(folder):
                frame.token_frame(self.tokenizer.tag)

    def message(self, data: bytes) -> None:
        """What a page of the demo sends."""
        if data.startswith(b"\xff\xd8"):
            decode_jpeg(data)
            return
        message = parse(data.decode("utf-8", "replace"))
        message.pop("type")
        Settings().changed(message)

    def picture(self, data: bytes) -> None:
        """A picture file."""
        read_image(self._file("x.png", data), LIMITS)

    def video(self, data: bytes) -> None:
        """A Y4M video."""
        with open_source(self._file("x.y4m", data), limits=LIMITS) as source:
            for _ in source:
                pass

    def _file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path
