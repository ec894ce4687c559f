"""The session that runs TensorRT engines: tokens, frames and streams are those of the CPU, and what goes wrong is said.

TensorRT and the GPU are those of ``fake_tensorrt.py``, which run the same graphs and kernels on the CPU and refuse what
CUDA and TensorRT would; a real GPU is in test_gpu.py.
"""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.paths import SHARED
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="the stand-in of TensorRT reads ONNX graphs")

from helpers import fake_tensorrt
from helpers.fake_tensorrt import Gpu, install, store_engines

from tatok_edge.errors import BackendError, InputError
from tatok_edge.model.bundle import GRAPHS, open_bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cuda import device as device_module
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.kernels import Kernels
from tatok_edge.runtime.open import BACKENDS, open_session
from tatok_edge.runtime.session import EncodeRequest
from tatok_edge.runtime.tensorrt import api as tensorrt_api
from tatok_edge.runtime.tensorrt import flavour as tensorrt_flavour
from tatok_edge.runtime.tensorrt import frames as device_frames
from tatok_edge.runtime.tensorrt import programs as tensorrt_programs
from tatok_edge.runtime.tensorrt import session as tensorrt_session
from tatok_edge.runtime.tensorrt.manifest import PluginRecord
from tatok_edge.runtime.tensorrt.session import TensorRTSession
from tatok_edge.sources.open import open_source
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.encoder import StreamEncoder
from tatok_edge.tokens.budget import TokenBudget

SCORES = ("residual", "entropy", "information")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The emulated kernels."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("the emulation needs Linux and g++")
    return Kernels(cuda_kernels.build_emulation(tmp_path_factory.mktemp("cuda") / "emulated.so"))


@pytest.fixture(scope="module")
def cpu() -> Iterator[Tokenizer]:
    """What everything is compared with; one thread, as the engines of the stand-in."""
    with Tokenizer.load(backend="onnxruntime", threads=1) as tokenizer:
        yield tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the shipped model."""
    made = tmp_path_factory.mktemp("engines")
    store_engines(made, open_bundle("tatok-s8"))
    return made


Open = Callable[..., Any]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, kernels: Kernels, folder: Path) -> Iterator[Open]:
    """Opens a tokenizer on a stand-in of a GPU; afterwards nothing may be left on it."""
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


def same(a: Any, b: Any) -> bool:
    """Whether two token frames are the same."""
    return (
        a.ids.tobytes() == b.ids.tobytes()
        and a.positions.tobytes() == b.positions.tobytes()
        and a.global_ids.tobytes() == b.global_ids.tobytes()
        and (a.width, a.height, a.model, a.index) == (b.width, b.height, b.model, b.index)
    )


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
        TokenBudget(score=score, keep=0),
    ]
    for number, frame in enumerate(frames):
        for budget in budgets[: 2 if number else 3]:
            bgr = number % 2 == 1
            mine = gpu.tokenizer.encode_detailed(frame, budget=budget, bgr=bgr, index=number)
            theirs = cpu.encode_detailed(frame, budget=budget, bgr=bgr, index=number)
            assert same(mine.frame, theirs.frame)
            assert mine.scores.tobytes() == theirs.scores.tobytes() and mine.scores.shape == theirs.scores.shape
            assert mine.seconds.keys() >= {"prior", "patch_encoder", "ids"}
            assert same(gpu.tokenizer.encode(frame, budget=budget, bgr=bgr, index=number), theirs.frame)
    assert "gather_features" in gpu.kernels.calls  # they did come from there


@pytest.mark.parametrize("score", SCORES)
def test_ragged_batches_are_those_of_the_cpu(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]], score: Any
) -> None:
    gpu = opened()
    budget = TokenBudget(score=score, tau=0.7)
    mine, theirs = (each.encode_batch([*frames, *frames], budget=budget) for each in (gpu.tokenizer, cpu))
    assert mine.cu_seqlens.tobytes() == theirs.cu_seqlens.tobytes()
    assert all(same(a, b) for a, b in zip(mine.frames(), theirs.frames(), strict=True))
    assert theirs.cu_seqlens[-1] > 200  # more than the largest profile: it took several runs
    assert {shapes[0][0] for graph, _, shapes in gpu.api.executed if graph == "patch_encoder"} <= {16, 64, 200}


def test_bits_and_strides_do_not_matter(opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened()
    budget = TokenBudget(max_bits=6000)
    frame = frames[1]
    views = [frame, frame[:, ::-1], frame[::-1], np.asfortranarray(frame), frame[3:70, 5:90], frame[:, :, ::-1]]
    for view in views:
        assert same(gpu.tokenizer.encode(view, budget=budget), cpu.encode(view, budget=budget))


@pytest.mark.parametrize("integrated", [False, True])
def test_decoded_frames_are_those_of_the_cpu(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]], integrated: bool
) -> None:
    gpu = opened(integrated=integrated)
    for number, frame in enumerate(frames):
        for keep in (0.0, 0.3, 1.0):
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
    assert same(gpu.tokenizer.encode(frames[3], budget=budget), cpu.encode(frames[3], budget=budget))
    tokens = cpu.encode(frames[3])
    assert gpu.tokenizer.decode(tokens).tobytes() == cpu.decode(tokens).tobytes()
    with pytest.raises(BackendError, match="no CUDA kernels"):
        gpu.session.encode_frames(
            [], EncodeRequest(filters=[], levels=(8,), score="entropy", with_scores=False, bgr=False), None
        )


def test_pycuda_runs_the_same(opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened(implementation="pycuda")
    for _ in range(3):
        assert same(gpu.tokenizer.encode(frames[0]), cpu.encode(frames[0]))
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
    assert all(same(a, b) for a, b in zip(mine.frames(), theirs.frames(), strict=True))


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
    assert same(tokens, cpu.encode(frame, budget=budget))
    cut = OnGpu(gpu.gpu, frame, shape=(64, 96, 3), strides=(3 * width, 3, 1))
    assert same(gpu.tokenizer.encode(cut), cpu.encode(frame[:64, :96]))
    mixed = gpu.tokenizer.encode_batch([given, frame, cut])
    assert same(mixed.frames()[0], cpu.encode(frame, index=0))
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
    with pytest.raises(InputError, match=r"image must be a numpy array .*got list"):
        gpu.tokenizer.encode([1, 2])
    with pytest.raises(
        BackendError, match="decode_into needs a tokenizer that prepares frames on a GPU; this one runs"
    ):
        cpu.decode_into(tokens, out)
    with pytest.raises(InputError, match="image must be a numpy array"):
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
    assert same(tokens, cpu.encode(frame))
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
    assert same(gpu.tokenizer.encode(through), cpu.encode(frames[3]))
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
        assert codes.shape == (rows, 6)
        assert [shapes[0][0] for _, _, shapes in gpu.api.executed] == edges
    assert run("patch_encoder", {"features": np.zeros((0, 1056), np.float32)})["codes"].shape == (0, 6)


def test_outputs_are_the_callers(opened: Open, cpu: Tokenizer) -> None:
    gpu = opened()
    codes = [np.full((1, 6, 2, 2), value, np.int32) for value in (0, 3)]
    first = gpu.session.run("context", {"codes": codes[0]})
    kept = {name: value.copy() for name, value in first.items()}
    gpu.session.run("context", {"codes": codes[1]})
    theirs = cpu.networks.session.run("context", {"codes": codes[0]})
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
            assert same(gpu.tokenizer.encode(frame, budget=budget), cpu.encode(frame, budget=budget))
            assert world.captures - captures == (2 if number == 1 else 0)
            assert world.launches - launches == (1 if number < 2 else 3)
    assert gpu.api.contexts == contexts + 4  # each recorded shape has its own


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
        assert same(gpu.tokenizer.encode(frames[0]), cpu.encode(frames[0]))
    assert gpu.gpu.launches == 0


def test_graphs_that_fail_later_leave_the_others(opened: Open, cpu: Tokenizer, frames: Any) -> None:
    gpu = opened()
    gpu.tokenizer.encode(frames[0])
    gpu.api.fail, gpu.api.says = "create_execution_context", "out of memory"
    for _ in range(3):
        assert same(gpu.tokenizer.encode(frames[0]), cpu.encode(frames[0]))
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
        assert same(gpu.tokenizer.encode(frames[0]), cpu.encode(frames[0]))
    assert gpu.gpu.captures == 0


def test_a_stream_of_others_is_used_and_left(opened: Open, cpu: Tokenizer, frames: Any) -> None:
    gpu = opened(stream=77)
    assert 77 in gpu.gpu.streams and len(gpu.gpu.streams) == 2
    assert same(gpu.tokenizer.encode(frames[0]), cpu.encode(frames[0]))
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
    problems: list[str] = []

    def work(start: int) -> None:
        try:
            for step in range(6):
                number = (start + step) % len(frames)
                if not same(gpu.tokenizer.encode(frames[number], budget=budget), expected[number]):
                    problems.append(f"tokens of {number}")
                if gpu.tokenizer.decode(expected[number]).tobytes() != pictures[number].tobytes():
                    problems.append(f"picture of {number}")
        except BaseException as error:
            problems.append(repr(error))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_a_closed_session_says_so(opened: Open, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened()
    with gpu.session as session:
        assert session is gpu.session and "closed" not in repr(session)
    gpu.tokenizer.close()
    assert gpu.gpu.clean and repr(gpu.session).endswith(", closed)")
    with pytest.raises(BackendError, match="this session is closed; load the tokenizer again"):
        gpu.tokenizer.encode(frames[0])
    with pytest.raises(BackendError, match="this session is closed"):
        gpu.session.run("context", {"codes": np.zeros((1, 6, 2, 2), np.int32)})


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
        gpu.session.run("context", {"codes": np.zeros(shapes[number % 3], np.int32)})
    after = world.allocations, len(world.memory), len(world.host), gpu.api.contexts, len(world.graphs)
    assert after == before
    assert not world.events and not any(world.queues.values())


def test_encoding_does_not_allocate(opened: Open, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened()
    counts = []
    for number in range(40):
        gpu.tokenizer.decode(gpu.tokenizer.encode(frames[4], budget=TokenBudget(score=SCORES[number % 3])))
        counts.append((gpu.gpu.allocations, gpu.api.contexts, len(gpu.gpu.graphs)))
    assert len(set(counts[10:])) == 1


# --- bad input ------------------------------------------------------------------------------------


def test_shapes_out_of_range_name_tensor_range_and_command(opened: Open) -> None:
    gpu = opened()
    run, executed = gpu.session.run, len(gpu.api.executed)
    wide = np.zeros((1, 192, 3, 9), np.float32)
    with pytest.raises(InputError) as raised:
        run("global_encoder", {"cells": wide})
    text = str(raised.value)
    assert "global_encoder: cells has shape (1, 192, 3, 9), the engine takes (1, 192, 1..3, 1..3) or" in text
    assert "'tatok build tatok-s8 --precision fp32 --profiles FILE'" in text
    with pytest.raises(InputError, match="a frame of 300x64 pixels does not fit: global_encoder: cells has shape"):
        gpu.tokenizer.encode(np.zeros((64, 300, 3), np.uint8))
    tokens = gpu.tokenizer.encode(np.zeros((64, 64, 3), np.uint8))
    assert gpu.tokenizer.decode(tokens).shape == (64, 64, 3)
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("context", {}, "context takes the inputs codes, got none"),
        ("context", {"code": wide}, "context takes the inputs codes, got code"),
        ("context", {"codes": np.zeros((1, 6, 2, 2), np.int64)}, "codes has dtype int64, the engine takes int32"),
        ("context", {"codes": np.zeros((1, 5, 2, 2), np.int32)}, r"codes has shape \(1, 5, 2, 2\)"),
        ("context", {"codes": np.zeros((1, 6, 0, 2), np.int32)}, r"codes has shape \(1, 6, 0, 2\)"),
        ("patch_encoder", {"features": np.zeros((4, 1055), np.float32)}, r"features has shape \(4, 1055\)"),
        ("patch_encoder", {"features": np.zeros(4, np.float32)}, r"features has shape \(4,\)"),
    ]
    for graph, inputs, message in wrong:
        with pytest.raises(InputError, match=message):
            run(graph, inputs)
    assert gpu.tokenizer.encode(np.zeros((64, 64, 3), np.uint8)).n_patches == 64  # and it goes on
    assert len(gpu.api.executed) > executed


def test_outputs_that_are_no_numbers_are_an_error(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]
) -> None:
    gpu = opened()

    def spoil(graph: str, outputs: dict[str, NDArray[Any]]) -> None:
        if graph == "context":
            outputs["entropy"].reshape(-1)[5] = np.nan
            outputs["mean"].reshape(192, -1)[:, 3] = np.inf

    gpu.api.change_outputs = spoil
    for score, patch in (("entropy", "score 5 is nan"), ("residual", "score 3 is inf")):
        with pytest.raises(BackendError, match=rf"patches cannot be ranked \({patch}\).*--precision fp32"):
            gpu.tokenizer.encode(frames[0], budget=TokenBudget(score=score))

    def nonsense(graph: str, outputs: dict[str, NDArray[Any]]) -> None:
        if graph == broken:
            outputs["codes"].reshape(-1)[0] = 9

    gpu.api.change_outputs = nonsense
    for broken in ("patch_encoder", "global_encoder"):
        with pytest.raises(BackendError, match=f"{broken} gave the code 9, which no level has"):
            gpu.tokenizer.encode(frames[0], budget=TokenBudget(score="information"))
    seen: list[str] = []

    def second(graph: str, outputs: dict[str, NDArray[Any]]) -> None:
        seen.append(graph)
        if seen.count("context") == 2:
            spoil(graph, outputs)

    gpu.api.change_outputs = second
    with pytest.raises(BackendError, match="patches cannot be ranked"):
        gpu.tokenizer.encode_batch(frames)
    gpu.api.change_outputs = lambda graph, outputs: None
    assert same(gpu.tokenizer.encode(frames[0]), cpu.encode(frames[0]))  # nothing is left of the first frame


def test_what_tensorrt_says_while_it_runs_is_passed_on(opened: Open, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened(stream=0)
    for method in ("execute_async_v3", "set_input_shape"):
        gpu.api.fail, gpu.api.says = method, "it is\ntired"
        with pytest.raises(
            BackendError, match=r"TensorRT 10\.3\.0 .* it is tired; run 'tatok build tatok-s8 --precision"
        ):
            gpu.tokenizer.encode(frames[2])
        assert not any(gpu.gpu.queues.values())  # nothing works on in the caller's memory
    gpu.api.fail = None
    gpu.tokenizer.encode(frames[2])


@pytest.mark.parametrize(
    ("method", "says", "message"),
    [
        ("deserialize_cuda_engine", "bad magic", r"cannot load the engine .*\.engine: bad magic; run 'tatok build"),
        (
            "create_execution_context",
            "CUDA out of memory",
            "no context .*out of memory; close what else uses the GPU, or",
        ),
        ("set_optimization_profile_async", "no", "cannot set profile 0 of global_encoder: no; run"),
        ("set_tensor_address", "no", "refuses the memory of cells of global_encoder"),
        ("execute_async_v3", "no", "cannot run global_encoder: no"),
    ],
)
def test_engines_that_tensorrt_refuses(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, folder: Path, method: str, says: str, message: str
) -> None:
    gpu = Gpu()
    made = install(monkeypatch, gpu, kernels)
    made.api.fail, made.api.says = method, says
    with pytest.raises(BackendError, match=message) as raised:
        Tokenizer.load(backend="tensorrt", engines=folder)
    assert "\n" not in str(raised.value)
    del raised
    gc.collect()
    assert gpu.clean and not gpu.backing and not gpu.problems
    with Tokenizer.load(engines=folder, threads=1) as tokenizer:
        assert tokenizer.backend.name == "onnxruntime"
        assert tokenizer.backend.reason.startswith("auto: the CPU, because TensorRT 10.3.0 ")


def test_an_engine_that_is_not_the_one_of_its_manifest(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, tmp_path: Path
) -> None:
    gpu = Gpu()
    made = install(monkeypatch, gpu, kernels)
    store_engines(tmp_path, open_bundle("tatok-s8"))
    monkeypatch.setattr(fake_tensorrt.ICudaEngine, "get_tensor_profile_shape", lambda *_: [[1], [1], [1]])
    with pytest.raises(BackendError, match="has other tensors or profiles than its manifest says: run 'tatok build"):
        Tokenizer.load(backend="tensorrt", engines=tmp_path)
    assert gpu.clean and made.api.contexts == 0


def test_running_out_of_memory_frees_everything(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, folder: Path, frames: list[NDArray[np.uint8]]
) -> None:
    gpu = Gpu()
    install(monkeypatch, gpu, kernels)
    with Tokenizer.load(backend="tensorrt", engines=folder) as tokenizer:
        needed = gpu.allocations
        tokenizer.encode(frames[0])
        assert gpu.allocations == needed > 15
    graphs = {name: open_bundle("tatok-s8").read(name) for name in GRAPHS}
    for number in range(1, needed + 1):
        gpu = Gpu()
        install(monkeypatch, gpu, kernels)
        gpu.fail_allocation = number
        if number == 1:  # the probe of the kernels, without which frames are prepared on the CPU
            session, backend = open_session(graphs, backend="tensorrt", engines=folder)
            assert "because Stand-in GPU has no 0.0 MiB left" in backend.reason and session.frames is None
            session.close()
        else:
            with pytest.raises(
                BackendError, match=r"Stand-in GPU has no .* MiB left .*: use smaller profiles, or close"
            ):
                open_session(graphs, backend="tensorrt", engines=folder)
        assert gpu.clean and not gpu.backing and not gpu.problems, number


def test_engines_that_do_not_fit_what_is_there(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, tmp_path: Path
) -> None:
    bundle = open_bundle("tatok-s8")
    gpu = Gpu()
    install(monkeypatch, gpu, kernels)
    plugin = PluginRecord("TaTokDTF", "1", None, "0" * 64)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"version": "11.0.0"}, "was built with TensorRT 11.0.0, found TensorRT 10.3.0: run 'tatok build tatok-s8"),
        ({"sms": ("8.9",)}, "was built for a GPU of SM 8.9, found one of SM 8.7: run 'tatok build tatok-s8"),
        ({"flavour": "rtx", "version": "1.7"}, "was built with TensorRT-RTX 1.7, found TensorRT 10.3.0: run"),
        ({"plugin": plugin}, "no plugin registry|plugin TaTokDTF"),
    ]
    for number, (options, message) in enumerate(cases):
        folder = tmp_path / str(number)
        store_engines(folder, bundle, **options)
        if "plugin" in options:
            from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin

            there = tensorrt_plugin.RegisteredPlugin("library", Path("plugin.so"), "1" * 64)
            monkeypatch.setattr(tensorrt_plugin, "register", lambda flavour, there=there: there)
            message = r"plugin TaTokDTF with hash 000000000000\.\.\., found one with hash 111111111111"
        with pytest.raises(BackendError, match=message):
            Tokenizer.load(backend="tensorrt", engines=folder)
        with Tokenizer.load(backend="auto", engines=folder, threads=1) as tokenizer:
            assert tokenizer.backend.name == "onnxruntime" and "auto: the CPU, because" in tokenizer.backend.reason
    paths = store_engines(tmp_path / "cut", bundle)
    data = paths["decoder"].read_bytes()
    paths["decoder"].write_bytes(data[:-100])
    with pytest.raises(
        BackendError, match=rf"decoder.* has {len(data) - 100} bytes, it was built with {len(data)}: run"
    ):
        Tokenizer.load(backend="tensorrt", engines=tmp_path / "cut")
    for empty in (tmp_path / "none", tmp_path):
        with pytest.raises(BackendError, match=r"no engines of tatok-s8 in .*: run 'tatok build tatok-s8'"):
            Tokenizer.load(backend="tensorrt", engines=empty)
        with Tokenizer.load(engines=empty, threads=1) as tokenizer:
            assert "because there are no engines of tatok-s8 in" in tokenizer.backend.reason
    assert gpu.clean


def test_engines_with_the_plugin_run_where_it_is_there(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, tmp_path: Path
) -> None:
    from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin

    install(monkeypatch, Gpu(), kernels)
    store_engines(tmp_path, open_bundle("tatok-s8"), plugin=PluginRecord("TaTokDTF", "1", None, "1" * 64))
    there = tensorrt_plugin.RegisteredPlugin("library", Path("plugin.so"), "1" * 64)
    monkeypatch.setattr(tensorrt_plugin, "register", lambda flavour: there)
    with Tokenizer.load(engines=tmp_path) as tokenizer:
        assert tokenizer.backend.name == "tensorrt"


# --- which backend, and why -----------------------------------------------------------------------


def test_auto_takes_the_gpu_where_it_can(opened: Open) -> None:
    gpu = opened(backend="auto")
    backend = gpu.tokenizer.backend
    assert isinstance(gpu.session, TensorRTSession)
    assert (backend.name, backend.version, backend.device, backend.precision) == (
        *("tensorrt", "10.3.0", "Stand-in GPU (SM 8.7)", "fp32"),
    )
    assert backend.reason.startswith("auto; engines in ") and "threads" not in str(backend)
    assert "CUDA graphs used; frames prepared on the GPU" in backend.reason


def test_the_flavour_that_there_are_engines_of_is_taken(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, tmp_path: Path
) -> None:
    install(monkeypatch, Gpu(), kernels, flavour="rtx")
    asked: list[str] = []
    find = tensorrt_flavour.find_flavour
    monkeypatch.setattr(tensorrt_flavour, "find_flavour", lambda name: asked.append(name) or find(name))  # type: ignore[func-returns-value]
    store_engines(tmp_path, open_bundle("tatok-s8"), flavour="rtx")
    with Tokenizer.load(engines=tmp_path) as tokenizer:
        assert tokenizer.backend.name == "tensorrt-rtx" and asked == ["rtx"]


def test_without_tensorrt_it_is_named(monkeypatch: pytest.MonkeyPatch, kernels: Kernels, folder: Path) -> None:
    real = tensorrt_flavour.find_flavour
    install(monkeypatch, Gpu(), kernels)
    monkeypatch.setattr(tensorrt_flavour, "find_flavour", real)
    missing = {name: replace(facts, module=f"no_{facts.module}") for name, facts in tensorrt_flavour.FLAVOURS.items()}
    monkeypatch.setattr(tensorrt_flavour, "FLAVOURS", missing)
    with pytest.raises(BackendError, match=r"TensorRT is not installed: pip install 'tatok-edge\[tensorrt\]'"):
        Tokenizer.load(backend="tensorrt", engines=folder)
    with Tokenizer.load(engines=folder, threads=1) as tokenizer:
        assert "because TensorRT is not installed" in tokenizer.backend.reason


@pytest.mark.skipif(tensorrt_flavour.gpu_architecture() is not None, reason="this machine has a GPU")
def test_without_a_driver_it_is_the_cpu_and_says_so(folder: Path, tmp_path: Path) -> None:
    with Tokenizer.load(threads=1) as tokenizer:
        assert tokenizer.backend.name == "onnxruntime"
        assert tokenizer.backend.reason.startswith("auto: the CPU, because this machine has no NVIDIA driver")
    for name in BACKENDS[2:]:
        with pytest.raises(BackendError, match=r"no usable NVIDIA driver or GPU .*nvidia-smi.*backend 'onnxruntime'"):
            Tokenizer.load(backend=name, engines=folder)
    code = (
        "import sys; from tatok_edge import Tokenizer; Tokenizer.load()\n"
        "print(sorted(name for name in sys.modules if name.startswith('tatok_edge.runtime.')))"
    )
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "tensorrt" not in loaded and "device" not in loaded and "cuda" not in loaded
    command = [sys.executable, "-m", "tatok_edge", "encode", "synthetic", "-o", "x.ttk", "--backend", "tensorrt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nvidia-smi" in done.stderr


def test_the_stand_in_has_the_names_of_tensorrt() -> None:
    """What the session calls exists in TensorRT: the stand-in has nothing that ``tensorrt_api`` has not."""
    for kind in (fake_tensorrt.Runtime, fake_tensorrt.ICudaEngine, fake_tensorrt.IExecutionContext):
        known = getattr(tensorrt_api, kind.__name__)
        assert fake_tensorrt.public(kind) <= {*vars(known), *known.__annotations__}, kind
    module = fake_tensorrt.public(fake_tensorrt.TensorRT) - {"gpu", "fail", "says", "contexts", "executed", "fails"}
    assert module - {"change_outputs"} <= {*vars(tensorrt_api.Api), *tensorrt_api.Api.__annotations__}
