"""The end of a process: daemon threads do not abort it. And pickles of tokenizers."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from tatok_edge import Limits, Tokenizer
from tatok_edge.sources.synthetic import Scene, render

DAEMON = """
import threading, time
from tatok_edge import Stream, Tokenizer, open_source
tokenizer = Tokenizer.load(threads=1)
source = open_source("synthetic:frames=100000,width=96,height=64")
seen = []
thread = threading.Thread(target=lambda: [seen.append(frame.index) for frame in Stream(tokenizer, source)], daemon=True)
thread.start()
while len(seen) < 3:
    time.sleep(0.01)
"""


def test_a_stream_in_a_daemon_thread_does_not_abort_the_end_of_python() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", DAEMON], capture_output=True, text=True, timeout=240, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_tokenizer_is_pickled_by_its_bundle_and_options(tokenizer: Tokenizer) -> None:
    image = render(Scene(width=64, height=64), 0)
    with Tokenizer.load(threads=1, limits=Limits(max_pixels=64 * 64)) as loaded:
        again = pickle.loads(pickle.dumps(loaded))
        assert again.limits == loaded.limits and again.tag == loaded.tag and again.backend.threads == 1
        np.testing.assert_array_equal(again.decode(again.encode(image)), loaded.decode(loaded.encode(image)))
        again.close()
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(loaded.with_session(loaded.networks.session))
