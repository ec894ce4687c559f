"""PyTorch modules to ONNX graphs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

OPSET = 17


def trace(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    *,
    fold: bool = True,
) -> onnx.ModelProto:
    """The graph of a module.

    Args:
        module: The module.
        example: Inputs to trace it with.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        axes: Names of the dynamic axes of each input and output.
        fold: Compute constants now; otherwise the engine does it on loading.
    """
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # The TorchScript exporter needs no onnxscript, gives the smallest graphs and warns that it is not the newest.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            example,
            buffer,  # type: ignore[arg-type]  # the stub knows paths only
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
            do_constant_folding=fold,
        )
    return onnx.load_model_from_string(buffer.getvalue())
