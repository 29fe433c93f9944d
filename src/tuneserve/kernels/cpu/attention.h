// Attention over a paged cache, with grouped query heads and an online softmax in float32.
//
// Keys of a block are turned so that its 16 positions lie beside each other; a query then meets 16 keys at once. Each
// query takes its blocks in order and by itself, so its result depends neither on the batch nor on the chunk it is in.
#pragma once

#include "vector.h"

constexpr int BLOCK = 16;
constexpr int MAX_HEAD_DIM = 256;
constexpr int MAX_QUERIES = 32;
constexpr int POSITIONS = BLOCK / LANES;  // vectors per block of scores

struct AttentionShape {
    int head_dim, block_stride, window;  // stride between the blocks of one head, in elements; window 0: all
    float scale, softcap;                // softcap 0: none
};

// The queries of one head group, of as many tokens as fit.
struct Queries {
    int count;
    int64_t position[MAX_QUERIES];
    alignas(64) float values[MAX_QUERIES][MAX_HEAD_DIM];
    alignas(64) float out[MAX_QUERIES][MAX_HEAD_DIM];
    float sink[MAX_QUERIES];  // a score that takes its part and gives nothing; minus infinity: none
    float peak[MAX_QUERIES], total[MAX_QUERIES];
    alignas(64) uint32_t keys[MAX_HEAD_DIM * BLOCK];
    alignas(64) float weights[MAX_QUERIES][BLOCK];
};

#if defined(TS_AVX512)
// Transpose 16 rows of 16 words; rows[i] are the source rows.
static inline void transpose16(const __m512i rows[16], uint32_t* to) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        __m512i low = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88), high = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        __m512i low2 = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        __m512i high2 = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
        _mm512_store_si512(to + 16 * i, _mm512_shuffle_i32x4(low, low2, 0x88));
        _mm512_store_si512(to + 16 * (i + 4), _mm512_shuffle_i32x4(high, high2, 0x88));
        _mm512_store_si512(to + 16 * (i + 8), _mm512_shuffle_i32x4(low, low2, 0xdd));
        _mm512_store_si512(to + 16 * (i + 12), _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
}
#endif

// Turn the keys of a block (16, head_dim): words of one or, in bfloat16, two dimensions, (words, 16).
template <class T>
static inline void turn(const T* keys, int head_dim, uint32_t* to) {
    constexpr bool PAIRS = sizeof(T) == 2 && !std::is_same_v<T, f16>;
    const int words = PAIRS ? head_dim / 2 : head_dim;
    int first = 0;
#if defined(TS_AVX512)
    for (; first + 16 <= words; first += 16) {
        __m512i rows[16];
        for (int i = 0; i < 16; ++i) {
            if constexpr (PAIRS) rows[i] = load_as<__m512i>(keys + i * head_dim + 2 * first);
            else rows[i] = (__m512i)load(keys + i * head_dim + first);
        }
        transpose16(rows, to + 16 * first);
    }
#endif
    for (; first < words; ++first)
        for (int i = 0; i < BLOCK; ++i) {
            if constexpr (PAIRS) {
                to[16 * first + i] = load_as<uint32_t>(keys + i * head_dim + 2 * first);
            } else {
                float value = widen(keys[i * head_dim + first]);
                std::memcpy(to + 16 * first + i, &value, 4);
            }
        }
}

template <int COUNT, class T>
static inline void score(Queries& q, int first, int head_dim) {
    constexpr bool PAIRS = std::is_same_v<T, bf16>;
    vf acc[COUNT][POSITIONS] = {};
    const int words = PAIRS ? head_dim / 2 : head_dim;
    for (int word = 0; word < words; ++word) {
        for (int j = 0; j < POSITIONS; ++j) {
            vu keys = load_as<vu>(q.keys + 16 * word + j * LANES);
#pragma GCC unroll 4
            for (int m = 0; m < COUNT; ++m) {
                if constexpr (PAIRS)
                    acc[m][j] = dot2(acc[m][j], keys, load_as<uint32_t>((const bf16*)q.values[first + m] + 2 * word));
                else
                    acc[m][j] = fma((vf)keys, splat(q.values[first + m][word]), acc[m][j]);
            }
        }
    }
    for (int m = 0; m < COUNT; ++m)
        for (int j = 0; j < POSITIONS; ++j) store(q.weights[first + m] + j * LANES, acc[m][j]);
}

// Scores become weights, what was summed before is rescaled to the new peak. Positions outside [from, to) weigh 0.
static inline void weigh(Queries& q, int m, const AttentionShape& shape, int from, int to) {
    vf scores[POSITIONS], peak = splat(-INFINITY);
    for (int j = 0; j < POSITIONS; ++j) {
        vf s = load(q.weights[m] + j * LANES) * shape.scale;
        if (shape.softcap > 0) s = tanh_of(s * (1.0f / shape.softcap)) * shape.softcap;
        vi index;
        for (int lane = 0; lane < LANES; ++lane) index[lane] = j * LANES + lane;
        vi inside = (index >= from) & (index < to);
        scores[j] = inside ? s : splat(-INFINITY);
        peak = maximum(scores[j], peak);
    }
    float high = largest(peak);
    high = high > q.peak[m] ? high : q.peak[m];
    float factor = q.peak[m] == high ? 1.0f : exponential(splat(q.peak[m] - high))[0];
    vf total = splat(0.0f);
    for (int j = 0; j < POSITIONS; ++j) {
        vf weight = exponential(scores[j] - high);
        store(q.weights[m] + j * LANES, weight);
        total += weight;
    }
    q.total[m] = q.total[m] * factor + sum(total);
    q.peak[m] = high;
    if (factor != 1.0f)
        for (int d = 0; d < shape.head_dim; d += LANES) store(q.out[m] + d, load(q.out[m] + d) * factor);
}

// Add weights times values of positions [from, to) of a block; several queries share the reading of a value.
template <int COUNT, class T>
static inline void gather(Queries& q, int first, const T* values, int head_dim, int from, int to) {
    constexpr int WIDTH = LANES == 16 ? 4 : 2;
    int d = 0;
    for (; d + WIDTH * LANES <= head_dim; d += WIDTH * LANES) {
        vf acc[COUNT][WIDTH];
        for (int m = 0; m < COUNT; ++m)
            for (int j = 0; j < WIDTH; ++j) acc[m][j] = load(q.out[first + m] + d + j * LANES);
        for (int i = from; i < to; ++i) {
            vf value[WIDTH];
#pragma GCC unroll 4
            for (int j = 0; j < WIDTH; ++j) value[j] = load(values + i * head_dim + d + j * LANES);
#pragma GCC unroll 4
            for (int m = 0; m < COUNT; ++m)
#pragma GCC unroll 4
                for (int j = 0; j < WIDTH; ++j)
                    acc[m][j] = fma(value[j], splat(q.weights[first + m][i]), acc[m][j]);
        }
        for (int m = 0; m < COUNT; ++m)
            for (int j = 0; j < WIDTH; ++j) store(q.out[first + m] + d + j * LANES, acc[m][j]);
    }
    for (; d < head_dim; d += LANES)
        for (int m = 0; m < COUNT; ++m) {
            vf acc = load(q.out[first + m] + d);
            for (int i = from; i < to; ++i)
                acc = fma(load(values + i * head_dim + d), splat(q.weights[first + m][i]), acc);
            store(q.out[first + m] + d, acc);
        }
}

template <int COUNT, class T>
static inline void meet(Queries& q, int first, const T* values, const AttentionShape& shape, int64_t start) {
    // All of these queries are of one token unless the block lies wholly before them all.
    score<COUNT, T>(q, first, shape.head_dim);
    int64_t last = q.position[first] - start + 1;
    int64_t begin = shape.window ? q.position[first] - shape.window + 1 - start : 0;
    int from = begin > 0 ? (int)begin : 0, to = last < BLOCK ? (int)last : BLOCK;
    for (int m = first; m < first + COUNT; ++m) weigh(q, m, shape, from, to);
    gather<COUNT>(q, first, values, shape.head_dim, from, to);
}

// Attend from q.values (in the cache's dtype where that is bfloat16) to q.out; keys and values are one head's first block.
template <class T>
static void attend(Queries& q, const T* keys, const T* values, const int32_t* table, const AttentionShape& shape) {
    for (int m = 0; m < q.count; ++m) {
        q.peak[m] = q.sink[m];
        q.total[m] = q.sink[m] > -INFINITY ? 1.0f : 0.0f;
        std::memset(q.out[m], 0, sizeof(float) * shape.head_dim);
    }
    // Tokens of a group are in order: the first sees furthest back, the last furthest ahead.
    int64_t from = shape.window ? q.position[0] - shape.window + 1 : 0;
    for (int64_t block = from > 0 ? from / BLOCK : 0; block * BLOCK <= q.position[q.count - 1]; ++block) {
        const int64_t start = block * BLOCK;
        const T* block_values = values + (size_t)table[block] * shape.block_stride;
        turn(keys + (size_t)table[block] * shape.block_stride, shape.head_dim, q.keys);
        for (int m = 0; m < q.count;) {
            const int64_t position = q.position[m];
            if (position < start || (shape.window && start + BLOCK <= position - shape.window + 1)) {
                ++m;
                continue;
            }
            int count = 1;
            while (count < 4 && m + count < q.count && q.position[m + count] == position) ++count;
            switch (count) {
                case 4: meet<4>(q, m, block_values, shape, start); break;
                case 3: meet<3>(q, m, block_values, shape, start); break;
                case 2: meet<2>(q, m, block_values, shape, start); break;
                default: meet<1>(q, m, block_values, shape, start);
            }
            m += count;
        }
    }
    for (int m = 0; m < q.count; ++m)
        for (int d = 0; d < shape.head_dim; d += LANES) store(q.out[m] + d, load(q.out[m] + d) * (1.0f / q.total[m]));
}
