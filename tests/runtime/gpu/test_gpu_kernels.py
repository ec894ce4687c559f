"""On a GPU: the kernels give the bits of the specification, launched, recorded and inside TensorRT engines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import dtf_cases
from helpers.gpu import Memory, unavailable
from helpers.kernel_cases import LEVELS, assert_same
from numpy.typing import NDArray

from tatok_edge.errors import BackendError
from tatok_edge.runtime import reference
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.arrays import device_array, stream_handle
from tatok_edge.runtime.cuda.device import Device
from tatok_edge.runtime.cuda.kernels import DtfLimits, Frames, Kernels, Scores
from tatok_edge.runtime.tensorrt import flavour as tensorrt_flavour
from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin
from tatok_edge.runtime.tensorrt.flavour import Flavour

pytestmark = pytest.mark.gpu

SANITIZED = "TATOK_UNDER_SANITIZER"


def filtered(kernels: Kernels, memory: Memory, scores: NDArray[Any], limits: dict[str, Any]) -> list[NDArray[np.int32]]:
    """Positions, depths and counts."""
    images, patches, depth = scores.shape
    shapes = ((images, patches * depth), (images, patches * depth), (images,))
    outputs = [memory.empty(shape, np.int32) for shape in shapes]
    packed = Scores.packed(memory.put(scores), images, patches, depth, half=scores.dtype == np.float16)
    kernels.dtf(packed, DtfLimits.make(**limits), *(pointer for pointer, _ in outputs), stream=memory.stream)
    results = [read() for _, read in outputs]
    memory.clear()
    return results


def assert_dense(actual: Sequence[NDArray[Any]], scores: NDArray[Any], limits: dict[str, Any]) -> None:
    expected = dtf_cases.dense(*reference.dtf(scores.astype(np.float32), **limits), scores.shape)
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("seed", range(4 if SANITIZED in os.environ else 50))
def test_token_filtering_equals_specification(kernels: Kernels, memory: Memory, seed: int) -> None:
    plan = ((1, 3, -100), (1, 1, 4800)) if SANITIZED in os.environ else ((7, 28, -700), (1, 8, 4800), (1, 2, 16384))
    for scores, limits in dtf_cases.groups(seed, plan):
        for values in (scores, np.minimum(scores, 65504).astype(np.float16)):
            assert_dense(filtered(kernels, memory, values, limits), values, limits)


def test_a_bad_score_is_named(kernels: Kernels, memory: Memory) -> None:
    scores = np.ones((3, 700, 2), np.float32)
    scores[1, [613, 640], [1, 0]] = np.nan
    positions, depths, counts = filtered(kernels, memory, scores, {})
    assert counts.tolist() == [1400, -1 - 1227, 1400]
    assert (positions[1] == -1).all() and (depths[1] == 0).all()


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
        expected = reference.gather_features(batch[b], bgr, context[b], mean[b], local, local, columns)
        assert result[: len(positions)][own].tobytes() == expected.tobytes()

    every = np.arange(patches, dtype=np.int32)
    basis = rng.integers(-1500, 1500, (4, 6, 192)).astype(np.int16)
    activity, _ = memory.empty((images, patches), np.int64)
    weights, read_weights = memory.empty((images, patches), np.float32)
    scores, read_scores = memory.empty((images, patches, 4), np.float32)
    kernels.visual_weights(frames, activity, weights, stream=memory.stream)
    arguments = memory.put(mean), memory.put(basis), 4, 6, scores
    kernels.patch_scores(frames, *arguments, weights=weights, stream=memory.stream)
    visible = [reference.visual_weights(image) for image in batch]
    assert read_weights().tobytes() == np.stack(visible).tobytes()
    for image, own, weight, values in zip(batch, mean, visible, read_scores(), strict=True):
        expected = reference.patch_scores(image, bgr, own, every, every, columns, basis)
        assert values.tobytes() == (expected * weight[:, None]).tobytes()

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


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("patches", [1, 16, 4800])
def test_codes_equal_specification(kernels: Kernels, memory: Memory, patches: int, depth: int) -> None:
    rng = np.random.default_rng(2)
    images, rows = 3, sum(LEVELS)
    expected = rng.uniform(-1, 1, (images, depth * 6, patches)).astype(np.float32)
    entropy = rng.uniform(0, 16, (images, depth, patches)).astype(np.float32)
    positions = np.repeat(np.arange(images * patches, dtype=np.int32), rng.binomial(depth, 0.4, images * patches))
    codes = rng.integers(0, LEVELS, (len(positions), 6)).astype(np.int32)
    state, read_state = memory.empty((images, depth * 8, patches), np.float32)
    kernels.decoder_state(
        *(memory.put(codes), memory.put(positions), len(positions), memory.put(expected), memory.put(entropy)),
        *(images, patches, depth, LEVELS, state),
        stream=memory.stream,
    )
    log2_probs = -rng.exponential(3, (images, depth * rows, patches)).astype(np.float32)
    every = np.arange(images * patches, dtype=np.int32)
    stacks = rng.integers(0, LEVELS * depth, (len(every), 6 * depth)).astype(np.int32)
    bits, read_bits = memory.empty((images, patches, depth), np.float32)
    kernels.information(
        *(memory.put(log2_probs), memory.put(stacks), memory.put(every), len(every)),
        *(images, patches, depth, depth, LEVELS, bits),
        stream=memory.stream,
    )
    states, information = read_state(), read_bits()
    local = every[:patches]
    for b in range(images):
        own = positions // patches == b
        wanted = reference.decoder_state(
            codes[own], positions[own] % np.int32(patches), expected[b], entropy[b], LEVELS
        )
        assert states[b].tobytes() == wanted.tobytes()
        of_tokens = [
            reference.information(log2_probs[b, k * rows : (k + 1) * rows], token, local, LEVELS)
            for k, token in enumerate(np.split(stacks[every // patches == b], depth, axis=1))
        ]
        assert_same(information[b], np.minimum.accumulate(np.stack(of_tokens, 1), axis=1))


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


def test_recorded_kernels_run_again(kernels: Kernels, device: Device, memory: Memory) -> None:
    if not device.has_graphs:
        pytest.skip(f"{device.implementation} has no graphs")
    scores = dtf_cases.scores(np.random.default_rng(3), "information", 4, 4800, 4)
    pointer = memory.put(np.zeros_like(scores))
    outputs = [memory.empty(shape, np.int32) for shape in ((4, 19200), (4, 19200), (4,))]
    limits, packed = DtfLimits.make(tau=0.5), Scores.packed(pointer, 4, 4800, 4)
    graph = device.capture(
        memory.stream, lambda: kernels.dtf(packed, limits, *(at for at, _ in outputs), stream=memory.stream)
    )
    device.copy_to_device(pointer, scores, memory.stream)
    graph.launch(memory.stream)
    assert_dense([read() for _, read in outputs], scores, {"tau": 0.5})


def test_tensors_of_pytorch_come_in_without_a_copy(kernels: Kernels, device: Device) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    scores = torch.rand(2, 250, 2, device="cuda") * 16
    array = device_array(scores)
    assert array.pointer == scores.data_ptr() and array.contiguous and array.shape == (2, 250, 2)
    outputs = [torch.empty(shape, dtype=torch.int32, device="cuda") for shape in ((2, 500), (2, 500), (2,))]
    stream = torch.cuda.Stream()
    device.wait(stream_handle(stream), stream_handle(torch.cuda.current_stream()))
    with device.current():
        kernels.dtf(
            *(Scores.packed(array.pointer, 2, 250, 2), DtfLimits.make(tau=0.4)),
            *(output.data_ptr() for output in outputs),
            stream=stream_handle(stream),
        )
    stream.synchronize()
    assert_dense([output.cpu().numpy() for output in outputs], scores.cpu().numpy(), {"tau": 0.4})


@pytest.mark.parametrize("form", ["plugin", "onnx"])
@pytest.mark.parametrize(("depth", "dtype"), [(1, np.float32), (4, np.float32), (4, np.float16)])
def test_engines_filter_as_specified(
    kernels: Kernels,
    memory: Memory,
    device: Device,
    flavour: Flavour,
    form: str,
    depth: int,
    dtype: Any,
    monkeypatch: Any,
) -> None:
    dtf_onnx = pytest.importorskip("tatok_edge.export.engines.dtf_onnx")
    monkeypatch.setenv(cuda_kernels.LIBRARY_VARIABLE, str(kernels.path))
    if form == "plugin":
        tensorrt_plugin.register(flavour)
    limits = {"tau": 0.6, "min_tokens": 2, "max_tokens": 3000, "floor_bits": 0.01}
    with device.current():
        messages = tensorrt_flavour.Messages()
        logger = tensorrt_flavour.make_logger(flavour, messages)
        builder = tensorrt_flavour.make_builder(flavour, logger, messages)
        network = tensorrt_flavour.make_network(flavour, builder)
        parser = tensorrt_flavour.make_parser(flavour, network, logger)
        model = dtf_onnx.dtf_model(DtfLimits.make(**limits), form=form, depth=depth, dtype=dtype)
        assert parser.parse(model.SerializeToString()), messages.problems
        config = builder.create_builder_config()
        tensorrt_flavour.set_targets(flavour, config, (device.sm,))
        profile = builder.create_optimization_profile()
        profile.set_shape("scores", (1, 1, depth), (2, 1024, depth), (4, 16384, depth))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        assert plan is not None, messages.problems
        engine: Any = tensorrt_flavour.make_runtime(flavour, logger, messages).deserialize_cuda_engine(plan)
        context = engine.create_execution_context()
        for kind in dtf_cases.KINDS:
            for images, patches in ((1, 1), (4, 1000), (2, 4800), (1, 16384)):
                scores = dtf_cases.scores(np.random.default_rng(4), kind, images, patches, depth)
                scores = np.minimum(scores, 65504).astype(dtype)
                shapes = ((images, patches * depth), (images, patches * depth), (images,))
                outputs = [memory.empty(shape, np.int32) for shape in shapes]
                context.set_input_shape("scores", scores.shape)
                context.set_tensor_address("scores", memory.put(scores))
                for name, (pointer, _) in zip(("positions", "depths", "counts"), outputs, strict=True):
                    context.set_tensor_address(name, pointer)
                assert context.execute_async_v3(memory.stream), messages.problems
                assert_dense([read() for _, read in outputs], scores, limits)
                memory.clear()
