// Runs the kernels of this folder on a CPU, so that the very source that nvcc compiles is tested without a GPU.
//
// The blocks of a launch run one after the other; the threads of a block are fibers of one thread, which change only at
// barriers and warp operations. So atomics are plain operations and a run always gives the same result. It
// cannot show races between barriers. A barrier that not every thread of the block (or of the warp) reaches
// ends the process with a message: on a GPU it would hang.
#ifndef TATOK_EMULATOR_HPP
#define TATOK_EMULATOR_HPP

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __global__ static
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __shared__ static thread_local
#define __launch_bounds__(threads)
#define TATOK_LAUNCH(kernel, grid, block, stream, ...) \
    (static_cast<void>(stream), tatok::emulator::launch((grid), (block), [&] { kernel(__VA_ARGS__); }))

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

using cudaStream_t = void*;

namespace tatok {
namespace emulator {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStack = 64 * 1024;

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

struct Fiber {
    ucontext_t start;
    std::jmp_buf at;
    State state;
    bool started = false;
    std::unique_ptr<char[]> stack;
    std::uint64_t slot[2];  // values of the lane in warp operations; two, so that one barrier per operation is enough
    unsigned operation;
};

// The state of the running block.
inline thread_local std::vector<Fiber> fibers;
inline thread_local unsigned current = 0, block_size = 0;
inline thread_local std::jmp_buf scheduler;
inline thread_local void (*body)(void*) = nullptr;
inline thread_local void* argument = nullptr;
inline thread_local dim3 thread_index, block_index, block_shape, grid_shape;

// Back to the scheduler; returns when it lets this fiber go on.
inline void wait(State state) {
    Fiber& fiber = fibers[current];
    fiber.state = state;
    if (!_setjmp(fiber.at)) _longjmp(scheduler, 1);
    thread_index.x = current;
}

// A fiber lives as long as its thread of the process, and runs one thread of every block.
inline void enter() {
    for (;;) {
        body(argument);
        wait(State::kDone);
    }
}

inline void resume(unsigned thread) {
    current = thread;
    Fiber& fiber = fibers[thread];
    fiber.state = State::kReady;
    thread_index.x = thread;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, enter, 0);
    setcontext(&fiber.start);
}

inline void release(unsigned first, unsigned last, State barrier) {
    for (unsigned t = first; t < last; ++t) {
        if (fibers[t].state != barrier) {
            std::fprintf(stderr, "thread %u of block (%u, %u, %u) does not reach the barrier where others wait\n", t,
                         block_index.x, block_index.y, block_index.z);
            std::abort();
        }
        fibers[t].state = State::kReady;
    }
}

inline bool all(unsigned first, unsigned last, State state) {
    for (unsigned t = first; t < last; ++t) {
        if (fibers[t].state != state) return false;
    }
    return true;
}

inline void run_block() {
    for (unsigned t = 0; t < block_size; ++t) {
        fibers[t].operation = 0;
        fibers[t].state = State::kReady;
    }
    for (;;) {
        // Every warp runs until all of its threads wait for the block, or are done.
        for (unsigned first = 0; first < block_size; first += kWarp) {
            const unsigned last = first + kWarp < block_size ? first + kWarp : block_size;
            for (;;) {
                bool in_warp = false;
                for (unsigned t = first; t < last; ++t) {
                    if (fibers[t].state == State::kReady) resume(t);
                    in_warp |= fibers[t].state == State::kAtWarpBarrier;
                }
                if (!in_warp) break;
                release(first, last, State::kAtWarpBarrier);
            }
        }
        if (all(0, block_size, State::kDone)) return;
        release(0, block_size, State::kAtBlockBarrier);
    }
}

template <typename Kernel>
void launch(dim3 grid, unsigned block, Kernel kernel) {
    while (fibers.size() < block) {
        fibers.emplace_back();
        fibers.back().stack.reset(new char[kStack]);
    }
    block_size = block;
    block_shape = dim3(block);
    grid_shape = grid;
    thread_index = dim3(0, 0, 0);
    body = [](void* k) { (*static_cast<Kernel*>(k))(); };
    argument = &kernel;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                block_index = dim3(x, y, z);
                run_block();
            }
        }
    }
    argument = nullptr;
}

// Gives `value` to the warp and waits for the others; returns the index of the slots that hold them.
inline unsigned exchange(std::uint64_t value) {
    Fiber& fiber = fibers[current];
    const unsigned slot = fiber.operation++ & 1;
    fiber.slot[slot] = value;
    wait(State::kAtWarpBarrier);
    return slot;
}

}  // namespace emulator
}  // namespace tatok

#define threadIdx tatok::emulator::thread_index
#define blockIdx tatok::emulator::block_index
#define blockDim tatok::emulator::block_shape
#define gridDim tatok::emulator::grid_shape

inline void __syncthreads() { tatok::emulator::wait(tatok::emulator::State::kAtBlockBarrier); }

template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
    using namespace tatok::emulator;
    const unsigned slot = exchange(static_cast<std::uint64_t>(value)), lane = current % kWarp;
    return lane < delta ? value : static_cast<T>(fibers[current - delta].slot[slot]);
}

template <typename T>
T __shfl_sync(unsigned, T value, unsigned lane) {
    using namespace tatok::emulator;
    const unsigned slot = exchange(static_cast<std::uint64_t>(value));
    return static_cast<T>(fibers[current / kWarp * kWarp + lane].slot[slot]);
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    using namespace tatok::emulator;
    const unsigned slot = exchange(static_cast<std::uint64_t>(value));
    return static_cast<T>(fibers[current ^ mask].slot[slot]);
}

template <typename T>
T atomicAdd(T* target, T value) {
    const T old = *target;
    *target = old + value;
    return old;
}

template <typename T>
T atomicOr(T* target, T value) {
    const T old = *target;
    *target = old | value;
    return old;
}

template <typename T>
T atomicMin(T* target, T value) {
    const T old = *target;
    *target = value < old ? value : old;
    return old;
}

#endif
