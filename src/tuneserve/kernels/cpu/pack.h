// Weights (rows, cols) into panels; see panels.h.
#pragma once

#include <algorithm>
#include <vector>

#include "panels.h"

static inline float half_to_float(uint16_t bits) { return widen(f16{bits}); }

static inline uint16_t float_to_half(float x) {
    _Float16 half = (_Float16)x;
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

// The row of the matrix that stands at `row` of the panels; paired: 16 of the first half beside 16 of the second.
static inline int source_row(int row, int rows, bool paired) {
    if (!paired) return row;
    const int half = PANEL / 2, within = row % PANEL;
    return row / PANEL * half + within % half + (within < half ? 0 : rows / 2);
}

template <class T, int COLUMNS>
static void pack_plain(const T* from, int rows, int cols, bool paired, T* to) {
    for (int first = 0; first < rows; first += PANEL)
        for (int col = 0; col < cols; col += COLUMNS)
            for (int row = first; row < first + PANEL; ++row)
                for (int i = 0; i < COLUMNS; ++i)
                    *to++ = row < rows ? from[(size_t)source_row(row, rows, paired) * cols + col + i] : T{};
}

// 32 values as signed bytes times a float16 scale.
static inline void quantise8(const float* w, uint16_t* scale, uint8_t* codes) {
    float high = 0;
    for (int i = 0; i < GROUP; ++i) high = std::max(high, std::fabs(w[i]));
    *scale = float_to_half(high / 127.0f);
    const float step = half_to_float(*scale), inverse = step > 0 ? 1.0f / step : 0.0f;
    for (int i = 0; i < GROUP; ++i) {
        float code = std::nearbyint(w[i] * inverse);
        codes[i] = (uint8_t)(128 + (int)std::clamp(code, -127.0f, 127.0f));
    }
}

// 32 values as codes 0 to 15 times a float16 scale plus a float16 minimum, of least square error among those tried: from
// the whole range and from a few narrower ones, each also with the line fitted through the codes that came of it.
static inline void quantise4(const float* w, uint16_t* scale, uint16_t* minimum, uint8_t* codes) {
    float low = w[0], high = w[0], all = 0;
    for (int i = 0; i < GROUP; ++i) low = std::min(low, w[i]), high = std::max(high, w[i]), all += w[i];
    float best = INFINITY;
    for (int shrink = 0; shrink < 8; ++shrink) {
        const float cut = 0.02f * shrink * (high - low);
        float width = (high - low - 2 * cut) / 15.0f, first = low + cut;
        for (bool fitted : {false, true}) {
            const uint16_t d = float_to_half(width), m = float_to_half(first);
            const float step = half_to_float(d), base = half_to_float(m), inverse = step > 0 ? 1.0f / step : 0.0f;
            float tried[GROUP], error = 0, sum = 0, squares = 0, products = 0;
            for (int i = 0; i < GROUP; ++i) {
                const float code = std::clamp(std::nearbyint((w[i] - base) * inverse), 0.0f, 15.0f);
                const float off = base + step * code - w[i];
                tried[i] = code, error += off * off, sum += code, squares += code * code, products += code * w[i];
            }
            if (error < best) {
                best = error, *scale = d, *minimum = m;
                for (int i = 0; i < GROUP; ++i) codes[i] = (uint8_t)tried[i];
            }
            const float spread = GROUP * squares - sum * sum;
            if (fitted || spread <= 0) break;
            width = (GROUP * products - sum * all) / spread;
            first = (all - width * sum) / GROUP;
        }
    }
}

static void pack_groups(int kind, const float* from, int rows, int cols, bool paired, uint8_t* to) {
    const bool four = kind == INT4;
    for (int first = 0; first < rows; first += PANEL)
        for (int col = 0; col < cols; col += GROUP) {
            uint16_t* scales = (uint16_t*)to;
            uint8_t* bytes = to + (four ? PANEL * 4 : PANEL * 2);
            for (int r = 0; r < PANEL; ++r) {
                uint8_t codes[GROUP] = {};
                uint16_t scale = 0, minimum = 0;
                if (first + r < rows) {
                    const float* w = from + (size_t)source_row(first + r, rows, paired) * cols + col;
                    if (four) quantise4(w, &scale, &minimum, codes);
                    else quantise8(w, &scale, codes);
                }
                scales[r] = scale;
                if (four) scales[PANEL + r] = minimum;
                for (int k = 0; k < (four ? GROUP / 2 : GROUP); ++k)
                    bytes[(k / 4 * PANEL + r) * 4 + k % 4] =
                        four ? (uint8_t)(codes[k] | codes[k + GROUP / 2] << 4) : codes[k];
            }
            to = bytes + PANEL * GROUP / (four ? 2 : 1);
        }
}

// `from` is float32 for float32, int8 and int4, else in the kind's own type.
static void pack(int kind, bool paired, const uint8_t* from, int rows, int cols, uint8_t* to) {
    switch (kind) {
        case F32: return pack_plain<float, 1>((const float*)from, rows, cols, paired, (float*)to);
        case F16: return pack_plain<uint16_t, 1>((const uint16_t*)from, rows, cols, paired, (uint16_t*)to);
        case BF16: return pack_plain<uint16_t, 2>((const uint16_t*)from, rows, cols, paired, (uint16_t*)to);
        default: return pack_groups(kind, (const float*)from, rows, cols, paired, to);
    }
}

// Codes as they were stored, a byte each, (rows, cols).
struct Codes {
    const uint8_t* codes;                        // integers without minima as value + 128
    const float *scales, *minima;                // (rows, cols / 32), or scales (rows, cols / 16); minima or null
    const float *outer_scales, *outer_minima;    // (rows, cols / 256) where scales are nested
};

static void pack_codes(int kind, bool paired, const Codes& from, int rows, int cols, uint8_t* to) {
    const int per_group = kind == INT8_BY_16_NESTED ? 2 : 1, stride = cols / GROUP * per_group;
    const bool nested = is_nested(kind), halves = kind == INT8 || kind == INT4;
    const size_t bytes = PANEL * GROUP / (has_four_bits(kind) ? 2 : 1);
    std::memset(to, 0, panels_of(rows) * panel_bytes(kind, cols));
    for (int first = 0; first < rows; first += PANEL)
        for (int group = 0; group < cols / GROUP; ++group) {
            uint16_t* outer = (uint16_t*)to;
            const bool opens = nested && group % (OUTER / GROUP) == 0;
            if (opens) to += outer_bytes(kind);
            uint8_t* at = to + scale_bytes(kind);
            for (int r = 0; r < PANEL && first + r < rows; ++r) {
                const size_t row = source_row(first + r, rows, paired);
                auto put = [&](int place, float value) {
                    if (nested) to[place * PANEL + r] = (uint8_t)(int)value;
                    else if (halves) ((uint16_t*)to)[place * PANEL + r] = float_to_half(value);
                    else ((float*)to)[place * PANEL + r] = kind == FP8 ? value * 256.0f : value;
                };
                for (int i = 0; i < per_group; ++i) put(i, from.scales[row * stride + group * per_group + i]);
                if (from.minima) put(1, from.minima[row * stride + group]);
                if (opens) {
                    const size_t place = row * (cols / OUTER) + group / (OUTER / GROUP);
                    outer[r] = float_to_half(from.outer_scales[place]);
                    if (from.minima) outer[PANEL + r] = float_to_half(from.outer_minima[place]);
                }
                const uint8_t* w = from.codes + row * cols + group * GROUP;
                if (kind == FP8) {
                    for (int k = 0; k < GROUP; ++k) at[k * PANEL + r] = w[k];
                } else if (kind < FP8) {
                    for (int k = 0; k < GROUP; ++k) at[(k / 8 * PANEL + r) * 4 + k % 8 / 2] |= w[k] << (k % 2 * 4);
                } else if (has_four_bits(kind)) {
                    for (int k = 0; k < GROUP; ++k) at[(k % 16 / 4 * PANEL + r) * 4 + k % 4] |= w[k] << (k / 16 * 4);
                } else {
                    for (int k = 0; k < GROUP; ++k) at[(k / 4 * PANEL + r) * 4 + k % 4] = w[k];
                }
            }
            to = at + bytes;
        }
}
