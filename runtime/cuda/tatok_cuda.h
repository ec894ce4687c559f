/* The kernels as plain C functions: of the shared library that one nvcc command makes, and of its emulation.
 *
 * Pointers are device memory unless said otherwise; `stream` is a cudaStream_t, and nothing waits for it. Every
 * function returns a cudaError_t: 0, or 1 (cudaErrorInvalidValue) for sizes out of range, or the error of the launch.
 * Sizes of 0 are no work. reference.py specifies the results. */
#ifndef TATOK_CUDA_H
#define TATOK_CUDA_H

#include <stdint.h>

#if defined(__GNUC__)
#define TATOK_API __attribute__((visibility("default")))
#else
#define TATOK_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Of these functions; a library of another version is refused. */
#define TATOK_CUDA_ABI 3

/* uint8 frames (images, height, width, 3) of any strides, in bytes. */
typedef struct {
    const uint8_t* data;
    int64_t image_stride, row_stride, pixel_stride, channel_stride;
    int32_t images, height, width, bgr;
} tatok_frames;

/* Scores (images, patches, depth) of any strides, in elements: float32, or float16 where `half` is not 0; patches at
 * most 65536, depth 1 to 8. */
typedef struct {
    const void* data;
    int64_t image_stride, patch_stride, depth_stride;
    int32_t images, patches, depth, half;
} tatok_scores;

/* share = tau * 2^30 in [1, 2^30], floor_score in 2^-16 bits; 0 <= min_tokens <= max_tokens. */
typedef struct {
    int64_t share, min_tokens, max_tokens;
    int32_t floor_score;
} tatok_dtf_limits;

/* Levels per code dimension, 1 to 16 of them. */
typedef struct {
    int32_t dims;
    int32_t level[16];
} tatok_levels;

TATOK_API int tatok_abi(void);
/* 1 in a library that runs on the CPU and takes host memory. */
TATOK_API int tatok_emulated(void);
TATOK_API const char* tatok_error_text(int error);

/* Kept tokens in raster order, depth innermost: positions (images, patches * depth), then -1; depths (images, patches *
 * depth), from 1, then 0; counts (images): how many, or -1 - i where score i of the image, as (patches, depth), is the
 * first that is negative or not finite. */
TATOK_API int tatok_dtf(const tatok_scores* scores, const tatok_dtf_limits* limits, int32_t* positions, int32_t* depths,
                        int32_t* counts, void* stream);
/* The result of tatok_dtf flat over the batch: flat_positions and flat_depths (images * patches * depth), -1 and 0
 * behind the last; cu_seqlens (images + 1). */
TATOK_API int tatok_flatten(const int32_t* positions, const int32_t* depths, const int32_t* counts, int32_t images,
                            int32_t patches, int32_t depth, int32_t* flat_positions, int32_t* flat_depths,
                            int32_t* cu_seqlens, void* stream);
/* cells (images, 192, ceil(height / 32) * ceil(width / 32)). */
TATOK_API int tatok_cells(const tatok_frames* frames, float* cells, void* stream);
/* rows (count, 960 + context_channels) for flat positions; context (images, context_channels, patches), mean
 * (images, 192, patches). A position outside the batch gives zeros. */
TATOK_API int tatok_features(const tatok_frames* frames, const float* context, int32_t context_channels,
                             const float* mean, const int32_t* positions, int32_t count, float* rows, void* stream);
/* pixels (images, 192, patches) to frames (images, height, width, 3), packed. */
TATOK_API int tatok_assemble(const float* pixels, int32_t images, int32_t height, int32_t width, int bgr,
                             uint8_t* frames, void* stream);
/* changes (images, 2, patches) to reference (images, 32 * ceil(height / 32), 32 * ceil(width / 32), 3), packed RGB at
 * an address that is a multiple of 4. */
TATOK_API int tatok_change(const tatok_frames* frames, const uint8_t* reference, int32_t* changes, void* stream);
/* scores (images, patches, depth) of the tokens of every patch: mean (images, 192, patches), basis (depth, dims, 192);
 * weights (images, patches), or NULL for none. */
TATOK_API int tatok_patch_scores(const tatok_frames* frames, const float* mean, const int16_t* basis, int32_t depth,
                                 int32_t dims, const float* weights, float* scores, void* stream);
/* weights (images, patches); activity (images, patches) is scratch. */
TATOK_API int tatok_visual_weights(const tatok_frames* frames, int64_t* activity, float* weights, void* stream);
/* The patches at flat positions into reference. */
TATOK_API int tatok_update_reference(const tatok_frames* frames, uint8_t* reference, const int32_t* positions,
                                     int32_t count, void* stream);
/* codes (count, dims) at flat positions, which never fall, expected (images, depth * dims, patches), entropy (images,
 * depth, patches) to state (images, depth * (dims + 2), patches). */
TATOK_API int tatok_decoder_state(const int32_t* codes, const int32_t* positions, int32_t count, const float* expected,
                                  const float* entropy, int32_t images, int32_t patches, int32_t depth,
                                  const tatok_levels* levels, float* state, void* stream);
/* bits (count, depth) of stacks of codes (count, stack * dims) at flat positions, the smallest up to each depth;
 * log2_probs (images, stack * sum of levels, patches); depth <= stack. */
TATOK_API int tatok_information(const float* log2_probs, const int32_t* codes, const int32_t* positions, int32_t count,
                                int32_t images, int32_t patches, int32_t stack, int32_t depth,
                                const tatok_levels* levels, float* bits, void* stream);

#ifdef __cplusplus
}
#endif

#endif
