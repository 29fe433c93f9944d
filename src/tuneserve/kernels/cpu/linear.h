// Products of activations with packed weights.
//
// Weights are cut into panels of 32 output rows, each one stream of memory in the order in which it is read:
//   float32, float16: per column, the 32 rows' values
//   bfloat16: per pair of columns, the 32 rows' pairs
//   int8: per group of 32 columns, 32 scales (float16), then per four columns the 32 rows' unsigned bytes (value + 128)
//   int4: per group of 32 columns, 32 scales, 32 minima (float16), then per four columns k and k + 16 the 32 rows'
//         bytes: k in the low halves, k + 16 in the high ones
//   int8 wide, int4 wide: likewise, with scales and minima in float32
//   int8 by 16: likewise, with two times 32 scales (float32): those of the first 16 columns, then of the others
//   nf4: per group of 32 columns, 32 scales (float32), then per eight columns the 32 rows' words of eight codes
//   fp8: per group of 32 columns, 32 scales (float32, times 256), then per column the 32 rows' bytes (e4m3)
// Each output is one sum in column order, whatever the number of rows, so a row's result does not depend on its batch.
// Activations ("operands") are float32, bfloat16 pairs, or groups of 32 signed bytes. A linear's panels may be of several
// kinds, as long as these have the same operands.
#pragma once

#include "vector.h"

enum Kind : int32_t {
    F32 = 0, F16 = 1, BF16 = 2, NF4 = 3, FP8 = 4,  // operands are floats
    INT8 = 5, INT4 = 6, INT8_WIDE = 7, INT4_WIDE = 8, INT8_BY_16 = 9,
};

constexpr int PANEL = 32;
constexpr int GROUP = 32;
constexpr int VECTORS = PANEL / LANES;

struct Linear {
    int32_t kind, rows, cols, unused;
    const uint8_t* panels;
    const float* bias;
    const uint8_t* kinds;    // of each panel; null: all are of `kind`
    const int64_t* offsets;  // of each panel in `panels`, where there are kinds
};

constexpr float NF4_VALUES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

struct Group {
    float scale;
    int32_t sum, first_sum;  // of all values, and of the first half
    int8_t values[GROUP];
};

static inline bool has_four_bits(int kind) { return kind == NF4 || kind == INT4 || kind == INT4_WIDE; }

// Of the scales and minima of one group of columns in a panel.
static inline size_t scale_bytes(int kind) {
    switch (kind) {
        case INT8: return PANEL * 2;
        case INT4_WIDE:
        case INT8_BY_16: return PANEL * 8;
        default: return PANEL * 4;
    }
}
static inline size_t panel_bytes(int kind, int cols) {
    switch (kind) {
        case F32: return (size_t)cols * PANEL * 4;
        case F16:
        case BF16: return (size_t)cols * PANEL * 2;
        default: return (size_t)cols / GROUP * (scale_bytes(kind) + PANEL * GROUP / (has_four_bits(kind) ? 2 : 1));
    }
}
static inline size_t operand_bytes(int kind, int cols) {
    switch (kind) {
        case F32:
        case F16:
        case NF4:
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

// rows x 32 results of one panel into out; x are the rows' operands, stride bytes apart.
template <int ROWS>
static inline void tile_bf16(const uint8_t* panel, const uint8_t* x, size_t stride, int cols, float* out) {
    vf acc[ROWS][VECTORS] = {};
    for (int k = 0; k < cols / 2; ++k, panel += PANEL * 4) {
        if (ROWS <= 4) __builtin_prefetch(panel + 4096), __builtin_prefetch(panel + 4096 + 64);
        vu w[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) w[j] = load_as<vu>(panel + j * 4 * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            uint32_t pair = load_as<uint32_t>(x + m * stride + 4 * k);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j) acc[m][j] = dot2(acc[m][j], w[j], pair);
        }
    }
    for (int m = 0; m < ROWS; ++m)
        for (int j = 0; j < VECTORS; ++j) store(out + m * PANEL + j * LANES, acc[m][j]);
}

template <int ROWS, class T>
static inline void tile_float(const uint8_t* panel, const uint8_t* x, size_t stride, int cols, float* out) {
    vf acc[ROWS][VECTORS] = {};
    const T* w = (const T*)panel;
    for (int k = 0; k < cols; ++k, w += PANEL) {
        if (ROWS <= 4) __builtin_prefetch((const uint8_t*)w + 4096);
        vf column[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) column[j] = load(w + j * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            vf value = splat(load_as<float>(x + m * stride + 4 * k));
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j) acc[m][j] = fma(column[j], value, acc[m][j]);
        }
    }
    for (int m = 0; m < ROWS; ++m)
        for (int j = 0; j < VECTORS; ++j) store(out + m * PANEL + j * LANES, acc[m][j]);
}

// NF4 (codebook of bitsandbytes) and FP8 are decoded in registers and multiplied in float32, then scaled by the group.
template <int ROWS>
static inline void tile_nf4(const uint8_t* panel, const uint8_t* x, size_t stride, int cols, float* out) {
    const Table table = table_of(NF4_VALUES);
    vf acc[ROWS][VECTORS] = {};
    for (int g = 0; g < cols / GROUP; ++g) {
        const float* scales = (const float*)panel;
        panel += PANEL * 4;
        vf part[ROWS][VECTORS] = {};
        for (int k = 0; k < GROUP; k += 8, panel += PANEL * 4) {
            if (ROWS <= 4) __builtin_prefetch(panel + 4096), __builtin_prefetch(panel + 4096 + 64);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j) {
                const vu w = load_as<vu>(panel + j * 4 * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < 8; ++i) {
                    const vf value = look_up(table, w >> (4 * i));
#pragma GCC unroll 12
                    for (int m = 0; m < ROWS; ++m)
                        part[m][j] = fma(value, splat(load_as<float>(x + m * stride + 4 * (g * GROUP + k + i))), part[m][j]);
                }
            }
        }
        for (int j = 0; j < VECTORS; ++j)
            for (int m = 0; m < ROWS; ++m) acc[m][j] = fma(part[m][j], load(scales + j * LANES), acc[m][j]);
    }
    for (int m = 0; m < ROWS; ++m)
        for (int j = 0; j < VECTORS; ++j) store(out + m * PANEL + j * LANES, acc[m][j]);
}

template <int ROWS>
static inline void tile_fp8(const uint8_t* panel, const uint8_t* x, size_t stride, int cols, float* out) {
    vf acc[ROWS][VECTORS] = {};
    for (int g = 0; g < cols / GROUP; ++g) {
        const float* scales = (const float*)panel;
        panel += PANEL * 4;
        vf part[ROWS][VECTORS] = {};
        for (int k = 0; k < GROUP; ++k, panel += PANEL) {
            if (ROWS <= 4) __builtin_prefetch(panel + 4096);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j) {
                const vf value = load_e4m3(panel + j * LANES);
#pragma GCC unroll 12
                for (int m = 0; m < ROWS; ++m)
                    part[m][j] = fma(value, splat(load_as<float>(x + m * stride + 4 * (g * GROUP + k))), part[m][j]);
            }
        }
        for (int j = 0; j < VECTORS; ++j)
            for (int m = 0; m < ROWS; ++m) acc[m][j] = fma(part[m][j], load(scales + j * LANES), acc[m][j]);
    }
    for (int m = 0; m < ROWS; ++m)
        for (int j = 0; j < VECTORS; ++j) store(out + m * PANEL + j * LANES, acc[m][j]);
}

// Scale is the type of scales and minima; HALVES is 2 where each 16 columns have scales of their own.
template <int ROWS, bool FOUR_BITS, class Scale, int HALVES = 1>
static inline void tile_int(const uint8_t* panel, const uint8_t* x, size_t stride, int cols, float* out) {
    vf acc[ROWS][VECTORS] = {};
    for (int g = 0; g < cols / GROUP; ++g) {
        const Scale* scales = (const Scale*)panel;
        const Scale* minima = scales + PANEL;
        panel += (FOUR_BITS ? 2 : HALVES) * PANEL * sizeof(Scale);
        const Group* group[ROWS];
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) group[m] = (const Group*)(x + m * stride) + g;
        constexpr int STEPS = FOUR_BITS ? GROUP / 8 : GROUP / 4 / HALVES;
#pragma GCC unroll 2
        for (int half = 0; half < HALVES; ++half, scales += PANEL) {
            vi dot[ROWS][VECTORS];
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; ++m) {
                const int sum = HALVES == 1 ? group[m]->sum
                                : half == 0 ? group[m]->first_sum
                                            : group[m]->sum - group[m]->first_sum;
#pragma GCC unroll 8
                for (int j = 0; j < VECTORS; ++j) dot[m][j] = FOUR_BITS ? splat(0) : splat(-128 * sum);
            }
#pragma GCC unroll 8
            for (int k = half * STEPS; k < (half + 1) * STEPS; ++k, panel += PANEL * 4) {
                if (ROWS <= 4) __builtin_prefetch(panel + 4096), __builtin_prefetch(panel + 4096 + 64);
#pragma GCC unroll 8
                for (int j = 0; j < VECTORS; ++j) {
                    vu w = load_as<vu>(panel + j * 4 * LANES);
#pragma GCC unroll 12
                    for (int m = 0; m < ROWS; ++m) {
                        uint32_t low = load_as<uint32_t>(group[m]->values + 4 * k);
                        if (!FOUR_BITS) {
                            dot[m][j] = dot4(dot[m][j], w, low);
                            continue;
                        }
                        uint32_t high = load_as<uint32_t>(group[m]->values + 4 * k + GROUP / 2);
                        dot[m][j] = dot4(dot[m][j], w & 0x0f0f0f0fu, low);
                        dot[m][j] = dot4(dot[m][j], (w >> 4) & 0x0f0f0f0fu, high);
                    }
                }
            }
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j) {
                vf scale = load(scales + j * LANES);
                vf minimum = FOUR_BITS ? load(minima + j * LANES) : splat(0.0f);
#pragma GCC unroll 12
                for (int m = 0; m < ROWS; ++m) {
                    vf step = scale * group[m]->scale;
                    acc[m][j] = fma(__builtin_convertvector(dot[m][j], vf), step, acc[m][j]);
                    if (FOUR_BITS) acc[m][j] = fma(minimum, splat(group[m]->scale * (float)group[m]->sum), acc[m][j]);
                }
            }
        }
    }
    for (int m = 0; m < ROWS; ++m)
        for (int j = 0; j < VECTORS; ++j) store(out + m * PANEL + j * LANES, acc[m][j]);
}

template <int ROWS>
static void tile(int kind, const uint8_t* panel, const uint8_t* x, size_t stride, int cols, float* out) {
    switch (kind) {
        case F32: return tile_float<ROWS, float>(panel, x, stride, cols, out);
        case F16: return tile_float<ROWS, f16>(panel, x, stride, cols, out);
        case BF16: return tile_bf16<ROWS>(panel, x, stride, cols, out);
    }
    if constexpr (ROWS <= MAX_ROWS_INT) {
        switch (kind) {
            case NF4: return tile_nf4<ROWS>(panel, x, stride, cols, out);
            case FP8: return tile_fp8<ROWS>(panel, x, stride, cols, out);
            case INT8: return tile_int<ROWS, false, f16>(panel, x, stride, cols, out);
            case INT4: return tile_int<ROWS, true, f16>(panel, x, stride, cols, out);
            case INT8_WIDE: return tile_int<ROWS, false, float>(panel, x, stride, cols, out);
            case INT4_WIDE: return tile_int<ROWS, true, float>(panel, x, stride, cols, out);
            case INT8_BY_16: return tile_int<ROWS, false, float, 2>(panel, x, stride, cols, out);
        }
    }
}

template <int ROWS>
static inline void tile_of(int rows, int kind, const uint8_t* panel, const uint8_t* x, size_t stride, int cols,
                           float* out) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return tile_of<ROWS - 1>(rows, kind, panel, x, stride, cols, out);
    }
    tile<ROWS>(kind, panel, x, stride, cols, out);
}

// Multiply all rows by one panel, in tiles of equal size as far as possible; done(first row, rows, results).
template <class Done>
static inline void multiply(const Linear& w, int panel, const uint8_t* x, size_t stride, int rows, Done&& done) {
    const int kind = w.kinds ? w.kinds[panel] : w.kind, most = kind >= NF4 ? MAX_ROWS_INT : MAX_ROWS;
    const uint8_t* weights = w.panels + (w.kinds ? w.offsets[panel] : panel * panel_bytes(kind, w.cols));
    alignas(64) float results[MAX_ROWS * PANEL];
    int tiles = (rows + most - 1) / most;
    for (int first = 0; tiles > 0; --tiles) {
        int count = (rows - first + tiles - 1) / tiles;
        tile_of<MAX_ROWS>(count, kind, weights, x + first * stride, stride, w.cols, results);
        done(first, count, results);
        first += count;
    }
}
