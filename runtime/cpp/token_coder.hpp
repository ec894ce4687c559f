// Entropy coding of the tokens of a grid, each in the context of those before it: docs/format.md, "Frequencies of a
// bundle".
//
// A small network in integers gives the frequency of each value of a code. It reads the tokens that come before in
// raster order, within two rows and columns, the tokens of the same place that are known, and the cells around. All
// sums stay below 2^31 (the caller checks the weights), so the frequencies are the same on every machine and compiler.
// After each token, gradient steps on the coding cost adapt a scale and a bias of the logits: pictures differ from
// those that the network was fitted to.

#ifndef TATOK_TOKEN_CODER_HPP
#define TATOK_TOKEN_CODER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common.hpp"
#include "products.hpp"
#include "range_coder.hpp"

namespace tatok {

constexpr int kReach = 2;                               // rows and columns of neighbours
constexpr int kReachSide = 2 * kReach + 1;              // side of the square of a token and its neighbours
constexpr int kBefore = kReach * kReachSide + kReach;   // neighbours that come before a token, and as many after it
constexpr int kPhaseSide = static_cast<int>(kCellSide);  // places of a patch in its cell, along a side
constexpr int kInputScale = 64;
constexpr int kHiddenShift = 10;
constexpr int kHiddenMax = 255;
constexpr int kExpSize = 178;
// Logits are adapted in units of 1/256 nat; `exp` has steps of 1/16 nat.
constexpr int kLogitShift = 8;
constexpr int kLogitMax = 32767;
constexpr int kExpShift = 4;
constexpr int kUnitShift = 18;
// Step sizes and limits of the adaptation of the logits.
constexpr int kFactorOne = 16384;
constexpr int kFactorShift = 14;
constexpr int kScaleShift = 8;
constexpr int kSlopeShift = 4;
constexpr int kBiasShift = 9;
constexpr int32_t kScaleLimit = 12288 << kScaleShift;  // logits times 1/4 to 7/4
constexpr int32_t kBiasLimit = 1 << 20;                // 8 nats

// Weights are pairs of rows, see products.hpp; TokenModel in cpu/token_coder.pyx gives the shapes. Widths of layers
// are multiples of kLanes.
struct TokenNet {
    int dims = 0;
    int levels[kMaxDims] = {};
    int starts[kMaxDims] = {};  // first state of each dimension
    int states = 0;             // sum of the levels
    int width1 = 0, width2 = 0, width3 = 0;
    int shallower = 0;     // most tokens ahead of a token in its stack whose codes it reads
    bool reads_held = false;
    int cell_dims = 0;     // dimensions of the codes of the cells around; 0 where the grid has no cells
    int cell_levels[kMaxDims] = {};
    int cell_inputs = 0;   // inputs from the cells around, then one per class of the share
    int shares = 0;        // classes of the share of tokens per patch
    const int16_t* cells = nullptr;   // (pairs of cell inputs, width1, 2)
    const int32_t* places = nullptr;  // (max(1, shallower), 16, width1): depth of the token, place in its cell
    const int16_t* ahead = nullptr;   // (shallower, pairs of dims, width1, 2)
    const int16_t* held = nullptr;    // (pairs of entry, width1, 2)
    const int16_t* before = nullptr;  // (12, pairs of entry, width1, 2)
    const int16_t* after = nullptr;   // (6, width1, 2)
    const int32_t* b1 = nullptr;
    const int16_t* w2 = nullptr;      // (width1 / 2, width2, 2)
    const int32_t* b2 = nullptr;
    const int16_t* w3 = nullptr;      // (width2 / 2, width3, 2)
    const int32_t* b3 = nullptr;
    const int32_t* exp = nullptr;     // (178,)

    // Values of a token: one per dimension, then kInputScale; an even number.
    inline int entry() const { return (dims + 2) / 2 * 2; }
    inline int entry_pairs() const { return entry() / 2; }
    inline int code_pairs() const { return (dims + 1) / 2; }
    inline int most_pairs() const { return (kBefore + 1) * entry_pairs() + kBefore / 2 + shallower * code_pairs(); }
};

// The tokens of a grid: the stack of place p has the tokens offsets[p] to offsets[p + 1] - 1, from depth 1 on.
struct Stacks {
    const int32_t* offsets = nullptr;  // (places + 1,); null: there are none
    const int32_t* codes = nullptr;    // (tokens, dims), all below the levels

    inline int depth(size_t place) const { return offsets ? offsets[place + 1] - offsets[place] : 0; }
};

// All tokens of one depth of a grid.
struct TokenPlane {
    int height = 0, width = 0;
    int depth = 1;
    Stacks stacks;
    const uint8_t* given = nullptr;       // (tokens,): 1 where both sides know the token already; null: nowhere
    Stacks held;                          // the tokens that the places had before
    const int32_t* cell_codes = nullptr;  // (height / 4 * width / 4, cell_dims), where the net has cell inputs
    int share = 0;
};

inline int16_t centre(int32_t code, int level) {
    return static_cast<int16_t>((2 * code + 1) * kInputScale / level - kInputScale);
}

// Hidden activations (width,) of the sums of a layer.
TATOK_HOT void activate(const int32_t* sums, int width, int16_t* out) {
    for (int j = 0; j < width; ++j) {
        const int32_t value = sums[j] >> kHiddenShift;
        out[j] = static_cast<int16_t>(value < 0 ? 0 : (value > kHiddenMax ? kHiddenMax : value));
    }
}

// start (width,) = a + b.
TATOK_HOT void add_rows(const int32_t* a, const int32_t* b, int width, int32_t* out) {
    for (int j = 0; j < width; ++j) out[j] = a[j] + b[j];
}

// Logits (width,) from the sums of the last layer, plain and adapted.
TATOK_HOT void adapt_logits(const int32_t* sums, const int32_t* factor, const int32_t* bias, int width, int32_t* plain,
                            int32_t* adapted) {
    for (int k = 0; k < width; ++k) {
        const int32_t value = sums[k] >> kLogitShift;
        plain[k] = value < -kLogitMax ? -kLogitMax : (value > kLogitMax ? kLogitMax : value);
        adapted[k] = (plain[k] * factor[k] >> kFactorShift) + (bias[k] >> kBiasShift);
    }
}

// bias += slope, limited; slope becomes slope * plain.
TATOK_HOT void adapt_bias(const int32_t* plain, int width, int32_t* slope, int32_t* bias) {
    for (int k = 0; k < width; ++k) {
        const int32_t value = bias[k] + slope[k];
        bias[k] = value < -kBiasLimit ? -kBiasLimit : (value > kBiasLimit ? kBiasLimit : value);
        slope[k] *= plain[k];
    }
}

// Frequencies of one dimension from its logits; `freqs` takes `level` of them.
TATOK_PART void frequencies(const int32_t* logits, int level, const int32_t* exp, uint32_t* freqs) {
    int32_t top = logits[0];
    int best = 0;
    for (int k = 1; k < level; ++k) {
        best = logits[k] > top ? k : best;
        top = logits[k] > top ? logits[k] : top;
    }
    uint32_t sum = 0;
    for (int k = 0; k < level; ++k) {
        const int32_t below = (top - logits[k]) >> kExpShift;
        freqs[k] = static_cast<uint32_t>(exp[below < kExpSize - 1 ? below : kExpSize - 1]);
        sum += freqs[k];
    }
    const uint32_t unit = ((kFrequencyTotal - static_cast<uint32_t>(level)) << kUnitShift) / sum;
    uint32_t total = 0;
    for (int k = 0; k < level; ++k) {
        freqs[k] = 1 + (freqs[k] * unit >> kUnitShift);
        total += freqs[k];
    }
    freqs[best] += kFrequencyTotal - total;
}

// Runs a network and adapts its logits to the codes of one plane.
class PlaneModel {
  public:
    explicit PlaneModel(const TokenNet& net)
        : inputs(std::max(net.most_pairs(), std::max(net.width1, net.width2) / 2)),
          net_(net),
          start_(net.width1), sums_(std::max({net.width1, net.width2, net.width3})), plain_(net.width3),
          adapted_(net.width3), factor_(net.width3, kFactorOne), bias_(net.width3, 0), slope_(net.width3, 0),
          x_(std::max(net.width1, net.width2)), scale_(net.dims, 0), freqs_(net.width3, 0) {}

    // Pairs of inputs of the first layer, beside those of cells and place.
    PairList inputs;

    // Computes the frequencies of all values, given the first layer's sums (width1,) of the cells, and of the place.
    void run(const int32_t* cells, const int32_t* place) {
        const int32_t* start = cells;
        if (place) {
            add_rows(cells, place, net_.width1, start_.data());
            start = start_.data();
        }
        products(inputs.rows(), inputs.values(), inputs.size(), net_.width1, start, sums_.data());
        layer(net_.width1, net_.w2, net_.width2, net_.b2);
        layer(net_.width2, net_.w3, net_.width3, net_.b3);
        adapt_logits(sums_.data(), factor_.data(), bias_.data(), net_.width3, plain_.data(), adapted_.data());
        for (int d = 0; d < net_.dims; ++d) {
            frequencies(adapted_.data() + net_.starts[d], net_.levels[d], net_.exp, freqs_.data() + net_.starts[d]);
        }
    }

    // Frequencies (states,) of the token.
    const uint32_t* freqs() const { return freqs_.data(); }

    // Adapts to the code (dims,) of the token.
    void learn(const int32_t* code) {
        for (int k = 0; k < net_.states; ++k) slope_[k] = -static_cast<int32_t>(freqs_[k]);
        for (int d = 0; d < net_.dims; ++d) slope_[net_.starts[d] + code[d]] += kFrequencyTotal;
        adapt_bias(plain_.data(), net_.width3, slope_.data(), bias_.data());
        for (int d = 0; d < net_.dims; ++d) {
            const int at = net_.starts[d], end = at + net_.levels[d];
            int32_t total = 0;
            for (int k = at; k < end; ++k) total += slope_[k];
            const int32_t value = scale_[d] + (total >> kSlopeShift);
            scale_[d] = std::min(std::max(value, -kScaleLimit), kScaleLimit);
            const int32_t factor = kFactorOne + (scale_[d] >> kScaleShift);
            for (int k = at; k < end; ++k) factor_[k] = factor;
        }
    }

  private:
    // Sums of a layer from the activations of the sums of the layer before it.
    void layer(int inputs_width, const int16_t* weights, int width, const int32_t* bias) {
        activate(sums_.data(), inputs_width, x_.data());
        inputs.clear();
        inputs.push(weights, 2 * width, x_.data(), inputs_width / 2);
        products(inputs.rows(), inputs.values(), inputs.size(), width, bias, sums_.data());
    }

    const TokenNet& net_;
    std::vector<int32_t> start_, sums_, plain_, adapted_, factor_, bias_, slope_;
    std::vector<int16_t> x_;
    std::vector<int32_t> scale_;
    std::vector<uint32_t> freqs_;
};

// Inputs of a token from its neighbours: the codes of those before it, then which places have a token after it.
class NeighbourInputs {
  public:
    NeighbourInputs(const TokenNet& net, const TokenPlane& plane)
        : net_(net),
          columns_(plane.width + 2 * kReach),
          rows_(static_cast<size_t>(kReach + 1) * columns_ * net.entry(), 0),
          there_(static_cast<size_t>(plane.height + kReach) * columns_, 0) {
        for (int y = 0; y < plane.height; ++y) {
            uint8_t* line = there_.data() + static_cast<size_t>(y) * columns_ + kReach;
            const size_t first = static_cast<size_t>(y) * plane.width;
            for (int x = 0; x < plane.width; ++x) line[x] = plane.stacks.depth(first + x) >= plane.depth;
        }
    }

    bool there(int y, int x) const { return there_[static_cast<size_t>(y) * columns_ + x + kReach]; }

    // Goes on to row y, the one after the last.
    void enter_row(int y) {
        int16_t* line = row(y);
        std::fill(line, line + static_cast<size_t>(columns_) * net_.entry(), int16_t{0});
    }

    // Appends the inputs of the token at (y, x) of the row that was entered.
    void push(int y, int x, PairList& inputs) {
        const int entry = net_.entry(), pairs = net_.entry_pairs(), step = 2 * net_.width1;
        const int16_t* weights = net_.before;
        for (int dy = kReach; dy >= 0; --dy) {
            const int used = dy ? kReachSide : kReach;
            if (y >= dy) {
                const uint8_t* known = there_.data() + static_cast<size_t>(y - dy) * columns_ + x;
                const int16_t* values = row(y - dy) + static_cast<size_t>(x) * entry;
                for (int dx = 0; dx < used; ++dx) {
                    if (known[dx]) inputs.push(weights + dx * pairs * step, step, values + dx * entry, pairs);
                }
            }
            weights += used * pairs * step;
        }
        int16_t after[kBefore];
        int16_t* flag = after;
        for (int dy = 0; dy <= kReach; ++dy) {
            const uint8_t* line = there_.data() + static_cast<size_t>(y + dy) * columns_ + x;
            for (int dx = dy ? 0 : kReach + 1; dx < kReachSide; ++dx) {
                *flag++ = static_cast<int16_t>(line[dx] * kInputScale);
            }
        }
        inputs.push(net_.after, step, after, kBefore / 2);
    }

    // Notes the code (dims,) of the token at (y, x).
    void note(int y, int x, const int32_t* code) {
        int16_t* own = row(y) + static_cast<size_t>(x + kReach) * net_.entry();
        for (int d = 0; d < net_.dims; ++d) own[d] = centre(code[d], net_.levels[d]);
        own[net_.dims] = kInputScale;
    }

  private:
    int16_t* row(int y) { return rows_.data() + static_cast<size_t>(y % (kReach + 1)) * columns_ * net_.entry(); }

    const TokenNet& net_;
    int columns_;
    std::vector<int16_t> rows_;   // codes of this row and the two above
    std::vector<uint8_t> there_;  // 1 where the plane has a token
};

// Appends the tokens ahead of one in its stack, and the one that its place had before at its depth.
inline void push_known(const TokenNet& net, const TokenPlane& plane, size_t place, PairList& inputs) {
    int16_t values[kMaxDims + 2];
    const int step = 2 * net.width1;
    for (int k = 0; k < std::min(net.shallower, plane.depth - 1); ++k) {
        const int32_t* code = plane.stacks.codes + static_cast<size_t>(plane.stacks.offsets[place] + k) * net.dims;
        for (int d = 0; d < net.dims; ++d) values[d] = centre(code[d], net.levels[d]);
        values[net.dims] = 0;
        inputs.push(net.ahead + k * net.code_pairs() * step, step, values, net.code_pairs());
    }
    if (net.reads_held && plane.held.depth(place) >= plane.depth) {
        const int32_t* code =
            plane.held.codes + static_cast<size_t>(plane.held.offsets[place] + plane.depth - 1) * net.dims;
        for (int d = 0; d < net.dims; ++d) values[d] = centre(code[d], net.levels[d]);
        values[net.dims] = kInputScale;
        values[net.dims + 1] = 0;
        inputs.push(net.held, step, values, net.entry_pairs());
    }
}

// Share of the codes of the cells around a patch in the first layer, computed once per cell.
class CellSums {
  public:
    CellSums(const TokenNet& net, const TokenPlane& plane)
        : net_(net), codes_(plane.cell_codes), rows_(plane.height / kPhaseSide),
          columns_(plane.width / kPhaseSide), share_(plane.share), input_(net.cell_inputs + 1) {
        if (!net.cell_inputs) return;
        sums_.resize(static_cast<size_t>(columns_) * net.width1);
        known_.resize(columns_, 0);
    }

    // Sums (width1,) for the patch at (y, x); rows must not decrease.
    const int32_t* at(int y, int x) {
        if (!net_.cell_inputs) return net_.b1;
        if (row_ != y / kPhaseSide) {
            row_ = y / kPhaseSide;
            std::fill(known_.begin(), known_.end(), uint8_t{0});
        }
        const int cell = x / kPhaseSide;
        int32_t* sums = sums_.data() + static_cast<size_t>(cell) * net_.width1;
        if (!known_[cell]) {
            known_[cell] = 1;
            add(cell, sums);
        }
        return sums;
    }

  private:
    void add(int cell, int32_t* sums) {
        int16_t* in = input_.data();
        for (int dy = -1; dy <= 1; ++dy) {
            for (int dx = -1; dx <= 1; ++dx) {
                const int y = std::clamp(row_ + dy, 0, rows_ - 1), x = std::clamp(cell + dx, 0, columns_ - 1);
                const int32_t* code = codes_ + (static_cast<size_t>(y) * columns_ + x) * net_.cell_dims;
                for (int d = 0; d < net_.cell_dims; ++d) *in++ = centre(code[d], net_.cell_levels[d]);
            }
        }
        for (int k = 0; k < net_.shares; ++k) *in++ = k == share_ ? kInputScale : 0;
        const int pairs = (net_.cell_inputs + 1) / 2;
        PairList list(pairs);
        list.push(net_.cells, 2 * net_.width1, input_.data(), pairs);
        products(list.rows(), list.values(), list.size(), net_.width1, net_.b1, sums);
    }

    const TokenNet& net_;
    const int32_t* codes_;
    int rows_, columns_, share_, row_ = -1;
    std::vector<int32_t> sums_;  // (columns, width1) of the row of cells
    std::vector<uint8_t> known_;
    std::vector<int16_t> input_;
};

// Calls step(freqs, level, token, d) -> code for every dimension d of every token of a plane that is not given. A
// negative code ends the walk. Returns whether the walk reached the last token.
//
// Where the net has cell inputs, the grid is one of patches. A step may write the codes of the stacks.
template <typename Step>
inline bool walk_plane(const TokenNet& net, const TokenPlane& plane, Step&& step) {
    NeighbourInputs neighbours(net, plane);
    CellSums cells(net, plane);
    PlaneModel model(net);
    int32_t code[kMaxDims];
    const int stage = net.shallower ? std::min(plane.depth - 2, net.shallower - 1) : 0;
    for (int y = 0; y < plane.height; ++y) {
        neighbours.enter_row(y);
        for (int x = 0; x < plane.width; ++x) {
            if (!neighbours.there(y, x)) continue;
            const size_t place = static_cast<size_t>(y) * plane.width + x;
            const size_t token = static_cast<size_t>(plane.stacks.offsets[place] + plane.depth - 1);
            if (plane.given && plane.given[token]) {
                neighbours.note(y, x, plane.stacks.codes + token * net.dims);
                continue;
            }
            model.inputs.clear();
            neighbours.push(y, x, model.inputs);
            push_known(net, plane, place, model.inputs);
            const int phase = y % kPhaseSide * kPhaseSide + x % kPhaseSide;
            model.run(cells.at(y, x), net.cell_inputs ? net.places + (stage * kPhaseSide * kPhaseSide + phase) *
                                                                         static_cast<size_t>(net.width1)
                                                      : nullptr);
            for (int d = 0; d < net.dims; ++d) {
                code[d] = step(model.freqs() + net.starts[d], net.levels[d], token, d);
                if (code[d] < 0) return false;
            }
            model.learn(code);
            neighbours.note(y, x, code);
        }
    }
    return true;
}

// The first of `count` tokens with a code outside its levels, or `count`.
inline size_t check_codes(const TokenNet& net, const int32_t* codes, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        for (int d = 0; d < net.dims; ++d) {
            if (codes[i * net.dims + d] < 0 || codes[i * net.dims + d] >= net.levels[d]) return i;
        }
    }
    return count;
}

inline void encode_plane(RangeEncoder& coder, const TokenNet& net, const TokenPlane& plane) {
    walk_plane(net, plane, [&](const uint32_t* freqs, int, size_t token, int d) -> int32_t {
        const int32_t code = plane.stacks.codes[token * net.dims + d];
        uint32_t start = 0;
        for (int k = 0; k < code; ++k) start += freqs[k];
        coder.encode(start, freqs[code]);
        return code;
    });
}

// Frequencies (tokens, states) of all values of each token of the plane, given the codes of those before it.
inline void plane_frequencies(const TokenNet& net, const TokenPlane& plane, uint16_t* out) {
    walk_plane(net, plane, [&](const uint32_t* freqs, int level, size_t token, int d) -> int32_t {
        uint16_t* row = out + token * net.states + net.starts[d];
        for (int k = 0; k < level; ++k) row[k] = static_cast<uint16_t>(freqs[k]);
        return plane.stacks.codes[token * net.dims + d];
    });
}

// Symbol of a row of frequencies that the decoder is at, or -1 where the data is no encoder's.
inline int32_t decode_symbol(RangeDecoder& coder, const uint32_t* freqs, int level) {
    const uint32_t unit = coder.unit(), code = coder.code();
    uint32_t start = 0;
    int32_t symbol = 0;
    while (code >= unit * (start + freqs[symbol])) {
        start += freqs[symbol];
        if (++symbol == level) return -1;
    }
    coder.consume(start, freqs[symbol]);
    return symbol;
}

// Writes the codes of the tokens of the plane that are not given; `codes` are those of its stacks.
inline CoderStatus decode_plane(RangeDecoder& coder, const TokenNet& net, const TokenPlane& plane, int32_t* codes,
                                size_t& at) {
    CoderStatus status = CoderStatus::ok;
    walk_plane(net, plane, [&](const uint32_t* freqs, int level, size_t token, int d) -> int32_t {
        at = token;
        const int32_t symbol = decode_symbol(coder, freqs, level);
        status = symbol < 0 ? CoderStatus::impossible : coder.status();
        if (status != CoderStatus::ok) return -1;
        codes[token * net.dims + d] = symbol;
        return symbol;
    });
    return status;
}

// Depth map of a grid, by a net of one dimension with a level for each depth from 0 on. Depths that follow from the
// number of tokens, `count`, are not coded, so a decoded map has that number whatever the data. bit(freqs, depth)
// codes one depth, or returns a negative one to end the walk. `depths` (height, width).
template <typename Depth, typename Symbol>
inline void walk_depths(const TokenNet& net, TokenPlane plane, Depth* depths, int64_t count, Symbol&& symbol) {
    const int most = net.levels[0] - 1;
    const size_t places = static_cast<size_t>(plane.height) * plane.width;
    int64_t tokens = count, left = static_cast<int64_t>(places);
    if constexpr (!std::is_const_v<Depth>) std::fill(depths, depths + places, tokens == left * most ? most : 0);
    if (tokens == 0 || tokens == left * most) return;
    std::vector<int32_t> offsets(places + 1);
    for (size_t i = 0; i <= places; ++i) offsets[i] = static_cast<int32_t>(i);
    plane.stacks.offsets = offsets.data();
    walk_plane(net, plane, [&](const uint32_t* freqs, int, size_t place, int) -> int32_t {
        const int32_t depth = tokens == left * most ? most : symbol(freqs, depths[place]);
        tokens -= depth;
        --left;
        if (depth < 0 || tokens < 0 || tokens > left * most) {
            if (depth >= 0) symbol(nullptr, depth);
            return -1;
        }
        if constexpr (!std::is_const_v<Depth>) depths[place] = depth;
        return tokens == 0 ? -1 : depth;  // the rest is 0
    });
}

inline void encode_depths(RangeEncoder& coder, const TokenNet& net, const TokenPlane& plane, const int32_t* depths,
                          int64_t count) {
    walk_depths(net, plane, depths, count, [&coder](const uint32_t* freqs, int32_t depth) -> int32_t {
        uint32_t start = 0;
        for (int k = 0; k < depth; ++k) start += freqs[k];
        coder.encode(start, freqs[depth]);
        return depth;
    });
}

inline CoderStatus decode_depths(RangeDecoder& coder, const TokenNet& net, const TokenPlane& plane, int32_t* depths,
                                 int64_t count) {
    CoderStatus status = CoderStatus::ok;
    walk_depths(net, plane, depths, count, [&](const uint32_t* freqs, int32_t) -> int32_t {
        const int32_t depth = freqs ? decode_symbol(coder, freqs, net.levels[0]) : -1;
        status = depth < 0 ? CoderStatus::impossible : coder.status();
        return status == CoderStatus::ok ? depth : -1;
    });
    return status;
}

}  // namespace tatok

#endif
