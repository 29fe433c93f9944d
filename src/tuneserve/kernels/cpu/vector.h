// Vectors of the widest registers that the compiler was allowed to use, and what the kernels do with them.
//
// Every product is rounded the same way wherever it stands (fma is spelt out, contraction is off), so what a token gets
// does not depend on which tile size its batch was cut into.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define TS_AVX512 1
constexpr int LANES = 16;
constexpr int MAX_ROWS = 12;
constexpr int MAX_ROWS_INT = 5;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define TS_AVX2 1
constexpr int LANES = 8;
constexpr int MAX_ROWS = 3;
constexpr int MAX_ROWS_INT = 1;
#else
constexpr int LANES = 4;
constexpr int MAX_ROWS = 1;
constexpr int MAX_ROWS_INT = 1;
#endif

using vf = float __attribute__((vector_size(4 * LANES), may_alias));
using vi = int32_t __attribute__((vector_size(4 * LANES), may_alias));
using vu = uint32_t __attribute__((vector_size(4 * LANES), may_alias));
using vb = int8_t __attribute__((vector_size(LANES), may_alias));
using vh = uint16_t __attribute__((vector_size(2 * LANES), may_alias));

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

template <class V>
static inline V load_as(const void* from) {
    V to;
    std::memcpy(&to, from, sizeof to);
    return to;
}
template <class V>
static inline void store_as(void* to, V from) {
    std::memcpy(to, &from, sizeof from);
}

static inline vf splat(float x) { return vf{} + x; }
static inline vi splat(int32_t x) { return vi{} + x; }
static inline vu splat(uint32_t x) { return vu{} + x; }

static inline vf fma(vf a, vf b, vf c) {
#if defined(TS_AVX512)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(TS_AVX2)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// A NaN in either stays one: no comparison with it holds.
static inline vf at_most(vf x, float limit) { return x > limit ? splat(limit) : x; }
static inline vf at_least(vf x, float limit) { return x < limit ? splat(limit) : x; }
static inline vf maximum(vf a, vf b) { return a > b ? a : b; }
static inline vf magnitude(vf x) { return (vf)((vu)x & 0x7fffffffu); }

static inline float sum(vf x) {
    float lanes[LANES];
    store_as(lanes, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}
static inline float largest(vf x) {
    float lanes[LANES];
    store_as(lanes, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    return lanes[0];
}

// Conversions: loads widen to float32, stores round to nearest even.
static inline vf load(const float* from) { return load_as<vf>(from); }
static inline void store(float* to, vf x) { store_as(to, x); }

static inline vf load(const bf16* from) {
    return (vf)(__builtin_convertvector(load_as<vh>(from), vu) << 16);
}
static inline void store(bf16* to, vf x) {
#if defined(TS_AVX512) && defined(__AVX512BF16__)
    store_as(to, _mm512_cvtneps_pbh((__m512)x));
#else
    vu bits = (vu)x;
    vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    vu nan = (bits >> 16) | 0x40u;
    store_as(to, __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded, vh));
#endif
}

static inline vf load(const f16* from) {
#if defined(TS_AVX512)
    return (vf)_mm512_cvtph_ps(load_as<__m256i>(from));
#elif defined(TS_AVX2)
    return (vf)_mm256_cvtph_ps(load_as<__m128i>(from));
#else
    vf x;
    for (int i = 0; i < LANES; ++i) {
        _Float16 half;
        std::memcpy(&half, from + i, 2);
        x[i] = half;
    }
    return x;
#endif
}
static inline void store(f16* to, vf x) {
#if defined(TS_AVX512)
    store_as(to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(TS_AVX2)
    store_as(to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    for (int i = 0; i < LANES; ++i) {
        _Float16 half = (_Float16)x[i];
        std::memcpy(to + i, &half, 2);
    }
#endif
}

static inline vf load_signed(const uint8_t* from) { return __builtin_convertvector(load_as<vb>(from), vf); }

// 8-bit floats (e4m3) as 1/256 of their values: their bits are those of a float16 with a smaller bias.
static inline vf load_e4m3(const uint8_t* from) {
    using vub = uint8_t __attribute__((vector_size(LANES), may_alias));
    const vh bits = __builtin_convertvector(load_as<vub>(from), vh);
    const vh half = ((bits & 0x80) << 8) | ((bits & 0x7f) << 7);
    f16 stored[LANES];
    store_as(stored, half);
    return load(stored);
}

// Sixteen values, and those that the low four bits of each lane name.
struct Table {
    vf values[16 / LANES];
};
static inline Table table_of(const float* from) {
    Table table;
    for (int i = 0; i < 16 / LANES; ++i) table.values[i] = load(from + i * LANES);
    return table;
}
static inline vf look_up(const Table& table, vu index) {
#if defined(TS_AVX512)
    return (vf)_mm512_permutexvar_ps((__m512i)index, (__m512)table.values[0]);
#elif defined(TS_AVX2)
    const __m256 low = _mm256_permutevar8x32_ps((__m256)table.values[0], (__m256i)index);
    const __m256 high = _mm256_permutevar8x32_ps((__m256)table.values[1], (__m256i)index);
    return (vf)_mm256_blendv_ps(low, high, (__m256)(index << 28));
#else
    vf x;
    for (int i = 0; i < LANES; ++i) x[i] = table.values[(index[i] & 15) / LANES][index[i] % LANES];
    return x;
#endif
}

static inline float widen(float x) { return x; }
static inline float widen(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    return load_as<float>(&bits);
}
static inline float widen(f16 x) {
    _Float16 half;
    std::memcpy(&half, &x, 2);
    return half;
}

// Two bfloat16 products per lane: acc + even * even + odd * odd, of a vector of pairs and one pair for all lanes.
static inline vf dot2(vf acc, vu pairs, uint32_t pair) {
#if defined(TS_AVX512) && defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)pairs, (__m512bh)_mm512_set1_epi32((int)pair));
#else
    acc = fma((vf)(pairs << 16), (vf)splat(pair << 16), acc);
    return fma((vf)(pairs & 0xffff0000u), (vf)splat(pair & 0xffff0000u), acc);
#endif
}

// Four products per lane of unsigned and signed bytes, summed into int32.
static inline vi dot4(vi acc, vu bytes, uint32_t signed_bytes) {
#if defined(TS_AVX512) && defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)bytes, _mm512_set1_epi32((int)signed_bytes));
#elif defined(TS_AVX2)
    // Sixteen bits at a time: the instruction that multiplies bytes saturates.
    auto at = [&](int i) { return (uint32_t)(uint16_t)(int8_t)(signed_bytes >> (8 * i)); };
    __m256i even = _mm256_set1_epi32((int)(at(0) | at(2) << 16)), odd = _mm256_set1_epi32((int)(at(1) | at(3) << 16));
    __m256i low = (__m256i)(bytes & 0x00ff00ffu), high = (__m256i)((bytes >> 8) & 0x00ff00ffu);
    return acc + (vi)_mm256_madd_epi16(low, even) + (vi)_mm256_madd_epi16(high, odd);
#else
    for (int i = 0; i < 4; ++i) acc += (vi)((bytes >> (8 * i)) & 0xffu) * (int32_t)(int8_t)(signed_bytes >> (8 * i));
    return acc;
#endif
}

// e to the x, to about 1 unit in the last place; 0 below -87, a NaN stays one.
static inline vf exponential(vf x) {
    vf bounded = at_most(at_least(x, -87.0f), 88.0f);
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vf shifted = fma(bounded, splat(1.44269504f), magic);
    vf n = shifted - magic;
    vf r = fma(n, splat(-0.693145752f), bounded);
    r = fma(n, splat(-1.42860677e-6f), r);
    vf p = splat(1.0f / 720);
    p = fma(p, r, splat(1.0f / 120));
    p = fma(p, r, splat(1.0f / 24));
    p = fma(p, r, splat(1.0f / 6));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    vf power = (vf)(((vi)shifted - (vi)magic + 127) << 23);
    return x < -87.0f ? splat(0.0f) : p * power;
}

static inline vf tanh_of(vf x) {
    vf e = exponential(at_most(at_least(x + x, -40.0f), 40.0f));
    return (e - 1.0f) / (e + 1.0f);
}
