"""``tatok evaluate`` and ``tatok bench``."""

import re
from pathlib import Path

import cv2
import numpy as np
from helpers.cli_runs import Run

from tatok_edge.sources.synthetic import Scene, render


def test_evaluate_reports_the_contract(tatok: Run) -> None:
    Path("in").mkdir()
    for number in range(2):
        image = render(Scene(width=128, height=96, seed=number), 0)
        cv2.imwrite(f"in/{number}.png", np.ascontiguousarray(image[..., ::-1]))
    result = tatok("evaluate", "in", "--keep", "1.0,0.25", "--json")
    assert result.code == 0, result.err
    report = result.json
    assert report["images"] == 2
    assert [row["keep"] for row in report["results"]] == [1.0, 0.25]
    for row in report["results"]:
        assert set(row) >= {"keep", "psnr_db", "tokens_per_image", "bits_per_image"}
    full, quarter = report["results"]
    assert full["psnr_db"] > quarter["psnr_db"] > 15
    assert quarter["tokens_per_image"] == 48
    table = tatok("evaluate", "in", "--keep", "0.25")
    assert re.search(r"0\.25\s+\d+\.\d\d\s+48", table.out)


def test_bench_reports_the_contract(tatok: Run) -> None:
    result = tatok("bench", "--sizes", "64x64", "--repeats", "2", "--json")
    assert result.code == 0, result.err
    (row,) = result.json["sizes"]
    assert (row["width"], row["height"]) == (64, 64)
    for name in ("encode_ms", "encode_1_ms", "encode_035_ms", "decode_ms"):
        assert row[name]["median"] > 0
        assert row[name]["q1"] <= row[name]["median"] <= row[name]["q3"]
    table = tatok("bench", "--sizes", "64x64,70x40", "--repeats", "2").out
    assert re.search(r"median ms \(quartiles\) +64x64 +70x40\n", table)
    assert re.search(r"^decode +\d+\.\d\d \(.*\) +\d+\.\d\d \(.*\)$", table, re.MULTILINE)


def test_bench_stream(tatok: Run) -> None:
    result = tatok("bench", "stream", "--sizes", "96x64", "--repeats", 4, "--json")
    assert result.code == 0, result.err
    (row,) = result.json["sizes"]
    assert row["stream_ms"]["median"] > 0 and row["fixed_ms"]["median"] > 0
    assert 0 < row["tokens_per_frame"] < row["fixed_tokens_per_frame"] == 96 + 6
    assert "stream" in tatok("bench", "stream", "--sizes", "96x64", "--repeats", 4).out
