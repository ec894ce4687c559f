// uint8 frames in device memory: (images, height, width, 3), any strides.
#ifndef TATOK_FRAME_CUH
#define TATOK_FRAME_CUH

#include "../cpp/common.hpp"
#include "platform.cuh"

namespace tatok {

// Strides in bytes. A BGR frame is the RGB view that starts at its last channel and steps backwards.
struct Frames {
    const std::uint8_t* data;
    std::int64_t image, row, pixel, channel;
    std::int32_t images, height, width;

    TATOK_FUNC const std::uint8_t* at(int b, index_t y, index_t x) const {
        return data + b * image + y * row + x * pixel;
    }
};

// `Pixels` pixels from (y, x) on of the padded frame, as packed RGB bytes. Whole words are read where the frame has
// them: pixels packed, inside, in RGB order, and at an address that is a multiple of 4.
template <int Pixels>
__device__ __forceinline__ void load_run(const Frames& frames, int b, index_t y, index_t x, std::uint8_t* out) {
    static_assert(Pixels % 4 == 0, "a run is whole words");
    y = clamp_index(y, frames.height);
    const std::uint8_t* run = frames.at(b, y, x);
    const bool inside = x >= 0 && x + Pixels <= frames.width;
    if (inside && frames.pixel == 3 && frames.channel == 1 && reinterpret_cast<std::uintptr_t>(run) % 4 == 0) {
        const std::uint32_t* words = reinterpret_cast<const std::uint32_t*>(run);
        for (int w = 0; w < Pixels * 3 / 4; ++w) {
            const std::uint32_t word = words[w];
            for (int byte = 0; byte < 4; ++byte) out[4 * w + byte] = static_cast<std::uint8_t>(word >> (8 * byte));
        }
        return;
    }
    for (int p = 0; p < Pixels; ++p) {
        const std::uint8_t* pixel = frames.at(b, y, clamp_index(x + p, frames.width));
        for (int c = 0; c < 3; ++c) out[3 * p + c] = pixel[c * frames.channel];
    }
}

}  // namespace tatok

#endif
