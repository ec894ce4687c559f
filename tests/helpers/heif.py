"""Makes small AVIF and HEIC pictures, as phones write them: whole, or put together of tiles."""

import io
import struct
from collections.abc import Sequence

import av
import numpy as np


def heif(images: Sequence[np.ndarray], codec: str) -> bytes:
    """A picture file.

    Args:
        images: RGB, uint8 (height, width, 3), all of one size. One is the picture; several are its tiles, in one row.
        codec: ``"hevc"`` or ``"av1"``.
    """
    coded = [_coded(image, codec) for image in images]
    height, width = images[0].shape[:2]
    kind, brand = {"hevc": (b"hvc1", b"heic"), "av1": (b"av01", b"avif")}[codec]
    count = len(coded)
    tiled = count > 1
    grid = struct.pack(">BBBBHH", 0, 0, 0, count - 1, width * count, height) if tiled else b""
    items = [(number + 1, kind, data) for number, (_, data) in enumerate(coded)]
    items += [(count + 1, b"grid", grid)] if tiled else []
    entries = b"".join(_full(b"infe", 2, struct.pack(">HH4s", number, 0, name) + b"\0") for number, name, _ in items)
    sizes = [(width, height), (width * count, height)]
    properties = coded[0][0] + b"".join(_full(b"ispe", 0, struct.pack(">II", *size)) for size in sizes)
    links = struct.pack(">I", len(items))
    for number, name, _ in items:
        used = (0x83,) if name == b"grid" else (0x81, 0x82)
        links += struct.pack(">HB", number, len(used)) + bytes(used)
    dimg = struct.pack(f">HH{count}H", count + 1, count, *range(1, count + 1))
    references = _full(b"iref", 0, _box(b"dimg", dimg)) if tiled else b""

    def meta(start: int) -> bytes:
        places, at = struct.pack(">BBH", 0x44, 0, len(items)), start
        for number, _, data in items:
            places += struct.pack(">HHHII", number, 0, 1, at, len(data))
            at += len(data)
        parts = _full(b"hdlr", 0, struct.pack(">I4s12x", 0, b"pict") + b"\0")
        parts += _full(b"pitm", 0, struct.pack(">H", items[-1][0])) + _full(b"iloc", 0, places)
        parts += _full(b"iinf", 0, struct.pack(">H", len(items)) + entries) + references
        parts += _box(b"iprp", _box(b"ipco", properties) + _full(b"ipma", 0, links))
        return _full(b"meta", 0, parts)

    head = _box(b"ftyp", brand + struct.pack(">I", 0) + b"mif1" + brand)
    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + _box(b"mdat", b"".join(data for _, _, data in items))


def _coded(image: np.ndarray, codec: str) -> tuple[bytes, bytes]:
    """The box that configures the decoder, and the coded picture."""
    encoder, name = {"hevc": ("libx265", b"hvcC"), "av1": ("libsvtav1", b"av1C")}[codec]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"x265-params": "log-level=none:bframes=0", "crf": "12"} if codec == "hevc" else {"crf": "12"}
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = file.getvalue()
    at = data.index(name) - 4
    (length,) = struct.unpack(">I", data[at : at + 4])
    with av.open(io.BytesIO(data)) as container:
        packet = next(container.demux(video=0))
        return data[at : at + length], bytes(packet)


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def _full(name: bytes, version: int, content: bytes) -> bytes:
    return _box(name, struct.pack(">I", version << 24) + content)
