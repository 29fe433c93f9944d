// What adapters add to a product: y += B (A x), B with its scaling, each row of the batch with its own adapter or none.
//
// A and B are packed like weights, in panels of 16 rows instead of 32: so the parts of a fused weight, whose sizes are
// multiples of 16, have panels of their own also where gate and up alternate. A's rows are the parts' ranks one after the
// other; a panel of B has the rank's columns of its part alone. Sums are in column order, and a row's result does not
// depend on its batch.
#pragma once

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
    const uint8_t *a, *b;
    const Part* parts;
};
}

// A sum over the columns of A is one of four quarters, each in column order: four chains of additions and four streams
// of memory where a few rows would wait for one.
constexpr int QUARTERS = 4;

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

// ROWS operands at x, times one panel of A, (rows, 16).
template <int ROWS, class T>
static inline void half_tile(const uint8_t* panel, const uint8_t* const* x, int cols, float* out) {
    using C = Columns<T>;
    constexpr int TOGETHER = ROWS <= 3 ? QUARTERS : 1;
    const int steps = cols / C::EACH, most = (steps + QUARTERS - 1) / QUARTERS;
    vf total[ROWS][HALVES_VECTORS] = {};
    for (int quarter = 0; quarter < QUARTERS; quarter += TOGETHER) {
        vf acc[TOGETHER][ROWS][HALVES_VECTORS] = {};
        const int common = std::max(0, std::min(most, steps - (quarter + TOGETHER - 1) * most));
        auto step = [&](int q, int k) {
            const uint8_t* w = panel + (size_t)k * C::BYTES;
            if (TOGETHER > 1) __builtin_prefetch(w + 1024);
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
                for (int j = 0; j < HALVES_VECTORS; ++j) acc[q][m][j] = C::times(w, j, x[m] + k * C::OPERAND, acc[q][m][j]);
        };
        for (int k = 0; k < common; ++k)
#pragma GCC unroll 4
            for (int q = 0; q < TOGETHER; ++q) step(q, (quarter + q) * most + k);
#pragma GCC unroll 4
        for (int q = 0; q < TOGETHER; ++q)
            for (int k = (quarter + q) * most + common; k < std::min(steps, (quarter + q + 1) * most); ++k) step(q, k);
        for (int q = 0; q < TOGETHER; ++q)
            for (int m = 0; m < ROWS; ++m)
                for (int j = 0; j < HALVES_VECTORS; ++j) total[m][j] += acc[q][m][j];
    }
    for (int m = 0; m < ROWS; ++m)
        for (int j = 0; j < HALVES_VECTORS; ++j) store(out + m * HALF + j * LANES, total[m][j]);
}

// Add an operand times one panel of B to 16 results; `cols` is a multiple of 8, in four chains of additions.
template <class T>
static inline void half_add(const uint8_t* panel, const uint8_t* x, int cols, float* results) {
    using C = Columns<T>;
    vf acc[4][HALVES_VECTORS] = {};
    for (int k = 0; k < cols / C::EACH; k += 4, panel += 4 * C::BYTES, x += 4 * C::OPERAND)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < HALVES_VECTORS; ++j)
                acc[i][j] = C::times(panel + i * C::BYTES, j, x + i * C::OPERAND, acc[i][j]);
    for (int j = 0; j < HALVES_VECTORS; ++j) {
        const vf added = (acc[0][j] + acc[1][j]) + (acc[2][j] + acc[3][j]);
        store(results + j * LANES, load(results + j * LANES) + added);
    }
}

template <int ROWS>
static inline void half_of(int rows, int kind, const uint8_t* panel, const uint8_t* const* x, int cols, float* out) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return half_of<ROWS - 1>(rows, kind, panel, x, cols, out);
    }
    if (kind == BF16) half_tile<ROWS, bf16>(panel, x, cols, out);
    else if (kind == F16) half_tile<ROWS, f16>(panel, x, cols, out);
    else half_tile<ROWS, float>(panel, x, cols, out);
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

    // Fetch what `expand` will read, while the product itself is computed.
    void fetch(int linear, int panel) const {
        for (const Rows& rows : groups_) {
            const Delta& d = delta(rows.slot, linear);
            if (!d.rank) continue;
            const size_t bytes = half_bytes(kind_, d.rank);
            for (int half = 0; half < 2; ++half)
                if (const int at = d.parts[2 * panel + half].panel; at >= 0)
                    for (size_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(d.b + at * bytes + byte);
        }
    }

    // Add B (A x) to results (rows, 32) of a panel.
    void expand(int linear, int panel, int first, int count, float* results) const {
        if (kind_ == BF16) expand_as<bf16>(linear, panel, first, count, results);
        else if (kind_ == F16) expand_as<f16>(linear, panel, first, count, results);
        else expand_as<float>(linear, panel, first, count, results);
    }

   private:
    struct Rows {
        int slot, first, count;
    };
    // Rows of one adapter that are worth sharing out.
    static constexpr int BLOCK_ROWS = 4 * MAX_ROWS;
    static int blocks(int rows) { return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }

    template <class T>
    void expand_as(int linear, int panel, int first, int count, float* results) const {
        const size_t each = std::is_same_v<T, bf16> ? 2 : 4;
        for (int r = 0; r < count; ++r, results += PANEL) {
            const int slot = slots_[first + r];
            if (slot < 0) continue;
            const Delta& d = delta(slot, linear);
            if (!d.rank) continue;
            for (int half = 0; half < 2; ++half)
                if (const Part part = d.parts[2 * panel + half]; part.panel >= 0)
                    half_add<T>(d.b + part.panel * half_bytes(kind_, d.rank), inner(first + r) + part.inner * each, d.rank,
                                results + half * HALF);
        }
    }

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
