"""The CUDA kernels on the CPU: the source that nvcc compiles gives the bits of the numpy specification.

A C++ compiler builds the kernels with an emulation of thread blocks, and the wrappers that launch them on a GPU call
them with host memory. Where nvcc is found, it must compile them for every architecture of the product.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import dtf_cases
from helpers.kernel_cases import LEVELS, SEEDS, guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tatok_edge.errors import BackendError, InputError
from tatok_edge.runtime import reference
from tatok_edge.runtime.cpu import kernels as cpu_kernels
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.kernels import DtfLimits, Frames, Kernels

SIZES = st.tuples(st.integers(1, 100), st.integers(1, 140))


def address(array: NDArray[Any]) -> int:
    return array.ctypes.data


def frames_of(batch: NDArray[np.uint8], bgr: bool) -> Frames:
    """A batch (B, H, W, 3) in any strides as the kernels take it."""
    images, height, width, _ = batch.shape
    b, y, x, c = batch.strides
    return Frames(address(batch), images, height, width, (b, y, x, c), bgr)


def make_batch(rng: np.random.Generator, images: int, height: int, width: int, layout: str) -> NDArray[np.uint8]:
    """Random frames: packed, at an odd address, cut out of a larger picture, planar, or mirrored."""
    if layout == "planar":
        return rng.integers(0, 256, (images, 3, height, width), np.uint8).transpose(0, 2, 3, 1)
    if layout == "cut":
        return rng.integers(0, 256, (images, height + 3, width + 5, 3), np.uint8)[:, 2:-1, 1:-4]
    if layout == "mirrored":
        return rng.integers(0, 256, (images, height, width, 3), np.uint8)[:, :, ::-1]
    memory = rng.integers(0, 256, images * height * width * 3 + 1, np.uint8)
    start = 1 if layout == "odd" else 0
    return memory[start : start + images * height * width * 3].reshape(images, height, width, 3)


LAYOUTS = st.sampled_from(["packed", "odd", "cut", "planar", "mirrored"])


# --- dynamic token filtering ----------------------------------------------------------------------


def run_dtf(kernels: Kernels, scores: NDArray[Any], limits: DtfLimits) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    images, patches = scores.shape
    indices, untouched = guarded((images, patches), np.int32)
    counts, counts_untouched = guarded((images,), np.int32)
    half = scores.dtype == np.float16
    kernels.dtf(address(scores), images, patches, limits, address(indices), address(counts), half=half)
    assert untouched() and counts_untouched()
    return indices, counts


# 200 images per example: mostly small, where the corner cases are; some of frame size and one of the largest.
PLAN = ((5, 28, -48), (2, 20, -700), (1, 13, 1), (1, 5, -4800), (1, 2, 16384))
EXAMPLES = 50


@settings(max_examples=EXAMPLES)
@given(seed=SEEDS)
def test_token_filtering_equals_specification_in_ten_thousand_cases(kernels: Kernels, seed: int) -> None:
    assert EXAMPLES * sum(groups * images for groups, images, _ in PLAN) >= 10_000
    for scores, limits in dtf_cases.groups(seed, PLAN):
        indices, counts = run_dtf(kernels, scores, DtfLimits.make(**limits))
        flat, cu_seqlens = reference.dtf(scores, **limits)
        cpu_flat, cpu_cu_seqlens = cpu_kernels.dtf(scores, **limits)
        assert cpu_flat.tobytes() == flat.tobytes() and cpu_cu_seqlens.tobytes() == cu_seqlens.tobytes()
        expected_indices, expected_counts = dtf_cases.dense(flat, cu_seqlens, scores.shape[1])
        assert counts.tolist() == expected_counts.tolist()
        assert indices.tobytes() == expected_indices.tobytes()


@settings(max_examples=20)
@given(seed=SEEDS)
def test_half_scores_are_filtered_as_the_floats_that_they_are(kernels: Kernels, seed: int) -> None:
    for scores, limits in dtf_cases.groups(seed, ((4, 8, -60), (1, 2, 4800))):
        half = np.minimum(scores, 65504).astype(np.float16)
        indices, counts = run_dtf(kernels, half, DtfLimits.make(**limits))
        expected = dtf_cases.dense(*reference.dtf(half.astype(np.float32), **limits), scores.shape[1])
        assert counts.tolist() == expected[1].tolist()
        assert indices.tobytes() == expected[0].tobytes()


def test_every_half_score_counts_as_its_value(kernels: Kernels) -> None:
    half = np.arange(0x7C00, dtype=np.uint16).view(np.float16)  # every finite one that is not negative
    single = half.astype(np.float32)
    limits = {"tau": 0.999, "floor_bits": 2.0**-16}
    for row_half, row in zip(half.reshape(-1, 1024), single.reshape(-1, 1024), strict=True):
        indices, _ = run_dtf(kernels, row_half[None], DtfLimits.make(**limits))
        expected, _ = dtf_cases.dense(*reference.dtf(row[None], **limits), 1024)
        assert indices.tobytes() == expected.tobytes()


def test_token_filtering_of_the_largest_grid(kernels: Kernels) -> None:
    rng = np.random.default_rng(5)
    for scores in (
        np.full((1, 1 << 16), 3e38, np.float32),  # the sum that needs the most bits
        rng.gamma(0.7, 3.0, (1, 1 << 16)).astype(np.float32),
    ):
        indices, counts = run_dtf(kernels, scores, DtfLimits.make(tau=0.7))
        expected = dtf_cases.dense(*reference.dtf(scores, tau=0.7), 1 << 16)
        assert counts.tolist() == expected[1].tolist()
        assert indices.tobytes() == expected[0].tobytes()
    with pytest.raises(InputError, match="up to 65536"):
        kernels.dtf(0, 1, (1 << 16) + 1, DtfLimits.make(), 0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-30, -5.0])
def test_a_bad_score_is_named_and_its_image_refused(kernels: Kernels, bad: float) -> None:
    scores = np.ones((3, 700), np.float32)
    scores[1, [613, 640]] = bad
    indices, counts = run_dtf(kernels, scores, DtfLimits.make())
    assert counts.tolist() == [700, -1 - 613, 700]
    assert (indices[1] == -1).all()
    assert (indices[[0, 2]] == np.arange(700)).all()


@given(seed=SEEDS, images=st.integers(1, 20), patches=st.integers(1, 40))
def test_flat_result_is_that_of_the_cpu(kernels: Kernels, seed: int, images: int, patches: int) -> None:
    rng = np.random.default_rng(seed)
    scores = dtf_cases.scores(rng, "ties", images, patches)
    limits = dtf_cases.limits(rng, scores)
    indices, counts = run_dtf(kernels, scores, DtfLimits.make(**limits))
    flat, untouched = guarded((images * patches,), np.int32)
    cu_seqlens, cu_untouched = guarded((images + 1,), np.int32)
    kernels.flatten(address(indices), address(counts), images, patches, address(flat), address(cu_seqlens))
    assert untouched() and cu_untouched()
    expected, expected_cu = reference.dtf(scores, **limits)
    assert cu_seqlens.tobytes() == expected_cu.tobytes()
    assert flat[: len(expected)].tobytes() == expected.tobytes()
    assert (flat[len(expected) :] == -1).all()


def test_a_refused_image_has_no_flat_positions(kernels: Kernels) -> None:
    indices = np.array([[0, 2, -1], [-1, -1, -1], [1, -1, -1]], np.int32)
    counts = np.array([2, -3, 1], np.int32)
    flat, cu_seqlens = np.empty(9, np.int32), np.empty(4, np.int32)
    kernels.flatten(address(indices), address(counts), 3, 3, address(flat), address(cu_seqlens))
    assert cu_seqlens.tolist() == [0, 2, 2, 3]
    assert flat.tolist() == [0, 2, 7, -1, -1, -1, -1, -1, -1]


@given(
    tau=st.one_of(st.floats(0, 1, exclude_min=True), st.sampled_from(dtf_cases.TAUS)),
    low=st.integers(0, 2**40),
    extra=st.one_of(st.none(), st.integers(0, 2**40)),
    floor_bits=st.one_of(st.floats(0, 1e300), st.sampled_from([2.0**-17, 3 * 2.0**-17, 32768.0, 65536.0])),
)
def test_limits_become_the_integers_of_the_specification(
    tau: float, low: int, extra: int | None, floor_bits: float
) -> None:
    low = min(low, 2**31 - 1)
    limits = DtfLimits.make(
        tau=tau, min_tokens=low, max_tokens=None if extra is None else low + extra, floor_bits=floor_bits
    )
    assert limits.share == max(1, round(tau * reference.TAU_ONE))
    assert limits.floor_score == min(reference.SCORE_MAX, round(floor_bits * reference.SCORE_ONE))
    assert limits.min_tokens == low
    assert limits.max_tokens == min(2**31 - 1, low + (2**31 if extra is None else extra))


@pytest.mark.parametrize(
    "limits",
    [
        *({"tau": 0.0}, {"tau": 1.5}, {"tau": float("nan")}, {"min_tokens": -1}),
        *({"min_tokens": 3, "max_tokens": 2}, {"floor_bits": -1.0}, {"floor_bits": float("inf")}),
    ],
)
def test_bad_limits_are_named(limits: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(limits))):
        DtfLimits.make(**limits)


# --- pixels ---------------------------------------------------------------------------------------


@given(seed=SEEDS, size=SIZES, images=st.integers(1, 3), layout=LAYOUTS, bgr=st.booleans())
def test_cells_equal_specification(
    kernels: Kernels, seed: int, size: tuple[int, int], images: int, layout: str, bgr: bool
) -> None:
    batch = make_batch(np.random.default_rng(seed), images, *size, layout)
    expected = np.stack([reference.image_to_cells(image, bgr) for image in batch])
    cells, untouched = guarded(expected.shape, np.float32)
    kernels.image_to_cells(frames_of(batch, bgr), address(cells))
    assert untouched()
    assert cells.tobytes() == expected.tobytes()
    assert cpu_kernels.image_to_cells(batch[0], bgr).tobytes() == cells[0].tobytes()


@given(
    seed=SEEDS,
    size=SIZES,
    images=st.integers(1, 3),
    layout=LAYOUTS,
    bgr=st.booleans(),
    channels=st.sampled_from([1, 16, 96]),
    count=st.integers(0, 70),
)
def test_features_equal_specification(
    kernels: Kernels,
    seed: int,
    size: tuple[int, int],
    images: int,
    layout: str,
    bgr: bool,
    channels: int,
    count: int,
) -> None:
    rng = np.random.default_rng(seed)
    batch = make_batch(rng, images, *size, layout)
    columns = -(-size[1] // 32) * 4
    patches = -(-size[0] // 32) * 4 * columns
    context = rng.standard_normal((images, channels, patches), np.float32)
    mean = rng.standard_normal((images, 192, patches), np.float32)
    positions = rng.integers(0, images * patches, count, np.int32)
    positions[rng.random(count) < 0.1] = rng.choice([-1, images * patches, 2**31 - 1])
    rows, untouched = guarded((count, 960 + channels), np.float32)
    kernels.gather_features(
        frames_of(batch, bgr), address(context), channels, address(mean), address(positions), count, address(rows)
    )
    assert untouched()
    for row, position in zip(rows, positions, strict=True):
        if not 0 <= position < images * patches:
            assert not row.any()
            continue
        b, patch = divmod(int(position), patches)
        one = np.array([patch], np.int32)
        expected = reference.gather_features(batch[b], bgr, context[b], mean[b], one, columns)
        assert row.tobytes() == expected[0].tobytes()


def test_every_pixel_value_has_the_bits_of_the_division(kernels: Kernels) -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 8, 32, 3)
    context, mean = np.zeros((1, 1, 16), np.float32), np.zeros((1, 192, 16), np.float32)
    positions = np.arange(16, dtype=np.int32)
    rows = np.empty((16, 961), np.float32)
    kernels.gather_features(
        frames_of(image, False), address(context), 1, address(mean), address(positions), 16, address(rows)
    )
    expected = reference.gather_features(image[0], False, context[0], mean[0], positions, 4)
    assert set(np.unique(rows[:, :768])) == set((np.arange(256, dtype=np.float32) / np.float32(127.5)) - np.float32(1))
    assert rows.tobytes() == expected.tobytes()


@given(seed=SEEDS, size=SIZES, images=st.integers(1, 2), bgr=st.booleans())
def test_assembled_frames_equal_specification(
    kernels: Kernels, seed: int, size: tuple[int, int], images: int, bgr: bool
) -> None:
    rng = np.random.default_rng(seed)
    columns = -(-size[1] // 32) * 4
    patches = -(-size[0] // 32) * 4 * columns
    pixels = rng.uniform(-1.3, 1.3, (images, 192, patches)).astype(np.float32)
    pixels[rng.random(pixels.shape) < 0.02] = rng.choice([np.nan, np.inf, -np.inf, 1 / 255, -0.0])
    expected = np.stack([reference.assemble(p, columns, *size, bgr) for p in pixels])
    frames, untouched = guarded(expected.shape, np.uint8)
    kernels.assemble(address(pixels), images, *size, address(frames), bgr=bgr)
    assert untouched()
    assert frames.tobytes() == expected.tobytes()


# --- change between frames ------------------------------------------------------------------------


@given(seed=SEEDS, size=SIZES, images=st.integers(1, 3), layout=LAYOUTS, bgr=st.booleans())
def test_change_equals_specification(
    kernels: Kernels, seed: int, size: tuple[int, int], images: int, layout: str, bgr: bool
) -> None:
    rng = np.random.default_rng(seed)
    batch = make_batch(rng, images, *size, layout)
    rows, columns = (-(-side // 32) * 4 for side in size)
    references = rng.integers(0, 256, (images, rows * 8, columns * 8, 3), np.uint8)
    patches = rows * columns
    changes, untouched = guarded((images, 2, patches), np.int32)
    kernels.patch_change(frames_of(batch, bgr), address(references), address(changes))
    assert untouched()
    expected = np.stack([reference.patch_change(i, bgr, r) for i, r in zip(batch, references, strict=True)])
    assert changes.tobytes() == expected.tobytes()

    wanted = references.copy()
    positions = np.flatnonzero(rng.random(images * patches) < 0.4).astype(np.int32)
    for b in range(images):
        own = positions[positions // patches == b]
        reference.update_reference(batch[b], bgr, wanted[b], own % np.int32(patches))
    more = np.concatenate([positions, np.array([-1, images * patches], np.int32)])  # what is outside is skipped
    kernels.update_reference(frames_of(batch, bgr), address(references), address(more), len(more))
    assert references.tobytes() == wanted.tobytes()


@given(seed=SEEDS, size=SIZES, images=st.integers(1, 3), layout=LAYOUTS, bgr=st.booleans())
def test_residual_equals_specification(
    kernels: Kernels, seed: int, size: tuple[int, int], images: int, layout: str, bgr: bool
) -> None:
    rng = np.random.default_rng(seed)
    batch = make_batch(rng, images, *size, layout)
    rows, columns = (-(-side // 32) * 4 for side in size)
    mean = rng.uniform(-1.1, 1.1, (images, 192, rows * columns)).astype(np.float32)
    residual, untouched = guarded((images, rows * columns), np.float32)
    kernels.patch_residual(frames_of(batch, bgr), address(mean), address(residual))
    assert untouched()
    every = np.arange(rows * columns, dtype=np.int32)
    for image, own, values in zip(batch, mean, residual, strict=True):
        assert values.tobytes() == reference.patch_residual(image, bgr, own, every, every, columns).tobytes()
        assert values.tobytes() == cpu_kernels.patch_residual(image, bgr, own, every, every, columns).tobytes()


# --- codes ----------------------------------------------------------------------------------------


@given(seed=SEEDS, images=st.integers(1, 3), patches=st.integers(1, 300), share=st.floats(0, 1))
def test_decoder_state_equals_specification(
    kernels: Kernels, seed: int, images: int, patches: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    expected_codes = rng.uniform(-1, 1, (images, 6, patches)).astype(np.float32)
    entropy = rng.uniform(0, 16, (images, patches)).astype(np.float32)
    positions = np.flatnonzero(rng.random(images * patches) < share).astype(np.int32)
    codes = rng.integers(0, LEVELS, (len(positions), 6)).astype(np.int32)
    wanted = np.stack(
        [
            reference.decoder_state(
                codes[positions // patches == b],
                positions[positions // patches == b] % np.int32(patches),
                expected_codes[b],
                entropy[b],
                LEVELS,
            )
            for b in range(images)
        ]
    )
    # What is out of range is skipped.
    order = rng.permutation(len(positions) + 3)
    all_positions = np.concatenate([positions, np.array([-1, images * patches, 0], np.int32)])[order]
    bad_code = np.array([LEVELS, (0,) * 6, (-1, 0, 0, 0, 0, 0)], np.int32)
    all_codes = np.ascontiguousarray(np.concatenate([codes, bad_code])[order])
    state, untouched = guarded(wanted.shape, np.float32)
    kernels.decoder_state(
        *(address(all_codes), address(all_positions), len(order), address(expected_codes), address(entropy)),
        *(images, patches, LEVELS, address(state)),
    )
    assert untouched()
    assert state.tobytes() == wanted.tobytes()


@given(seed=SEEDS, images=st.integers(1, 3), patches=st.integers(1, 300), count=st.integers(0, 300))
def test_information_equals_specification(kernels: Kernels, seed: int, images: int, patches: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    log2_probs = -rng.exponential(3, (images, sum(LEVELS), patches)).astype(np.float32)
    positions = rng.integers(0, images * patches, count, np.int32)
    codes = rng.integers(0, LEVELS, (count, 6)).astype(np.int32)
    bits, untouched = guarded((count,), np.float32)
    kernels.information(
        *(address(log2_probs), address(codes), address(positions), count, images, patches, LEVELS, address(bits))
    )
    assert untouched()
    for b in range(images):
        own = positions // patches == b
        wanted = reference.information(log2_probs[b], codes[own], positions[own] % np.int32(patches), LEVELS)
        assert bits[own].tobytes() == wanted.tobytes()


# --- the emulation itself -------------------------------------------------------------------------

DIVERGENT = """
#include "emulator.hpp"
__global__ void broken(int* out) {
    if (threadIdx.x != 3) __syncthreads();
    out[threadIdx.x] = 1;
}
int main() {
    int out[64];
    TATOK_LAUNCH(broken, dim3(1), 64, nullptr, out);
    return 0;
}
"""


def test_a_barrier_that_not_every_thread_reaches_is_reported(kernels: Kernels, tmp_path: Path) -> None:
    (tmp_path / "divergent.cpp").write_text(DIVERGENT)
    folder = cuda_kernels.SOURCE.parent
    command = ["g++", "-std=c++17", "-w", f"-I{folder}", str(tmp_path / "divergent.cpp"), "-o", str(tmp_path / "run")]
    subprocess.run(command, check=True)
    result = subprocess.run([str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "thread 3 of block (0, 0, 0) does not reach the barrier" in result.stderr


# --- finding, loading and compiling ---------------------------------------------------------------


def test_sizes_out_of_range_are_refused(kernels: Kernels) -> None:
    with pytest.raises(BackendError, match=r"tatok_cells failed: invalid argument \(CUDA error 1\)"):
        kernels.image_to_cells(Frames.packed(0, 1, 0, 5), 0)
    with pytest.raises(BackendError, match="tatok_decoder_state"):
        kernels.decoder_state(0, 0, -1, 0, 0, 1, 1, LEVELS, 0)
    with pytest.raises(InputError, match="1 to 16"):
        kernels.decoder_state(0, 0, 0, 0, 0, 1, 1, (), 0)


def test_a_library_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF")
    with pytest.raises(BackendError, match=r"cannot load the CUDA kernels from .*broken\.so.*build"):
        cuda_kernels.load(broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(cuda_kernels.LIBRARY_VARIABLE, raising=False)
    with pytest.raises(BackendError, match=r"no CUDA kernels .*; build them: python -m tatok_edge"):
        cuda_kernels.load()
    monkeypatch.setenv(cuda_kernels.LIBRARY_VARIABLE, str(tmp_path / "missing.so"))
    with pytest.raises(BackendError, match=r"TATOK_CUDA_LIBRARY names .*missing\.so"):
        cuda_kernels.load()


def test_the_newest_library_of_these_sources_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(cuda_kernels.LIBRARY_VARIABLE, raising=False)
    folder = cuda_kernels.cache_folder()
    folder.mkdir(parents=True)
    (folder / "tatok_cuda-0123456789abcdef-sm87.so").touch()  # of other sources
    wanted = folder / f"tatok_cuda-{cuda_kernels.source_tag()}-sm87.so"
    wanted.touch()
    assert cuda_kernels.find_library() == wanted


def test_without_a_compiler_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Path:
        raise BackendError("nvcc is not on the path")

    monkeypatch.setattr(cuda_kernels, "find_nvcc", missing)
    assert cuda_kernels.main(["build", "--sm", "8.7", "--out", str(tmp_path / "k.so")]) == 1
    assert capsys.readouterr().err.endswith("error: nvcc is not on the path\n")
    assert not list(tmp_path.iterdir())


def test_nvcc_compiles_for_every_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        nvcc = cuda_kernels.find_nvcc()
    except BackendError as error:
        pytest.skip(str(error))
    available = cuda_kernels.supported_sms(nvcc)
    chosen = [sm for sm in cuda_kernels.SMS if sm in available]
    assert chosen, f"{nvcc} has {available}"
    out = tmp_path / "tatok_cuda.so"
    assert cuda_kernels.main(["build", "--sm", ",".join(chosen), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]  # nothing half-written stays behind
    library = cuda_kernels.load(out)
    assert not library.emulated
    dump = cuda_kernels.toolkit_folder(nvcc) / "bin" / "cuobjdump"
    if dump.is_file():
        listing = subprocess.run([str(dump), "--list-elf", str(out)], capture_output=True, text=True, check=True).stdout
        for sm in chosen:
            assert f"sm_{sm.replace('.', '')}.cubin" in listing
    assert cuda_kernels.main(["build", "--sm", "1.0", "--out", str(out)]) == 1
    assert "makes no code for SM '1.0'" in capsys.readouterr().err
