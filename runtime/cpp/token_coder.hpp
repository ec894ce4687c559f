// Entropy coding of the tokens of a grid, each in the context of those before it: docs/format.md, "Frequencies of a
// bundle".
//
// A small network in integers reads the codes of the tokens that come before a token in raster order, within two rows
// and columns, and gives the frequency of each value of its code. All sums stay below 2^31 (the caller checks the
// weights), so the frequencies are the same on every machine and compiler. After each token, gradient steps on the
// coding cost adapt a scale and a bias of the logits: pictures differ from those that the network was fitted to.

#ifndef TATOK_TOKEN_CODER_HPP
#define TATOK_TOKEN_CODER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "common.hpp"
#include "range_coder.hpp"

namespace tatok {

constexpr int kReach = 2;                               // rows and columns of neighbours
constexpr int kReachSide = 2 * kReach + 1;              // side of the square of a token and its neighbours
constexpr int kBefore = kReach * kReachSide + kReach;   // neighbours that come before a token, and as many after it
constexpr int kPhaseSide = static_cast<int>(kCellSide);  // places of a patch in its cell, along a side
constexpr int kInputScale = 64;
constexpr int kHiddenShift = 10;
constexpr int kOutputShift = 12;
constexpr int kHiddenMax = 255;
constexpr int kExpSize = 178;
// Step sizes and limits of the adaptation of the logits.
constexpr int kScaleShift = 6;
constexpr int kBiasShift = 1;
constexpr int64_t kScaleLimit = int64_t{49152} << kScaleShift;  // logits times 1/4 to 7/4
constexpr int64_t kBiasLimit = int64_t{1} << 20;                // 8 nats

// Weights of one output are one row; TokenModel in cpu/token_coder.pyx gives the shapes.
struct TokenNet {
    int dims = 0;
    int levels[kMaxDims] = {};
    int states = 0;        // sum of the levels
    int widest = 0;
    int width1 = 0;
    int width2 = 0;
    int cell_dims = 0;     // dimensions of the codes of the cells around; 0 where the grid has no cells
    int cell_levels[kMaxDims] = {};
    int cell_inputs = 0;   // inputs from the cells around, then one per class of the share
    int shares = 0;        // classes of the share of kept patches
    const int16_t* cells = nullptr;    // (width1, cell_inputs)
    const int16_t* phases = nullptr;   // (16, width1)
    const int16_t* context = nullptr;  // (width1, context inputs)
    const int32_t* b1 = nullptr;
    const int16_t* w2 = nullptr;       // (width2, width1)
    const int32_t* b2 = nullptr;
    const int16_t* w3 = nullptr;       // (states, width2)
    const int32_t* b3 = nullptr;
    const int32_t* exp = nullptr;      // (178,)

    inline int entry() const { return dims + 1; }
    inline int context_inputs() const { return kBefore * entry() + kBefore; }
};

// out (outputs,) = start (outputs,) + weights (outputs, inputs) times x (inputs,); four rows side by side share the
// reads of x.
TATOK_HOT void add_products(const int16_t* weights, const int16_t* x, int inputs, int outputs,
                                      const int32_t* start, int32_t* out) {
    int j = 0;
    for (; j + 4 <= outputs; j += 4) {
        const int16_t* r0 = weights + static_cast<size_t>(j) * inputs;
        const int16_t *r1 = r0 + inputs, *r2 = r1 + inputs, *r3 = r2 + inputs;
        int32_t t0 = 0, t1 = 0, t2 = 0, t3 = 0;
        for (int i = 0; i < inputs; ++i) {
            const int32_t value = x[i];
            t0 += value * r0[i];
            t1 += value * r1[i];
            t2 += value * r2[i];
            t3 += value * r3[i];
        }
        out[j] = start[j] + t0;
        out[j + 1] = start[j + 1] + t1;
        out[j + 2] = start[j + 2] + t2;
        out[j + 3] = start[j + 3] + t3;
    }
    for (; j < outputs; ++j) {
        const int16_t* row = weights + static_cast<size_t>(j) * inputs;
        int32_t total = start[j];
        for (int i = 0; i < inputs; ++i) total += static_cast<int32_t>(x[i]) * row[i];
        out[j] = total;
    }
}

inline int16_t hidden(int32_t total) {
    return static_cast<int16_t>(std::min(std::max(total >> kHiddenShift, 0), kHiddenMax));
}

inline int16_t centre(int32_t code, int level) {
    return static_cast<int16_t>((2 * code + 1) * kInputScale / level - kInputScale);
}

// Frequencies of one dimension from its logits; `freqs` takes `level` of them.
inline void frequencies(const int32_t* logits, int level, const int32_t* exp, uint32_t* freqs) {
    const int32_t* top = std::max_element(logits, logits + level);
    uint32_t sum = 0;
    for (int k = 0; k < level; ++k) {
        // Logits may lie further apart than an int32 holds.
        const int64_t below = static_cast<int64_t>(*top) - logits[k];
        freqs[k] = static_cast<uint32_t>(exp[std::min<int64_t>(below, kExpSize - 1)]);
        sum += freqs[k];
    }
    uint32_t total = 0;
    for (int k = 0; k < level; ++k) {
        freqs[k] = 1 + freqs[k] * (kFrequencyTotal - static_cast<uint32_t>(level)) / sum;
        total += freqs[k];
    }
    freqs[top - logits] += kFrequencyTotal - total;
}

inline int64_t limited(int64_t value, int64_t limit) { return std::min(std::max(value, -limit), limit); }

// Scale of each dimension and bias of each value of the logits, adapted by gradient steps on the coding cost.
struct Adaptation {
    std::vector<int64_t> scale, bias;

    explicit Adaptation(const TokenNet& net) : scale(net.dims, 0), bias(net.states, 0) {}

    // Logits (level,) of dimension d from the sums (level,) of the last layer; `at` is its first state.
    void logits(const int32_t* sums, int d, int at, int level, int32_t* out) const {
        const int64_t factor = scale[d] >> kScaleShift;
        for (int k = 0; k < level; ++k) {
            const int64_t sum = sums[k] + (sums[k] * factor >> 16) + (bias[at + k] >> kBiasShift);
            out[k] = static_cast<int32_t>(sum >> kOutputShift);
        }
    }

    void learn(const int32_t* sums, int d, int at, int level, const uint32_t* freqs, int32_t code) {
        int64_t total = 0;
        for (int k = 0; k < level; ++k) {
            const int64_t slope = (k == code ? static_cast<int64_t>(kFrequencyTotal) : 0) - freqs[k];
            bias[at + k] = limited(bias[at + k] + slope, kBiasLimit);
            total += slope * (sums[k] >> kOutputShift);
        }
        scale[d] = limited(scale[d] + total, kScaleLimit);
    }
};

// Inputs of a token from its neighbours: the codes of those before it, then which places have a token after it.
class NeighbourInputs {
  public:
    NeighbourInputs(const TokenNet& net, const int32_t* positions, size_t count, int height, int width)
        : entry_(net.entry()),
          columns_(width + 2 * kReach),
          rows_(static_cast<size_t>(kReach + 1) * columns_ * entry_, 0),
          there_(static_cast<size_t>(height + kReach) * columns_, 0) {
        for (size_t i = 0; i < count; ++i) {
            there_[static_cast<size_t>(positions[i] / width) * columns_ + positions[i] % width + kReach] = 1;
        }
    }

    // Goes on to row y, which must not lie above the one before.
    void enter_row(int y) {
        for (int next = std::max(row_ + 1, y - kReach); next <= y; ++next) {
            int16_t* line = rows_.data() + static_cast<size_t>(next % (kReach + 1)) * columns_ * entry_;
            std::fill(line, line + static_cast<size_t>(columns_) * entry_, int16_t{0});
        }
        row_ = y;
    }

    // Writes net.context_inputs() values for the token at (y, x) of the row that was entered.
    void write(int y, int x, int16_t* in) const {
        for (int dy = kReach; dy >= 0; --dy) {
            const int used = (dy ? kReachSide : kReach) * entry_;
            if (y >= dy) {
                const int16_t* line = rows_.data() + static_cast<size_t>((y - dy) % (kReach + 1)) * columns_ * entry_;
                std::copy_n(line + static_cast<size_t>(x) * entry_, used, in);
            } else {
                std::fill_n(in, used, int16_t{0});
            }
            in += used;
        }
        for (int dy = 0; dy <= kReach; ++dy) {
            const uint8_t* line = there_.data() + static_cast<size_t>(y + dy) * columns_ + x;
            for (int dx = dy ? 0 : kReach + 1; dx < kReachSide; ++dx) *in++ = line[dx] ? kInputScale : 0;
        }
    }

    // Where the code of the token at (y, x) goes: one value per dimension, then kInputScale.
    int16_t* own(int y, int x) {
        return rows_.data() + (static_cast<size_t>(y % (kReach + 1)) * columns_ + x + kReach) * entry_;
    }

  private:
    int entry_, columns_, row_ = 0;
    std::vector<int16_t> rows_;   // codes of this row and the two above
    std::vector<uint8_t> there_;  // 1 where the grid has a token
};

// Share of the codes of the cells around a patch in the first layer, computed once per cell.
class CellSums {
  public:
    CellSums(const TokenNet& net, const int32_t* codes, int height, int width, int share)
        : net_(net), codes_(codes), rows_(height / kPhaseSide), columns_(width / kPhaseSide), share_(share) {
        if (!net.cell_inputs) return;
        sums_.resize(static_cast<size_t>(columns_) * net.width1);
        known_.resize(columns_, 0);
        input_.resize(net.cell_inputs);
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

    // Weights (width1,) of the place of the patch in its cell; null without cells.
    const int16_t* phase(int y, int x) const {
        if (!net_.cell_inputs) return nullptr;
        return net_.phases + static_cast<size_t>(y % kPhaseSide * kPhaseSide + x % kPhaseSide) * net_.width1;
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
        add_products(net_.cells, input_.data(), net_.cell_inputs, net_.width1, net_.b1, sums);
    }

    const TokenNet& net_;
    const int32_t* codes_;
    int rows_, columns_, share_, row_ = -1;
    std::vector<int32_t> sums_;  // (columns, width1) of the row of cells
    std::vector<uint8_t> known_;
    std::vector<int16_t> input_;
};

// Calls step(freqs, level, i, d) -> code for every dimension d of the i-th token. A negative code ends the walk.
// Returns whether the walk reached the last token.
//
// grid: height x width; positions (count,) strictly increasing raster indices in it. Where the net has cell inputs, the
// grid is one of patches and `cell_codes` (height / 4 * width / 4, cell_dims) are the codes of its cells.
template <typename Step>
inline bool walk_tokens(const TokenNet& net, const int32_t* positions, size_t count, int height, int width,
                        const int32_t* cell_codes, int share, Step&& step) {
    NeighbourInputs neighbours(net, positions, count, height, width);
    CellSums cells(net, cell_codes, height, width, share);
    std::vector<int16_t> input(net.context_inputs()), x1(net.width1), x2(net.width2);
    std::vector<int32_t> totals(std::max(net.width1, net.width2)), last(net.states), logits(net.widest);
    std::vector<uint32_t> freqs(net.widest);
    Adaptation adaptation(net);
    for (size_t i = 0; i < count; ++i) {
        const int y = positions[i] / width, x = positions[i] % width;
        neighbours.enter_row(y);
        neighbours.write(y, x, input.data());
        const int16_t* phase = cells.phase(y, x);
        add_products(net.context, input.data(), net.context_inputs(), net.width1, cells.at(y, x), totals.data());
        for (int j = 0; j < net.width1; ++j) {
            x1[j] = hidden(totals[j] + (phase ? kInputScale * static_cast<int32_t>(phase[j]) : 0));
        }
        add_products(net.w2, x1.data(), net.width1, net.width2, net.b2, totals.data());
        for (int j = 0; j < net.width2; ++j) x2[j] = hidden(totals[j]);
        add_products(net.w3, x2.data(), net.width2, net.states, net.b3, last.data());
        int16_t* own = neighbours.own(y, x);
        for (int d = 0, at = 0; d < net.dims; ++d) {
            const int level = net.levels[d];
            adaptation.logits(last.data() + at, d, at, level, logits.data());
            frequencies(logits.data(), level, net.exp, freqs.data());
            const int32_t code = step(freqs.data(), level, i, d);
            if (code < 0) return false;
            adaptation.learn(last.data() + at, d, at, level, freqs.data(), code);
            own[d] = centre(code, level);
            at += level;
        }
        own[net.dims] = kInputScale;
    }
    return true;
}

// codes (count, dims). On failure `at` is the token that failed.
inline CoderStatus encode_tokens(RangeEncoder& coder, const TokenNet& net, const int32_t* codes,
                                 const int32_t* positions, size_t count, int height, int width,
                                 const int32_t* cell_codes, int share, size_t& at) {
    const bool done = walk_tokens(net, positions, count, height, width, cell_codes, share,
                                  [&](const uint32_t* freqs, int level, size_t i, int d) -> int32_t {
                                      const int32_t code = codes[i * net.dims + d];
                                      at = i;
                                      if (code < 0 || code >= level) return -1;
                                      uint32_t start = 0;
                                      for (int k = 0; k < code; ++k) start += freqs[k];
                                      coder.encode(start, freqs[code]);
                                      return code;
                                  });
    return done ? CoderStatus::ok : CoderStatus::bad_symbol;
}

// Frequencies (count, states) of all values of each token, given the codes of those before it.
inline CoderStatus token_frequencies(const TokenNet& net, const int32_t* codes, const int32_t* positions, size_t count,
                                     int height, int width, const int32_t* cell_codes, int share, uint16_t* out,
                                     size_t& at) {
    const bool done = walk_tokens(net, positions, count, height, width, cell_codes, share,
                                  [&](const uint32_t* freqs, int level, size_t i, int d) -> int32_t {
                                      const int32_t code = codes[i * net.dims + d];
                                      at = i;
                                      for (int k = 0; k < level; ++k) *out++ = static_cast<uint16_t>(freqs[k]);
                                      return code >= 0 && code < level ? code : -1;
                                  });
    return done ? CoderStatus::ok : CoderStatus::bad_symbol;
}

inline CoderStatus decode_tokens(RangeDecoder& coder, const TokenNet& net, int32_t* codes, const int32_t* positions,
                                 size_t count, int height, int width, const int32_t* cell_codes, int share,
                                 size_t& at) {
    CoderStatus status = CoderStatus::ok;
    walk_tokens(net, positions, count, height, width, cell_codes, share,
                [&](const uint32_t* freqs, int level, size_t i, int d) -> int32_t {
                    const uint32_t unit = coder.unit(), code = coder.code();
                    uint32_t start = 0;
                    int32_t symbol = 0;
                    at = i;
                    while (code >= unit * (start + freqs[symbol])) {
                        start += freqs[symbol];
                        if (++symbol == level) {
                            status = CoderStatus::impossible;
                            return -1;
                        }
                    }
                    coder.consume(start, freqs[symbol]);
                    status = coder.status();
                    if (status != CoderStatus::ok) return -1;
                    codes[i * net.dims + d] = symbol;
                    return symbol;
                });
    return status;
}

// Set of `count` positions in a grid, by a net of one dimension with two levels. As in walk_bitmap, bits that
// follow from `count` are not coded, so the decoded set has exactly `count` members whatever the data.
// `keep` (height, width).
template <typename Place, typename Bit>
inline void walk_keep(const TokenNet& net, Place* keep, size_t count, int height, int width, const int32_t* cell_codes,
                      int share, Bit&& bit) {
    size_t ones = count, left = static_cast<size_t>(height) * width;
    if constexpr (!std::is_const_v<Place>) std::fill(keep, keep + left, static_cast<uint8_t>(ones == left));
    if (ones == 0 || ones == left) return;
    std::vector<int32_t> places(left);
    for (size_t i = 0; i < places.size(); ++i) places[i] = static_cast<int32_t>(i);
    walk_tokens(net, places.data(), places.size(), height, width, cell_codes, share,
                [&](const uint32_t* freqs, int, size_t i, int) -> int32_t {
                    const bool value = ones == left || bit(freqs[0], keep[i]);
                    if constexpr (!std::is_const_v<Place>) keep[i] = value;
                    ones -= value;
                    --left;
                    return ones == 0 ? -1 : value;  // the rest is 0
                });
}

inline void encode_keep(RangeEncoder& coder, const TokenNet& net, const uint8_t* keep, size_t count, int height,
                        int width, const int32_t* cell_codes, int share) {
    walk_keep(net, keep, count, height, width, cell_codes, share, [&coder](uint32_t zero, uint8_t value) {
        if (value) {
            coder.encode(zero, kFrequencyTotal - zero);
        } else {
            coder.encode(0, zero);
        }
        return value != 0;
    });
}

inline CoderStatus decode_keep(RangeDecoder& coder, const TokenNet& net, uint8_t* keep, size_t count, int height,
                               int width, const int32_t* cell_codes, int share) {
    walk_keep(net, keep, count, height, width, cell_codes, share, [&coder](uint32_t zero, uint8_t) {
        const bool value = coder.code() >= coder.unit() * zero;
        if (value) {
            coder.consume(zero, kFrequencyTotal - zero);
        } else {
            coder.consume(0, zero);
        }
        return value;
    });
    return coder.status();
}

}  // namespace tatok

#endif
