"""The session that runs TensorRT engines: tokens, frames and streams are those of the CPU.

TensorRT and the GPU are those of ``fake_tensorrt.py``, which run the same graphs and kernels on the CPU and refuse what
CUDA and TensorRT would; a real GPU is in gpu/.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.threads import in_threads
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="the stand-in of TensorRT reads ONNX graphs")

from helpers.fake_tensorrt import Gpu, Open, install, store_engines

from tatok_edge.errors import BackendError, InputError
from tatok_edge.model.bundle import GRAPHS, open_bundle
from tatok_edge.model.networks import Clock
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cuda import device as device_module
from tatok_edge.runtime.cuda.kernels import Kernels
from tatok_edge.runtime.session import EncodeRequest, TokenFilter
from tatok_edge.runtime.tensorrt import frames as device_frames
from tatok_edge.runtime.tensorrt import programs as tensorrt_programs
from tatok_edge.runtime.tensorrt import session as tensorrt_session
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.encoder import StreamEncoder
from tatok_edge.tokens.budget import TokenBudget

SCORES = ("residual", "visual", "entropy", "information")


def request(tokenizer: Tokenizer, **changes: Any) -> EncodeRequest:
    """A request without frames."""
    values: dict[str, Any] = {
        "filters": [],
        "levels": tokenizer.levels,
        "depth": tokenizer.depth,
        "basis": tokenizer.coding.basis,
        "score": "residual",
        "with_scores": False,
        "bgr": False,
    }
    return EncodeRequest(**(values | changes))


# --- the same tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_tokens_are_those_of_the_cpu(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]], integrated: bool, score: Any
) -> None:
    gpu = opened(integrated=integrated)
    budgets = [
        TokenBudget(score=score),
        TokenBudget(score=score, tau=0.5, min_tokens=3),
        TokenBudget(score=score, tau=0.8, max_depth=2),
        TokenBudget(score=score, keep=0),
    ]
    for number, frame in enumerate(frames):
        for budget in budgets[: 3 if number else 4]:
            bgr = number % 2 == 1
            mine = gpu.tokenizer.encode_detailed(frame, budget=budget, bgr=bgr, index=number)
            theirs = cpu.encode_detailed(frame, budget=budget, bgr=bgr, index=number)
            assert mine.frame == theirs.frame
            assert mine.scores.tobytes() == theirs.scores.tobytes() and mine.scores.shape == theirs.scores.shape
            assert mine.seconds.keys() >= {"prior", "patch_encoder", "ids"}
            assert gpu.tokenizer.encode(frame, budget=budget, bgr=bgr, index=number) == theirs.frame
    assert "gather_features" in gpu.kernels.calls  # they did come from there


@pytest.mark.parametrize("score", SCORES)
def test_ragged_batches_are_those_of_the_cpu(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]], score: Any
) -> None:
    gpu = opened()
    budget = TokenBudget(score=score, tau=0.7)
    mine, theirs = (each.encode_batch([*frames, *frames], budget=budget) for each in (gpu.tokenizer, cpu))
    assert mine.cu_seqlens.tobytes() == theirs.cu_seqlens.tobytes()
    assert mine.frames() == theirs.frames()
    assert theirs.cu_seqlens[-1] > 200  # more than the largest profile: it took several runs
    assert {shapes[0][0] for graph, _, shapes in gpu.api.executed if graph == "patch_encoder"} <= {16, 64, 200}


def test_bits_and_strides_do_not_matter(opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened()
    budget = TokenBudget(max_bits=6000)
    frame = frames[1]
    views = [frame, frame[:, ::-1], frame[::-1], np.asfortranarray(frame), frame[3:70, 5:90], frame[:, :, ::-1]]
    for view in views:
        assert gpu.tokenizer.encode(view, budget=budget) == cpu.encode(view, budget=budget)


@pytest.mark.parametrize("integrated", [False, True])
def test_decoded_frames_are_those_of_the_cpu(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]], integrated: bool
) -> None:
    gpu = opened(integrated=integrated)
    for number, frame in enumerate(frames):
        for keep in (0.0, 0.3, 1.5, 4.0):
            tokens = cpu.encode(frame, budget=TokenBudget(keep=keep))
            bgr = bool(number % 2)
            mine = gpu.tokenizer.decode(tokens, bgr=bgr)
            assert mine.tobytes() == cpu.decode(tokens, bgr=bgr).tobytes() and mine.shape == frame.shape
    assert gpu.tokenizer.decode_detailed(tokens)[1].keys() >= {"upload", "decoder", "assemble"}


@pytest.mark.parametrize("with_kernels", [False, True])
def test_streams_are_those_of_the_cpu(opened: Open, cpu: Tokenizer, with_kernels: bool) -> None:
    gpu = opened(with_kernels=with_kernels)
    packets: list[list[bytes]] = []
    for tokenizer in (gpu.tokenizer, cpu):
        encoder = StreamEncoder(tokenizer)
        packets.append([encoder.encode(render(Scene(width=128, height=96, seed=1), n)).packet for n in range(6)])
    assert packets[0] == packets[1]
    decoders = [StreamDecoder(tokenizer) for tokenizer in (gpu.tokenizer, cpu)]
    for packet in packets[0]:
        mine, theirs = (decoder.decode(packet) for decoder in decoders)
        assert mine.image is not None and mine.image.tobytes() == theirs.image.tobytes()


def test_without_kernels_frames_are_prepared_on_the_cpu(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]
) -> None:
    gpu = opened(with_kernels=False)
    assert gpu.session.frames is None
    assert "frames prepared on the CPU, because no CUDA kernels; build them: python -m" in gpu.tokenizer.backend.reason
    budget = TokenBudget(tau=0.6)
    assert gpu.tokenizer.encode(frames[3], budget=budget) == cpu.encode(frames[3], budget=budget)
    tokens = cpu.encode(frames[3])
    assert gpu.tokenizer.decode(tokens).tobytes() == cpu.decode(tokens).tobytes()
    with pytest.raises(BackendError, match="no CUDA kernels"):
        gpu.session.encode_frames([], request(cpu), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "beauty"}, "unknown score 'beauty': residual, visual, entropy, information exist"),
        ({"depth": 0}, "depth must be 1 to 4 tokens per patch for these engines, got 0"),
        ({"depth": 5}, "depth must be 1 to 4 tokens per patch for these engines, got 5"),
        ({"basis": np.zeros((3, 6, 192), np.int16)}, r"basis must be int16 \(4, 6, 192\) .*got int16 \(3, 6, 192\)"),
        ({"basis": np.zeros((4, 6, 192))}, "basis must be int16 .*got float64"),
    ],
)
def test_requests_that_do_not_fit_are_refused(
    opened: Open, cpu: Tokenizer, changes: dict[str, Any], message: str
) -> None:
    gpu = opened()
    with pytest.raises(InputError, match=message):
        gpu.session.encode_frames([], request(cpu, **changes), None)


def test_another_basis_gives_other_tokens(opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened()
    limits = [TokenFilter(1.0, 0, 40, 0.0)]
    basis = np.ascontiguousarray(cpu.coding.basis[::-1])  # the directions of deep tokens count first
    kept = []
    for given in (cpu.coding.basis, basis, cpu.coding.basis):
        encoded = gpu.session.encode_frames([frames[0]], request(cpu, filters=limits, basis=given), Clock().stage)
        kept.append(encoded[0].positions.tolist())
    assert kept[0] == kept[2] != kept[1]


def test_pycuda_runs_the_same(opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened(implementation="pycuda")
    for _ in range(3):
        assert gpu.tokenizer.encode(frames[0]) == cpu.encode(frames[0])
    assert gpu.session.cuda_graphs == "not used: pycuda has no CUDA graphs"
    assert "CUDA graphs not used: pycuda has no CUDA graphs" in gpu.tokenizer.backend.reason


def test_pycuda_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, kernels: Kernels, folder: Path) -> None:
    made = install(monkeypatch, Gpu(), kernels)
    asked: list[str] = []
    monkeypatch.setattr(device_module, "open_device", lambda name: asked.append(name) or made.gpu.open(name))
    monkeypatch.setenv(tensorrt_session.DEVICE_VARIABLE, "pycuda")
    with Tokenizer.load(backend="tensorrt", engines=folder) as tokenizer:
        assert tokenizer.backend.name == "tensorrt" and asked == ["pycuda"]


def test_frames_with_more_patches_than_the_kernel_filters(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = opened(integrated=True)
    monkeypatch.setattr(device_frames, "MAX_PATCHES", 30)
    budget = TokenBudget(tau=0.4)
    mine, theirs = (each.encode_batch(frames, budget=budget) for each in (gpu.tokenizer, cpu))
    assert mine.frames() == theirs.frames()


# --- arrays on the GPU ----------------------------------------------------------------------------


class OnGpu:
    """An array on the stand-in of a GPU, as PyTorch would give it."""

    def __init__(self, gpu: Gpu, array: NDArray[Any], **interface: Any) -> None:
        kept: dict[int, Any] = {}
        pointer = gpu.allocate(kept, array.nbytes)
        assert pointer is not None
        self.gpu, self.pointer, self.shape, self.dtype = gpu, pointer, array.shape, array.dtype
        self.memory = kept
        self.array[...] = array
        self.interface = interface

    @property
    def array(self) -> NDArray[Any]:
        return self.gpu.array(self.pointer, self.shape, self.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        base = {"data": (self.pointer, False), "shape": self.shape, "typestr": np.dtype(self.dtype).str, "version": 3}
        return base | self.interface

    def free(self) -> None:
        self.memory.clear()
        self.gpu.check_guard(self.pointer)


def test_frames_on_the_gpu_come_in_and_go_out_without_a_copy(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]
) -> None:
    gpu = opened()
    frame = frames[3]
    height, width = frame.shape[:2]
    given = OnGpu(gpu.gpu, frame, stream=0)
    budget = TokenBudget(tau=0.5)
    gpu.gpu.calls.clear()
    tokens = gpu.tokenizer.encode(given, budget=budget)
    assert tokens == cpu.encode(frame, budget=budget)
    cut = OnGpu(gpu.gpu, frame, shape=(64, 96, 3), strides=(3 * width, 3, 1))
    assert gpu.tokenizer.encode(cut) == cpu.encode(frame[:64, :96])
    mixed = gpu.tokenizer.encode_batch([given, frame, cut])
    assert mixed.frames()[0] == cpu.encode(frame, index=0)
    out = OnGpu(gpu.gpu, np.zeros_like(frame), stream=1)
    gpu.gpu.streams.add(1)
    gpu.tokenizer.decode_into(tokens, out, bgr=True)
    assert out.array.tobytes() == cpu.decode(tokens, bgr=True).tobytes()
    wrong = [
        (OnGpu(gpu.gpu, np.zeros((height, width, 3), np.float32)), "got float32"),
        (OnGpu(gpu.gpu, np.zeros((height, width, 4), np.uint8)), "out must be uint8"),
        (OnGpu(gpu.gpu, frame, strides=(3 * width, 3, -1)), "in another order"),
    ]
    for value, message in wrong:
        with pytest.raises(InputError, match=message):
            gpu.tokenizer.decode_into(tokens, value)
    with pytest.raises(InputError, match="image must be uint8 with values 0 to 255, got float32"):
        gpu.tokenizer.encode(wrong[0][0])
    with pytest.raises(InputError, match=r"images\[1\] must have shape \(H, W, 3\)"):
        gpu.tokenizer.encode_batch([given, wrong[1][0]])
    with pytest.raises(InputError, match=r"image must be uint8 .H, W, 3. in a numpy array.*got list"):
        gpu.tokenizer.encode([1, 2])
    with pytest.raises(
        BackendError, match="decode_into needs a tokenizer that prepares frames on a GPU; this one runs"
    ):
        cpu.decode_into(tokens, out)
    with pytest.raises(InputError, match=r"image must be uint8 .H, W, 3. in a numpy array"):
        cpu.encode(given)
    for value in (given, cut, out, *(value for value, _ in wrong)):
        value.free()
    gpu.gpu.streams.remove(1)


def test_what_is_on_other_streams_is_waited_for(opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened()
    gpu.gpu.streams.add(55)
    frame = frames[3]
    given = OnGpu(gpu.gpu, np.zeros_like(frame), stream=55)
    gpu.gpu.enqueue(55, lambda: given.array.__setitem__(..., frame))
    tokens = gpu.tokenizer.encode(given)
    assert tokens == cpu.encode(frame)
    gpu.gpu.enqueue(55, lambda: given.array.__setitem__(..., 0))  # ends before the picture is written
    gpu.tokenizer.decode_into(tokens, given)
    gpu.gpu.run(55)
    assert given.array.tobytes() == cpu.decode(tokens).tobytes()
    given.free()
    gpu.gpu.streams.remove(55)


class OnGpuByDlpack:
    """The same through DLPack, which is told the stream."""

    def __init__(self, array: OnGpu) -> None:
        self.owner, self.stream = array, None

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: Any = None) -> object:
        self.stream = stream
        return self.owner.array.__dlpack__()


def test_dlpack_producers_are_told_the_stream_of_the_session(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]
) -> None:
    gpu = opened()
    given = OnGpu(gpu.gpu, frames[3])
    through = OnGpuByDlpack(given)
    assert gpu.tokenizer.encode(through) == cpu.encode(frames[3])
    assert through.stream == gpu.session.stream > 1000
    tokens, out = cpu.encode(frames[3]), OnGpuByDlpack(given)
    gpu.tokenizer.decode_into(tokens, out)
    assert given.array.tobytes() == cpu.decode(tokens).tobytes() and out.stream == gpu.session.stream
    given.free()


# --- profiles, contexts and graphs ----------------------------------------------------------------


def test_every_profile_is_warm_before_the_first_call(opened: Open) -> None:
    gpu = opened()
    ran = {(graph, profile) for graph, profile, _ in gpu.api.executed}
    assert ran == {(graph, index) for graph in GRAPHS for index in range(3 if graph == "patch_encoder" else 2)}
    assert gpu.api.contexts == len(ran)  # one context per profile
    best = {shapes[0] for graph, _, shapes in gpu.api.executed if graph == "global_encoder"}
    assert best == {(1, 192, 2, 3), (1, 192, 3, 5)}


def test_the_smallest_profile_that_fits_is_taken(opened: Open) -> None:
    gpu = opened()
    run = gpu.session.run
    cases = [((1, 192, 1, 1), 0), ((1, 192, 3, 3), 0), ((1, 192, 3, 4), 1), ((2, 192, 2, 2), 1), ((1, 192, 4, 5), 1)]
    for shape, profile in cases:
        gpu.api.executed.clear()
        run("global_encoder", {"cells": np.zeros(shape, np.float32)})
        assert gpu.api.executed == [("global_encoder", profile, (shape,))]
    for rows, edges in [(1, [16]), (16, [16]), (17, [64]), (200, [200]), (201, [200, 16]), (700, [200] * 3 + [200])]:
        gpu.api.executed.clear()
        codes = run("patch_encoder", {"features": np.zeros((rows, 1056), np.float32)})["codes"]
        assert codes.shape == (rows, 24)
        assert [shapes[0][0] for _, _, shapes in gpu.api.executed] == edges
    assert run("patch_encoder", {"features": np.zeros((0, 1056), np.float32)})["codes"].shape == (0, 24)


def test_outputs_are_the_callers(opened: Open, cpu: Tokenizer) -> None:
    gpu = opened()
    codes = [np.full((1, 6, 2, 2), value, np.int32) for value in (0, 3)]
    first = gpu.session.run("cell_context", {"codes": codes[0]})
    kept = {name: value.copy() for name, value in first.items()}
    gpu.session.run("cell_context", {"codes": codes[1]})
    theirs = cpu.networks.session.run("cell_context", {"codes": codes[0]})
    for name, value in first.items():
        assert value.tobytes() == kept[name].tobytes() == theirs[name].tobytes()
        assert value.dtype == theirs[name].dtype and value.flags.owndata and value.flags.writeable


def test_graphs_are_recorded_for_what_comes_again(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]
) -> None:
    gpu = opened()
    world, contexts = gpu.gpu, gpu.api.contexts
    assert gpu.session.cuda_graphs == "used" and world.captures == 3  # the profiles of the patch encoder
    budget = TokenBudget(tau=0.5)
    for number in range(6):
        for frame in frames[:2]:  # in turn, so that contexts change their shapes between
            launches, captures = world.launches, world.captures
            assert gpu.tokenizer.encode(frame, budget=budget) == cpu.encode(frame, budget=budget)
            assert world.captures - captures == (3 if number == 1 else 0)
            assert world.launches - launches == (1 if number < 2 else 4)
    assert gpu.api.contexts == contexts + 6  # each recorded shape has its own


def test_few_graphs_are_kept(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_programs, "MAX_RECORDED", 4)
    gpu = opened()
    shapes = [(1, 192, rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]
    for _ in range(2):
        for shape in shapes:
            for _ in range(3):
                gpu.session.run("global_encoder", {"cells": np.zeros(shape, np.float32)})
    assert gpu.session._programs.recorded == 4
    assert len(gpu.gpu.graphs) == 4


def test_where_recording_fails_it_runs_without(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = opened(graphs=False)
    assert gpu.session.cuda_graphs.startswith("not used: patch_encoder cannot be recorded: cuStreamBeginCapture failed")
    for _ in range(3):
        assert gpu.tokenizer.encode(frames[0]) == cpu.encode(frames[0])
    assert gpu.gpu.launches == 0


def test_graphs_that_fail_later_leave_the_others(opened: Open, cpu: Tokenizer, frames: Any) -> None:
    gpu = opened()
    gpu.tokenizer.encode(frames[0])
    gpu.api.fail, gpu.api.says = "create_execution_context", "out of memory"
    for _ in range(3):
        assert gpu.tokenizer.encode(frames[0]) == cpu.encode(frames[0])
    assert gpu.session.cuda_graphs.startswith("used for 3 shapes: no further context: TensorRT 10.3.0 gives no context")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stream": 0}, "not used: the default stream cannot be recorded"),
        ({"flavour": "rtx", "backend": "tensorrt-rtx"}, "not used: TensorRT-RTX replaces its kernels while it runs"),
    ],
)
def test_why_there_are_no_graphs(
    opened: Open, cpu: Tokenizer, frames: Any, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    if "flavour" in options:
        store_engines(tmp_path, open_bundle("tatok-s8"), flavour="rtx")
        options = {**options, "engines": tmp_path}
    gpu = opened(**options)
    assert gpu.session.cuda_graphs == reason and reason in gpu.tokenizer.backend.reason
    for _ in range(3):
        assert gpu.tokenizer.encode(frames[0]) == cpu.encode(frames[0])
    assert gpu.gpu.captures == 0


def test_a_stream_of_others_is_used_and_left(opened: Open, cpu: Tokenizer, frames: Any) -> None:
    gpu = opened(stream=77)
    assert 77 in gpu.gpu.streams and len(gpu.gpu.streams) == 2
    assert gpu.tokenizer.encode(frames[0]) == cpu.encode(frames[0])
    gpu.tokenizer.close()
    assert 77 in gpu.gpu.streams
    with pytest.raises(InputError, match="a stream is an integer handle"):
        opened(stream="mine")


# --- threads and life -----------------------------------------------------------------------------


def test_any_thread_may_call(opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened()
    budget = TokenBudget(tau=0.5)
    expected = [cpu.encode(frame, budget=budget) for frame in frames]
    pictures = [cpu.decode(tokens) for tokens in expected]

    def work(start: int) -> None:
        for step in range(6):
            number = (start + step) % len(frames)
            assert gpu.tokenizer.encode(frames[number], budget=budget) == expected[number], number
            assert gpu.tokenizer.decode(expected[number]).tobytes() == pictures[number].tobytes(), number

    in_threads(4, work)


def test_a_closed_session_says_so(opened: Open, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened()
    with gpu.session as session:
        assert session is gpu.session and "closed" not in repr(session)
    gpu.tokenizer.close()
    assert gpu.gpu.clean and repr(gpu.session).endswith(", closed)")
    with pytest.raises(BackendError, match="this session is closed; load the tokenizer again"):
        gpu.tokenizer.encode(frames[0])
    with pytest.raises(BackendError, match="this session is closed"):
        gpu.session.run("cell_context", {"codes": np.zeros((1, 6, 2, 2), np.int32)})


def test_what_nobody_closes_is_freed(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, folder: Path, frames: list[NDArray[np.uint8]]
) -> None:
    gpu = Gpu()
    install(monkeypatch, gpu, kernels)
    Tokenizer.load(backend="tensorrt", engines=folder).encode(frames[0])
    gc.collect()
    assert gpu.clean and not gpu.problems


def test_memory_does_not_grow(opened: Open) -> None:
    gpu = opened()
    world = gpu.gpu
    shapes = [(1, 6, 1, 1), (1, 6, 1, 2), (1, 6, 2, 1)]
    for number in range(1000):
        if number == 20:
            before = world.allocations, len(world.memory), len(world.host), gpu.api.contexts, len(world.graphs)
        gpu.session.run("cell_context", {"codes": np.zeros(shapes[number % 3], np.int32)})
    after = world.allocations, len(world.memory), len(world.host), gpu.api.contexts, len(world.graphs)
    assert after == before
    assert not world.events and not any(world.queues.values())


def test_encoding_does_not_allocate(opened: Open, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened()
    counts = []
    for number in range(40):
        gpu.tokenizer.decode(gpu.tokenizer.encode(frames[4], budget=TokenBudget(score=SCORES[number % 4])))
        counts.append((gpu.gpu.allocations, gpu.api.contexts, len(gpu.gpu.graphs)))
    assert len(set(counts[10:])) == 1
