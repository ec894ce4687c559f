"""What a file or a bundle may name, and graphs whose outputs are none of a model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tatok_edge import BundleError, Reader, SourceError, Tokenizer, Writer
from tatok_edge.cli.main import main
from tatok_edge.model.bundle import DEFAULT_MODEL, GRAPHS, MODELS, named_bundle, open_bundle
from tatok_edge.runtime.onnx_graph import check_graph
from tatok_edge.runtime.session import GraphName, Session, Tensors
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.tokens.budget import TokenBudget


def field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer with bytes in it."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


OUTSIDE = (bytes([14 << 3, 1]), field(13, b"x"))
"""A tensor in another file: by its location, and by the name of the file."""


@pytest.mark.parametrize("tensor", OUTSIDE)
def test_values_in_other_files_are_refused(tensor: bytes) -> None:
    attribute = field(5, tensor)
    inner = field(6, field(5, tensor))  # a graph in an attribute, as of If and Loop
    for graph in (
        field(5, tensor),
        field(1, field(5, attribute)),
        field(1, field(5, inner)),
        field(15, field(1, tensor)),
    ):
        with pytest.raises(BundleError, match="'decoder' takes values from another file"):
            check_graph(field(7, graph), "decoder")
    check_graph(field(7, field(5, bytes([14 << 3, 0]))), "decoder")


def test_the_shipped_graphs_are_whole() -> None:
    bundle = open_bundle(DEFAULT_MODEL)
    for name in GRAPHS:
        check_graph(bundle.read(name), name)
        with pytest.raises(BundleError, match="is damaged"):
            check_graph(bundle.read(name)[:-1], name)


def test_a_file_names_a_model_and_never_a_path(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TATOK_MODELS", str(tmp_path / "mine"))
    shutil.copytree(MODELS / DEFAULT_MODEL, "evil")
    os.mkfifo("pipe")
    frame = tokenizer.encode(render(Scene(width=64, height=64), 0))
    for name in ("evil", "./evil", str(tmp_path / "evil"), "pipe", "../evil", "/dev/zero", ".", "nope"):
        with Writer("x.ttk", tokenizer.entropy_model, name=name) as writer:
            writer.write(frame)
        for words in (
            ("decode", "x.ttk", "-o", "x.png"),
            ("info", "x.ttk", "--depths"),
            ("view", "x.ttk", "-o", "x.png"),
        ):
            assert main(list(words)) == 1
            assert "neither a shipped one" in capsys.readouterr().err
    assert not Path("x.png").exists()
    shutil.copytree("evil", "mine/nope")  # now it is one of the user's models
    assert named_bundle("nope") == tmp_path / "mine" / "nope"
    assert main(["decode", "x.ttk", "-o", "x.png"]) == 0
    assert main(["decode", "x.ttk", "-o", "y.png", "--model", "evil"]) == 0


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="is a pipe"):
        open_bundle(tmp_path / "pipe")
    with pytest.raises(SourceError, match="is a pipe"):
        Reader(tmp_path / "pipe")
    (tmp_path / "bundle").mkdir()
    os.mkfifo(tmp_path / "bundle" / "manifest.json")
    with pytest.raises(BundleError, match="is a pipe"):
        open_bundle(tmp_path / "bundle")


class OtherOutputs:
    """A session whose outputs are changed."""

    def __init__(self, session: Session, graph: str, change: Any) -> None:
        self._session, self._graph, self._change = session, graph, change
        self.frames = None

    def run(self, graph: GraphName, inputs: Mapping[str, Any]) -> Tensors:
        outputs = self._session.run(graph, inputs)
        if graph == self._graph:
            outputs = self._change(dict(outputs))
        return outputs

    def close(self) -> None:
        self._session.close()


CHANGES: dict[str, Any] = {
    "missing": lambda outputs: {},
    "type": lambda outputs: {name: value.astype(np.float64) for name, value in outputs.items()},
    "dimensions": lambda outputs: {name: value[None] for name, value in outputs.items()},
    "no array": lambda outputs: {name: [1] for name in outputs},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_outputs_of_other_types_and_shapes_are_refused(tokenizer: Tokenizer, graph: str, change: str) -> None:
    session = OtherOutputs(tokenizer.networks.session, graph, CHANGES[change])
    changed = Tokenizer(tokenizer.bundle, session, tokenizer.backend)  # type: ignore[arg-type]
    image = render(Scene(width=64, height=64), 0)
    with pytest.raises(BundleError, match="a graph of the model gives"):
        changed.decode(changed.encode(image, budget=TokenBudget()))
