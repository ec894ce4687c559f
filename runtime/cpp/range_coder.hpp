// Integer range coder of the packet format: docs/format.md, "Entropy-coded body".
//
// Every operation is on unsigned integers, so the bytes are the same on every machine and compiler.
// The encoder and the decoder below take the same steps in the same order. Only the sequence of models
// that wrote the data reads it back.

#ifndef TATOK_RANGE_CODER_HPP
#define TATOK_RANGE_CODER_HPP

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace tatok {

constexpr int kFrequencyBits = 12;
constexpr uint32_t kFrequencyTotal = 1u << kFrequencyBits;
constexpr uint32_t kRangeBottom = 1u << 24;
constexpr int kGapLengths = 31;  // a gap + 1 is an int32 above 0: 1 to 31 bits

enum class CoderStatus : int {
    ok = 0,
    bad_row = 1,        // frequencies that do not sum to 4096, or a zero ahead of a frequency
    bad_symbol = 2,     // a symbol without a frequency (encoder)
    truncated = 3,      // the data ends before the symbols do (decoder)
    impossible = 4,     // a code value that no encoder writes (decoder)
    left_over = 5,      // the data does not end where the symbols do (decoder)
};

class RangeEncoder {
  public:
    // Code the part [start, start + frequency) of 4096.
    inline void encode(uint32_t start, uint32_t frequency) {
        const uint32_t unit = range_ >> kFrequencyBits;
        low_ += static_cast<uint64_t>(unit) * start;
        range_ = unit * frequency;
        if (low_ >> 32) carry();
        while (range_ < kRangeBottom) {
            bytes_.push_back(static_cast<uint8_t>(low_ >> 24));
            low_ = (low_ << 8) & 0xFFFFFFFFu;
            range_ <<= 8;
        }
    }

    // The one byte that puts the value inside the last interval; none where the zeros that a decoder
    // reads past the end do so.
    inline void finish() {
        low_ += kRangeBottom - 1;
        if (low_ >> 32) carry();
        if (low_ >> 24) bytes_.push_back(static_cast<uint8_t>(low_ >> 24));
    }

    inline const std::vector<uint8_t>& bytes() const { return bytes_; }

  private:
    // The whole value stays below 1, so a byte that is not 0xFF lies ahead.
    inline void carry() {
        size_t at = bytes_.size();
        while (bytes_[--at] == 0xFF) bytes_[at] = 0;
        ++bytes_[at];
        low_ &= 0xFFFFFFFFu;
    }

    std::vector<uint8_t> bytes_;
    uint64_t low_ = 0;
    uint32_t range_ = 0xFFFFFFFFu;
};

// Reads memory that the caller keeps alive; never reads outside [data, data + size).
class RangeDecoder {
  public:
    RangeDecoder() = default;
    RangeDecoder(const uint8_t* data, size_t size) : data_(data), size_(size) {
        for (int i = 0; i < 4; ++i) code_ = (code_ << 8) | next();
    }

    inline uint32_t unit() const { return range_ >> kFrequencyBits; }
    inline uint32_t code() const { return code_; }

    // The step of RangeEncoder::encode, once the caller has found the part that code() lies in.
    inline void consume(uint32_t start, uint32_t frequency) {
        const uint32_t u = unit();
        code_ -= u * start;
        low_ += u * start;
        range_ = u * frequency;
        impossible_ |= code_ >= range_;
        while (range_ < kRangeBottom) {
            code_ = (code_ << 8) | next();
            low_ <<= 8;
            range_ <<= 8;
        }
    }

    // The first error so far: a value outside all parts that an encoder can have coded, or more bytes
    // read than an encoder can have left out.
    inline CoderStatus status() const {
        if (impossible_) return CoderStatus::impossible;
        return position_ > size_ + 4 ? CoderStatus::truncated : CoderStatus::ok;
    }

    // Whether the data ends exactly as the encoder's finish() ends it.
    inline CoderStatus finish() const {
        if (status() != CoderStatus::ok) return status();
        const uint32_t value = (low_ + (kRangeBottom - 1)) & 0xFF000000u;
        const size_t end = position_ - 4 + (value != 0 ? 1 : 0);
        if (size_ < end) return CoderStatus::truncated;
        if (size_ > end || low_ + code_ != value) return CoderStatus::left_over;
        return CoderStatus::ok;
    }

  private:
    inline uint32_t next() {
        const uint32_t byte = position_ < size_ ? data_[position_] : 0u;
        ++position_;
        return byte;
    }

    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
    size_t position_ = 0;
    uint32_t code_ = 0;   // value of the data minus low
    uint32_t low_ = 0;    // the encoder's low, modulo 2^32
    uint32_t range_ = 0xFFFFFFFFu;
    bool impossible_ = false;
};

// Probability of a 1 in 4096ths, learned as it goes: fast for the first bits, by 1/32 later.
// It never leaves 1..4095.
struct AdaptiveBit {
    uint16_t one = kFrequencyTotal / 2;
    uint8_t shift = 1;

    inline void update(bool bit) {
        if (bit) {
            one = static_cast<uint16_t>(one + ((kFrequencyTotal - one) >> shift));
        } else {
            one = static_cast<uint16_t>(one - (one >> shift));
        }
        if (shift < 5) ++shift;
    }
};

inline void encode_bit(RangeEncoder& coder, AdaptiveBit& model, bool bit) {
    if (bit) {
        coder.encode(0, model.one);
    } else {
        coder.encode(model.one, kFrequencyTotal - model.one);
    }
    model.update(bit);
}

inline bool decode_bit(RangeDecoder& coder, AdaptiveBit& model) {
    const bool bit = coder.code() < coder.unit() * model.one;
    if (bit) {
        coder.consume(0, model.one);
    } else {
        coder.consume(model.one, kFrequencyTotal - model.one);
    }
    model.update(bit);
    return bit;
}

// A row of frequencies: positive ones for the allowed symbols, zeros after them, 4096 in all.
inline bool valid_row(const uint16_t* row, int length) {
    uint32_t total = 0;
    bool gap = false;
    for (int k = 0; k < length; ++k) {
        total += row[k];
        gap |= k > 0 && row[k] != 0 && row[k - 1] == 0;
    }
    return total == kFrequencyTotal && !gap && row[0] != 0;
}

// symbols (count,), rows (count, length). On failure `at` is the symbol that failed.
inline CoderStatus encode_symbols(RangeEncoder& coder, const int32_t* symbols, const uint16_t* rows, size_t count,
                                  int length, size_t& at) {
    for (at = 0; at < count; ++at) {
        const uint16_t* row = rows + at * static_cast<size_t>(length);
        if (!valid_row(row, length)) return CoderStatus::bad_row;
        const int32_t symbol = symbols[at];
        if (symbol < 0 || symbol >= length || row[symbol] == 0) return CoderStatus::bad_symbol;
        uint32_t start = 0;
        for (int k = 0; k < symbol; ++k) start += row[k];
        coder.encode(start, row[symbol]);
    }
    return CoderStatus::ok;
}

inline CoderStatus decode_symbols(RangeDecoder& coder, const uint16_t* rows, size_t count, int length,
                                  int32_t* symbols, size_t& at) {
    for (at = 0; at < count; ++at) {
        const uint16_t* row = rows + at * static_cast<size_t>(length);
        if (!valid_row(row, length)) return CoderStatus::bad_row;
        const uint32_t unit = coder.unit();
        const uint32_t code = coder.code();
        uint32_t start = 0;
        int symbol = 0;
        while (code >= unit * (start + row[symbol])) {
            start += row[symbol];
            if (++symbol == length) return CoderStatus::impossible;
        }
        coder.consume(start, row[symbol]);
        if (coder.status() != CoderStatus::ok) return coder.status();
        symbols[at] = symbol;
    }
    return CoderStatus::ok;
}

// Set of `count` positions in a grid as one bit per position, each in the context of its four neighbours
// that are known: left, top, top left, top right. Cells that are 0 in `places` (null: there are none) can
// be no member: they are 0 without being coded. Bits that follow from `count` are not coded either, so the
// decoded set has exactly `count` members whatever the data. `cells` is the number of places.
template <typename Cell, typename Bit>
inline void walk_bitmap(Cell* keep, const uint8_t* places, size_t height, size_t width, size_t count, size_t cells,
                        Bit&& bit) {
    AdaptiveBit models[16];
    size_t ones = count;
    for (size_t y = 0; y < height; ++y) {
        Cell* row = keep + y * width;
        const Cell* above = y > 0 ? row - width : nullptr;
        const uint8_t* place = places ? places + y * width : nullptr;
        unsigned left = 0;
        unsigned top_left = 0;
        unsigned top = above ? above[0] : 0u;
        for (size_t x = 0; x < width; ++x) {
            const unsigned top_right = above && x + 1 < width ? above[x + 1] : 0u;
            unsigned value = 0;
            if (!place || place[x]) {
                if (ones == cells) {
                    value = 1;
                } else if (ones != 0) {
                    value = bit(models[left | top << 1 | top_left << 2 | top_right << 3], row[x]) ? 1u : 0u;
                }
                --cells;
            }
            if constexpr (!std::is_const_v<Cell>) row[x] = static_cast<uint8_t>(value);
            ones -= value;
            left = value;
            top_left = top;
            top = top_right;
        }
    }
}

// keep (height, width) of zeros and ones, `count` ones, all of them in the `cells` places.
inline void encode_bitmap(RangeEncoder& coder, const uint8_t* keep, const uint8_t* places, size_t height, size_t width,
                          size_t count, size_t cells) {
    walk_bitmap(keep, places, height, width, count, cells, [&coder](AdaptiveBit& model, uint8_t value) {
        encode_bit(coder, model, value != 0);
        return value != 0;
    });
}

inline CoderStatus decode_bitmap(RangeDecoder& coder, uint8_t* keep, const uint8_t* places, size_t height,
                                 size_t width, size_t count, size_t cells) {
    walk_bitmap(keep, places, height, width, count, cells,
                [&coder](AdaptiveBit& model, uint8_t) { return decode_bit(coder, model); });
    return coder.status();
}

// Strictly increasing positions as the gaps between them: v = gap + 1 has n + 1 bits; n in unary with
// one adaptive bit per step, then the n low bits of v as they are, high bit first.
inline void encode_gaps(RangeEncoder& coder, const int32_t* positions, size_t count) {
    AdaptiveBit lengths[kGapLengths];
    int64_t last = -1;
    for (size_t i = 0; i < count; ++i) {
        const uint32_t value = static_cast<uint32_t>(positions[i] - last);
        int n = 0;
        while (value >> (n + 1)) encode_bit(coder, lengths[n++], true);
        encode_bit(coder, lengths[n], false);
        while (n-- > 0) coder.encode((value >> n & 1u) * (kFrequencyTotal / 2), kFrequencyTotal / 2);
        last = positions[i];
    }
}

inline CoderStatus decode_gaps(RangeDecoder& coder, size_t count, int64_t cells, int32_t* positions) {
    AdaptiveBit lengths[kGapLengths];
    int64_t last = -1;
    for (size_t i = 0; i < count; ++i) {
        int n = 0;
        while (decode_bit(coder, lengths[n])) {
            if (++n == kGapLengths) return CoderStatus::impossible;
        }
        uint32_t value = 1;
        while (n-- > 0) {
            const uint32_t bit = coder.code() < coder.unit() * (kFrequencyTotal / 2) ? 0u : 1u;
            coder.consume(bit * (kFrequencyTotal / 2), kFrequencyTotal / 2);
            value = value << 1 | bit;
        }
        if (coder.status() != CoderStatus::ok) return coder.status();
        last += value;
        if (last >= cells) return CoderStatus::impossible;
        positions[i] = static_cast<int32_t>(last);
    }
    return CoderStatus::ok;
}

}  // namespace tatok

#endif
