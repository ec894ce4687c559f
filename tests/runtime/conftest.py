"""Fixtures of the tests of sessions: a stand-in of a GPU with engines and emulated kernels.

The stand-in of TensorRT needs onnx, which not every machine has, so fixtures import it when they run.
"""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.paths import SHARED
from numpy.typing import NDArray

from tatok_edge.model.bundle import open_bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.kernels import Kernels
from tatok_edge.runtime.tensorrt import programs as tensorrt_programs
from tatok_edge.sources.open import open_source
from tatok_edge.sources.synthetic import Scene, render

if TYPE_CHECKING:
    from helpers.fake_tensorrt import Open


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The emulated kernels."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("the emulation needs Linux and g++")
    return Kernels(cuda_kernels.build_emulation(tmp_path_factory.mktemp("cuda") / "emulated.so"))


@pytest.fixture(scope="module")
def cpu() -> Iterator[Tokenizer]:
    """The reference: one thread, as the engines of the stand-in."""
    with Tokenizer.load(backend="onnxruntime", threads=1) as tokenizer:
        yield tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the shipped model."""
    from helpers.fake_tensorrt import store_engines

    made = tmp_path_factory.mktemp("engines")
    store_engines(made, open_bundle("tatok-s8"))
    return made


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, kernels: Kernels, folder: Path) -> Iterator[Open]:
    """Opens a tokenizer on a stand-in of a GPU; afterwards nothing may be left on it."""
    from helpers.fake_tensorrt import Gpu, install

    tokenizers: list[Tokenizer] = []
    gpus: list[Gpu] = []
    monkeypatch.setattr(tensorrt_programs, "RECORD_AT", 2)

    def open_one(*, with_kernels: bool = True, backend: str = "tensorrt", **options: Any) -> Any:
        given = {name: options.pop(name) for name in ("stream", "engines") if name in options}
        install_options = {name: options.pop(name) for name in ("flavour", "implementation") if name in options}
        gpu = Gpu(**options)
        gpus.append(gpu)
        if isinstance(given.get("stream"), int):
            gpu.streams.add(given["stream"])
        made = install(monkeypatch, gpu, kernels if with_kernels else None, **install_options)
        made.tokenizer = Tokenizer.load(backend=backend, **{"engines": folder, **given})
        made.session = made.tokenizer.networks.session
        tokenizers.append(made.tokenizer)
        return made

    yield open_one
    for tokenizer in tokenizers:
        tokenizer.close()
    gc.collect()
    for gpu in gpus:
        gpu.streams &= {0} | {stream for stream in gpu.streams if stream >= 1000}  # those of others stay
        assert gpu.clean and (gpu.by_pycuda or not gpu.backing) and not gpu.problems


HIGHWAY = SHARED / "videos" / "highway_static.mp4"


@pytest.fixture(scope="module")
def frames() -> list[NDArray[np.uint8]]:
    """Frames of several sizes, not all of whole cells; one of a real video where it is there."""
    sizes = [(96, 64), (160, 96), (77, 61), (153, 99), (32, 32)]
    made = [render(Scene(width=w, height=h, seed=seed), 7 * seed) for seed, (w, h) in enumerate(sizes)]
    if HIGHWAY.is_file():
        with open_source(str(HIGHWAY)) as source:
            image = next(iter(source)).image
        made[1] = np.ascontiguousarray(image[40:136, 100:260])
    return made
