"""Model bundles: a folder or zip of ONNX graphs, an integer entropy model and a manifest with their hashes."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import math
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import BundleError
from tatok_edge.files import open_regular, read_regular, replaced_file
from tatok_edge.format.entropy import IntegerEntropyModel, load_tables
from tatok_edge.geometry import PATCH_VALUES
from tatok_edge.runtime.onnx_graph import check_graph
from tatok_edge.runtime.session import GraphName
from tatok_edge.tokens.checks import MAX_DEPTH

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPHS = ("global_encoder", "cell_context", "context", "patch_encoder", "decoder")
ENTROPY = "entropy"
SCORES = "scores"
"""Entry of the manifest for the arrays of the scores."""
SCORE_ONE = 1 << 14
"""Length of a direction of the score basis, in integers."""
MAX_SCORE_BYTES = 1 << 22
"""Largest size of the arrays of the scores, unpacked."""
INT8 = "int8"
"""Key of the manifest for the graphs in int8. The tag leaves it out: both precisions decode the tokens of both."""
INT8_GRAPHS: tuple[GraphName, ...] = ("decoder", "context", "patch_encoder")
"""Graphs that may be there in int8."""
REFINER = "refiner"
"""Key of the manifest for the refiner. The tag leaves it out: refined tokens are ordinary tokens."""
Precision = Literal["fp32", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Precisions of the graphs on a CPU."""
DEFAULT_MODEL = "tatok-s8"
MODELS = Path(__file__).parents[1] / "models"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names of models that a file may give: never a path."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. Each file is checked against the hash in the manifest when it is read."""

    path: Path
    """Folder or zip file."""
    manifest: Mapping[str, Any]
    """The parsed ``manifest.json``."""
    name: str
    """Model name."""
    tag: bytes = field(repr=False)
    """Eight bytes that name the content; packets carry them."""
    levels: tuple[int, ...]
    """FSQ levels per code dimension."""
    depth: int
    """Most tokens of a patch."""
    context_width: int
    """Channels of the context map."""

    def read(self, entry: str) -> bytes:
        """The bytes of one file of the manifest (a graph name or ``"entropy"``), checked against its hash."""
        return self._read(self.manifest["files"][entry])

    def graphs(self, precision: Precision = "fp32") -> dict[str, bytes]:
        """The graphs by name, checked against their hashes.

        Args:
            precision: ``"fp32"`` (as exported), or ``"int8"``: with those graphs that ``tatok_edge.export.bundle.int8``
                added.

        Raises:
            BundleError: the bundle has no graphs in int8; a damaged file.
        """
        graphs = {name: self.read(name) for name in GRAPHS}
        if precision == INT8:
            if INT8 not in self.manifest:
                raise BundleError(
                    f"{self.path} has no int8 graphs: add them with "
                    f"'python -m tatok_edge.export.bundle.int8 {self.path} --pictures DIR', or use precision fp32"
                )
            graphs |= {name: self._read(info) for name, info in self.manifest[INT8]["files"].items()}
        for name, data in graphs.items():
            check_graph(data, name)
        return graphs

    def refiner(self) -> tuple[bytes, tuple[float, ...]]:
        """The refiner's graph, and the decoder's curvature along each code dimension.

        Raises:
            BundleError: the bundle has no refiner; a damaged file.
        """
        if REFINER not in self.manifest:
            raise BundleError(
                f"{self.path} has no refiner, but the budget asks for refining: add one with "
                f"'python -m tatok_edge.export.bundle.refiner {self.path} --pictures DIR', or use refine 0"
            )
        section = self.manifest[REFINER]
        graph = self._read(section["files"][REFINER])
        check_graph(graph, REFINER)
        return graph, tuple(float(value) for value in section["curvature"])

    def _read(self, info: Mapping[str, str]) -> bytes:
        data = _read(self.path, info["file"], MAX_FILE_BYTES)
        digest = hashlib.sha256(data).hexdigest()
        if digest != info["sha256"]:
            raise BundleError(
                f"{self.path}/{info['file']}: SHA-256 is {digest[:12]}..., the manifest says {info['sha256'][:12]}...; "
                "the file is damaged or was changed: export or install the bundle again"
            )
        return data

    def entropy_model(self) -> IntegerEntropyModel:
        """The integer entropy model."""
        tables = load_tables(self.read(ENTROPY), self.levels, self.depth, str(self.path))
        return IntegerEntropyModel(self.levels, self.depth, self.tag, tables)

    def score_basis(self) -> NDArray[np.int16]:
        """Directions that the tokens of a stack add, int16 ``(K, D, 192)``, as ``kernels.patch_scores`` takes them."""
        return load_scores(self.read(SCORES), len(self.levels), self.depth, str(self.path))[0]


def user_models() -> Path:
    """The user's folder of models: bundles there are found by name, as the shipped ones are.

    ``TATOK_MODELS``, or else ``~/.local/share/tatok-edge/models``.
    """
    return Path(os.environ.get("TATOK_MODELS") or Path.home() / ".local" / "share" / "tatok-edge" / "models")


def named_bundle(name: str) -> Path:
    """The bundle of a name that came from a file: a shipped one, or one in the user's folder. Never a path.

    Raises:
        BundleError: There is none.
    """
    if name in list_models():
        return MODELS / name
    path = user_models() / name
    if _NAME.fullmatch(name) and (path / MANIFEST).is_file():
        return path
    known = ", ".join(list_models()) or "none"
    raise BundleError(
        f"the file was made by model {name!r:.80}, which is neither a shipped one ({known}) nor in {user_models()}; "
        "give the path of its bundle with --model"
    )


def list_models() -> list[str]:
    """Names of the models that ship with the package.

    Example:
        >>> for name in tatok_edge.list_models():
        ...     print(name)
    """
    if not MODELS.is_dir():
        return []
    return sorted(p.name for p in MODELS.iterdir() if (p / MANIFEST).is_file())


def open_bundle(name_or_path: str | Path) -> Bundle:
    """Open a model that ships or is in the user's folder by name, or a bundle folder or zip by path.

    Raises:
        BundleError: unknown name, unreadable or invalid manifest, newer format, missing files.
    """
    path = Path(name_or_path)
    if str(name_or_path) in list_models():
        path = MODELS / str(name_or_path)
    elif not _exists(path) and _NAME.fullmatch(str(name_or_path)) and (user_models() / path / MANIFEST).is_file():
        path = user_models() / path
    elif not _exists(path):
        known = ", ".join(list_models()) or "none"
        raise BundleError(
            f"unknown model {str(name_or_path)!r}: give one of the shipped models ({known}) or a bundle's path"
        )
    text = _read(path, MANIFEST, MAX_MANIFEST_BYTES)
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}/{MANIFEST}: not valid JSON ({error})") from error
    return _check(path, manifest)


def open_folder(path: Path) -> Bundle:
    """Open a bundle folder, to add or replace files.

    Raises:
        BundleError: not a bundle folder.
    """
    if not path.is_dir():
        raise BundleError(f"{path}: must be a bundle folder (no file can be added to a zip: unpack it)")
    return open_bundle(path)


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Put files into a bundle folder, in this order. A reader sees each file old or new, never in part."""
    for name, content in contents.items():
        with replaced_file(folder / name) as temporary:
            temporary.write_bytes(content)


def content_tag(files: Mapping[str, Mapping[str, str]]) -> bytes:
    """The model tag: eight bytes from the hashes of the graphs, the entropy model and the scores."""
    digest = hashlib.sha256()
    for entry in (*GRAPHS, ENTROPY, SCORES):
        digest.update(bytes.fromhex(files[entry]["sha256"]))
    return digest.digest()[:8]


def _check(path: Path, manifest: Any) -> Bundle:
    where = f"{path}/{MANIFEST}"
    if not isinstance(manifest, dict):
        raise BundleError(f"{where}: must be a JSON object")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise BundleError(f"{where}: no valid 'format_version'; this is not a TaTok bundle")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{where}: bundle format {version} is newer than this version reads ({FORMAT_VERSION}): upgrade tatok-edge"
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise BundleError(f"{where}: 'files' is missing")
    for entry in (*GRAPHS, ENTROPY, SCORES):
        _check_file(where, entry, files.get(entry))
    if INT8 in manifest:
        _check_int8(where, manifest[INT8])
    name, levels = manifest.get("name"), manifest.get("levels")
    if not isinstance(name, str) or not 0 < len(name) <= 64 or not name.isprintable():
        raise BundleError(f"{where}: 'name' must be a string of 1 to 64 printable characters")
    if (
        not isinstance(levels, list)
        or not 1 <= len(levels) <= 16
        or any(not isinstance(v, int) or not 2 <= v <= 64 for v in levels)
    ):
        raise BundleError(f"{where}: 'levels' must be 1 to 16 integers between 2 and 64")
    if math.prod(levels) >= 1 << 31:
        raise BundleError(f"{where}: 'levels' make {math.prod(levels)} token ids, more than an int32 holds")
    depth = manifest.get("depth")
    if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= MAX_DEPTH:
        raise BundleError(f"{where}: 'depth' must be an integer from 1 to {MAX_DEPTH}")
    if REFINER in manifest:
        _check_refiner(where, manifest[REFINER], depth * len(levels))
    width = manifest.get("context_width")
    if not isinstance(width, int) or not 1 <= width <= 4096:
        raise BundleError(f"{where}: 'context_width' must be an integer between 1 and 4096")
    return Bundle(path, manifest, name, content_tag(files), tuple(levels), depth, width)


def _check_file(where: str, entry: str, info: Any) -> None:
    """Check one file of a manifest."""
    if not isinstance(info, dict) or not isinstance(info.get("file"), str) or not isinstance(info.get("sha256"), str):
        raise BundleError(f"{where}: 'files' has no {entry!r} with 'file' and 'sha256'")
    if Path(info["file"]).name != info["file"] or not info["file"].isprintable():
        raise BundleError(f"{where}: file name {info['file']!r} must be one printable name without folders")
    if len(info["sha256"]) != 64 or any(c not in "0123456789abcdef" for c in info["sha256"]):
        raise BundleError(f"{where}: 'sha256' of {entry!r} is not 64 hexadecimal digits")


def _check_int8(where: str, section: Any) -> None:
    """Check the graphs in int8."""
    files = section.get("files") if isinstance(section, dict) else None
    if not isinstance(files, dict) or not files or not set(files) <= set(INT8_GRAPHS):
        names = ", ".join(INT8_GRAPHS)
        raise BundleError(f"{where}: {INT8!r} must hold 'files' with entries of {names}, at least one and no other")
    for name, info in files.items():
        _check_file(where, name, info)


def _check_refiner(where: str, section: Any, dims: int) -> None:
    """Check the refiner's graph, and that there is one curvature for each code dimension of a stack."""
    files = section.get("files") if isinstance(section, dict) else None
    if not isinstance(files, dict) or set(files) != {REFINER}:
        raise BundleError(f"{where}: {REFINER!r} must hold 'files' with the entry {REFINER!r} and no other")
    _check_file(where, REFINER, files[REFINER])
    values = section.get("curvature")
    if (
        not isinstance(values, list)
        or len(values) != dims
        or any(isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 < v < math.inf for v in values)
    ):
        raise BundleError(f"{where}: 'curvature' of {REFINER!r} must be {dims} finite numbers above 0")


def save_scores(basis: NDArray[np.int16], local: NDArray[np.float32]) -> bytes:
    """The arrays of the scores as an ``.npz`` file.

    Args:
        basis: Orthonormal directions that each token of a stack adds, times 2^14, ``(K, D, 192)``.
        local: Linear reconstruction of the residual from the code values of each token, ``(K, 192, D + 1)``; the last
            column is the bias. Training starts from it; the runtime does not need it.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, basis=basis, local=local)
    return buffer.getvalue()


def load_scores(data: bytes, dims: int, depth: int, where: str) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Parse and check the arrays of :func:`save_scores`; never unpickles.

    Raises:
        BundleError: An array is missing, or has a wrong shape, type or value.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > MAX_SCORE_BYTES:
            raise ValueError(f"{unpacked} bytes unpacked, at most {MAX_SCORE_BYTES} are allowed")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            basis, local = file["basis"], file["local"]
    except Exception as error:
        raise BundleError(f"{where}: the scores cannot be read ({error}); install the model again") from error
    found = (basis, "int16", (depth, dims, PATCH_VALUES)), (local, "float32", (depth, PATCH_VALUES, dims + 1))
    for name, (array, dtype, shape) in zip(("basis", "local"), found, strict=True):
        if array.dtype != np.dtype(dtype) or array.shape != shape:
            raise BundleError(
                f"{where}: array {name!r} of the scores must be {dtype} {shape}, got {array.dtype} {array.shape}"
            )
    # Longer directions would leave the integers that the kernel sums in.
    longest = np.square(basis.astype(np.int64)).sum(2).max()
    if longest > (SCORE_ONE + 64) ** 2:
        raise BundleError(f"{where}: the directions of the scores must have a length of 2^14, got {longest**0.5:.0f}")
    return np.ascontiguousarray(basis), local


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a folder that may not be searched
        return False


def _read(path: Path, name: str, limit: int) -> bytes:
    """Read one file of a bundle folder or zip, at most ``limit`` bytes."""
    try:
        if path.is_dir():
            file = path / name
            data = read_regular(file, limit)
            if data is None:
                raise BundleError(f"{file}: larger than the {limit} bytes that are allowed")
            return data
        with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
            info = archive.getinfo(name)
            if info.file_size > limit:
                raise BundleError(f"{path}:{name}: larger than the {limit} bytes that are allowed")
            with archive.open(info) as stream:
                return stream.read(limit)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: {name} is missing; a bundle is a folder or zip with {MANIFEST} in it") from error
    except KeyError as error:
        raise BundleError(f"{path}: {name} is missing from the zip") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError) as error:
        # RuntimeError: the zip is encrypted, or Python does not know its compression.
        raise BundleError(f"{path}: cannot be read as a bundle folder or zip ({error})") from error
