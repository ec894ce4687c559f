"""The entropy coder: what goes in comes out, the bytes are those of the plain Python reference, bad data is told."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import coder_reference as plain
from helpers.threads import in_threads
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tatok_edge.runtime.cpu import coder

SEEDS = st.integers(0, 2**32 - 1)
Content = list[tuple[str, NDArray[np.generic], NDArray[np.uint16]]]


def make_rows(rng: np.random.Generator, count: int, length: int, sharpness: float = 1.0) -> NDArray[np.uint16]:
    """Rows of 4096 with random numbers of allowed symbols, from even to almost certain."""
    rows = np.zeros((count, length), np.uint16)
    for row in rows:
        allowed = int(rng.integers(1, length + 1))
        weights = rng.random(allowed) ** (1 + 20 * sharpness * rng.random())
        freqs = 1 + np.floor(weights / weights.sum() * (4096 - allowed)).astype(int)
        freqs[rng.integers(allowed)] += 4096 - freqs.sum()
        row[:allowed] = freqs
    return rows


def draw_symbols(rng: np.random.Generator, rows: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Symbols as likely as the rows say."""
    return (rng.integers(0, 4096, len(rows))[:, None] >= rows.cumsum(1)).sum(1).astype(np.int32)


def make_bitmap(rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = rng.integers(1, 14, 2)
    return (rng.random((height, width)) < rng.random() ** 2).astype(np.uint8)


# --- what users do ------------------------------------------------------------------------------


def test_symbols_come_back_at_their_entropy(rng: np.random.Generator) -> None:
    rows = make_rows(rng, 20_000, 8)
    symbols = draw_symbols(rng, rows)
    data = coder.encode_symbols(symbols, rows)
    decoded = coder.decode_symbols(data, rows, len(symbols))
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, symbols)
    ideal = -np.log2(rows[np.arange(len(rows)), symbols] / 4096).sum() / 8
    assert ideal - 1 < len(data) < ideal * 1.0005 + 1


def test_bitmap_comes_back_and_clusters_are_cheap(rng: np.random.Generator) -> None:
    blocks = np.kron(rng.random((6, 8)) < 0.3, np.ones((10, 10))).astype(np.uint8)
    data = coder.encode_bitmap(blocks)
    np.testing.assert_array_equal(coder.decode_bitmap(data, 60, 80, int(blocks.sum())), blocks)
    assert len(data) < 130  # 600 uncoded
    noise = (rng.random((60, 80)) < 0.5).astype(np.uint8)
    assert len(coder.encode_bitmap(noise)) < 600 * 1.05


@pytest.mark.parametrize("value", [0, 1])
def test_an_empty_or_full_bitmap_takes_no_byte(value: int) -> None:
    keep = np.full((7, 5), value, np.uint8)
    assert coder.encode_bitmap(keep) == b""
    np.testing.assert_array_equal(coder.decode_bitmap(b"", 7, 5, 35 * value), keep)


def test_a_bitmap_of_places_codes_the_places_alone(rng: np.random.Generator) -> None:
    places = (rng.random((60, 80)) < 0.02).astype(np.uint8)
    keep = places * (rng.random((60, 80)) < 0.5)
    ones = int(keep.sum())
    encoder = coder.RangeEncoder()
    encoder.bitmap(keep, places)
    data = encoder.finish()
    assert len(data) < places.sum() / 8 * 1.2 + 2
    decoder = coder.RangeDecoder(data)
    np.testing.assert_array_equal(decoder.bitmap(60, 80, ones, places), keep)
    decoder.finish()
    everywhere = coder.RangeEncoder()
    everywhere.bitmap(keep, np.ones((60, 80), np.uint8))
    assert everywhere.finish() == coder.encode_bitmap(keep)


@pytest.mark.parametrize("value", [0, 1])
def test_none_or_all_of_the_places_take_no_byte(rng: np.random.Generator, value: int) -> None:
    places = (rng.random((9, 7)) < 0.4).astype(np.uint8)
    encoder = coder.RangeEncoder()
    encoder.bitmap(places * np.uint8(value), places)
    assert encoder.finish() == b""
    np.testing.assert_array_equal(
        coder.RangeDecoder(b"").bitmap(9, 7, value * int(places.sum()), places), places * np.uint8(value)
    )


def test_nothing_takes_no_byte() -> None:
    assert coder.encode_symbols(np.zeros(0, np.int32), np.zeros((0, 8), np.uint16)) == b""
    assert coder.decode_symbols(b"", np.zeros((0, 8), np.uint16), 0).shape == (0,)
    coder.RangeDecoder(b"").finish()


def test_one_body_holds_everything_in_turn(rng: np.random.Generator) -> None:
    rows, keep = make_rows(rng, 50, 8), make_bitmap(rng)
    symbols = draw_symbols(rng, rows)
    positions = np.array([0, 5, 6, 4000], np.int32)
    encoder = coder.RangeEncoder()
    encoder.symbols(symbols, rows)
    encoder.bitmap(keep)
    encoder.gaps(positions)
    encoder.symbols(symbols, rows)
    data = encoder.finish()
    for kind in (bytes, bytearray, memoryview):
        decoder = coder.RangeDecoder(kind(data))
        np.testing.assert_array_equal(decoder.symbols(rows, 50), symbols)
        np.testing.assert_array_equal(decoder.bitmap(*keep.shape, int(keep.sum())), keep)
        np.testing.assert_array_equal(decoder.gaps(4, 4001), positions)
        np.testing.assert_array_equal(decoder.symbols(rows, 50), symbols)
        decoder.finish()


def test_threads_do_not_disturb_each_other(rng: np.random.Generator) -> None:
    rows = make_rows(rng, 3000, 8)
    symbols = draw_symbols(rng, rows)
    data = coder.encode_symbols(symbols, rows)

    def work(_: int) -> None:
        for _ in range(20):
            assert coder.encode_symbols(symbols, rows) == data
            np.testing.assert_array_equal(coder.decode_symbols(data, rows, 3000), symbols)

    in_threads(3, work)


# --- the reference ------------------------------------------------------------------------------


def random_content(seed: int) -> Content:
    rng = np.random.default_rng(seed)
    content: Content = []
    empty = np.zeros((0, 1), np.uint16)
    for kind in rng.choice(["symbols", "bitmap", "places", "gaps"], int(rng.integers(0, 5))):
        if kind == "symbols":
            rows = make_rows(rng, int(rng.integers(0, 60)), int(rng.integers(1, 20)), float(rng.integers(0, 4)))
            even = (rng.random(len(rows)) * (rows > 0).sum(1)).astype(np.int32)
            content.append((kind, even if rng.random() < 0.5 else draw_symbols(rng, rows), rows))
        elif kind == "bitmap":
            content.append((kind, make_bitmap(rng), empty))
        elif kind == "places":
            places = make_bitmap(rng)
            content.append((kind, places * (rng.random(places.shape) < rng.random()), places.astype(np.uint16)))
        else:
            steps = 1 + np.floor(rng.random(int(rng.integers(0, 30))) ** 4 * 2.0 ** rng.integers(0, 25))
            content.append((kind, (np.cumsum(steps) - 1).astype(np.int32), empty))
    return content


@given(SEEDS)
def test_bytes_equal_those_of_the_reference(seed: int) -> None:
    content = random_content(seed)
    native, reference = coder.RangeEncoder(), plain.Encoder()
    for kind, values, rows in content:
        if kind == "symbols":
            native.symbols(values, rows)
            plain.encode_symbols(reference, values.tolist(), rows.tolist())
        elif kind == "bitmap":
            native.bitmap(values)
            plain.encode_bitmap(reference, values.tolist())
        elif kind == "places":
            native.bitmap(values, rows.astype(np.uint8))
            plain.encode_bitmap(reference, values.tolist(), rows.tolist())
        else:
            native.gaps(values)
            plain.encode_gaps(reference, values.tolist())
    data = native.finish()
    assert data == reference.finish()
    decoder, slow = coder.RangeDecoder(data), plain.Decoder(data)
    for kind, values, rows in content:
        if kind == "symbols":
            assert decoder.symbols(rows, len(rows)).tolist() == values.tolist()
            assert plain.decode_symbols(slow, rows.tolist()) == values.tolist()
        elif kind == "bitmap":
            ones = int(values.astype(int).sum())
            assert decoder.bitmap(*values.shape, ones).tolist() == values.tolist()
            assert plain.decode_bitmap(slow, *values.shape, ones) == values.tolist()
        elif kind == "places":
            ones, places = int(values.astype(int).sum()), rows.astype(np.uint8)
            assert decoder.bitmap(*values.shape, ones, places).tolist() == values.tolist()
            assert plain.decode_bitmap(slow, *values.shape, ones, rows.tolist()) == values.tolist()
        else:
            assert decoder.gaps(len(values), 1 << 30).tolist() == values.tolist()
            assert plain.decode_gaps(slow, len(values), 1 << 30) == values.tolist()
    decoder.finish()
    slow.finish()


@given(SEEDS, st.binary(max_size=40))
def test_any_data_decodes_as_in_the_reference_or_fails_as_there(seed: int, data: bytes) -> None:
    rng = np.random.default_rng(seed)
    rows = make_rows(rng, 12, 8)
    native: object
    reference: object
    decoder, slow = coder.RangeDecoder(data), plain.Decoder(data)
    try:
        native = [decoder.symbols(rows, 12).tolist(), decoder.gaps(3, 5000).tolist(), decoder.finish()]
    except ValueError:
        native = "error"
    try:
        reference = [plain.decode_symbols(slow, rows.tolist()), plain.decode_gaps(slow, 3, 5000), slow.finish()]
    except ValueError:
        reference = "error"
    assert native == reference


def test_a_carry_runs_through_many_bytes() -> None:
    # The last part of 4096 again and again drives low to ff ff ff ...; an even step then lifts it over.
    row = [4095, 1]
    for length in range(1, 12):
        for tail in range(40):
            symbols = [1] * length + [0] * tail + [1, 0, 1]
            rows = np.array([row] * len(symbols), np.uint16)
            reference = plain.Encoder()
            plain.encode_symbols(reference, symbols, rows.tolist())
            data = coder.encode_symbols(np.array(symbols, np.int32), rows)
            assert data == reference.finish()
            assert coder.decode_symbols(data, rows, len(symbols)).tolist() == symbols


def test_certain_symbols_are_free() -> None:
    rows = np.array([[4096, 0, 0]] * 10_000, np.uint16)
    symbols = np.zeros(10_000, np.int32)
    assert coder.encode_symbols(symbols, rows) == b""
    np.testing.assert_array_equal(coder.decode_symbols(b"", rows, 10_000), symbols)


# --- attacks ------------------------------------------------------------------------------------


@given(SEEDS)
def test_a_body_that_is_cut_off_or_longer_is_told_or_is_another_body(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = make_rows(rng, int(rng.integers(1, 200)), 8)
    symbols = draw_symbols(rng, rows)
    data = coder.encode_symbols(symbols, rows)
    told = []
    wrong = [data[:end] for end in range(len(data))] + [data + more for more in (b"\0", b"\xff", b"\0" * 9)]
    for other in wrong:
        try:
            decoded = coder.decode_symbols(other, rows, len(rows))
        except ValueError as error:
            told.append(str(error))
        else:
            assert coder.encode_symbols(decoded, rows) == other
    assert len(told) >= 2
    assert all("cut off" in text or "does not end" in text or "damaged" in text for text in told)
    with pytest.raises(ValueError, match="does not end"):
        coder.decode_symbols(data + b"\0", rows, len(rows))


@given(st.binary(max_size=60), SEEDS)
def test_a_bitmap_of_any_data_has_its_ones_in_places(data: bytes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    places = make_bitmap(rng)
    count = int(rng.integers(0, int(places.sum()) + 1))
    try:
        keep = coder.RangeDecoder(data).bitmap(*places.shape, count, places)
    except ValueError:
        return
    assert keep.sum() == count
    assert not (keep & ~places).any()


@given(st.binary(max_size=300), st.integers(1, 40), st.integers(1, 40), st.data())
def test_bitmaps_and_gaps_of_any_data_stay_inside(data: bytes, height: int, width: int, draw: st.DataObject) -> None:
    count = draw.draw(st.integers(0, height * width))
    try:
        keep = coder.RangeDecoder(data).bitmap(height, width, count)
    except ValueError:
        pass
    else:
        assert keep.sum() == count
        assert keep.max(initial=0) <= 1
    try:
        positions = coder.RangeDecoder(data).gaps(count, height * width)
    except ValueError:
        pass
    else:
        assert (np.diff(positions) > 0).all()
        assert positions.min(initial=0) >= 0
        assert positions.max(initial=0) < height * width


def test_work_ends_where_the_data_does() -> None:
    rows = np.tile(np.array([4089, 1, 1, 1, 1, 1, 1, 1], np.uint16), (2_000_000, 1))
    with pytest.raises(ValueError, match=r"cut off, at symbol \d{1,4} of 2000000"):
        coder.decode_symbols(b"\xfe\x80", rows, len(rows))


def test_a_decoder_keeps_its_data_alive() -> None:
    rows = np.array([[2048, 2048]] * 800, np.uint16)
    symbols = (np.arange(800) % 3 == 0).astype(np.int32)
    decoder = coder.RangeDecoder(bytearray(coder.encode_symbols(symbols, rows)))
    junk = [bytes(100) for _ in range(1000)]
    np.testing.assert_array_equal(decoder.symbols(rows, 800), symbols)
    assert junk


GOOD = np.array([[2048, 2048, 0]], np.uint16)
ONE = np.array([1], np.int32)


@pytest.mark.parametrize(
    "row",
    [[2048, 2047, 0], [2048, 2049, 0], [2048, 0, 2048], [0, 4096, 0], [0, 0, 0], [65535, 65535, 4098]],
)
def test_rows_that_are_none_are_told(row: list[int]) -> None:
    rows = np.array([row], np.uint16)
    with pytest.raises(ValueError, match=r"sum to 4096, got .* in row 0"):
        coder.encode_symbols(np.zeros(1, np.int32), rows)
    with pytest.raises(ValueError, match=r"sum to 4096, got .* in row 0"):
        coder.decode_symbols(b"\x80", rows, 1)


@pytest.mark.parametrize("symbol", [-1, 2, 3, 2**31 - 1, -(2**31)])
def test_symbols_without_frequency_are_told(symbol: int) -> None:
    with pytest.raises(ValueError, match=f"got {symbol} in row 0"):
        coder.encode_symbols(np.array([symbol], np.int32), GOOD)


@pytest.mark.parametrize(
    ("symbols", "freqs", "error", "message"),
    [
        ([1], GOOD, TypeError, r"symbols must be a numpy array, int32 \(n,\), got list"),
        (np.array([1]), GOOD, TypeError, "symbols must have dtype int32, got int64"),
        (np.array([[1]], np.int32), GOOD, ValueError, r"symbols must have shape \(n,\), got \(1, 1\)"),
        (np.zeros(4, np.int32)[::2], GOOD, ValueError, "symbols must be C-contiguous"),
        (ONE, GOOD.astype(np.int32), TypeError, "freqs must have dtype uint16, got int32"),
        (ONE, GOOD[0], ValueError, r"freqs must have shape \(n, L\), got \(3,\)"),
        (
            ONE,
            np.tile(GOOD, (2, 1)),
            ValueError,
            r"one row of 1 to 4096 frequencies per symbol \(1\), got shape \(2, 3\)",
        ),
        (ONE, GOOD[:, :0], ValueError, "one row of 1 to 4096"),
        (ONE, np.zeros((1, 4097), np.uint16), ValueError, "one row of 1 to 4096"),
        (ONE, np.asfortranarray(np.tile(GOOD, (4, 1)))[:1], ValueError, "C-contiguous|row"),
    ],
)
def test_wrong_arrays_are_told(symbols: object, freqs: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        coder.encode_symbols(symbols, freqs)  # type: ignore[arg-type]


def test_wrong_bitmaps_counts_and_positions_are_told() -> None:
    with pytest.raises(ValueError, match="keep must hold zeros and ones, got 7"):
        coder.encode_bitmap(np.full((2, 2), 7, np.uint8))
    with pytest.raises(ValueError, match="bitmap must have 1 to"):
        coder.encode_bitmap(np.zeros((0, 4), np.uint8))
    with pytest.raises(TypeError, match="dtype uint8, got bool"):
        coder.encode_bitmap(np.zeros((2, 2), bool))  # type: ignore[arg-type]
    keep, places = np.eye(2, dtype=np.uint8), np.array([[1, 1], [0, 0]], np.uint8)
    for wrong, error, message in [
        (places, ValueError, "keep must be 0 outside places, got a 1 there"),
        (places + np.uint8(1), ValueError, "places must hold zeros and ones, got 2"),
        (places[:1], ValueError, r"places must have the shape of the bitmap, 2 x 2, got shape \(1, 2\)"),
        (places[0], ValueError, r"places must have shape \(h, w\), got \(2,\)"),
        (places.astype(bool), TypeError, "places must have dtype uint8, got bool"),
        ([[1, 1], [0, 0]], TypeError, r"places must be a numpy array, uint8 \(h, w\), got list"),
    ]:
        with pytest.raises(error, match=message):
            coder.RangeEncoder().bitmap(keep, wrong)  # type: ignore[arg-type]
    decoder = coder.RangeDecoder(b"")
    with pytest.raises(ValueError, match="count must be from 0 to 2, got 3"):
        decoder.bitmap(2, 2, 3, places)
    with pytest.raises(ValueError, match="places must have the shape of the bitmap, 2 x 3"):
        decoder.bitmap(2, 3, 1, places)
    with pytest.raises(ValueError, match="count must be from 0 to 6, got 7"):
        decoder.bitmap(2, 3, 7)
    with pytest.raises(ValueError, match="height must be from 0"):
        decoder.bitmap(-1, 3, 0)
    with pytest.raises(ValueError, match="bitmap must have 1 to 1073741824 cells"):
        decoder.bitmap(1 << 20, 1 << 20, 0)
    with pytest.raises(ValueError, match="count must be from 0 to 5, got 6"):
        decoder.gaps(6, 5)
    with pytest.raises(ValueError, match="count must be from 0"):
        decoder.symbols(GOOD, -1)
    for positions in ([3, 3], [4, 2], [-1], [1 << 30]):
        with pytest.raises(ValueError, match="positions must increase strictly"):
            coder.RangeEncoder().gaps(np.array(positions, np.int32))
    with pytest.raises(TypeError):
        coder.RangeDecoder("text")  # type: ignore[arg-type]


def test_a_finished_or_failed_encoder_takes_nothing_more() -> None:
    encoder = coder.RangeEncoder()
    encoder.symbols(ONE, GOOD)
    encoder.finish()
    failed = coder.RangeEncoder()
    with pytest.raises(ValueError, match="row 0"):
        failed.symbols(np.array([2], np.int32), GOOD)
    for done in (encoder, failed):
        for call in (
            lambda c: c.symbols(ONE, GOOD),
            lambda c: c.bitmap(np.ones((1, 1), np.uint8)),
            lambda c: c.finish(),
        ):
            with pytest.raises(ValueError, match="finished"):
                call(done)
