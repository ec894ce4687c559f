"""A target under atheris, guided by coverage: ``python tests/fuzz/guided.py TARGET CORPUS -max_total_time=60``.

Needs ``pip install atheris``. The mutations are those of :mod:`helpers.fuzzing`, so checksums stay right. Options
behind the corpus are those of libFuzzer.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris

with atheris.instrument_imports(include=["tatok_edge"]):
    from helpers.fuzzing import Fuzzer, damaged, damaged_packet

    from tatok_edge import Tokenizer


def main() -> None:
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as folder, Tokenizer.load(threads=1) as tokenizer:
        fuzzer = Fuzzer(tokenizer, Path(folder))

        def mutate(data: bytes, largest: int, seed: int) -> bytes:
            rng = random.Random(seed)
            if len(data) < 16 or rng.random() < 0.1:
                return fuzzer.input(name, seed, 0)[:largest]
            if rng.random() < 0.3:
                return atheris.Mutate(data, largest)
            return (damaged_packet if name == "packet" else damaged)(data, rng)[:largest]

        atheris.Setup(sys.argv, lambda data: fuzzer.run(name, data), custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
