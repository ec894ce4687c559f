"""The CUDA kernels: compiled by one command, loaded by path, called through plain C functions.

    python -m tatok_edge.runtime.cuda.kernels build --sm 8.7

The sources in ``cuda/`` use the same core as the CPU kernels (``cpp/``). nvcc compiles them into one shared library,
for one or more GPU architectures. The functions take device pointers and a stream as integers, so the memory may belong
to :mod:`tatok_edge.runtime.cuda.device`, PyTorch, CuPy or a TensorRT plugin. They all work in the primary context.

A C++ compiler can compile the same sources as an *emulation*, a library that takes host memory. It is slow, and serves
tests: they check that the kernels compute the right bits.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tatok_edge.errors import BackendError, InputError
from tatok_edge.files import put_in_place
from tatok_edge.runtime.cache import user_cache
from tatok_edge.runtime.cuda.signatures import MAX_DIMS, SIGNATURES, CFrames, CLevels, CLimits, CScores
from tatok_edge.runtime.library_command import library_parser, run_library_command

FOLDER = Path(__file__).resolve().parents[1]
SOURCE = FOLDER / "cuda" / "tatok_cuda.cu"
SUFFIXES = (".hpp", ".h", ".cu", ".cuh")
"""Endings of the files that the library is compiled from."""
SMS = ("7.5", "8.6", "8.7", "8.9", "9.0", "11.0", "12.0")
"""GPU architectures of the product: Turing, Ampere, Orin, Ada, Hopper, Thor and Blackwell desktops."""
ABI = 3
"""Version of the C functions, as in ``cuda/tatok_cuda.h``."""
MAX_PATCHES = 1 << 16
"""Largest number of patches per image in token filtering."""
MAX_DEPTH = 8
"""Largest number of scores per patch in token filtering."""
LIBRARY_VARIABLE = "TATOK_CUDA_LIBRARY"
"""Environment variable with the path of the library to load."""

_SCORE_ONE, _SCORE_MAX, _TAU_ONE, _INT_MAX = 1 << 16, (1 << 31) - 1, 1 << 30, (1 << 31) - 1
_NO_KERNEL_IMAGE = 209  # cudaErrorNoKernelImageForDevice
# No fused multiply-add that is not asked for: every backend must give the same bits.
_NVCC_FLAGS = ("-std=c++17", "-O3", "--fmad=false", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden")
_CXX_FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-fvisibility=hidden", "-w")


# --- inputs of the kernels ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DtfLimits:
    """Limits of Dynamic Token Filtering, as the integers that every implementation uses."""

    share: int
    """``tau`` with 30 fractional bits, 1 to 2^30."""
    min_tokens: int
    max_tokens: int
    """At least ``min_tokens``; 2^31 - 1 for no limit."""
    floor_score: int
    """``floor_bits`` with 16 fractional bits."""

    @classmethod
    def make(
        cls, *, tau: float = 1.0, min_tokens: int = 0, max_tokens: int | None = None, floor_bits: float = 0.0
    ) -> DtfLimits:
        """Limits as the CPU kernel takes them.

        Raises:
            InputError: a value out of range.
        """
        most = _INT_MAX if max_tokens is None else min(max_tokens, _INT_MAX)
        if not 0.0 < tau <= 1.0:
            raise InputError(f"tau must be above 0 and at most 1, got {tau}")
        if not 0 <= min_tokens <= most:
            raise InputError(
                f"min_tokens must be between 0 and max_tokens, got min_tokens={min_tokens}, max_tokens={max_tokens}"
            )
        if not (math.isfinite(floor_bits) and floor_bits >= 0.0):
            raise InputError(f"floor_bits must be finite and at least 0, got {floor_bits}")
        # Python rounds half to even, like rint. The share is at least 1: a very small tau keeps the best token.
        share = max(1, round(tau * _TAU_ONE))
        return cls(share, min_tokens, most, min(_SCORE_MAX, round(min(floor_bits, 65536.0) * _SCORE_ONE)))


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores (images, patches, depth) in memory that the library can read, float32 or float16; strides in elements."""

    pointer: int
    images: int
    patches: int
    depth: int
    strides: tuple[int, int, int]
    """Strides of image, patch and depth."""
    half: bool = False

    @classmethod
    def packed(cls, pointer: int, images: int, patches: int, depth: int, *, half: bool = False) -> Scores:
        """Scores (images, patches, depth) without gaps."""
        return cls(pointer, images, patches, depth, (patches * depth, depth, 1), half)

    @classmethod
    def planes(
        cls, pointer: int, images: int, patches: int, depth: int, *, of: int | None = None, half: bool = False
    ) -> Scores:
        """The first ``depth`` planes of scores (images, of, patches) without gaps; ``of`` is ``depth`` by default."""
        return cls(pointer, images, patches, depth, ((of or depth) * patches, 1, patches), half)


@dataclass(frozen=True, slots=True)
class Frames:
    """uint8 frames (images, height, width, 3) in memory that the library can read; strides in bytes."""

    pointer: int
    images: int
    height: int
    width: int
    strides: tuple[int, int, int, int]
    """Strides of image, row, pixel and channel."""
    bgr: bool = False

    @classmethod
    def packed(cls, pointer: int, images: int, height: int, width: int, *, bgr: bool = False) -> Frames:
        """Frames that follow one another without gaps."""
        return cls(pointer, images, height, width, (height * width * 3, width * 3, 3, 1), bgr)


def _frames(frames: Frames) -> CFrames:
    return CFrames(frames.pointer, *frames.strides, frames.images, frames.height, frames.width, int(frames.bgr))


def _levels(levels: Sequence[int]) -> CLevels:
    if not 1 <= len(levels) <= MAX_DIMS:
        raise InputError(f"levels must hold 1 to {MAX_DIMS} numbers, got {len(levels)}")
    return CLevels(len(levels), (ctypes.c_int32 * MAX_DIMS)(*levels))


# --- the library ----------------------------------------------------------------------------------


class Kernels:
    """The kernels of one loaded library.

    Every method puts its work on ``stream`` (an integer handle, 0 for the default stream) and does not wait for it.
    Pointers are integers, to device memory (host memory where ``emulated``). ``reference.py`` specifies the results,
    and ``cuda/tatok_cuda.h`` the shapes. The caller must pass correct pointers and sizes; only the range of the sizes
    is checked. No score, position or code makes a kernel leave its buffers.

    Args:
        path: The shared library.

    Raises:
        BackendError: the library cannot be loaded, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
            abi = int(self._library.tatok_abi())
            self.emulated = bool(self._library.tatok_emulated())
            for name, types in SIGNATURES.items():
                function = getattr(self._library, name)
                function.argtypes, function.restype = types, ctypes.c_int
        except (OSError, AttributeError) as error:
            raise BackendError(f"cannot load the CUDA kernels from {path}: {error}; {HOW_TO_BUILD}") from error
        if abi != ABI:
            raise BackendError(f"{path} has kernels of version {abi}, this package needs {ABI}; {HOW_TO_BUILD}")
        self._library.tatok_error_text.restype = ctypes.c_char_p
        self.path = path
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def __repr__(self) -> str:
        return f"Kernels({str(self.path)!r}{', emulated' if self.emulated else ''})"

    def _call(self, name: str, *arguments: object) -> None:
        error = int(getattr(self._library, name)(*arguments))
        if error:
            text = self._library.tatok_error_text(error).decode("ascii", "replace")
            hint = f"; {HOW_TO_BUILD}, with --sm for this GPU" if error == _NO_KERNEL_IMAGE else ""
            raise BackendError(f"{name} failed: {text} (CUDA error {error}){hint}")

    def dtf(
        self, scores: Scores, limits: DtfLimits, positions: int, depths: int, counts: int, *, stream: int = 0
    ) -> None:
        """Token filtering: ``reference.dtf``, dense.

        ``positions`` int32 (images, patches * depth) gets the kept tokens of each image in raster order, then -1, and
        ``depths`` of the same shape their depths from 1, then 0. ``counts`` int32 (images,) gets their number, or
        ``-1 - i`` if score ``i`` of the image, as (patches, depth), is the first negative or not finite one.
        """
        if scores.patches > MAX_PATCHES:
            raise InputError(f"token filtering takes up to {MAX_PATCHES} patches per image, got {scores.patches}")
        if not 1 <= scores.depth <= MAX_DEPTH:
            raise InputError(f"token filtering takes 1 to {MAX_DEPTH} scores per patch, got {scores.depth}")
        given = CScores(
            *(scores.pointer, *scores.strides, scores.images, scores.patches, scores.depth, int(scores.half))
        )
        values = CLimits(limits.share, limits.min_tokens, limits.max_tokens, limits.floor_score)
        self._call("tatok_dtf", ctypes.byref(given), ctypes.byref(values), positions, depths, counts, stream)

    def flatten(
        self,
        positions: int,
        depths: int,
        counts: int,
        images: int,
        patches: int,
        depth: int,
        flat_positions: int,
        flat_depths: int,
        cu_seqlens: int,
        *,
        stream: int = 0,
    ) -> None:
        """The result of :meth:`dtf` flat over the batch, as ``reference.dtf`` gives it.

        ``flat_positions`` and ``flat_depths`` int32 (images * patches * depth) have -1 and 0 behind the last token;
        ``cu_seqlens`` int32 (images + 1,).
        """
        self._call(
            "tatok_flatten",
            *(positions, depths, counts, images, patches, depth, flat_positions, flat_depths, cu_seqlens, stream),
        )

    def image_to_cells(self, frames: Frames, cells: int, *, stream: int = 0) -> None:
        """``reference.image_to_cells``: float32 (images, 192, hc, wc)."""
        self._call("tatok_cells", ctypes.byref(_frames(frames)), cells, stream)

    def gather_features(
        self,
        frames: Frames,
        context: int,
        context_channels: int,
        mean: int,
        positions: int,
        count: int,
        rows: int,
        *,
        stream: int = 0,
    ) -> None:
        """``reference.gather_features`` for flat positions (count,): float32 (count, 960 + context_channels).

        A position outside the batch gives a row of zeros.
        """
        self._call(
            "tatok_features",
            *(ctypes.byref(_frames(frames)), context, context_channels, mean, positions, count, rows, stream),
        )

    def assemble(
        self, pixels: int, images: int, height: int, width: int, frames: int, *, bgr: bool = False, stream: int = 0
    ) -> None:
        """``reference.assemble``: uint8 (images, height, width, 3) from float32 (images, 192, patches)."""
        self._call("tatok_assemble", pixels, images, height, width, int(bgr), frames, stream)

    def patch_change(self, frames: Frames, reference: int, changes: int, *, stream: int = 0) -> None:
        """``reference.patch_change``: int32 (images, 2, patches); ``reference`` lies at a multiple of 4 bytes."""
        self._call("tatok_change", ctypes.byref(_frames(frames)), reference, changes, stream)

    def patch_scores(
        self,
        frames: Frames,
        mean: int,
        basis: int,
        depth: int,
        dims: int,
        scores: int,
        *,
        weights: int = 0,
        stream: int = 0,
    ) -> None:
        """``reference.patch_scores`` of every patch: float32 (images, patches, depth).

        ``mean`` is float32 (images, 192, patches), ``basis`` int16 (depth, dims, 192). The scores are multiplied by
        ``weights``, float32 (images, patches), where they are given.
        """
        self._call(
            "tatok_patch_scores", ctypes.byref(_frames(frames)), mean, basis, depth, dims, weights, scores, stream
        )

    def visual_weights(self, frames: Frames, activity: int, weights: int, *, stream: int = 0) -> None:
        """``reference.visual_weights``: float32 (images, patches); ``activity`` int64 (images, patches) is scratch."""
        self._call("tatok_visual_weights", ctypes.byref(_frames(frames)), activity, weights, stream)

    def update_reference(self, frames: Frames, reference: int, positions: int, count: int, *, stream: int = 0) -> None:
        """``reference.update_reference`` for flat positions (count,); one outside the batch is skipped."""
        self._call("tatok_update_reference", ctypes.byref(_frames(frames)), reference, positions, count, stream)

    def decoder_state(
        self,
        codes: int,
        positions: int,
        count: int,
        expected: int,
        entropy: int,
        images: int,
        patches: int,
        depth: int,
        levels: Sequence[int],
        state: int,
        *,
        stream: int = 0,
    ) -> None:
        """``reference.decoder_state`` for flat positions (count,): float32 (images, depth * (D + 2), patches).

        Positions never fall. A position outside the batch, a code outside its levels, or a token beyond ``depth`` is
        skipped.
        """
        self._call(
            "tatok_decoder_state",
            *(codes, positions, count, expected, entropy, images, patches, depth),
            *(ctypes.byref(_levels(levels)), state, stream),
        )

    def information(
        self,
        log2_probs: int,
        codes: int,
        positions: int,
        count: int,
        images: int,
        patches: int,
        stack: int,
        depth: int,
        levels: Sequence[int],
        bits: int,
        *,
        stream: int = 0,
    ) -> None:
        """``reference.information`` of stacks for flat positions (count,), the smallest up to each depth.

        ``codes`` int32 (count, stack * D), ``log2_probs`` float32 (images, stack * sum(levels), patches), ``bits``
        float32 (count, depth) for the first ``depth`` tokens; 0 for a wrong position or code.
        """
        self._call(
            "tatok_information",
            *(log2_probs, codes, positions, count, images, patches, stack, depth),
            *(ctypes.byref(_levels(levels)), bits, stream),
        )


# --- building and finding -------------------------------------------------------------------------

HOW_TO_BUILD = "build them: python -m tatok_edge.runtime.cuda.kernels build (needs nvcc)"
"""Hint of error messages about a missing library."""


@lru_cache(maxsize=1)
def source_tag() -> str:
    """The first 16 digits of the hash of all sources of the library."""
    digest = hashlib.sha256(repr((_NVCC_FLAGS, ABI)).encode())
    files = [path for folder in ("cuda", "cpp") for path in (FOLDER / folder).iterdir() if path.suffix in SUFFIXES]
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Folder of the built libraries, under ``XDG_CACHE_HOME`` or ``~/.cache``."""
    return user_cache() / "cuda"


def find_nvcc() -> Path:
    """The CUDA compiler: on the path, in ``CUDA_HOME``, or where NVIDIA's packages put it.

    Raises:
        BackendError: there is no compiler.
    """
    found = shutil.which("nvcc")
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    for path in ([Path(found)] if found else []) + [home / "bin" / "nvcc" for home in homes]:
        if path.is_file():
            return path
    raise BackendError(
        "nvcc is not on the path, in $CUDA_HOME/bin or in /usr/local/cuda/bin; install the CUDA toolkit "
        "(on a Jetson: sudo apt install cuda-nvcc-12-6, or the version of your JetPack)"
    )


def supported_sms(nvcc: Path) -> list[str]:
    """The GPU architectures that this compiler makes code for, such as ``"8.7"``."""
    text = _compile([str(nvcc), "--list-gpu-code"])
    return [f"{code[:-1]}.{code[-1]}" for code in re.findall(r"^sm_(\d+)$", text, re.MULTILINE)]


def toolkit_folder(nvcc: Path) -> Path:
    """The CUDA toolkit that a compiler belongs to; ``nvcc`` on the path may be a script that calls it.

    Raises:
        BackendError: the compiler does not say.
    """
    command = [str(nvcc), "--dryrun", "-x", "cu", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    top = re.search(r"TOP=(.+)$", result.stderr, re.MULTILINE)
    if top is None:
        raise BackendError(f"{' '.join(command)} does not say where the CUDA toolkit is")
    return Path(top[1].strip()).resolve()


def choose_sms(nvcc: Path, sms: Sequence[str] | None) -> list[str]:
    """GPU architectures to compile for, ascending: ``sms``, by default those of :data:`SMS` that the compiler has.

    Raises:
        InputError: an architecture that the compiler does not have, or none at all.
    """
    available = supported_sms(nvcc)
    chosen = [sm for sm in SMS if sm in available] if sms is None else list(dict.fromkeys(sms))
    for sm in chosen:
        if sm not in available:
            raise InputError(f"{nvcc} makes no code for SM {sm!r}; it does for {', '.join(available)}")
    if not chosen:
        raise InputError(f"no GPU architecture to build for; {nvcc} has {', '.join(available)}")
    return sorted(chosen, key=float)


def parse_sms(text: str | None) -> list[str] | None:
    """``"8.7,8.9"`` as a list; None stays None."""
    return None if text is None else [sm.strip() for sm in text.split(",") if sm.strip()]


def build(sms: Sequence[str] | None = None, out: Path | None = None) -> Path:
    """Compile the kernels with nvcc into one shared library.

    The library also holds PTX of the newest architecture, which later GPUs compile for themselves.

    Args:
        sms: GPU architectures such as ``"8.7"``; by default those of :data:`SMS` that the compiler has.
        out: File to write; by default one in the user's cache directory, where :func:`find_library` looks.

    Raises:
        InputError: an architecture that this compiler does not have.
        BackendError: no compiler, a failed compilation, or a folder that cannot be written.
    """
    nvcc = find_nvcc()
    chosen = choose_sms(nvcc, sms)
    codes = [sm.replace(".", "") for sm in chosen]
    if out is None:
        out = cache_folder() / f"tatok_cuda-{source_tag()}-sm{'-'.join(codes)}.so"
    flags = [f"-gencode=arch=compute_{code},code=sm_{code}" for code in codes]
    flags.append(f"-gencode=arch=compute_{codes[-1]},code=compute_{codes[-1]}")
    _write([str(nvcc), *_NVCC_FLAGS, *flags, str(SOURCE)], out)
    return out


def build_emulation(out: Path, compiler: str = "g++") -> Path:
    """Compile the kernels with a C++ compiler, as a library that runs them on the CPU.

    Args:
        out: File to write.
        compiler: GCC or Clang, on Linux.

    Raises:
        BackendError: no such compiler, a failed compilation, or a folder that cannot be written.
    """
    if shutil.which(compiler) is None:
        raise BackendError(f"the C++ compiler {compiler!r} is not on the path")
    _write([compiler, *_CXX_FLAGS, "-U_FORTIFY_SOURCE", "-x", "c++", str(SOURCE)], out)
    return out


def find_library() -> Path:
    """The library to load: the file in :data:`LIBRARY_VARIABLE`, one inside the package, or the newest one built here.

    Raises:
        BackendError: no library was built from these sources.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise BackendError(f"{LIBRARY_VARIABLE} names {named}, which is no file; {HOW_TO_BUILD}")
        return Path(named)
    shipped = FOLDER / "cuda" / "tatok_cuda.so"
    if shipped.is_file():
        return shipped
    built = sorted(cache_folder().glob(f"tatok_cuda-{source_tag()}-sm*.so"), key=lambda path: path.stat().st_mtime)
    if not built:
        raise BackendError(f"no CUDA kernels of this version in {cache_folder()}; {HOW_TO_BUILD}")
    return built[-1]


def load(path: Path | None = None) -> Kernels:
    """The kernels of the library at ``path``, by default of the one that :func:`find_library` finds.

    Raises:
        BackendError: there is no library, or it cannot be loaded.
    """
    return Kernels(find_library() if path is None else path)


def _compile(command: Sequence[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BackendError(f"cannot run {command[0]}: {error}") from error
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise BackendError(f"{' '.join(command)} failed with exit code {result.returncode}: {first}")
    return result.stdout


def _write(command: Sequence[str], out: Path) -> None:
    """Run a compiler that writes ``out``; the file appears only when it is complete."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=out.parent) as folder:
            made = Path(folder) / "library.so"
            _compile([*command, "-o", str(made)])
            put_in_place(made, out)
    except OSError as error:
        raise BackendError(f"cannot write {out}: {error.strerror or error}; pass another file (--out)") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser, _ = library_parser(
        "tatok_edge.runtime.cuda.kernels",
        __doc__.split("\n")[0],
        build="compile the kernels with nvcc",
        find="print the library that would be loaded",
        sm=f"GPU architectures, such as 8.7,8.9 (default: those of {','.join(SMS)} that nvcc has)",
    )
    return run_library_command(
        parser,
        arguments,
        build=lambda options: build(parse_sms(options.sm), options.out),
        find=find_library,
        note="compiling the CUDA kernels; this takes about half a minute per architecture",
    )


if __name__ == "__main__":
    sys.exit(main())
