"""Model bundles: folder and zip, every damage that a manifest or a file can have, and nothing ever unpickled."""

import copy
import hashlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tatok_edge.errors import BackendError, BundleError
from tatok_edge.format.entropy import FORM, SHARES, exp_table, load_tables, network_kinds, save_tables
from tatok_edge.model import bundle as bundle_module
from tatok_edge.model.bundle import (
    DEFAULT_MODEL,
    GRAPHS,
    MODELS,
    SCORE_ONE,
    content_tag,
    list_models,
    load_scores,
    open_bundle,
    save_scores,
)
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu.coder import input_sizes

LEVELS = (3, 2)
DEPTH = 2
Manifest = dict[str, Any]


def small_tables() -> dict[str, np.ndarray]:
    """Entropy tables of the right shapes for ``LEVELS`` and ``DEPTH``."""
    tables: dict[str, np.ndarray] = {"exp": exp_table()}
    for net, kind in network_kinds(LEVELS, DEPTH).items():
        around = (len(LEVELS), SHARES) if kind.of_patches else (0, 0)
        inputs = sum(input_sizes(len(kind.levels), *around, kind.shallower, kind.held))
        outputs = sum(kind.levels)
        for name, shape in (("w1", (inputs, 4)), ("w2", (4, 4)), ("w3", (4, outputs))):
            tables[f"{net}_{name}"] = np.ones(shape, np.int16)
        for name, size in (("b1", 4), ("b2", 4), ("b3", outputs)):
            tables[f"{net}_{name}"] = np.ones(size, np.int32)
    return tables


def small_scores() -> tuple[np.ndarray, np.ndarray]:
    """Arrays of the scores of the right shapes: each direction is that of one pixel value."""
    basis = np.zeros((DEPTH, len(LEVELS), 192), np.int16)
    basis.reshape(DEPTH * len(LEVELS), 192)[:, : DEPTH * len(LEVELS)] = SCORE_ONE * np.eye(DEPTH * len(LEVELS))
    return basis, np.zeros((DEPTH, 192, len(LEVELS) + 1), np.float32)


def write_bundle(folder: Path) -> Manifest:
    """A bundle whose files have their hashes; the graphs are no graphs, which opening does not look at."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {name: (f"{name}.onnx", name.encode() * 100) for name in GRAPHS}
    contents["entropy"] = ("entropy.npz", save_tables(small_tables()))
    contents["scores"] = ("scores.npz", save_scores(*small_scores()))
    files = {}
    for entry, (name, data) in contents.items():
        (folder / name).write_bytes(data)
        files[entry] = {"file": name, "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {
        "format_version": 1,
        "name": "small",
        "levels": list(LEVELS),
        "depth": DEPTH,
        "context_width": 8,
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def write_zip(folder: Path, path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle folder."""
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def refused(action: Callable[[], object], says: str) -> str:
    """Checks that ``action`` is refused with one line."""
    with pytest.raises(BundleError, match=says) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


# --- what is good --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_the_same_bundle_as_its_folder(folder: Path, tmp_path: Path, method: int) -> None:
    of_folder, of_zip = open_bundle(folder), open_bundle(write_zip(folder, tmp_path / "b.zip", method))
    for name in ("name", "tag", "levels", "depth", "context_width", "manifest"):
        assert getattr(of_folder, name) == getattr(of_zip, name)
    for entry in (*GRAPHS, "entropy", "scores"):
        assert of_folder.read(entry) == of_zip.read(entry)
    assert np.array_equal(of_folder.score_basis(), of_zip.score_basis())
    assert np.array_equal(of_zip.score_basis(), small_scores()[0])
    tables, others = of_folder.entropy_model().tables, of_zip.entropy_model().tables
    assert tables.keys() == others.keys() and all(np.array_equal(tables[name], others[name]) for name in tables)


def test_the_shipped_bundle_as_a_zip_makes_the_same_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_zip(MODELS / DEFAULT_MODEL, tmp_path / "model.zip", zipfile.ZIP_STORED)
    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    with Tokenizer.load(path) as other:
        assert other.tag == tokenizer.tag
        assert other.encode(image) == tokenizer.encode(image)


def test_shipped_models_are_listed_and_open_by_name() -> None:
    assert DEFAULT_MODEL in list_models()
    opened = open_bundle(DEFAULT_MODEL)
    assert opened.path == MODELS / DEFAULT_MODEL
    assert opened.manifest["tag"] == opened.tag.hex()
    assert (opened.path / "MODEL_CARD.md").read_text().strip()


def test_no_models_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundle_module, "MODELS", tmp_path / "none")
    assert list_models() == []
    refused(lambda: open_bundle(DEFAULT_MODEL), r"unknown model 'tatok-s8'.*\(none\)")


def test_the_tag_follows_every_file(folder: Path) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    tags = {content_tag(files)}
    for entry in files:
        changed = copy.deepcopy(files)
        changed[entry]["sha256"] = "0" * 64
        tags.add(content_tag(changed))
    assert len(tags) == len(GRAPHS) + 3 and all(len(tag) == 8 for tag in tags)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["no-such-model", "", " ", ".", "x" * 5000, "a\0b", "a\nb", "/dev/null", __file__])
def test_names_that_are_no_bundle(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError) as caught:
        Tokenizer.load(name)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_names_those_that_there_are() -> None:
    refused(lambda: open_bundle("tatok-x9"), f"unknown model 'tatok-x9'.*{DEFAULT_MODEL}.*path")


def remove(key: str) -> Callable[[Manifest], None]:
    return lambda manifest: manifest.pop(key) and None


def put(key: str, value: object) -> Callable[[Manifest], None]:
    return lambda manifest: manifest.update({key: value})


def put_file(entry: str, **values: object) -> Callable[[Manifest], None]:
    return lambda manifest: manifest["files"][entry].update(values)


DAMAGE: dict[str, tuple[Callable[[Manifest], Any], str]] = {
    "no version": (remove("format_version"), "no valid 'format_version'"),
    "version of another type": (put("format_version", "1"), "no valid 'format_version'"),
    "version 0": (put("format_version", 0), "no valid 'format_version'"),
    "newer version": (put("format_version", 2), r"format 2 is newer.*\(1\).*upgrade"),
    "no name": (remove("name"), "'name' must be"),
    "empty name": (put("name", ""), "'name' must be"),
    "long name": (put("name", "n" * 65), "'name' must be"),
    "name of two lines": (put("name", "a\nb"), "'name' must be"),
    "no files": (remove("files"), "'files' is missing"),
    "files is a list": (put("files", []), "'files' is missing"),
    "a file is missing": (lambda m: m["files"].pop("decoder"), "'files' has no 'decoder'"),
    "a file is a string": (lambda m: m["files"].update(context="context.onnx"), "'files' has no 'context'"),
    "no hash": (lambda m: m["files"]["entropy"].pop("sha256"), "'files' has no 'entropy'"),
    "short hash": (put_file("decoder", sha256="ab"), "'sha256' of 'decoder' is not 64"),
    "hash of other letters": (put_file("decoder", sha256="Z" * 64), "'sha256' of 'decoder' is not 64"),
    "a path upwards": (put_file("decoder", file="../decoder.onnx"), "must be one printable name"),
    "an absolute path": (put_file("decoder", file="/etc/passwd"), "must be one printable name"),
    "a NUL in a file name": (put_file("decoder", file="a\0b"), "must be one printable name"),
    "no levels": (remove("levels"), "'levels' must be"),
    "levels is a number": (put("levels", 8), "'levels' must be"),
    "a level of one": (put("levels", [8, 1]), "'levels' must be"),
    "a level of a float": (put("levels", [8, 5.0]), "'levels' must be"),
    "too many levels": (put("levels", [2] * 17), "'levels' must be"),
    "more ids than an int32 holds": (put("levels", [64] * 6), "'levels' make 68719476736 token ids"),
    "no depth": (remove("depth"), "'depth' must be an integer from 1 to 8"),
    "a depth of 0": (put("depth", 0), "'depth' must be an integer from 1 to 8"),
    "a depth of 9": (put("depth", 9), "'depth' must be an integer from 1 to 8"),
    "a depth of a float": (put("depth", 2.0), "'depth' must be an integer from 1 to 8"),
    "a depth that is true": (put("depth", True), "'depth' must be an integer from 1 to 8"),
    "no scores": (lambda m: m["files"].pop("scores"), "'files' has no 'scores'"),
    "no context width": (remove("context_width"), "'context_width' must be"),
    "an absurd context width": (put("context_width", 10**9), "'context_width' must be"),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_damaged_manifests(folder: Path, tmp_path: Path, case: str, packed: bool) -> None:
    change, says = DAMAGE[case]
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    where = write_zip(folder, tmp_path / "b.zip") if packed else folder
    assert str(where) in refused(lambda: open_bundle(where), says)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format_version": ' + b"9" * 5000 + b"}",
        b"{}",
    ],
    ids=["empty", "half", "null", "list", "string", "not utf-8", "deep", "huge number", "no keys"],
)
def test_manifests_that_are_no_manifest(folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    refused(lambda: open_bundle(folder), "manifest.json")


@pytest.mark.parametrize("entry", [*GRAPHS, "entropy", "scores"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_changed_file_is_refused_by_its_hash(folder: Path, tmp_path: Path, entry: str, packed: bool) -> None:
    file = folder / json.loads((folder / "manifest.json").read_text())["files"][entry]["file"]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    where = write_zip(folder, tmp_path / "b.zip") if packed else folder
    text = refused(lambda: open_bundle(where).read(entry), "SHA-256 is .* the manifest says .* damaged or was changed")
    assert file.name in text
    if entry in GRAPHS:  # every hash is checked before an engine sees the first graph
        refused(lambda: Tokenizer.load(where), "SHA-256")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_missing_file(folder: Path, tmp_path: Path, packed: bool) -> None:
    (folder / "decoder.onnx").unlink()
    where = write_zip(folder, tmp_path / "b.zip") if packed else folder
    refused(lambda: open_bundle(where).read("decoder"), "decoder.onnx is missing")
    (folder / "manifest.json").unlink()
    where = write_zip(folder, tmp_path / "c.zip") if packed else folder
    refused(lambda: open_bundle(where), "manifest.json is missing")


def test_files_over_the_limits_are_not_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(folder, tmp_path / "b.zip")
    monkeypatch.setattr(bundle_module, "MAX_FILE_BYTES", 99)
    for where in (folder, path):
        opened = open_bundle(where)
        refused(lambda opened=opened: opened.read("context"), "context.onnx: larger than the 99 bytes")
    monkeypatch.setattr(bundle_module, "MAX_MANIFEST_BYTES", 99)
    for where in (folder, path):
        refused(lambda where=where: open_bundle(where), "manifest.json: larger than the 99 bytes")


def test_a_zip_bomb_of_a_manifest_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b" " * (bundle_module.MAX_MANIFEST_BYTES + 1))
    assert path.stat().st_size < 10_000
    refused(lambda: open_bundle(path), "larger than")


def test_damaged_zips_raise_nothing_else(folder: Path, tmp_path: Path) -> None:
    good = write_zip(folder, tmp_path / "b.zip").read_bytes()
    path = tmp_path / "damaged.zip"
    random = np.random.default_rng(5)
    outcomes = set()
    damaged = [good[:size] for size in range(0, len(good), 61)]
    for _ in range(400):
        data = bytearray(good)
        for at in random.integers(0, len(good), random.integers(1, 4)):
            data[at] ^= 1 << int(random.integers(8))
        damaged.append(bytes(data))
    for data in damaged:
        path.write_bytes(data)
        try:
            opened = open_bundle(path)
            for entry in (*GRAPHS, "entropy", "scores"):
                opened.read(entry)
            outcomes.add("good")
        except BundleError as error:
            outcomes.add("refused" if "\n" not in str(error) else "more than one line")
    assert "refused" in outcomes
    assert "more than one line" not in outcomes


def replace_entry(folder: Path, entry: str, data: bytes) -> None:
    """Exchange a file and its hash, as an attacker would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    (folder / manifest["files"][entry]["file"]).write_bytes(data)
    manifest["files"][entry]["sha256"] = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(manifest))


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("field", ["patches_w1", "cells_b3", "exp"])
def test_nothing_is_unpickled(folder: Path, tmp_path: Path, field: str) -> None:
    mark = tmp_path / "mark"
    tables: dict[str, Any] = dict(small_tables())
    tables[field] = np.array([Bomb(mark)], dtype=object)
    buffer = io.BytesIO()
    np.savez(buffer, **({"form": np.int32(FORM)} | tables))
    replace_entry(folder, "entropy", buffer.getvalue())
    refused(lambda: open_bundle(folder).entropy_model(), "entropy tables cannot be read")
    replace_entry(folder, "entropy", pickle.dumps(Bomb(mark)))
    refused(lambda: open_bundle(folder).entropy_model(), "entropy tables cannot be read")
    buffer = io.BytesIO()
    np.savez(buffer, basis=np.array([Bomb(mark)], dtype=object), local=small_scores()[1])
    for data in (buffer.getvalue(), pickle.dumps(Bomb(mark))):
        replace_entry(folder, "scores", data)
        refused(lambda: open_bundle(folder).score_basis(), "the scores cannot be read")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # so the bomb would have worked


def test_tables_that_unpack_into_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = small_tables() | {"patches_w1": np.zeros((1 << 20, 4), np.int16)}
    data = save_tables(tables)
    assert len(data) < 100_000
    monkeypatch.setattr("tatok_edge.format.entropy.MAX_TABLE_BYTES", 1 << 20)
    refused(lambda: load_tables(data, LEVELS, DEPTH, "b"), "bytes unpacked, at most")


def broken(field: str, value: object) -> dict[str, np.ndarray]:
    return small_tables() | {field: np.asarray(value)}


TABLE_DAMAGE: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "floats": (
        broken("patches_w1", np.ones((25, 4), np.float32)),
        "network 'patches': w1 must have dtype int16",
    ),
    "64 bits": (
        broken("cells_w2", np.ones((4, 4), np.int64)),
        "network 'cells': w2 must have dtype int16",
    ),
    "a wrong shape": (broken("cells_w3", np.ones((4, 79), np.int16)), "w3 must have shape"),
    "a scalar": (broken("patches_b1", np.int32(3)), "the entropy tables do not fit"),
    "no hidden unit": (broken("deeper_b1", np.zeros(0, np.int32)), "hidden units"),
    "of other levels": (broken("cells_b3", np.zeros(99, np.int32)), "b3 must have shape"),
    "sums of 33 bits": (broken("depths_b2", np.full(4, 1 << 30, np.int32) * 2 - 1), "must fit in 32 bits"),
    "a negative weight": (broken("exp", np.array([1] + [-1] * 177, np.int32)), "exp must"),
    "a first weight of zero": (broken("exp", np.zeros(178, np.int32)), "exp must"),
    "a weight too large": (broken("exp", np.full(178, 65537, np.int32)), "exp must"),
}


@pytest.mark.parametrize(
    ("form", "says"), [(None, "of an earlier form"), (FORM - 1, "of an earlier form"), (FORM + 1, "of a later form")]
)
def test_tables_of_another_form_name_the_remedy(form: int | None, says: str) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **small_tables(), **({} if form is None else {"form": np.int32(form)}))
    refused(lambda: load_tables(buffer.getvalue(), LEVELS, DEPTH, "b"), says)
    refused(lambda: load_tables(buffer.getvalue(), LEVELS, DEPTH, "b"), "python -m tatok_edge.training.entropy")


@pytest.mark.parametrize("case", TABLE_DAMAGE)
def test_damaged_tables(case: str) -> None:
    tables, says = TABLE_DAMAGE[case]
    refused(lambda: load_tables(save_tables(tables), LEVELS, DEPTH, "b"), says)


def test_a_table_that_is_missing() -> None:
    tables = small_tables()
    del tables["deeper_w2"]
    buffer = io.BytesIO()
    np.savez(buffer, **({"form": np.int32(FORM)} | tables))
    refused(lambda: load_tables(buffer.getvalue(), LEVELS, DEPTH, "b"), "w2")
    assert load_tables(save_tables(small_tables()), LEVELS, DEPTH, "b").keys() == small_tables().keys()


def test_tables_of_another_depth_are_refused() -> None:
    refused(lambda: load_tables(save_tables(small_tables()), LEVELS, 3, "b"), "the entropy tables do not fit")


SCORE_DAMAGE: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    "of another depth": (
        "basis",
        lambda a: a[:1],
        r"'basis' of the scores must be int16 \(2, 2, 192\), got int16 \(1,",
    ),
    "floats": ("basis", lambda a: a.astype(np.float32), r"'basis' .* must be int16 .*, got float32"),
    "doubles": ("local", lambda a: a.astype(np.float64), r"'local' .* must be float32 \(2, 192, 3\), got float64"),
    "of other levels": ("local", lambda a: a[..., :2], r"'local' .* got float32 \(2, 192, 2\)"),
    "long directions": ("basis", lambda a: a + np.int16(2000), r"must have a length of 2\^14, got \d+"),
}


@pytest.mark.parametrize("case", SCORE_DAMAGE)
def test_damaged_scores(case: str) -> None:
    field, change, says = SCORE_DAMAGE[case]
    arrays = dict(zip(("basis", "local"), small_scores(), strict=True))
    arrays[field] = change(arrays[field])
    refused(lambda: load_scores(save_scores(**arrays), len(LEVELS), DEPTH, "b"), says)


def test_scores_that_are_missing_or_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, basis=small_scores()[0])
    refused(lambda: load_scores(buffer.getvalue(), len(LEVELS), DEPTH, "b"), "the scores cannot be read.*local")
    monkeypatch.setattr(bundle_module, "MAX_SCORE_BYTES", 1000)
    data = save_scores(*small_scores())
    refused(lambda: load_scores(data, len(LEVELS), DEPTH, "b"), "bytes unpacked, at most 1000")


def test_loading_checks_the_entropy_tables(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(MODELS / DEFAULT_MODEL, folder)
    file = folder / json.loads((folder / "manifest.json").read_text())["files"]["entropy"]["file"]
    file.write_bytes(file.read_bytes() + b"\0")
    refused(lambda: Tokenizer.load(folder), f"{file.name}: SHA-256")


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x08\x07" * 10], ids=["empty", "text", "protobuf"])
def test_a_graph_that_is_none(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(MODELS / DEFAULT_MODEL, folder)
    replace_entry(folder, "decoder", data)
    with pytest.raises((BackendError, BundleError), match="graph 'decoder'") as caught:
        Tokenizer.load(folder)
    assert "\n" not in str(caught.value)
