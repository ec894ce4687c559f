"""On a GPU: the kernels give the bits of the specification, memory and streams behave, and TensorRT runs the filter.

``pytest -m gpu``. Without a GPU these tests are skipped; with ``TATOK_REQUIRE_GPU=1`` a skip is a failure.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from helpers import dtf_cases
from helpers.threads import in_threads
from numpy.typing import NDArray

from tatok_edge.errors import BackendError, InputError
from tatok_edge.model.bundle import open_bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime import reference
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.arrays import device_array, stream_handle
from tatok_edge.runtime.cuda.device import Device, open_device
from tatok_edge.runtime.cuda.driver import IMPLEMENTATIONS
from tatok_edge.runtime.cuda.kernels import DtfLimits, Frames, Kernels
from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin
from tatok_edge.runtime.tensorrt import programs as tensorrt_programs
from tatok_edge.runtime.tensorrt.flavour import (
    Flavour,
    Messages,
    find_flavour,
    make_builder,
    make_logger,
    make_network,
    make_parser,
    make_runtime,
    set_targets,
)
from tatok_edge.runtime.tensorrt.session import DEVICE_VARIABLE, TensorRTSession
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.encoder import StreamEncoder
from tatok_edge.tokens.budget import TokenBudget

pytestmark = pytest.mark.gpu

LEVELS = (8, 8, 8, 5, 5, 5)
SANITIZED = "TATOK_UNDER_SANITIZER"


def unavailable(reason: str) -> NoReturn:
    """Skips, or fails where a GPU is required."""
    if os.environ.get("TATOK_REQUIRE_GPU") == "1":
        pytest.fail(f"TATOK_REQUIRE_GPU is set, and {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    """The GPU, through whichever implementation there is."""
    try:
        opened = open_device()
    except BackendError as error:
        unavailable(str(error))
    with opened:
        yield opened


@pytest.fixture(scope="module")
def kernels(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The kernels: those that were built before, or built now for this GPU."""
    try:
        return cuda_kernels.load()
    except BackendError:
        pass
    try:
        return cuda_kernels.load(cuda_kernels.build([device.sm], tmp_path_factory.mktemp("cuda") / "tatok_cuda.so"))
    except BackendError as error:
        unavailable(str(error))


class Memory:
    """Arrays on the device, on one stream."""

    def __init__(self, device: Device) -> None:
        self.device, self.stream = device, device.create_stream()
        self.pointers: list[int] = []

    def put(self, array: NDArray[Any]) -> int:
        pointer = self.device.allocate(array.nbytes)
        self.pointers.append(pointer)
        self.device.copy_to_device(pointer, np.ascontiguousarray(array), self.stream)
        self.device.synchronize(self.stream)  # the array may be a temporary
        return pointer

    def empty(self, shape: tuple[int, ...], dtype: Any) -> tuple[int, Callable[[], NDArray[Any]]]:
        """Memory full of 0x4D, and a function that reads it and checks that what follows it is untouched."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pointer = self.device.allocate(size + 256)
        self.pointers.append(pointer)
        self.device.fill(pointer, 0x4D, size + 256, self.stream)

        def read() -> NDArray[Any]:
            everything = np.empty(size + 256, np.uint8)
            self.device.copy_to_host(everything, pointer, self.stream)
            self.device.synchronize(self.stream)
            assert (everything[size:] == 0x4D).all()
            return everything[:size].view(dtype).reshape(shape)

        return pointer, read

    def clear(self) -> None:
        for pointer in self.pointers:
            self.device.free(pointer)
        self.pointers.clear()


@pytest.fixture
def memory(device: Device) -> Iterator[Memory]:
    made = Memory(device)
    yield made
    made.clear()
    device.destroy_stream(made.stream)


# --- kernels --------------------------------------------------------------------------------------


def filtered(
    kernels: Kernels, memory: Memory, scores: NDArray[Any], limits: dict[str, Any]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    images, patches = scores.shape
    indices, read_indices = memory.empty((images, patches), np.int32)
    counts, read_counts = memory.empty((images,), np.int32)
    half = scores.dtype == np.float16
    pointer = memory.put(scores)
    kernels.dtf(pointer, images, patches, DtfLimits.make(**limits), indices, counts, half=half, stream=memory.stream)
    result = read_indices(), read_counts()
    memory.clear()
    return result


@pytest.mark.parametrize("seed", range(4 if SANITIZED in os.environ else 50))
def test_token_filtering_equals_specification(kernels: Kernels, memory: Memory, seed: int) -> None:
    plan = ((1, 3, -100), (1, 1, 4800)) if SANITIZED in os.environ else ((7, 28, -700), (1, 8, 4800), (1, 2, 16384))
    for scores, limits in dtf_cases.groups(seed, plan):
        for values in (scores, np.minimum(scores, 65504).astype(np.float16)):
            indices, counts = filtered(kernels, memory, values, limits)
            expected = dtf_cases.dense(*reference.dtf(values.astype(np.float32), **limits), scores.shape[1])
            assert counts.tolist() == expected[1].tolist()
            assert indices.tobytes() == expected[0].tobytes()


def test_a_bad_score_is_named(kernels: Kernels, memory: Memory) -> None:
    scores = np.ones((3, 700), np.float32)
    scores[1, [613, 640]] = np.nan
    indices, counts = filtered(kernels, memory, scores, {})
    assert counts.tolist() == [700, -1 - 613, 700]
    assert (indices[1] == -1).all()


@pytest.mark.parametrize("size", [(1, 1), (33, 70), (480, 640)])
@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
def test_pixels_equal_specification(
    kernels: Kernels, memory: Memory, size: tuple[int, int], bgr: bool, offset: int
) -> None:
    rng = np.random.default_rng(1)
    height, width = size
    rows, columns = (-(-side // 32) * 4 for side in size)
    patches, images, channels = rows * columns, 2, 96
    batch = rng.integers(0, 256, (images, height, width, 3), np.uint8)
    frames = Frames.packed(memory.put(np.append(np.zeros(offset, np.uint8), batch)) + offset, images, *size, bgr=bgr)

    cells, read_cells = memory.empty((images, 192, rows // 4, columns // 4), np.float32)
    kernels.image_to_cells(frames, cells, stream=memory.stream)
    assert read_cells().tobytes() == np.stack([reference.image_to_cells(image, bgr) for image in batch]).tobytes()

    context = rng.standard_normal((images, channels, patches), np.float32)
    mean = rng.standard_normal((images, 192, patches), np.float32)
    positions = np.sort(rng.choice(images * patches, min(200, images * patches), replace=False)).astype(np.int32)
    padded = np.append(positions, np.full(5, -1, np.int32))
    features, read_features = memory.empty((len(padded), 960 + channels), np.float32)
    pointers = (memory.put(context), channels, memory.put(mean), memory.put(padded), len(padded), features)
    kernels.gather_features(frames, *pointers, stream=memory.stream)
    result = read_features()
    assert not result[len(positions) :].any()
    for b in range(images):
        own = positions // patches == b
        local = positions[own] % np.int32(patches)
        expected = reference.gather_features(batch[b], bgr, context[b], mean[b], local, columns)
        assert result[: len(positions)][own].tobytes() == expected.tobytes()

    every = np.arange(patches, dtype=np.int32)
    residual, read_residual = memory.empty((images, patches), np.float32)
    kernels.patch_residual(frames, memory.put(mean), residual, stream=memory.stream)
    left = [reference.patch_residual(i, bgr, m, every, every, columns) for i, m in zip(batch, mean, strict=True)]
    assert read_residual().tobytes() == np.stack(left).tobytes()

    pixels = rng.uniform(-1.2, 1.2, (images, 192, patches)).astype(np.float32)
    out, read_frames = memory.empty(batch.shape, np.uint8)
    kernels.assemble(memory.put(pixels), images, *size, out, bgr=bgr, stream=memory.stream)
    assert read_frames().tobytes() == np.stack([reference.assemble(p, columns, *size, bgr) for p in pixels]).tobytes()

    old = rng.integers(0, 256, (images, rows * 8, columns * 8, 3), np.uint8)
    changes, read_changes = memory.empty((images, 2, patches), np.int32)
    old_pointer = memory.put(old)
    kernels.patch_change(frames, old_pointer, changes, stream=memory.stream)
    expected_changes = np.stack([reference.patch_change(image, bgr, o) for image, o in zip(batch, old, strict=True)])
    assert read_changes().tobytes() == expected_changes.tobytes()
    kernels.update_reference(frames, old_pointer, memory.put(padded), len(padded), stream=memory.stream)
    kernels.patch_change(frames, old_pointer, changes, stream=memory.stream)
    expected_changes[positions // patches, :, positions % patches] = 0
    assert read_changes().tobytes() == expected_changes.tobytes()


@pytest.mark.parametrize("patches", [1, 16, 4800])
def test_codes_equal_specification(kernels: Kernels, memory: Memory, patches: int) -> None:
    rng = np.random.default_rng(2)
    images = 3
    expected = rng.uniform(-1, 1, (images, 6, patches)).astype(np.float32)
    entropy = rng.uniform(0, 16, (images, patches)).astype(np.float32)
    log2_probs = -rng.exponential(3, (images, sum(LEVELS), patches)).astype(np.float32)
    positions = np.flatnonzero(rng.random(images * patches) < 0.4).astype(np.int32)
    codes = rng.integers(0, LEVELS, (len(positions), 6)).astype(np.int32)
    state, read_state = memory.empty((images, 8, patches), np.float32)
    bits, read_bits = memory.empty((len(positions),), np.float32)
    on_device = memory.put(codes), memory.put(positions), len(positions)
    kernels.decoder_state(
        *(*on_device, memory.put(expected), memory.put(entropy), images, patches, LEVELS, state), stream=memory.stream
    )
    kernels.information(memory.put(log2_probs), *on_device, images, patches, LEVELS, bits, stream=memory.stream)
    states, information = read_state(), read_bits()
    for b in range(images):
        own = positions // patches == b
        local = positions[own] % np.int32(patches)
        wanted = reference.decoder_state(codes[own], local, expected[b], entropy[b], LEVELS)
        assert states[b].tobytes() == wanted.tobytes()
        assert information[own].tobytes() == reference.information(log2_probs[b], codes[own], local, LEVELS).tobytes()


def test_kernels_are_clean_under_compute_sanitizer(device: Device, tmp_path: Path) -> None:
    if SANITIZED in os.environ:
        pytest.skip("already under it")
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        try:
            found = cuda_kernels.toolkit_folder(cuda_kernels.find_nvcc()) / "bin" / "compute-sanitizer"
        except BackendError as error:
            unavailable(str(error))
        tool = str(found) if found.is_file() else None
    if tool is None:
        unavailable("compute-sanitizer is not installed")
    for check in ("memcheck", "racecheck", "synccheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q", "-x"]
        command += [__file__, "-k", "equal", "-p", "no:cacheprovider"]
        environment = os.environ | {SANITIZED: "1"}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]


# --- memory and streams ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_each_implementation_moves_values(name: str, device: Device) -> None:
    try:
        other = open_device(name)
    except BackendError as error:
        pytest.skip(str(error))
    with other:
        assert (other.name, other.sm) == (device.name, device.sm)
        free, total = other.memory()
        assert 0 < free <= total
        stream, pinned = other.create_stream(), other.pinned((256, 1024), np.float32)
        pinned.array[:] = np.random.default_rng(0).standard_normal((256, 1024), np.float32)
        first, second = other.allocate(pinned.array.nbytes), other.allocate(pinned.array.nbytes)
        result = other.pinned((256, 1024), np.float32)
        other.copy_to_device(first, pinned.array, stream)
        other.copy_on_device(second, first, pinned.array.nbytes, stream)
        other.copy_to_host(result.array, second, stream)
        other.synchronize(stream)
        assert result.array.tobytes() == pinned.array.tobytes()
        mapped = other.pinned(16, np.uint8, mapped=True)
        assert mapped.device_pointer is not None
        other.fill(mapped.device_pointer, 7, 16, stream)
        other.synchronize(stream)
        assert (mapped.array == 7).all()
        assert other.elapsed(stream, lambda: other.fill(first, 0, 1 << 20, stream)) > 0
        with pytest.raises(BackendError, match=r"MiB left"):
            other.allocate(1 << 50)


def test_memory_comes_back_after_many_devices(device: Device) -> None:
    before, _ = device.memory()
    for _ in range(20):
        with open_device(device.implementation) as other:
            other.allocate(8 << 20)
            other.pinned(1 << 20, np.uint8)
            other.create_stream()
    after, _ = device.memory()
    assert before - after < 8 << 20


def test_recorded_kernels_run_again(kernels: Kernels, device: Device, memory: Memory) -> None:
    if not device.has_graphs:
        pytest.skip(f"{device.implementation} has no graphs")
    scores = dtf_cases.scores(np.random.default_rng(3), "information", 4, 4800)
    pointer = memory.put(np.zeros_like(scores))
    indices, read_indices = memory.empty((4, 4800), np.int32)
    counts, _ = memory.empty((4,), np.int32)
    limits = DtfLimits.make(tau=0.5)
    graph = device.capture(
        memory.stream, lambda: kernels.dtf(pointer, 4, 4800, limits, indices, counts, stream=memory.stream)
    )
    device.copy_to_device(pointer, scores, memory.stream)
    graph.launch(memory.stream)
    assert read_indices().tobytes() == dtf_cases.dense(*reference.dtf(scores, tau=0.5), 4800)[0].tobytes()


def test_tensors_of_pytorch_come_in_without_a_copy(kernels: Kernels, device: Device) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    scores = torch.rand(2, 500, device="cuda") * 16
    array = device_array(scores)
    assert array.pointer == scores.data_ptr() and array.contiguous and array.shape == (2, 500)
    indices = torch.empty(2, 500, dtype=torch.int32, device="cuda")
    counts = torch.empty(2, dtype=torch.int32, device="cuda")
    stream = torch.cuda.Stream()
    device.wait(stream_handle(stream), stream_handle(torch.cuda.current_stream()))
    with device.current():
        kernels.dtf(
            *(array.pointer, 2, 500, DtfLimits.make(tau=0.4), indices.data_ptr(), counts.data_ptr()),
            stream=stream_handle(stream),
        )
    stream.synchronize()
    flat, cu_seqlens = reference.dtf(scores.cpu().numpy(), tau=0.4)
    assert indices.cpu().numpy().tobytes() == dtf_cases.dense(flat, cu_seqlens, 500)[0].tobytes()


# --- TensorRT -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flavour(device: Device) -> Flavour:
    """Whichever TensorRT is installed; that is no part of having a GPU, so its lack is a skip."""
    try:
        return find_flavour()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("form", ["plugin", "onnx"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_engines_filter_as_specified(
    kernels: Kernels, memory: Memory, device: Device, flavour: Flavour, form: str, dtype: Any, monkeypatch: Any
) -> None:
    dtf_onnx = pytest.importorskip("tatok_edge.export.engines.dtf_onnx")
    monkeypatch.setenv(cuda_kernels.LIBRARY_VARIABLE, str(kernels.path))
    if form == "plugin":
        tensorrt_plugin.register(flavour)
    limits = {"tau": 0.6, "min_tokens": 2, "max_tokens": 3000, "floor_bits": 0.01}
    with device.current():
        messages = Messages()
        logger = make_logger(flavour, messages)
        builder = make_builder(flavour, logger, messages)
        network = make_network(flavour, builder)
        parser = make_parser(flavour, network, logger)
        model = dtf_onnx.dtf_model(DtfLimits.make(**limits), form=form, dtype=dtype)
        assert parser.parse(model.SerializeToString()), messages.problems
        config = builder.create_builder_config()
        set_targets(flavour, config, (device.sm,))
        profile = builder.create_optimization_profile()
        profile.set_shape("scores", (1, 1), (2, 1024), (4, 16384))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        assert plan is not None, messages.problems
        engine: Any = make_runtime(flavour, logger, messages).deserialize_cuda_engine(plan)
        context = engine.create_execution_context()
        for kind in dtf_cases.KINDS:
            for images, patches in ((1, 1), (4, 1000), (2, 4800), (1, 16384)):
                scores = dtf_cases.scores(np.random.default_rng(4), kind, images, patches)
                scores = np.minimum(scores, 65504).astype(dtype)
                indices, read_indices = memory.empty((images, patches), np.int32)
                counts, read_counts = memory.empty((images,), np.int32)
                context.set_input_shape("scores", (images, patches))
                pointers = SimpleNamespace(scores=memory.put(scores), indices=indices, counts=counts)
                for name, pointer in vars(pointers).items():
                    context.set_tensor_address(name, pointer)
                assert context.execute_async_v3(memory.stream), messages.problems
                expected = dtf_cases.dense(*reference.dtf(scores.astype(np.float32), **limits), patches)
                assert read_counts().tolist() == expected[1].tolist()
                assert read_indices().tobytes() == expected[0].tobytes()
                memory.clear()


# --- the whole tokenizer --------------------------------------------------------------------------

PROFILES = {
    "format_version": 1,
    "tokens": [64, 512, 2048],
    "frames": [
        {"batch": [1, 1, 1], "height": [32, 256, 256], "width": [32, 256, 256]},
        {"batch": [1, 1, 2], "height": [32, 480, 480], "width": [32, 640, 640]},
    ],
}
SCORES = ("residual", "entropy", "information")
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
