"""The kernels on the CPU around the networks: one module per operator, gathered here.

Every function checks dtype, shape and layout of its arguments, then works without the GIL and, where ``out`` is given,
without allocating. ``reference.py`` in the folder above says in numpy what each one computes, bit for bit.

Errors are ``TypeError`` (not an array, wrong dtype) and ``ValueError`` (wrong shape, layout or values); each names the
argument, what came and what is allowed.
"""

from tatok_edge.runtime.cpu.change import change_quantile, patch_change, patch_error, update_reference
from tatok_edge.runtime.cpu.codes import codes_from_ids, decoder_state, ids_from_codes, information
from tatok_edge.runtime.cpu.dtf import dtf
from tatok_edge.runtime.cpu.motion import find_motion, motion_scratch, move_cells
from tatok_edge.runtime.cpu.pixels import assemble, gather_features, image_to_cells, scatter_columns
from tatok_edge.runtime.cpu.scores import patch_scores, visual_weights

__all__ = [
    "assemble",
    "change_quantile",
    "codes_from_ids",
    "decoder_state",
    "dtf",
    "find_motion",
    "gather_features",
    "ids_from_codes",
    "image_to_cells",
    "information",
    "motion_scratch",
    "move_cells",
    "patch_change",
    "patch_error",
    "patch_scores",
    "scatter_columns",
    "update_reference",
    "visual_weights",
]
