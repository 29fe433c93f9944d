// Products of activations with packed weights; see panels.h.
//
// Each output is one sum in column order, whatever the number of rows, so a row's result does not depend on its batch.
#pragma once

#include "panels.h"

// rows x 32 results of one panel into out; x are the rows' operands, stride bytes apart.
template <int ROWS>
static inline void tile_bf16(const uint8_t* panel, const uint8_t* x, size_t stride, int cols, float* out) {
    vf acc[ROWS][VECTORS] = {};
    for (int k = 0; k < cols / 2; ++k, panel += PANEL * 4) {
        __builtin_prefetch(panel + 4096), __builtin_prefetch(panel + 4096 + 64);
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

// Tables and fp8 are decoded in registers and multiplied in float32, then scaled by the group.
template <int ROWS>
static inline void tile_table(const float* values, const uint8_t* panel, const uint8_t* x, size_t stride, int cols,
                              float* out) {
    const Table table = table_of(values);
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

template <int KIND>
static inline vf load_scale(const uint8_t* scales, const f16* outer, int row) {
    if constexpr (is_nested(KIND)) return load_signed(scales + row) * load(outer + row);
    else if constexpr (KIND == INT8 || KIND == INT4) return load((const f16*)scales + row);
    else return load((const float*)scales + row);
}

template <int ROWS, int KIND>
static inline void tile_int(const uint8_t* panel, const uint8_t* x, size_t stride, int cols, float* out) {
    constexpr bool FOUR_BITS = has_four_bits(KIND), MINIMA = has_minima(KIND);
    constexpr int HALVES = KIND == INT8_BY_16_NESTED ? 2 : 1;
    constexpr size_t EACH = scale_bytes(KIND) / (MINIMA ? 2 : HALVES);
    vf acc[ROWS][VECTORS] = {};
    const f16* outer = nullptr;
    for (int g = 0; g < cols / GROUP; ++g) {
        if (is_nested(KIND) && g % (OUTER / GROUP) == 0) outer = (const f16*)panel, panel += outer_bytes(KIND);
        const uint8_t* scales = panel;
        panel += scale_bytes(KIND);
        const Group* group[ROWS];
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) group[m] = (const Group*)(x + m * stride) + g;
        constexpr int STEPS = FOUR_BITS ? GROUP / 8 : GROUP / 4 / HALVES;
#pragma GCC unroll 2
        for (int half = 0; half < HALVES; ++half) {
            vi dot[ROWS][VECTORS];
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; ++m) {
                const int sum = HALVES == 1 ? group[m]->sum
                                : half == 0 ? group[m]->first_sum
                                            : group[m]->sum - group[m]->first_sum;
#pragma GCC unroll 8
                for (int j = 0; j < VECTORS; ++j) dot[m][j] = MINIMA ? splat(0) : splat(-128 * sum);
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
                const vf scale = load_scale<KIND>(scales + half * EACH, outer, j * LANES);
                const vf minimum =
                    MINIMA ? load_scale<KIND>(scales + EACH, outer + PANEL, j * LANES) : splat(0.0f);
#pragma GCC unroll 12
                for (int m = 0; m < ROWS; ++m) {
                    vf step = scale * group[m]->scale;
                    acc[m][j] = fma(__builtin_convertvector(dot[m][j], vf), step, acc[m][j]);
                    if (MINIMA) acc[m][j] = fma(minimum, splat(group[m]->scale * (float)group[m]->sum), acc[m][j]);
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
            case NF4:
            case FP4:
            case E2M1: return tile_table<ROWS>(TABLES[kind - NF4], panel, x, stride, cols, out);
            case FP8: return tile_fp8<ROWS>(panel, x, stride, cols, out);
            case INT8: return tile_int<ROWS, INT8>(panel, x, stride, cols, out);
            case INT8_WIDE: return tile_int<ROWS, INT8_WIDE>(panel, x, stride, cols, out);
            case INT8_MINIMA_WIDE: return tile_int<ROWS, INT8_MINIMA_WIDE>(panel, x, stride, cols, out);
            case INT8_MINIMA_NESTED: return tile_int<ROWS, INT8_MINIMA_NESTED>(panel, x, stride, cols, out);
            case INT8_BY_16_NESTED: return tile_int<ROWS, INT8_BY_16_NESTED>(panel, x, stride, cols, out);
            case INT4: return tile_int<ROWS, INT4>(panel, x, stride, cols, out);
            case INT4_WIDE: return tile_int<ROWS, INT4_WIDE>(panel, x, stride, cols, out);
            case INT4_NESTED: return tile_int<ROWS, INT4_NESTED>(panel, x, stride, cols, out);
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

// Rows whose results are held until all of them are there.
constexpr int BLOCK_ROWS = 8 * MAX_ROWS;

// Multiply `rows` rows, BLOCK_ROWS at most, by one panel, in tiles of equal size as far as possible; results (rows, 32).
static inline void multiply(const Linear& w, int panel, const uint8_t* x, size_t stride, int rows, float* results) {
    const int kind = w.kinds ? w.kinds[panel] : w.kind, most = kind >= NF4 ? MAX_ROWS_INT : MAX_ROWS;
    const uint8_t* weights = w.panels + (w.kinds ? w.offsets[panel] : panel * panel_bytes(kind, w.cols));
    int tiles = (rows + most - 1) / most;
    for (int first = 0; tiles > 0; --tiles) {
        int count = (rows - first + tiles - 1) / tiles;
        tile_of<MAX_ROWS>(count, kind, weights, x + first * stride, stride, w.cols, results + first * PANEL);
        first += count;
    }
}
