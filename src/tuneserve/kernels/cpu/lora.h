// What adapters add to a product: y += B (A x), B with its scaling, each row of the batch with its own adapter or none.
//
// A and B are packed like weights, in panels of 16 rows instead of 32: so the parts of a fused weight, whose sizes are
// multiples of 16, have panels of their own also where gate and up alternate. A's rows are the parts' ranks one after the
// other; a panel of B has the rank's columns of its part alone. Sums have an order of their own, whatever the number of
// rows, so a row's result does not depend on its batch.
#pragma once

#include <algorithm>
#include <type_traits>
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
    int32_t rank;  // columns of B's panels, a multiple of 8; 0: the linear layer has no delta
    int32_t rows;  // of A, a multiple of 16
    int32_t cols;  // of A
    int32_t unused;
    const uint8_t *a, *b;
    const Part* parts;
};
}

// Rows of A or B that are multiplied at once.
constexpr int HALF_ROWS = MAX_ROWS > 1 ? MAX_ROWS / 2 : 1;

template <class T>
struct Columns {
    static constexpr int EACH = std::is_same_v<T, bf16> ? 2 : 1;  // that are multiplied at once
    static constexpr size_t BYTES = (size_t)HALF * EACH * sizeof(T);
    static constexpr size_t OPERAND = std::is_same_v<T, bf16> ? 4 : 4 * EACH;

    static inline vf times(const uint8_t* panel, int j, const uint8_t* x, vf acc) {
        if constexpr (EACH == 2) return dot2(acc, load_as<vu>(panel + j * 4 * LANES), load_as<uint32_t>(x));
        else return fma(load((const T*)panel + j * LANES), splat(load_as<float>(x)), acc);
    }
};

// Add ROWS operands at x, times one panel, to 16 floats each. A sum is CHAINS chains of additions, each of every CHAINS-th
// step in column order, so that a few rows need not wait for every addition. `cols` is a multiple of 8.
template <int CHAINS, int ROWS, class T>
static inline void half_tile(const uint8_t* panel, const uint8_t* const* x, int cols, float* const* to) {
    using C = Columns<T>;
    vf acc[CHAINS][ROWS][HALVES_VECTORS] = {};
    for (int k = 0; k < cols / C::EACH; k += CHAINS)
#pragma GCC unroll 4
        for (int i = 0; i < CHAINS; ++i) {
            const uint8_t* w = panel + (k + i) * C::BYTES;
            if (ROWS <= 4) __builtin_prefetch(w + 4096);
#pragma GCC unroll 6
            for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
                for (int j = 0; j < HALVES_VECTORS; ++j)
                    acc[i][m][j] = C::times(w, j, x[m] + (k + i) * C::OPERAND, acc[i][m][j]);
        }
    for (int m = 0; m < ROWS; ++m)
        for (int j = 0; j < HALVES_VECTORS; ++j) {
            vf sum = acc[0][m][j];
            for (int i = 1; i < CHAINS; ++i) sum += acc[i][m][j];
            store(to[m] + j * LANES, load(to[m] + j * LANES) + sum);
        }
}

template <int CHAINS, int ROWS, class T>
static inline void half_of(int rows, const uint8_t* panel, const uint8_t* const* x, int cols, float* const* to) {
    if constexpr (ROWS < HALF_ROWS) {
        if (rows > ROWS) return half_of<CHAINS, ROWS + 1, T>(rows, panel, x, cols, to);
    }
    half_tile<CHAINS, ROWS, T>(panel, x, cols, to);
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
        kind_ = kind, deltas_ = deltas, linears_ = linears;
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

    void shrink(int linear, int piece, const uint8_t* x, size_t stride) {
        for (const Rows& rows : groups_) {
            const Delta& d = delta(rows.slot, linear);
            const int panels = d.rows / HALF, here = panels * blocks(rows.count);
            if (piece >= here) {
                piece -= here;
                continue;
            }
            const int first = piece / panels * SHRINK_ROWS;
            const int* from = order_.data() + rows.first + first;
            dispatch([&](auto tag) {
                const int* end = from + std::min(SHRINK_ROWS, rows.count - first);
                shrink_as<decltype(tag)>(d, piece % panels, from, end, x, stride);
            });
            return;
        }
    }

    // Add B (A x) to results (count, 32) of a panel, of rows from `first` on.
    void expand(int linear, int panel, int first, int count, float* results) const {
        dispatch([&](auto tag) { expand_as<decltype(tag)>(linear, panel, first, count, results); });
    }

   private:
    struct Rows {
        int slot, first, count;
    };
    // Rows of one adapter that are worth sharing out.
    static constexpr int SHRINK_ROWS = 4 * MAX_ROWS;
    static int blocks(int rows) { return (rows + SHRINK_ROWS - 1) / SHRINK_ROWS; }

    template <class F>
    void dispatch(F&& f) const {
        if (kind_ == BF16) f(bf16{});
        else if (kind_ == F16) f(f16{});
        else f(float{});
    }

    // Call f(rows, their number, HALF_ROWS at most) for those in [from, end), in tiles of equal size as far as possible.
    template <class F>
    static void each_tile(const int* from, const int* end, F&& f) {
        if (from == end) return;
        if (end - from <= HALF_ROWS) return f(from, (int)(end - from));
        for (int tiles = (end - from + HALF_ROWS - 1) / HALF_ROWS; tiles > 0; --tiles) {
            const int count = (end - from + tiles - 1) / tiles;
            f(from, count);
            from += count;
        }
    }

    template <class T>
    void shrink_as(const Delta& d, int panel, const int* from, const int* end, const uint8_t* x, size_t stride) {
        each_tile(from, end, [&](const int* rows, int count) {
            alignas(64) float results[HALF_ROWS * HALF] = {};
            const uint8_t* operands[HALF_ROWS];
            float* to[HALF_ROWS];
            for (int m = 0; m < count; ++m) operands[m] = x + rows[m] * stride, to[m] = results + m * HALF;
            half_of<4, 1, T>(count, d.a + panel * half_bytes(kind_, d.cols), operands, d.cols, to);
            for (int m = 0; m < count; ++m) prepare(kind_, to[m], inner(rows[m]), panel * HALF, HALF);
        });
    }

    template <class T>
    void expand_as(int linear, int panel, int first, int count, float* results) const {
        for (const Rows& of : groups_) {
            const Delta& d = delta(of.slot, linear);
            if (!d.rank) continue;
            const int *all = order_.data() + of.first, *from = std::lower_bound(all, all + of.count, first);
            const int* end = std::lower_bound(from, all + of.count, first + count);
            for (int half = 0; half < 2; ++half) {
                const Part part = d.parts[2 * panel + half];
                if (part.panel < 0) continue;
                each_tile(from, end, [&](const int* rows, int here) {
                    const uint8_t* operands[HALF_ROWS];
                    float* to[HALF_ROWS];
                    for (int m = 0; m < here; ++m) {
                        operands[m] = inner(rows[m]) + part.inner * (std::is_same_v<T, bf16> ? 2 : 4);
                        to[m] = results + (rows[m] - first) * PANEL + half * HALF;
                    }
                    half_of<2, 1, T>(here, d.b + part.panel * half_bytes(kind_, d.rank), operands, d.rank, to);
                });
            }
        }
    }

    const Delta& delta(int slot, int linear) const { return deltas_[slot * linears_ + linear]; }
    uint8_t* inner(int row) const { return (uint8_t*)inner_.data() + row * stride_; }

    int kind_ = 0, linears_ = 0;
    const Delta* deltas_ = nullptr;
    size_t stride_ = 0;
    std::vector<Rows> groups_;
    std::vector<int> order_, starts_;
    std::vector<uint8_t> inner_;
};
