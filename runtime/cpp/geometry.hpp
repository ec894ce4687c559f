// The sizes of patches, cells, windows and thumbnails, and what follows from them. tatok_edge/geometry.py has the same
// for Python, with the same names.
#ifndef TATOK_GEOMETRY_HPP
#define TATOK_GEOMETRY_HPP

#include <cstdint>

namespace tatok {

using index_t = std::int64_t;

constexpr index_t kPatch = 8;      // side of a patch in pixels
constexpr index_t kCell = 32;      // side of a cell in pixels
constexpr index_t kWindow = 16;    // side of the window around a patch in pixels
constexpr index_t kThumbnail = 4;  // side of the square of pixels that one thumbnail pixel averages
constexpr index_t kMaxVector = 62;  // largest part of a motion vector in half pixels

constexpr index_t kCellSide = kCell / kPatch;               // patches along a side of a cell
constexpr index_t kCellThumbnails = kCell / kThumbnail;     // thumbnail pixels along a side of a cell
constexpr index_t kWindowMargin = (kWindow - kPatch) / 2;   // pixels from the side of a window to its patch

// Values of one row of pixels, and of all rows.
constexpr index_t kPatchRun = kPatch * 3;
constexpr index_t kCellRun = kCell * 3;
constexpr index_t kWindowRun = kWindow * 3;
constexpr index_t kPatchValues = kPatch * kPatchRun;
constexpr index_t kWindowValues = kWindow * kWindowRun;
constexpr index_t kCellValues = kCellThumbnails * kCellThumbnails * 3;  // of the thumbnail of a cell

// Cells, and patches, along a side of an image that is padded to whole cells.
constexpr index_t cells_along(index_t pixels) { return (pixels + kCell - 1) / kCell; }
constexpr index_t patches_along(index_t pixels) { return cells_along(pixels) * kCellSide; }

}  // namespace tatok

#endif
