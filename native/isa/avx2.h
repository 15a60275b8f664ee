// AVX2 + FMA + F16C: 8 floats a vector, 16 registers. With AVX-VNNI the product of 16-bit pairs is one instruction.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = 8;
constexpr int kPanelVectors = 2;
constexpr int kPack = 2;
constexpr bool kBf16Inputs = false;

using F = __m256;
using I = __m256i;

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F a) { _mm256_storeu_ps(p, a); }
inline F splat(float a) { return _mm256_set1_ps(a); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F greater(F a, F b) { return _mm256_max_ps(a, b); }
inline F lesser(F a, F b) { return _mm256_min_ps(a, b); }
inline F magnitude(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline F nearest(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2^n for whole n in [-126, 127].
inline F power_of_two(F n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline bool any_greater(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }

inline F load_bf16(const std::uint16_t* p) {
    __m128i const half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
// Round to nearest, ties to even; finite numbers only.
inline void store_bf16(std::uint16_t* p, F a) {
    I const bits = _mm256_castps_si256(a);
    I const odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    I const rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    I const packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline F load_f16(const std::uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store_f16(std::uint16_t* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
// The sums of the lanes of eight vectors, side by side.
inline F sums(const F (&a)[kLanes]) {
    F const ab = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    F const cd = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(ab, cd, 0x20), _mm256_permute2f128_ps(ab, cd, 0x31));
}

// --- products ---
//
// In assembler, and volatile: sums stay in their registers, and an input is spread when its turn comes. Left to itself
// GCC 12 copies sums around and spreads all inputs at once, for which there are not registers enough.

struct DotFloat32 {
    static constexpr int kRows = 4;    // as many as have room for their sums beside weights and an input
    static constexpr int kInputs = 1;  // that one read of weights holds for each output
    static constexpr int kSteps = 1;   // in which they are taken
    static constexpr int kBytes = kLanes * 4;  // of one vector of outputs
    using Input = float;
    using Weights = F;
    static Weights weights(const std::uint8_t* p, int) { return load(reinterpret_cast<const float*>(p)); }
    static F spread(const Input* x, int) {
        F all;
        asm volatile("vbroadcastss %1, %0" : "=x"(all) : "m"(*x));
        return all;
    }
    static void dot(F& sum, Weights w, F x) { asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x)); }
};

struct DotBfloat16 {
    static constexpr int kRows = 4;
    static constexpr int kInputs = 2;
    static constexpr int kSteps = 2;
    static constexpr int kBytes = kLanes * 4;
    using Input = float;
    using Weights = F;
    static Weights weights(const std::uint8_t* p, int step) {
        I const pairs = _mm256_loadu_si256(reinterpret_cast<const I*>(p));
        return _mm256_castsi256_ps(step == 0 ? _mm256_slli_epi32(pairs, 16)
                                             : _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    }
    static F spread(const Input* x, int step) { return DotFloat32::spread(x + step, 0); }
    static void dot(F& sum, Weights w, F x) { DotFloat32::dot(sum, w, x); }
};

// Sums of products of 16-bit pairs, the weights widened from 8 or 4 bits.
struct Integers {
    using Input = std::int16_t;
    using Sum = I;
    using Weights = I;
    static Sum zero() { return _mm256_setzero_si256(); }
    static I spread_pair(const Input* x) {
        I all;
        asm volatile("vpbroadcastd %1, %0" : "=x"(all) : "m"(*reinterpret_cast<const std::int16_t(*)[2]>(x)));
        return all;
    }
    static void dot(Sum& sum, Weights w, I x) {
#ifdef __AVXVNNI__
        asm volatile("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x));
#else
        // The products go through a register of ours: one of the compiler's costs it copies of the sums.
        asm volatile("vpmaddwd %2, %1, %%ymm15\n\tvpaddd %%ymm15, %0, %0" : "+x"(sum) : "x"(w), "x"(x) : "xmm15");
#endif
    }
    static F finish(Sum sum) { return _mm256_cvtepi32_ps(sum); }
};

struct DotInt8 : Integers {
    static constexpr int kRows = 4;
    static constexpr int kInputs = 2;
    static constexpr int kSteps = 1;
    static constexpr int kBytes = kLanes * 2;
    static Weights weights(const std::uint8_t* p, int) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static I spread(const Input* x, int) { return spread_pair(x); }
};

struct DotInt4 : Integers {
    static constexpr int kRows = 4;
    static constexpr int kInputs = 4;
    static constexpr int kSteps = 2;
    static constexpr int kBytes = kLanes * 2;
    static Weights weights(const std::uint8_t* p, int step) {
        I const both = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return step == 0 ? _mm256_and_si256(both, _mm256_set1_epi16(15)) : _mm256_srli_epi16(both, 4);
    }
    static I spread(const Input* x, int step) { return spread_pair(x + 2 * step); }
};

// The encoded form of 15-bit inputs: 16-bit integers in their order.
inline void store_inputs(std::int16_t* row, int input, F whole) {
    I const i = _mm256_cvtps_epi32(whole);
    I const packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(i, i), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + input), _mm256_castsi256_si128(packed));
}

inline std::uint64_t read_all(const std::uint8_t* data, std::size_t bytes) {
    I sum[4] = {};
    for (std::size_t i = 0; i + 128 <= bytes; i += 128)
        for (int j = 0; j < 4; ++j)
            sum[j] = _mm256_xor_si256(sum[j], _mm256_loadu_si256(reinterpret_cast<const I*>(data + i + 32 * j)));
    I const all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
    return static_cast<std::uint64_t>(_mm256_extract_epi64(all, 0));
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace
