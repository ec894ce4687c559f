"""On a GPU: the tokenizer gives the tokens of the CPU, from any thread and stream, and memory does not grow."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.threads import in_threads
from numpy.typing import NDArray

from tatok_edge.errors import BackendError, InputError
from tatok_edge.model.bundle import open_bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.device import Device
from tatok_edge.runtime.cuda.driver import IMPLEMENTATIONS
from tatok_edge.runtime.cuda.kernels import Kernels
from tatok_edge.runtime.tensorrt import programs as tensorrt_programs
from tatok_edge.runtime.tensorrt.flavour import Flavour
from tatok_edge.runtime.tensorrt.session import DEVICE_VARIABLE, TensorRTSession
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.encoder import StreamEncoder
from tatok_edge.tokens.budget import TokenBudget

pytestmark = pytest.mark.gpu

PROFILES = {
    "format_version": 1,
    "tokens": [64, 512, 2048],
    "frames": [
        {"batch": [1, 1, 1], "height": [32, 256, 256], "width": [32, 256, 256]},
        {"batch": [1, 1, 2], "height": [32, 480, 480], "width": [32, 640, 640]},
    ],
}
SCORES = ("residual", "visual", "entropy", "information")
BUDGETS = [TokenBudget(score=score, tau=tau) for score in SCORES for tau in (1.0, 0.5)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(device: Device, flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the shipped model in fp32, built for this GPU."""
    pytest.importorskip("onnx", reason="building engines needs onnx")
    from tatok_edge.export.engines.profiles import parse_profiles
    from tatok_edge.export.engines.tensorrt import build_engines

    folder = tmp_path_factory.mktemp("engines")
    try:
        build_engines(
            *(open_bundle("tatok-s8"), flavour, parse_profiles(PROFILES, "profiles")),
            precision="fp32",
            sms=[device.sm],
            folder=folder,
        )
    except (BackendError, InputError) as error:
        pytest.skip(f"{flavour.title} does not build here: {error}")
    return folder


@pytest.fixture
def load(
    built: Path, kernels: Kernels, flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Tokenizer]]:
    """Opens tokenizers on the GPU, and closes them."""
    made: list[Tokenizer] = []
    monkeypatch.setattr(tensorrt_programs, "RECORD_AT", 3)

    def one(*, on_device: bool = True, **options: Any) -> Tokenizer:
        monkeypatch.setenv(cuda_kernels.LIBRARY_VARIABLE, str(kernels.path) if on_device else "/nowhere")
        name = "tensorrt" if flavour.name == "trt" else "tensorrt-rtx"
        made.append(Tokenizer.load(backend=name, engines=built, **options))
        return made[-1]

    yield one
    for tokenizer in made:
        tokenizer.close()


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    sizes = [(256, 256), (640, 480), (333, 211), (32, 32)]
    return [render(Scene(width=w, height=h, seed=seed), 9 * seed) for seed, (w, h) in enumerate(sizes)]


def test_frames_on_the_gpu_give_the_tokens_of_the_same_engines_and_the_cpu_kernels(
    load: Callable[..., Tokenizer], pictures: list[NDArray[np.uint8]]
) -> None:
    with_kernels, without = load(), load(on_device=False)
    assert with_kernels.networks.session.frames is not None
    assert without.networks.session.frames is None
    for bgr in (False, True):
        for picture in (*pictures, pictures[1][::-1, 5:-7]):
            for budget in BUDGETS:
                mine = with_kernels.encode_detailed(picture, budget=budget, bgr=bgr)
                theirs = without.encode_detailed(picture, budget=budget, bgr=bgr)
                assert mine.frame == theirs.frame
                assert mine.scores.tobytes() == theirs.scores.tobytes()
                decoded = with_kernels.decode(mine.frame, bgr=bgr)
                assert decoded.tobytes() == without.decode(mine.frame, bgr=bgr).tobytes()
    for budget in BUDGETS:
        mine, theirs = (each.encode_batch(pictures * 2, budget=budget) for each in (with_kernels, without))
        assert mine.frames() == theirs.frames()


def test_tokens_agree_with_the_cpu(load: Callable[..., Tokenizer], pictures: list[NDArray[np.uint8]]) -> None:
    gpu = load()
    with Tokenizer.load(backend="onnxruntime") as cpu:
        equal = total = 0
        for picture in pictures:
            mine, theirs = (each.encode(picture, budget=TokenBudget(score="entropy")) for each in (gpu, cpu))
            assert mine.positions.tobytes() == theirs.positions.tobytes()
            equal += int((mine.ids == theirs.ids).sum()) + int((mine.global_ids == theirs.global_ids).sum())
            total += mine.n_tokens + mine.n_globals
            difference = np.abs(gpu.decode(theirs).astype(int) - cpu.decode(theirs))
            assert difference.max() <= 2
        assert equal >= 0.99 * total


def test_recorded_runs_give_the_same_tokens(
    load: Callable[..., Tokenizer], pictures: list[NDArray[np.uint8]], flavour: Flavour, device: Device
) -> None:
    gpu = load()
    session: Any = gpu.networks.session
    if flavour.name == "trt" and device.has_graphs:
        assert session.cuda_graphs == "used"
    budget = TokenBudget(tau=0.6)
    first = [gpu.encode(picture, budget=budget) for picture in pictures]
    decoded = [gpu.decode(tokens) for tokens in first]
    for _ in range(6):
        for picture, tokens, image in zip(pictures, first, decoded, strict=True):
            assert gpu.encode(picture, budget=budget) == tokens
            assert gpu.decode(tokens).tobytes() == image.tobytes()
    if session.cuda_graphs == "used":
        assert session._programs.recorded == 3 + 3 * len(pictures)


def test_streams_run_on_the_gpu(load: Callable[..., Tokenizer]) -> None:
    gpu = load()
    encoder, decoder = StreamEncoder(gpu), StreamDecoder(gpu)
    for number in range(12):
        assert decoder.decode(encoder.encode(render(Scene(width=320, height=256, seed=2), number)).packet) is not None


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_session_runs_through_each_implementation(
    name: str, load: Callable[..., Tokenizer], pictures: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load().encode(pictures[0])
    monkeypatch.setenv(DEVICE_VARIABLE, name)
    try:
        tokenizer = load()
    except BackendError as error:
        pytest.skip(str(error))
    assert tokenizer.encode(pictures[0]) == expected


def test_tensors_of_pytorch_go_in_and_out(load: Callable[..., Tokenizer], pictures: list[NDArray[np.uint8]]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    gpu = load(stream=torch.cuda.Stream())
    for picture in pictures:
        expected = gpu.encode(picture)
        tensor = torch.from_numpy(picture).cuda()
        assert gpu.encode(tensor) == expected
        planar = tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        assert gpu.encode(planar) == expected
        assert gpu.encode(tensor.flip(2).contiguous(), bgr=True) == expected
        out = torch.zeros_like(tensor)
        gpu.decode_into(expected, out)
        assert out.cpu().numpy().tobytes() == gpu.decode(expected).tobytes()


def test_threads_wait_for_one_another(load: Callable[..., Tokenizer], pictures: list[NDArray[np.uint8]]) -> None:
    gpu = load()
    expected = [gpu.encode(picture) for picture in pictures]

    def work(start: int) -> None:
        for step in range(20):
            number = (start + step) % len(pictures)
            assert gpu.encode(pictures[number]) == expected[number], number

    in_threads(4, work)


def test_memory_of_the_gpu_does_not_grow(
    load: Callable[..., Tokenizer], pictures: list[NDArray[np.uint8]], device: Device
) -> None:
    gpu = load()
    before = 0
    for number in range(1000):
        if number == 100:
            before, _ = device.memory()
        gpu.decode(gpu.encode(pictures[number % 4], budget=BUDGETS[number % 6]))
    after, _ = device.memory()
    assert before - after < 16 << 20


def test_sessions_give_their_memory_back(load: Callable[..., Tokenizer], device: Device) -> None:
    load().close()  # whatever stays with the process is there now
    gc.collect()
    before, _ = device.memory()
    for _ in range(3):
        load().close()
    gc.collect()
    after, _ = device.memory()
    assert before - after < 32 << 20


def test_a_full_gpu_is_said(load: Callable[..., Tokenizer], device: Device) -> None:
    load().close()
    free, _ = device.memory()
    taken = device.allocate(max(free - (24 << 20), 1))
    try:
        with pytest.raises(BackendError, match=r"memory|MiB left") as raised:
            load()
        assert "\n" not in str(raised.value)
    finally:
        device.free(taken)
    assert isinstance(load().networks.session, TensorRTSession)  # and it runs again
