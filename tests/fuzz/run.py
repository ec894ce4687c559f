"""Feeds damaged inputs to the readers for some minutes: ``python tests/fuzz/run.py --minutes 10``.

An input that causes a foreign error, or takes more than a second, is written to ``corpus/TARGET/``, where the tests
find it. The last line counts the inputs of each target.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers.fuzzing import Fuzzer

from tatok_edge import Tokenizer

SLOW = 1.0
"""Seconds that an input may take."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--target", action="append", help="only this target; can be given several times")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    failures = 0
    with tempfile.TemporaryDirectory() as folder, Tokenizer.load(threads=1) as tokenizer:
        fuzzer = Fuzzer(tokenizer, Path(folder))
        names = args.target or list(fuzzer.targets)
        end = time.monotonic() + 60 * args.minutes
        number = 0
        while time.monotonic() < end:
            for name in names:
                data = fuzzer.input(name, args.seed, number)
                start = time.process_time()
                why = ""
                try:
                    fuzzer.run(name, data)
                except Exception:
                    why = traceback.format_exc()
                if (taken := time.process_time() - start) > SLOW:
                    why = why or f"took {taken:.1f} s"
                if why:
                    failures += 1
                    path = HERE / "corpus" / name / hashlib.sha256(data).hexdigest()[:16]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                    print(f"{path}: {why}", flush=True)
                counts[name] += 1
            number += 1
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"seed {args.seed}: {sum(counts.values())} inputs, {failures} failures, {memory} MB; {dict(counts)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
