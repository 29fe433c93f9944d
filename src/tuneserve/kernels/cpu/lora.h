// What adapters add to a product: y += B (A x), B with its scaling, each row of the batch with its own adapter or none.
//
// A and B are packed like weights, in panels of 16 rows instead of 32: so the parts of a fused weight, whose sizes are
// multiples of 16, have panels of their own also where gate and up alternate. A's rows are the parts' ranks one after the
// other; a panel of B has the rank's columns of its part alone. Sums are in column order, and a row's result does not
// depend on its batch.
#pragma once

#include <vector>

#include "linear.h"
#include "pool.h"

constexpr int HALF = PANEL / 2;
constexpr int HALVES_VECTORS = HALF / LANES;

extern "C" {

// For 16 rows of the product: their panel of B, and where its columns begin in A x; without a delta `panel` is -1.
struct Part {
    int32_t panel, inner;
};

struct Delta {
    int32_t rank;  // columns of B's panels, even; 0: the linear layer has no delta
    int32_t rows;  // of A, a multiple of 16
    const uint8_t *a, *b;
    const Part* parts;
};
}

// ROWS operands at x, times one panel of A or B.
template <int ROWS>
static inline void half_bf16(const uint8_t* panel, const uint8_t* const* x, int cols, float* out) {
    vf acc[ROWS][HALVES_VECTORS] = {};
    for (int k = 0; k < cols / 2; ++k, panel += HALF * 4) {
        vu w[HALVES_VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < HALVES_VECTORS; ++j) w[j] = load_as<vu>(panel + j * 4 * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const uint32_t pair = load_as<uint32_t>(x[m] + 4 * k);
#pragma GCC unroll 4
            for (int j = 0; j < HALVES_VECTORS; ++j) acc[m][j] = dot2(acc[m][j], w[j], pair);
        }
    }
    for (int m = 0; m < ROWS; ++m)
        for (int j = 0; j < HALVES_VECTORS; ++j) store(out + m * HALF + j * LANES, acc[m][j]);
}

template <int ROWS, class T>
static inline void half_float(const uint8_t* panel, const uint8_t* const* x, int cols, float* out) {
    vf acc[ROWS][HALVES_VECTORS] = {};
    const T* w = (const T*)panel;
    for (int k = 0; k < cols; ++k, w += HALF) {
        vf column[HALVES_VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < HALVES_VECTORS; ++j) column[j] = load(w + j * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const vf value = splat(load_as<float>(x[m] + 4 * k));
#pragma GCC unroll 4
            for (int j = 0; j < HALVES_VECTORS; ++j) acc[m][j] = fma(column[j], value, acc[m][j]);
        }
    }
    for (int m = 0; m < ROWS; ++m)
        for (int j = 0; j < HALVES_VECTORS; ++j) store(out + m * HALF + j * LANES, acc[m][j]);
}

template <int ROWS>
static inline void half_of(int rows, int kind, const uint8_t* panel, const uint8_t* const* x, int cols, float* out) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return half_of<ROWS - 1>(rows, kind, panel, x, cols, out);
    }
    if (kind == BF16) half_bf16<ROWS>(panel, x, cols, out);
    else if (kind == F16) half_float<ROWS, f16>(panel, x, cols, out);
    else half_float<ROWS, float>(panel, x, cols, out);
}

static inline size_t half_bytes(int kind, int cols) { return (size_t)HALF * cols * (kind == F32 ? 4 : 2); }

// An operand as float32.
static inline void widen(int kind, const uint8_t* operand, int count, float* to) {
    if (kind == BF16) {
        for (int i = 0; i < count; i += LANES) store(to + i, load((const bf16*)operand + i));
    } else if (kind < INT8) {
        std::memcpy(to, operand, sizeof(float) * count);
    } else {
        for (int i = 0; i < count; ++i) {
            const Group& group = ((const Group*)operand)[i / GROUP];
            to[i] = group.scale * group.values[i % GROUP];
        }
    }
}

static inline int operand_form(int kind) { return kind == BF16 ? 1 : kind < INT8 ? 0 : 2; }

// The adapters of one step's rows.
class Adapted {
   public:
    // Rows in order of their slots, so that those of an adapter are together. `deltas` are (slots, linears).
    void begin(int kind, const int32_t* slots, int rows, const Delta* deltas, int linears) {
        kind_ = kind, slots_ = slots, deltas_ = deltas, linears_ = linears;
        groups_.clear(), order_.clear();
        if (!slots) return;
        int most = -1;
        for (int row = 0; row < rows; ++row) most = std::max(most, slots[row]);
        starts_.assign(most + 2, 0);
        for (int row = 0; row < rows; ++row)
            if (slots[row] >= 0) ++starts_[slots[row] + 1];
        for (int slot = 0; slot <= most; ++slot) starts_[slot + 1] += starts_[slot];
        order_.resize(starts_[most + 1]);
        for (int slot = 0; slot <= most; ++slot)
            if (const int count = starts_[slot + 1] - starts_[slot]) groups_.push_back({slot, starts_[slot], count});
        for (int row = 0; row < rows; ++row)
            if (slots[row] >= 0) order_[starts_[slots[row]]++] = row;
        stride_ = 0;
        for (const Rows& rows_of : groups_)
            for (int i = 0; i < linears; ++i)
                stride_ = std::max(stride_, (size_t)deltas[rows_of.slot * linears + i].rows * 4);
        inner_.resize(rows * stride_ + 64);
    }

    bool any() const { return !groups_.empty(); }
    const std::vector<int>& rows() const { return order_; }
    int kind() const { return kind_; }

    // Pieces of work that A x of linear layer number `linear` is made of.
    int pieces(int linear) const {
        int count = 0;
        for (const Rows& rows : groups_) count += delta(rows.slot, linear).rows / HALF * blocks(rows.count);
        return count;
    }

    void shrink(int linear, int piece, const uint8_t* x, size_t stride, int cols) {
        for (const Rows& rows : groups_) {
            const Delta& d = delta(rows.slot, linear);
            const int panels = d.rows / HALF, here = panels * blocks(rows.count);
            if (piece >= here) {
                piece -= here;
                continue;
            }
            const int panel = piece % panels, first = piece / panels * BLOCK_ROWS;
            const int last = std::min(first + BLOCK_ROWS, rows.count);
            alignas(64) float results[MAX_ROWS * HALF];
            const uint8_t* operands[MAX_ROWS];
            for (int at = first, count; at < last; at += count) {
                const int tiles = (last - at + MAX_ROWS - 1) / MAX_ROWS;
                count = (last - at + tiles - 1) / tiles;
                const int* row = order_.data() + rows.first + at;
                for (int m = 0; m < count; ++m) operands[m] = x + row[m] * stride;
                half_of<MAX_ROWS>(count, kind_, d.a + panel * half_bytes(kind_, cols), operands, cols, results);
                for (int m = 0; m < count; ++m) prepare(kind_, results + m * HALF, inner(row[m]), panel * HALF, HALF);
            }
            return;
        }
    }

    // Add B (A x) to results (rows, 32) of a panel.
    void expand(int linear, int panel, int first, int count, float* results) const {
        for (int r = 0; r < count; ++r, results += PANEL) {
            const int slot = slots_[first + r];
            if (slot < 0) continue;
            const Delta& d = delta(slot, linear);
            if (!d.rank) continue;
            for (int half = 0; half < 2; ++half) {
                const Part part = d.parts[2 * panel + half];
                if (part.panel < 0) continue;
                alignas(64) float added[HALF];
                const uint8_t* operand = inner(first + r) + part.inner * (kind_ == BF16 ? 2 : 4);
                half_of<1>(1, kind_, d.b + part.panel * half_bytes(kind_, d.rank), &operand, d.rank, added);
                for (int i = 0; i < HALF; i += LANES)
                    store(results + half * HALF + i, load(results + half * HALF + i) + load(added + i));
            }
        }
    }

   private:
    struct Rows {
        int slot, first, count;
    };
    // Rows of one adapter that are worth sharing out.
    static constexpr int BLOCK_ROWS = 4 * MAX_ROWS;
    static int blocks(int rows) { return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }

    const Delta& delta(int slot, int linear) const { return deltas_[slot * linears_ + linear]; }
    uint8_t* inner(int row) const { return (uint8_t*)inner_.data() + row * stride_; }

    int kind_ = 0, linears_ = 0;
    const int32_t* slots_ = nullptr;
    const Delta* deltas_ = nullptr;
    size_t stride_ = 0;
    std::vector<Rows> groups_;
    std::vector<int> order_, starts_;
    std::vector<uint8_t> inner_;
};
