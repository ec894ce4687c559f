"""A bundle's weights back in the PyTorch model, to compare eager PyTorch with the exported graphs."""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper

from tatok_edge.errors import BundleError
from tatok_edge.model.bundle import GRAPHS, SCORES, Bundle, load_scores
from tatok_edge.training.config import ModelConfig
from tatok_edge.training.model import TaTok


def load_from_bundle(bundle: Bundle) -> TaTok:
    """The PyTorch model with the weights of a bundle's ONNX graphs, in evaluation mode.

    Raises:
        BundleError: the bundle was not exported from this model.
    """
    model = TaTok(ModelConfig.from_dict(bundle.manifest["config"]))
    state = model.state_dict()
    found: dict[str, torch.Tensor] = {}
    for graph in GRAPHS:
        content = onnx.load_model_from_string(bundle.read(graph)).graph
        arrays = {item.name: numpy_helper.to_array(item) for item in content.initializer}
        # Equal weights (of a model that was hardly trained) are stored once, and copied by Identity nodes.
        for node in content.node:
            if node.op_type == "Identity" and node.input[0] in arrays:
                arrays[node.output[0]] = arrays[node.input[0]]
        for key, array in arrays.items():
            prefix = "context" if graph == "cell_context" else graph
            shared = graph == "patch_encoder" and key.startswith(("refinements.", "local."))
            name = key if shared else f"{prefix}.{key.removeprefix('network.')}"
            value = torch.from_numpy(array.copy())
            if name in state and state[name].shape == value.shape:
                found[name] = value
    # No code depends on the local reconstruction of the last token: it is in no graph.
    _, local = load_scores(bundle.read(SCORES), model.config.dims, model.config.depth, str(bundle.path))
    found[f"local.{model.config.depth - 1}.weight"] = torch.from_numpy(local[-1, :, :-1].copy())
    found[f"local.{model.config.depth - 1}.bias"] = torch.from_numpy(local[-1, :, -1].copy())
    missing = sorted(set(state) - set(found))
    if missing:
        raise BundleError(f"{bundle.path}: its graphs lack the weights {', '.join(missing[:3])}; export it again")
    model.load_state_dict(found)
    return model.eval()
