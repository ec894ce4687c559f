// The plain C functions around the kernels. One translation unit: nvcc makes the shared library of it, and a C++
// compiler (`-x c++`) its emulation.
#include "tatok_cuda.h"

#include "change.cuh"
#include "codes.cuh"
#include "dtf.cuh"
#include "pixels.cuh"
#include "scores.cuh"

namespace {

using namespace tatok;

constexpr int kInvalid = 1;            // cudaErrorInvalidValue
constexpr index_t kMaxSide = 1 << 15;  // of a frame in pixels; keeps every index of a grid in range
constexpr index_t kMaxValues = index_t{1} << 31;

int launched() {
#if defined(__CUDACC__)
    return static_cast<int>(cudaGetLastError());
#else
    return 0;
#endif
}

cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

unsigned blocks(index_t work, index_t each) { return static_cast<unsigned>((work + each - 1) / each); }

struct Grid {
    int cell_rows, cell_columns, height, width;  // width and height in patches
    index_t patches() const { return static_cast<index_t>(height) * width; }
};

bool valid_size(index_t images, index_t height, index_t width) {
    return images >= 0 && images < 65536 && height >= 1 && height <= kMaxSide && width >= 1 && width <= kMaxSide;
}

Grid grid_of(index_t height, index_t width) {
    const int rows = static_cast<int>(cells_along(height)), columns = static_cast<int>(cells_along(width));
    constexpr int kSide = static_cast<int>(kCellSide);
    return Grid{rows, columns, rows * kSide, columns * kSide};
}

bool valid_frames(const tatok_frames* frames) {
    if (frames == nullptr || !valid_size(frames->images, frames->height, frames->width)) return false;
    return frames->images * grid_of(frames->height, frames->width).patches() < kMaxValues;
}

Frames view_of(const tatok_frames& f) {
    const std::int64_t first = f.bgr ? 2 * f.channel_stride : 0, channel = f.bgr ? -f.channel_stride : f.channel_stride;
    return Frames{f.data + first, f.image_stride, f.row_stride, f.pixel_stride, channel, f.images, f.height, f.width};
}

bool valid_levels(const tatok_levels* levels) {
    if (levels == nullptr || levels->dims < 1 || levels->dims > kMaxDims) return false;
    for (int d = 0; d < levels->dims; ++d) {
        if (levels->level[d] < 2 || levels->level[d] > 65535) return false;
    }
    return true;
}

Levels levels_of(const tatok_levels& levels) {
    Levels result;
    result.dims = levels.dims;
    for (int d = 0; d < kMaxDims; ++d) result.level[d] = d < levels.dims ? levels.level[d] : 1;
    return result;
}

bool valid_depth(index_t depth) { return depth >= 1 && depth <= kMaxDepth; }

bool valid_batch(index_t images, index_t patches) {
    return images >= 0 && images < 65536 && patches >= 0 && images * patches < kMaxValues;
}

bool valid_stacks(index_t images, index_t patches, index_t depth) {
    return patches <= kDtfMaxPatches && valid_depth(depth) && valid_batch(images, patches * depth);
}

bool valid_scores(const tatok_scores* scores) {
    return scores != nullptr && valid_stacks(scores->images, scores->patches, scores->depth);
}

template <typename Score>
Scores<Score> view_of(const tatok_scores& s) {
    return Scores<Score>{static_cast<const Score*>(s.data), s.image_stride, s.patch_stride,
                         s.depth_stride,                    s.patches,      s.depth};
}

}  // namespace

int tatok_abi(void) { return TATOK_CUDA_ABI; }

int tatok_emulated(void) {
#if defined(__CUDACC__)
    return 0;
#else
    return 1;
#endif
}

const char* tatok_error_text(int error) {
#if defined(__CUDACC__)
    return cudaGetErrorString(static_cast<cudaError_t>(error));
#else
    return error == 0 ? "no error" : "invalid argument";
#endif
}

int tatok_dtf(const tatok_scores* scores, const tatok_dtf_limits* limits, int32_t* positions, int32_t* depths,
              int32_t* counts, void* stream) {
    if (!valid_scores(scores) || limits == nullptr) return kInvalid;
    const DtfLimits l{limits->share, limits->min_tokens, limits->max_tokens, limits->floor_score};
    if (l.share < 1 || l.share > 1 << 30 || l.min_tokens < 0 || l.max_tokens < l.min_tokens || l.floor_score < 0) {
        return kInvalid;
    }
    if (scores->images == 0) return 0;
    const dim3 grid(static_cast<unsigned>(scores->images));
    if (scores->half) {
        const Scores<Half> view = view_of<Half>(*scores);
        TATOK_LAUNCH(dtf_kernel<Half>, grid, kDtfThreads, as_stream(stream), view, l, positions, depths, counts);
    } else {
        const Scores<float> view = view_of<float>(*scores);
        TATOK_LAUNCH(dtf_kernel<float>, grid, kDtfThreads, as_stream(stream), view, l, positions, depths, counts);
    }
    return launched();
}

int tatok_flatten(const int32_t* positions, const int32_t* depths, const int32_t* counts, int32_t images,
                  int32_t patches, int32_t depth, int32_t* flat_positions, int32_t* flat_depths, int32_t* cu_seqlens,
                  void* stream) {
    if (!valid_stacks(images, patches, depth) || images < 1) return kInvalid;
    const dim3 grid(static_cast<unsigned>(images));
    TATOK_LAUNCH(flatten_kernel, grid, kFlattenThreads, as_stream(stream), positions, depths, counts, images, patches,
                 patches * depth, flat_positions, flat_depths, cu_seqlens);
    return launched();
}

int tatok_cells(const tatok_frames* frames, float* cells, void* stream) {
    if (!valid_frames(frames)) return kInvalid;
    if (frames->images == 0) return 0;
    const Grid g = grid_of(frames->height, frames->width);
    const dim3 grid(static_cast<unsigned>(g.cell_rows * kThumbnailsPerCell), static_cast<unsigned>(frames->images));
    const Frames view = view_of(*frames);
    TATOK_LAUNCH(cells_kernel, grid, kCellsThreads, as_stream(stream), view, g.cell_rows, g.cell_columns, cells);
    return launched();
}

int tatok_features(const tatok_frames* frames, const float* context, int32_t context_channels, const float* mean,
                   const int32_t* positions, int32_t count, float* rows, void* stream) {
    if (!valid_frames(frames) || count < 0 || context_channels < 0 || context_channels > 65536) return kInvalid;
    if (count == 0) return 0;
    const Grid g = grid_of(frames->height, frames->width);
    const Frames view = view_of(*frames);
    TATOK_LAUNCH(features_kernel, dim3(blocks(count, kRows)), kFeatureThreads, as_stream(stream), view, context,
                 context_channels, mean, positions, count, static_cast<int>(g.patches()), g.width, rows);
    return launched();
}

int tatok_assemble(const float* pixels, int32_t images, int32_t height, int32_t width, int bgr, uint8_t* frames,
                   void* stream) {
    if (!valid_size(images, height, width)) return kInvalid;
    if (images == 0) return 0;
    const Grid g = grid_of(height, width);
    const dim3 grid(static_cast<unsigned>(height), static_cast<unsigned>(images));
    TATOK_LAUNCH(assemble_kernel, grid, kAssembleThreads, as_stream(stream), pixels, static_cast<int>(g.patches()),
                 g.width, height, width, bgr != 0, frames);
    return launched();
}

int tatok_change(const tatok_frames* frames, const uint8_t* reference, int32_t* changes, void* stream) {
    if (!valid_frames(frames) || reinterpret_cast<std::uintptr_t>(reference) % 4 != 0) return kInvalid;
    if (frames->images == 0) return 0;
    const Grid g = grid_of(frames->height, frames->width);
    const dim3 grid(blocks(g.width, kChangePatches), static_cast<unsigned>(g.height),
                    static_cast<unsigned>(frames->images));
    const Frames view = view_of(*frames);
    TATOK_LAUNCH(change_kernel, grid, kChangeThreads, as_stream(stream), view, reference, g.height, g.width, changes);
    return launched();
}

int tatok_patch_scores(const tatok_frames* frames, const float* mean, const int16_t* basis, int32_t depth, int32_t dims,
                       const float* weights, float* scores, void* stream) {
    if (!valid_frames(frames) || !valid_depth(depth) || dims < 1 || dims > kMaxDims) return kInvalid;
    if (frames->images == 0) return 0;
    const Grid g = grid_of(frames->height, frames->width);
    const dim3 grid(blocks(g.width, kScorePatches), static_cast<unsigned>(g.height),
                    static_cast<unsigned>(frames->images));
    const Frames view = view_of(*frames);
    TATOK_LAUNCH(scores_kernel, grid, kScoreThreads, as_stream(stream), view, mean, basis, depth, dims, weights,
                 g.height, g.width, scores);
    return launched();
}

int tatok_visual_weights(const tatok_frames* frames, int64_t* activity, float* weights, void* stream) {
    if (!valid_frames(frames)) return kInvalid;
    if (frames->images == 0) return 0;
    const Grid g = grid_of(frames->height, frames->width);
    const dim3 grid(blocks(g.width, kScorePatches), static_cast<unsigned>(g.height),
                    static_cast<unsigned>(frames->images));
    const Frames view = view_of(*frames);
    TATOK_LAUNCH(activity_kernel, grid, kScoreThreads, as_stream(stream), view, g.height, g.width, activity);
    const int error = launched();
    if (error != 0) return error;
    const dim3 all(blocks(g.patches(), kWeightThreads), static_cast<unsigned>(frames->images));
    TATOK_LAUNCH(weights_kernel, all, kWeightThreads, as_stream(stream), activity, g.height, g.width, weights);
    return launched();
}

int tatok_update_reference(const tatok_frames* frames, uint8_t* reference, const int32_t* positions, int32_t count,
                           void* stream) {
    if (!valid_frames(frames) || count < 0 || reinterpret_cast<std::uintptr_t>(reference) % 4 != 0) return kInvalid;
    if (count == 0) return 0;
    const Grid g = grid_of(frames->height, frames->width);
    const Frames view = view_of(*frames);
    TATOK_LAUNCH(update_kernel, dim3(blocks(count * kPatch, kUpdateThreads)), kUpdateThreads, as_stream(stream), view,
                 reference, g.height, g.width, positions, count);
    return launched();
}

int tatok_decoder_state(const int32_t* codes, const int32_t* positions, int32_t count, const float* expected,
                        const float* entropy, int32_t images, int32_t patches, int32_t depth,
                        const tatok_levels* levels, float* state, void* stream) {
    if (!valid_batch(images, patches) || count < 0 || !valid_depth(depth) || !valid_levels(levels)) return kInvalid;
    if (images == 0 || patches == 0) return 0;
    const Levels l = levels_of(*levels);
    const dim3 grid(blocks(patches, kCodesThreads), static_cast<unsigned>(depth * (l.dims + 2)),
                    static_cast<unsigned>(images));
    TATOK_LAUNCH(empty_state_kernel, grid, kCodesThreads, as_stream(stream), expected, entropy, patches, depth, l.dims,
                 state);
    const int error = launched();
    if (error != 0 || count == 0) return error;
    TATOK_LAUNCH(scatter_kernel, dim3(blocks(count, kCodesThreads)), kCodesThreads, as_stream(stream), codes, positions,
                 count, images, patches, depth, l, state);
    return launched();
}

int tatok_information(const float* log2_probs, const int32_t* codes, const int32_t* positions, int32_t count,
                      int32_t images, int32_t patches, int32_t stack, int32_t depth, const tatok_levels* levels,
                      float* bits, void* stream) {
    if (!valid_batch(images, patches) || count < 0 || !valid_levels(levels)) return kInvalid;
    if (!valid_depth(stack) || depth < 1 || depth > stack) return kInvalid;
    if (count == 0) return 0;
    const Levels l = levels_of(*levels);
    int level_sum = 0;
    for (int d = 0; d < l.dims; ++d) level_sum += l.level[d];
    TATOK_LAUNCH(information_kernel, dim3(blocks(count, kCodesThreads)), kCodesThreads, as_stream(stream), log2_probs,
                 codes, positions, count, images, patches, level_sum, stack, depth, l, bits);
    return launched();
}
