"""The TaTok model in PyTorch: global encoder, context, patch encoder, refinements, decoder.

Pixels are in [-1, 1] (``value / 127.5 - 1``). Images have heights and widths
that are multiples of 32. Grids: *cells* are 32x32 pixels, *patches* 8x8. A patch has up to
K = ``config.depth`` tokens of D dimensions each.

Everything but the encoding of patches is a convolution without normalisation, so that
an inference engine keeps one blocked channel layout from input to output; the
patch encoder and its refinements are MLPs over single patches, so that any subset of patches of any
images is one flat batch.

``grids`` cuts pixels, ``layers`` has the building blocks, ``networks`` the networks, ``tatok`` the whole model,
``start`` says how training starts.
"""

from tatok_edge.training.model.grids import (
    PIXELS,
    WINDOW_PIXELS,
    grid_to_pixels,
    image_to_cells,
    image_to_windows,
    pixels_to_grid,
    window_centre_index,
)
from tatok_edge.training.model.layers import FSQ, Block, MlpBlock
from tatok_edge.training.model.networks import (
    LOGIT_RANGE,
    Context,
    Decoder,
    GlobalEncoder,
    PatchEncoder,
    Prior,
    Refinement,
)
from tatok_edge.training.model.start import analytic_start, bilinear_upsample_weight, deepen
from tatok_edge.training.model.tatok import Encoded, TaTok, decoder_state

__all__ = [
    "FSQ",
    "LOGIT_RANGE",
    "PIXELS",
    "WINDOW_PIXELS",
    "Block",
    "Context",
    "Decoder",
    "Encoded",
    "GlobalEncoder",
    "MlpBlock",
    "PatchEncoder",
    "Prior",
    "Refinement",
    "TaTok",
    "analytic_start",
    "bilinear_upsample_weight",
    "decoder_state",
    "deepen",
    "grid_to_pixels",
    "image_to_cells",
    "image_to_windows",
    "pixels_to_grid",
    "window_centre_index",
]
