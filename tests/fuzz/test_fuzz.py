"""Damaged inputs cause errors of the project and no others: a fixed number of cases, and inputs that failed before."""

import os
from pathlib import Path

import pytest
from helpers.fuzzing import Fuzzer

from tatok_edge import Tokenizer

CORPUS = Path(__file__).parent / "corpus"
CASES = int(os.environ.get("TATOK_FUZZ_CASES", "40"))
TARGETS = (
    "packet stream pipe ttk manifest graph tables bag index message picture video".split()  # noqa: SIM905
)


@pytest.fixture(scope="module")
def fuzzer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Fuzzer:
    """The seeds and targets."""
    return Fuzzer(tokenizer, tmp_path_factory.mktemp("fuzz"))


def test_every_target_is_run(fuzzer: Fuzzer) -> None:
    assert sorted(fuzzer.targets) == sorted(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs(fuzzer: Fuzzer, name: str) -> None:
    for number in range(CASES):
        fuzzer.run(name, fuzzer.input(name, 0, number))


def test_inputs_that_failed_before(fuzzer: Fuzzer) -> None:
    for path in sorted(CORPUS.glob("*/*")):
        fuzzer.run(path.parent.name, path.read_bytes())
