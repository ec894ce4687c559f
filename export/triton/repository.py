"""Model bundle to a Triton model repository.

``python -m tatok_edge.export.triton BUNDLE -o model_repository`` writes one.

Clients call two ensembles: ``NAME_encode`` turns a picture into tokens, ``NAME_decode`` tokens into a picture. They
consist of the five networks of the bundle and small ONNX graphs (``export/triton/graphs.py``); no Python runs in the
server.

No tokens are padded. The batch axis of the patch encoder holds the tokens, so Triton joins the patches of concurrent
requests. The decoder's tokens are 1-D ragged inputs with accumulated element counts from Triton: pictures with
different numbers of tokens are decoded as one batch.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from tatok_edge.errors import BackendError, InputError, TaTokError
from tatok_edge.export.triton.graphs import (
    cells_model,
    codes_model,
    pack_model,
    picture_model,
    rows_model,
    scatter_model,
    select_model,
)
from tatok_edge.files import Temporary
from tatok_edge.model.bundle import DEFAULT_MODEL, GRAPHS, Bundle, open_bundle
from tatok_edge.runtime.cuda.kernels import MAX_PATCHES, DtfLimits
from tatok_edge.runtime.tensorrt.manifest import SUFFIX, EngineManifest, read_manifest

MAX_PICTURES = 8
"""Largest number of pictures in a batch."""
CONFIG = "config.pbtxt"
_TYPES = {
    int(onnx.TensorProto.FLOAT): "TYPE_FP32",
    int(onnx.TensorProto.INT32): "TYPE_INT32",
    int(onnx.TensorProto.UINT8): "TYPE_UINT8",
}


class Word(str):
    """A name that stands without quotes in a ``config.pbtxt``: an enumerator."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the repository."""

    name: str
    config: Mapping[str, Any]
    """Content of its ``config.pbtxt``."""
    file: str | None = None
    """Name of its file; None for an ensemble."""
    data: bytes = b""


def write_repository(
    bundle: Bundle,
    folder: Path,
    *,
    tau: float = 0.8,
    max_tokens: int | None = None,
    engines: Path | None = None,
    force: bool = False,
) -> list[Model]:
    """Writes a model repository.

    Args:
        bundle: The model.
        folder: The new folder of the repository.
        tau: Share of the total residual that an encoded picture keeps.
        max_tokens: Most tokens of a picture.
        engines: Folder of TensorRT engines that run the networks instead of ONNX Runtime; see ``tatok build``.
        force: Replace a repository that exists.

    Raises:
        InputError: ``folder`` exists, or a limit makes no sense.
        BackendError: A network has no engine, or an engine that Triton cannot run.
    """
    models = repository(bundle, tau=tau, max_tokens=max_tokens, engines=engines)
    if folder.exists():
        foreign = [path.name for path in folder.iterdir() if not (path / CONFIG).is_file()] if folder.is_dir() else [""]
        if foreign or not force:
            what = "exists and holds other things" if foreign else "exists"
            raise InputError(f"{folder}: {what}; name another folder" + ("" if foreign else ", or give --force"))
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder}: the folder {folder.absolute().parent} does not exist; create it first")
    temporary = Temporary(folder, folder=True)
    try:
        for model in models:
            version = temporary.path / model.name / "1"
            version.mkdir(parents=True)
            (version.parent / CONFIG).write_text(to_text({"name": model.name, **model.config}))
            if model.file is not None:
                (version / model.file).write_bytes(model.data)
        temporary.replace()
    finally:
        temporary.remove()
    return models


def repository(
    bundle: Bundle, *, tau: float = 0.8, max_tokens: int | None = None, engines: Path | None = None
) -> list[Model]:
    """The models of a repository; see :func:`write_repository`."""
    # One token at least: Triton has no empty requests.
    limits = DtfLimits.make(tau=tau, min_tokens=1, max_tokens=max_tokens)
    prefix = re.sub(r"[^\w-]", "_", bundle.name)
    levels = bundle.levels
    pictures, whole = MAX_PICTURES, 0
    models = [_network(bundle, graph, prefix, engines) for graph in GRAPHS]
    glue = {
        "cells": (cells_model(), pictures),
        "rows": (rows_model(bundle.context_width), pictures),
        "select": (select_model(limits, bundle.context_width, bundle.score_basis()), whole),
        "pack": (pack_model(levels, bundle.depth), whole),
        "codes": (codes_model(levels), pictures),
        "scatter": (scatter_model(levels, bundle.depth, bundle.context_width), pictures),
        "picture": (picture_model(), pictures),
    }
    models += [_onnx_model(f"{prefix}_{name}", proto, batch) for name, (proto, batch) in glue.items()]
    return [*models, _encoder(prefix), _decoder(prefix)]


def _network(bundle: Bundle, graph: str, prefix: str, engines: Path | None) -> Model:
    """A network of the bundle. Its batch axis is the pictures, or for the patch encoder the patches of all of them."""
    data = bundle.read(graph)
    batch = MAX_PATCHES if graph == "patch_encoder" else MAX_PICTURES
    model = _onnx_model(f"{prefix}_{graph}", onnx.load_from_string(data), batch, data)
    if engines is None:
        return model
    path, manifest = _engine(bundle, graph, engines)
    largest = max(next(iter(profile.values())).max[0] for profile in manifest.profiles)
    numbers = [str(number) for number in range(len(manifest.profiles))]
    config = dict(model.config) | {
        "platform": "tensorrt_plan",
        "max_batch_size": largest,
        "instance_group": [{"kind": Word("KIND_GPU"), "count": 1, "profile": numbers}],
    }
    return Model(model.name, config, "model.plan", path.read_bytes())


def _engine(bundle: Bundle, graph: str, folder: Path) -> tuple[Path, EngineManifest]:
    """The engine of a network.

    Raises:
        BackendError: The network has no engine, several, or one that Triton cannot run.
    """
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        manifest = read_manifest(path)
        if (manifest.graph, manifest.tag) == (graph, bundle.tag.hex()):
            found.append((path, manifest))
    if len(found) != 1:
        raise BackendError(
            f"{folder}: needs one engine of {bundle.name}'s {graph}, has {len(found)}; "
            f"build them with 'tatok build {bundle.name} --flavour trt -o DIR' into a new folder"
        )
    path, manifest = found[0]
    if manifest.flavour != "trt":
        raise BackendError(f"{path}: is an engine of TensorRT-RTX, which Triton does not run; build with --flavour trt")
    if manifest.plugin is not None:
        raise BackendError(f"{path}: needs the plugin {manifest.plugin.name}; build the networks without --dtf")
    return path, manifest


def _onnx_model(name: str, proto: onnx.ModelProto, max_batch: int, data: bytes | None = None) -> Model:
    """A model that ONNX Runtime runs; its inputs and outputs are those of the graph, without the batch axis."""
    inputs = [_tensor(value, max_batch) for value in proto.graph.input]
    config: dict[str, Any] = {"platform": "onnxruntime_onnx", "max_batch_size": max_batch}
    ends = [value.name for value in proto.graph.input if value.name == "ends"]
    if ends:
        # 1-D inputs of any length, which Triton joins; it says where each request's values end.
        for tensor in inputs:
            if tensor["name"] in ("ids", "positions"):
                tensor |= {"dims": [-1], "allow_ragged_batch": True}
        config["batch_input"] = [
            {
                "kind": Word("BATCH_ACCUMULATED_ELEMENT_COUNT"),
                "target_name": ends,
                "data_type": Word("TYPE_INT32"),
                "source_input": ["ids"],
            }
        ]
    config["input"] = [tensor for tensor in inputs if tensor["name"] not in ends]
    config["output"] = [_tensor(value, max_batch) for value in proto.graph.output]
    if max_batch:
        config["dynamic_batching"] = {}
    return Model(name, config, "model.onnx", proto.SerializeToString() if data is None else data)


def _tensor(value: onnx.ValueInfoProto, max_batch: int) -> dict[str, Any]:
    kind = value.type.tensor_type
    dims = [-1 if axis.dim_param else int(axis.dim_value) for axis in kind.shape.dim]
    return {
        "name": value.name,
        "data_type": Word(_TYPES[int(kind.elem_type)]),
        "dims": dims[1:] if max_batch else dims,
    }


def _encoder(prefix: str) -> Model:
    """One picture (1, H, W, 3) to its tokens."""
    steps = [
        _step(prefix, "cells", {"image": "image"}, {"cells": "cells"}),
        _step(prefix, "global_encoder", {"cells": "cells"}, {"codes": "global_codes"}),
        *_context(prefix, "global_codes", "context"),
        _step(
            prefix,
            "select",
            {name: name for name in ("image", "context", "mean")},
            {name: name for name in ("positions", "places", "features")},
        ),
        _step(prefix, "patch_encoder", {"features": "features"}, {"codes": "codes"}),
        _step(
            prefix,
            "pack",
            {name: name for name in ("codes", "places", "global_codes")},
            {"ids": "ids", "global_ids": "global_ids"},
        ),
    ]
    config = {
        "platform": "ensemble",
        "max_batch_size": 0,
        "input": [_port("image", "TYPE_UINT8", 1, -1, -1, 3)],
        "output": [_port(name, "TYPE_INT32", -1) for name in ("ids", "positions", "global_ids")],
        "ensemble_scheduling": {"step": steps},
    }
    return Model(f"{prefix}_encode", config)


def _context(prefix: str, codes: str, *outputs: str) -> list[dict[str, Any]]:
    """The steps from global codes to the mean of the patches and some ``outputs`` of the context."""
    return [
        _step(prefix, "cell_context", {"codes": codes}, {name: name for name in ("coarse", "mean")}),
        _step(prefix, "rows", {"coarse": "coarse"}, {"coarse_rows": "coarse_rows"}),
        _step(prefix, "context", {"coarse": "coarse_rows"}, {name: name for name in outputs}),
    ]


def _decoder(prefix: str) -> Model:
    """The tokens of one picture to the picture, padding included."""
    steps = [
        _step(prefix, "codes", {"global_ids": "global_ids"}, {"codes": "codes"}),
        *_context(prefix, "codes", "context", "entropy", "expected"),
        _step(
            prefix,
            "scatter",
            {name: name for name in ("ids", "positions", "global_ids", "expected", "entropy", "context")},
            {name: name for name in ("state", "context_grid")},
        ),
        _step(
            prefix,
            "decoder",
            {"state": "state", "context": "context_grid", "mean": "mean"},
            {"pixels": "pixels"},
        ),
        _step(prefix, "picture", {"pixels": "pixels"}, {"image": "image"}),
    ]
    config = {
        "platform": "ensemble",
        "max_batch_size": 1,  # a request is one picture; Triton batches those of several requests
        "input": [
            _port("ids", "TYPE_INT32", -1),
            _port("positions", "TYPE_INT32", -1),
            _port("global_ids", "TYPE_INT32", -1, -1),
        ],
        "output": [_port("image", "TYPE_UINT8", -1, -1, 3)],
        "ensemble_scheduling": {"step": steps},
    }
    return Model(f"{prefix}_decode", config)


def _port(name: str, kind: str, *dims: int) -> dict[str, Any]:
    return {"name": name, "data_type": Word(kind), "dims": list(dims)}


def _step(prefix: str, name: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
    return {
        "model_name": f"{prefix}_{name}",
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in inputs.items()],
        "output_map": [{"key": key, "value": value} for key, value in outputs.items()],
    }


def to_text(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in the text format of protocol buffers."""
    lines = []
    for key, value in message.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key} {{\n{to_text(value, indent + '  ')}{indent}}}\n")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines += [f"{indent}{key} {{\n{to_text(item, indent + '  ')}{indent}}}\n" for item in value]
        elif isinstance(value, list):
            lines.append(f"{indent}{key}: [{', '.join(map(_scalar, value))}]\n")
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not isinstance(value, Word):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tatok_edge.export.triton", description="A Triton model repository")
    parser.add_argument("bundle", nargs="?", default=DEFAULT_MODEL, help="a shipped model's name, or a bundle's path")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="the repository to make")
    parser.add_argument("--tau", type=float, default=0.8, help="share of the residual that is kept (default: 0.8)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="largest number of tokens of a picture")
    parser.add_argument("--engines", type=Path, metavar="DIR", help="TensorRT engines that run the networks")
    parser.add_argument("--force", action="store_true", help="replace a repository that exists")
    args = parser.parse_args(argv)
    try:
        bundle = open_bundle(args.bundle)
        models = write_repository(
            bundle,
            args.output,
            tau=args.tau,
            max_tokens=args.max_tokens,
            engines=args.engines,
            force=args.force,
        )
    except (TaTokError, OSError) as error:
        print(f"triton: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    for model in models:
        print(f"{args.output / model.name}: {model.config['platform']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
