// How weights are packed, and activations written as the operands that packed weights are multiplied with.
//
// Weights are cut into panels of 32 output rows, each one stream of memory in the order in which it is read:
//   float32, float16: per column, the 32 rows' values
//   bfloat16: per pair of columns, the 32 rows' pairs
//   8-bit integers: per group of 32 columns the scales (and minima) of 32 rows, then per four columns the 32 rows' bytes
//         (value + 128, or code where there are minima)
//   4-bit integers: likewise, per four columns k and k + 16 the 32 rows' bytes: k in the low halves, k + 16 in the high
//         ones; always with minima
//   4-bit tables (NF4, FP4, E2M1): per group 32 scales (float32), then per eight columns the 32 rows' words of eight codes
//   fp8: per group 32 scales (float32, times 256), then per column the 32 rows' bytes (e4m3)
// Scales and minima of integers are float16, float32 (wide), or nested: bytes, times float16 that stand, 32 for scales and
// 32 for minima, before each 256 columns. Where each 16 columns have scales of their own (by 16), those of the first 16
// come before the others'.
// Activations ("operands") are float32, bfloat16 pairs, or groups of 32 signed bytes. A linear's panels may be of several
// kinds, as long as these have the same operands.
#pragma once

#include "vector.h"

enum Kind : int32_t {
    F32 = 0, F16 = 1, BF16 = 2, NF4 = 3, FP4 = 4, E2M1 = 5, FP8 = 6,  // operands are floats
    INT8 = 7, INT8_WIDE = 8, INT8_MINIMA_WIDE = 9, INT8_MINIMA_NESTED = 10, INT8_BY_16_NESTED = 11,
    INT4 = 12, INT4_WIDE = 13, INT4_NESTED = 14,
};

constexpr int PANEL = 32;
constexpr int GROUP = 32;
constexpr int OUTER = 256;  // columns that share an outer scale where scales are nested
constexpr int VECTORS = PANEL / LANES;

struct Linear {
    int32_t kind, rows, cols, unused;
    const uint8_t* panels;
    const float* bias;
    const uint8_t* kinds;    // of each panel; null: all are of `kind`
    const int64_t* offsets;  // of each panel in `panels`, where there are kinds
};

// Of NF4 and FP4 (bitsandbytes) and E2M1 (OCP Microscaling Formats 1.0).
constexpr float TABLES[3][16] = {
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
     -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
     0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
     0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
    {0.0f, 0.0625f / 12, 8.0f / 12, 1.0f, 4.0f / 12, 6.0f / 12, 2.0f / 12, 3.0f / 12,
     -0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12},
    {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f},
};

struct Group {
    float scale;
    int32_t sum, first_sum;  // of all values, and of the first half
    int8_t values[GROUP];
};

static constexpr bool has_four_bits(int kind) { return (kind >= NF4 && kind < FP8) || kind >= INT4; }
static constexpr bool is_nested(int kind) {
    return kind == INT8_MINIMA_NESTED || kind == INT8_BY_16_NESTED || kind == INT4_NESTED;
}
static constexpr bool has_minima(int kind) {
    return kind >= INT4 || kind == INT8_MINIMA_WIDE || kind == INT8_MINIMA_NESTED;
}

// Of the scales and minima of one group of columns in a panel.
static constexpr size_t scale_bytes(int kind) {
    const size_t each = is_nested(kind) ? 1 : kind == INT8 || kind == INT4 ? 2 : 4;
    return PANEL * each * (has_minima(kind) || kind == INT8_BY_16_NESTED ? 2 : 1);
}
// Of the outer scales and minima before each 256 columns.
static constexpr size_t outer_bytes(int kind) { return is_nested(kind) ? PANEL * 2 * (has_minima(kind) ? 2 : 1) : 0; }

static inline size_t panel_bytes(int kind, int cols) {
    switch (kind) {
        case F32: return (size_t)cols * PANEL * 4;
        case F16:
        case BF16: return (size_t)cols * PANEL * 2;
    }
    const size_t codes = PANEL * GROUP / (has_four_bits(kind) ? 2 : 1);
    return (size_t)cols / GROUP * (scale_bytes(kind) + codes) + (size_t)cols / OUTER * outer_bytes(kind);
}
static inline size_t operand_bytes(int kind, int cols) {
    switch (kind) {
        case F32:
        case F16:
        case NF4:
        case FP4:
        case E2M1:
        case FP8: return (size_t)cols * 4;
        case BF16: return (size_t)cols * 2;
        default: return (size_t)cols / GROUP * sizeof(Group);
    }
}
static inline int panels_of(int rows) { return (rows + PANEL - 1) / PANEL; }

static inline int32_t sum_of(vi x) {
    int32_t all = 0;
    for (int lane = 0; lane < LANES; ++lane) all += x[lane];
    return all;
}

// Write `count` values, a multiple of 32 for groups and else of 16, into an operand from `column` on.
static inline void prepare(int kind, const float* values, uint8_t* operand, int column, int count) {
    if (kind == BF16) {
        for (int i = 0; i < count; i += LANES) store((bf16*)operand + column + i, load(values + i));
        return;
    }
    if (kind < INT8) {
        std::memcpy((float*)operand + column, values, sizeof(float) * count);
        return;
    }
    for (Group* group = (Group*)operand + column / GROUP; count > 0; ++group, values += GROUP, count -= GROUP) {
        vf peak = splat(0.0f), poison = splat(0.0f);
        for (int i = 0; i < GROUP; i += LANES) {
            vf x = load(values + i);
            peak = maximum(magnitude(x), peak);
            poison += x * 0.0f;  // NaN where x is not finite
        }
        const float high = largest(peak), step = high / 127.0f;
        const float inverse = step > 0 && step < INFINITY ? 1.0f / step : 0.0f;
        vi total = splat(0);
        group->first_sum = 0;
        for (int i = 0; i < GROUP; i += LANES) {
            vf scaled = load(values + i) * inverse;
            scaled = magnitude(scaled) <= 128.0f ? scaled : splat(0.0f);
            vi rounded = (vi)(scaled + 12582912.0f) - 0x4b400000;
            total += rounded;
            store_as(group->values + i, __builtin_convertvector(rounded, vb));
            if (i + LANES == GROUP / 2) group->first_sum = sum_of(total);
        }
        group->sum = sum_of(total);
        group->scale = step + sum(poison);
    }
}
