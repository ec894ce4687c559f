"""Settings shared by all tests."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from helpers.paths import ROOT
from hypothesis import settings

from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render

settings.register_profile("default", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("explore", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("TATOK_HYPOTHESIS", "default"))


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20261124)


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Loads a script of the repository, given by its path, as a module."""

    def load(path: str) -> ModuleType:
        name = Path(path).stem
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(ROOT / Path(path).parent)  # as Python does for a script
            spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tokenizer() -> Iterator[Tokenizer]:
    """The shipped model."""
    with Tokenizer.load() as loaded:
        yield loaded


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve small rendered pictures, 288 x 272 pixels and a little more; do not write to it."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        image = render(Scene(width=288 + number, height=272, seed=number), 10 * number)
        assert cv2.imwrite(str(folder / f"picture{number:02d}.png"), image[:, :, ::-1])
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The output folder of a training of the tiny model that has ended; do not write to it."""
    torch = pytest.importorskip("torch", reason="training needs PyTorch")
    train = pytest.importorskip("tatok_edge.training.train")
    out = tmp_path_factory.mktemp("training") / "run"
    make = pytest.importorskip("tatok_edge.training.options").Options
    options = make(config="tatok-tiny", batch=2, crop=64, steps=6, entropy_images=8, entropy_steps=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the fixture one_thread
    try:
        train.run(options, pictures, out, device=torch.device("cpu"), resume=False)
    finally:
        torch.set_num_threads(threads)
    return out


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch with one thread: for the tiny model, waiting for a second one costs more than it brings."""
    torch = pytest.importorskip("torch", reason="training needs PyTorch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
