"""The sizes that the native code was built with; they must equal those of ``tatok_edge.geometry``."""

PATCH = kPatch
CELL = kCell
WINDOW = kWindow
THUMBNAIL = kThumbnail
PATCH_VALUES = kPatchValues
WINDOW_VALUES = kWindowValues
CELL_SIDE = kCellSide
MAX_VECTOR = kMaxVector
