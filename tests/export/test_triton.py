"""The Triton model repository: its configurations against Triton's own schema and the graphs, and what it computes.

There is no Triton here. The test reads the repository as Triton does, by its configurations alone, and runs the graphs
with ONNX Runtime: shapes and types are checked between all steps, and ragged inputs are joined as Triton joins them.
"""

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("tritonclient.grpc", reason="tritonclient has Triton's schema")

import onnxruntime as ort
from google.protobuf import text_format
from helpers.engine_files import store_set
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import np_to_triton_dtype

from tatok_edge import TokenBudget, TokenFrame, Tokenizer
from tatok_edge.errors import BackendError, InputError
from tatok_edge.export.triton.repository import main, to_text, write_repository
from tatok_edge.model.bundle import GRAPHS, open_bundle
from tatok_edge.runtime.tensorrt.manifest import ShapeRange
from tatok_edge.sources.synthetic import Scene, render

ALIKE = 0.999
"""Share of the tokens that must be the same: other builds of ONNX Runtime may round one or the other code otherwise."""


class Repository:
    """Reads a repository by its configurations and runs its models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configs: dict[str, Any] = {}
        for path in folder.iterdir():
            config = text_format.Parse((path / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
            assert config.name == path.name
            assert (path / "1").is_dir()
            self.configs[config.name] = config
        self.sessions: dict[str, ort.InferenceSession] = {}

    def run(self, name: str, requests: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """The responses to requests, which are batched where the model does that."""
        config = self.configs[name]
        for request in requests:
            self.check(config, config.input, request)
        if config.HasField("ensemble_scheduling"):
            responses = self.ensemble(config, requests)
        elif config.max_batch_size and len(requests) > 1:
            responses = self.batched(config, requests)
        else:
            responses = [self.model(config, request, self.batch_inputs(config, [request])) for request in requests]
        for response in responses:
            self.check(config, config.output, response)
        return responses

    def check(self, config: Any, tensors: Any, values: dict[str, np.ndarray]) -> None:
        """Values have the types and shapes that the configuration gives."""
        by_name = {tensor.name: tensor for tensor in tensors}
        assert set(values) <= set(by_name)
        for name, value in values.items():
            tensor = by_name[name]
            assert model_config_pb2.DataType.Name(tensor.data_type) == "TYPE_" + np_to_triton_dtype(value.dtype)
            shape = value.shape
            if config.max_batch_size:
                assert 1 <= shape[0] <= config.max_batch_size, (config.name, name, shape)
                shape = shape[1:]
            assert len(shape) == len(tensor.dims), (config.name, name, shape)
            assert all(axis in (-1, size) for axis, size in zip(tensor.dims, shape, strict=True)), (config.name, name)

    def batch_inputs(self, config: Any, requests: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What Triton adds to a batch."""
        added = {}
        for extra in config.batch_input:
            assert extra.kind == model_config_pb2.BatchInput.Kind.BATCH_ACCUMULATED_ELEMENT_COUNT
            (target,), (source,) = extra.target_name, extra.source_input
            added[target] = np.cumsum([request[source].size for request in requests]).astype(np.int32)
        return added

    def joined(self, config: Any, requests: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        inputs = {}
        for tensor in config.input:
            values = [request[tensor.name] for request in requests]
            if tensor.allow_ragged_batch:
                inputs[tensor.name] = np.concatenate([value.reshape(-1) for value in values])
            else:
                assert len({value.shape[1:] for value in values}) == 1, "Triton batches only what has one shape"
                inputs[tensor.name] = np.concatenate(values)
        return inputs

    def batched(self, config: Any, requests: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """One run for all requests."""
        outputs = self.call(config.name, self.joined(config, requests) | self.batch_inputs(config, requests))
        sizes = [len(next(iter(request.values()))) for request in requests]
        starts = np.cumsum([0, *sizes])
        return [{key: value[a:b] for key, value in outputs.items()} for a, b in itertools.pairwise(starts)]

    def model(self, config: Any, request: dict[str, np.ndarray], extra: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        inputs = self.joined(config, [request]) if config.max_batch_size else request
        return self.call(config.name, {**inputs, **extra})

    def call(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if name not in self.sessions:
            self.sessions[name] = ort.InferenceSession(
                str(self.folder / name / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
            )
        session = self.sessions[name]
        return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))

    def ensemble(self, config: Any, requests: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Step by step, all requests through each."""
        tensors = [dict(request) for request in requests]
        for step in config.ensemble_scheduling.step:
            inner = self.configs[step.model_name]
            names = {tensor.name for tensor in inner.input}
            assert set(step.input_map) == names
            fed = [{key: each[step.input_map[key]] for key in names} for each in tensors]
            for each, response in zip(tensors, self.run(step.model_name, fed), strict=True):
                each.update({to: response[key] for key, to in step.output_map.items()})
        outputs = [output.name for output in config.output]
        return [{name: each[name] for name in outputs} for each in tensors]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    folder = tmp_path_factory.mktemp("triton") / "models"
    assert main(["tatok-s8", "-o", str(folder), "--tau", "0.7"]) == 0
    return Repository(folder)


def images() -> list[np.ndarray]:
    """Pictures of one padded size and several contents; the last one is not a multiple of the cells."""
    return [render(Scene(width=160, height=96, seed=seed), 5 * seed) for seed in range(3)] + [
        render(Scene(width=139, height=81, seed=9), 3)
    ]


@pytest.mark.parametrize("number", range(4))
def test_encode_gives_the_tokens_of_the_tokenizer(repository: Repository, tokenizer: Tokenizer, number: int) -> None:
    image = images()[number]
    (tokens,) = repository.run("tatok-s8_encode", [{"image": image[None]}])
    expected = tokenizer.encode(image, budget=TokenBudget(tau=0.7, min_tokens=1))
    np.testing.assert_array_equal(tokens["positions"], expected.positions)
    assert np.mean(tokens["ids"] == expected.ids) >= ALIKE
    assert np.mean(tokens["global_ids"] == expected.global_ids) >= ALIKE


def test_decode_gives_the_picture_of_the_tokenizer(repository: Repository, tokenizer: Tokenizer) -> None:
    for image in images():
        frame = tokenizer.encode(image, budget=TokenBudget(tau=0.7))
        (picture,) = repository.run("tatok-s8_decode", [request(frame)])
        height, width = image.shape[:2]
        difference = np.abs(picture["image"][0, :height, :width].astype(int) - tokenizer.decode(frame))
        assert difference.max() <= 1


def test_pictures_with_different_numbers_of_tokens_are_decoded_as_one_batch(
    repository: Repository, tokenizer: Tokenizer
) -> None:
    budgets = [TokenBudget(tau=0.9), TokenBudget(keep=0.0), TokenBudget(max_tokens=7)]
    frames = [tokenizer.encode(image, budget=budget) for image, budget in zip(images(), budgets, strict=False)]
    assert len({frame.n_tokens for frame in frames}) == 3
    alone = [repository.run("tatok-s8_decode", [request(frame)])[0]["image"] for frame in frames]
    together = repository.run("tatok-s8_decode", [request(frame) for frame in frames])
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.astype(int) - other["image"]).max() <= 1


def test_patches_of_several_pictures_are_encoded_as_one_batch(repository: Repository, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(1)
    width = repository.configs["tatok-s8_patch_encoder"].input[0].dims[0]
    requests = [{"features": rng.normal(0, 0.3, (count, width)).astype(np.float32)} for count in (5, 1, 30)]
    together = repository.run("tatok-s8_patch_encoder", requests)
    for each, joined in zip(requests, together, strict=True):
        (single,) = repository.run("tatok-s8_patch_encoder", [each])
        assert np.mean(single["codes"] == joined["codes"]) >= ALIKE


def test_a_request_of_two_pictures_is_an_error_and_not_a_wrong_picture(
    repository: Repository, tokenizer: Tokenizer
) -> None:
    frame = tokenizer.encode(images()[0], budget=TokenBudget(max_tokens=8))
    with pytest.raises(AssertionError):  # the configuration of the ensemble does not take it
        repository.run("tatok-s8_decode", [{name: np.concatenate([v, v]) for name, v in request(frame).items()}])
    tokens = {name: np.zeros(4, np.int32) for name in ("ids", "positions")}
    with pytest.raises(Exception, match=r"[Rr]eshape"):
        repository.call("tatok-s8_scatter", maps(2) | tokens | {"ends": np.array([4], np.int32)})


@pytest.mark.parametrize(
    "positions",
    [
        pytest.param([3, 3, 3, 3, 3], id="a stack that is too deep"),
        pytest.param([5, 4], id="positions that fall"),
        pytest.param([240], id="a patch outside the grid"),
        pytest.param([-1], id="a negative position"),
    ],
)
def test_tokens_that_no_encoder_makes_are_an_error(repository: Repository, positions: list[int]) -> None:
    given = {"positions": np.array(positions, np.int32), "ids": np.zeros(len(positions), np.int32)}
    with pytest.raises(Exception, match="invalid ind"):
        repository.call("tatok-s8_scatter", maps(1) | given | {"ends": np.array([len(positions)], np.int32)})


def maps(pictures: int) -> dict[str, np.ndarray]:
    """What the scatter step takes beside tokens, for pictures of 160x96 pixels."""
    widths = {"expected": 24, "entropy": 4, "context": 96}
    rows = {name: np.zeros((pictures, width, 1, 240), np.float32) for name, width in widths.items()}
    return rows | {"global_ids": np.zeros((pictures, 3, 5), np.int32)}


def request(frame: TokenFrame) -> dict[str, np.ndarray]:
    """What a client sends to decode a frame."""
    return {
        "ids": frame.ids[None],
        "positions": frame.positions[None],
        "global_ids": frame.global_ids.reshape(1, *frame.cell_grid),
    }


# --- the files -----------------------------------------------------------------------------------


def test_configurations_agree_with_the_graphs(repository: Repository) -> None:
    bundle = open_bundle("tatok-s8")
    types = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.INT32: "TYPE_INT32"}
    types[onnx.TensorProto.UINT8] = "TYPE_UINT8"
    checked = 0
    for name, config in repository.configs.items():
        if config.platform == "ensemble":
            continue
        path = repository.folder / name / "1" / "model.onnx"
        graph = name.removeprefix("tatok-s8_")
        if graph in GRAPHS:
            assert path.read_bytes() == bundle.read(graph)
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        extra = {target for item in config.batch_input for target in item.target_name}
        for values, tensors in ((model.graph.input, config.input), (model.graph.output, config.output)):
            ours = {tensor.name: tensor for tensor in tensors}
            assert {value.name for value in values} - extra == set(ours)
            for value in values:
                kind = value.type.tensor_type
                if value.name in extra:
                    assert (kind.elem_type, len(kind.shape.dim)) == (onnx.TensorProto.INT32, 1)
                    continue
                tensor = ours[value.name]
                assert model_config_pb2.DataType.Name(tensor.data_type) == types[kind.elem_type]
                dims = [-1 if axis.dim_param else axis.dim_value for axis in kind.shape.dim]
                if getattr(tensor, "allow_ragged_batch", False):
                    assert dims == list(tensor.dims) == [-1]  # ONNX Runtime's backend takes ragged inputs as 1-D only
                elif config.max_batch_size:
                    assert dims[0] == -1, "the batch axis must be free"
                    assert dims[1:] == list(tensor.dims)
                else:
                    assert dims == list(tensor.dims)
                checked += 1
    assert checked >= 30


def test_ensembles_are_consistent_by_the_rules_of_triton(repository: Repository) -> None:
    """Types of a tensor agree wherever it is used; shapes agree with or without the batch axis."""

    def alike(one: list[int], other: list[int]) -> bool:
        return len(one) == len(other) and all(-1 in (a, b) or a == b for a, b in zip(one, other, strict=True))

    def node(config: Any, tensor: Any) -> tuple[int, list[int], list[int]]:
        dims = list(tensor.dims)
        return tensor.data_type, dims, [-1, *dims] if config.max_batch_size else dims

    ensembles = [config for config in repository.configs.values() if config.platform == "ensemble"]
    assert {config.name for config in ensembles} == {"tatok-s8_encode", "tatok-s8_decode"}
    for config in ensembles:
        seen = {tensor.name: node(config, tensor) for tensor in (*config.input, *config.output)}
        made = {tensor.name for tensor in config.input}
        for step in config.ensemble_scheduling.step:
            inner = repository.configs[step.model_name]
            assert not inner.max_batch_size or inner.max_batch_size >= config.max_batch_size
            for mapping, tensors in ((step.input_map, inner.input), (step.output_map, inner.output)):
                by_name = {tensor.name: tensor for tensor in tensors}
                assert set(mapping) <= set(by_name)
                for key, name in mapping.items():
                    kind, dims, full = node(inner, by_name[key])
                    other = seen.setdefault(name, (kind, dims, full))
                    assert other[0] == kind
                    assert alike(other[1], dims) or alike(other[2], full), (config.name, name, other, full)
            assert set(step.input_map.values()) <= made
            made |= set(step.output_map.values())
        assert {tensor.name for tensor in config.output} <= made


def test_text_format() -> None:
    text = to_text({"name": 'a"b\\c', "max_batch_size": 3, "input": [{"name": "x", "dims": [1, -1], "optional": True}]})
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ('a"b\\c', 3, [1, -1])
    assert config.input[0].optional


def test_existing_folder_is_refused_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "models"
    assert main(["-o", str(out)]) == 0
    assert main(["-o", str(out)]) == 1
    assert "exists; name another folder, or give --force" in capsys.readouterr().err
    assert main(["-o", str(out), "--force", "--max-tokens", "50"]) == 0
    (out / "notes.txt").write_text("mine")
    assert main(["-o", str(out), "--force"]) == 1
    assert "holds other things" in capsys.readouterr().err
    assert (out / "notes.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["gpt"], "unknown model"), (["--tau", "0"], "tau must be above 0"), (["--max-tokens", "0"], "min_tokens")],
)
def test_wrong_input(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "-o", str(tmp_path / "models")]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_module_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tatok_edge.export.triton", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "--engines" in done.stdout


# --- TensorRT engines ----------------------------------------------------------------------------


def engines(folder: Path, flavour: str = "trt") -> Path:
    """Engines with true manifests; their content is never looked at here."""
    bundle = open_bundle("tatok-s8")
    profiles = {}
    for graph in GRAPHS:
        inputs = {
            value.name: [axis.dim_value or 4 for axis in value.type.tensor_type.shape.dim]
            for value in onnx.load_from_string(bundle.read(graph)).graph.input
        }
        profiles[graph] = tuple(
            {name: ShapeRange(tuple(shape), (most, *shape[1:]), (most, *shape[1:])) for name, shape in inputs.items()}
            for most in (8, 64)
        )
    store_set(folder, bundle, profiles, flavour=flavour, version="10.16.1.11", sms=("8.9",))
    return folder


def test_engines_run_the_networks(tmp_path: Path) -> None:
    write_repository(open_bundle("tatok-s8"), tmp_path / "models", engines=engines(tmp_path / "engines"))
    for graph in GRAPHS:
        path = tmp_path / "models" / f"tatok-s8_{graph}"
        config = text_format.Parse((path / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        assert config.platform == "tensorrt_plan"
        assert config.max_batch_size == 64
        assert list(config.instance_group[0].profile) == ["0", "1"]
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
        assert [file.name for file in (path / "1").iterdir()] == ["model.plan"]
    assert (tmp_path / "models" / "tatok-s8_select" / "1" / "model.onnx").is_file()


def test_engines_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    bundle = open_bundle("tatok-s8")
    with pytest.raises(BackendError, match=r"TensorRT-RTX, which Triton does not run; build with --flavour trt"):
        write_repository(bundle, tmp_path / "a", engines=engines(tmp_path / "rtx", "rtx"))
    (tmp_path / "none").mkdir()
    with pytest.raises(BackendError, match="needs one engine of tatok-s8's global_encoder, has 0; build them with"):
        write_repository(bundle, tmp_path / "b", engines=tmp_path / "none")
    with pytest.raises(InputError, match="does not exist"):
        write_repository(bundle, tmp_path / "no" / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none", "rtx"]
