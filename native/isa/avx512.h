// AVX-512 F/BW/DQ/VL: 16 floats a vector, 32 registers. With BF16 and VNNI (Cooper Lake, Sapphire Rapids, Zen 4) two
// bfloat16 products, and two 16-bit integer products with their sum, are one instruction a lane.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = 16;
constexpr int kPanelVectors = 2;
constexpr int kPack = 2;
#ifdef __AVX512BF16__
constexpr bool kBf16Inputs = true;
#else
constexpr bool kBf16Inputs = false;
#endif

using F = __m512;
using I = __m512i;

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a); }
inline F splat(float a) { return _mm512_set1_ps(a); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F greater(F a, F b) { return _mm512_max_ps(a, b); }
inline F lesser(F a, F b) { return _mm512_min_ps(a, b); }
inline F magnitude(F a) { return _mm512_abs_ps(a); }
inline F nearest(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2^n for whole n in [-126, 127].
inline F power_of_two(F n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline bool any_greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }

inline F load_bf16(const std::uint16_t* p) {
    __m256i const half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
// Round to nearest, ties to even; finite numbers only. Spelled out, since the instruction flushes subnormal numbers.
inline void store_bf16(std::uint16_t* p, F a) {
    I const bits = _mm512_castps_si512(a);
    I const odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    I const rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}
inline F load_f16(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_f16(std::uint16_t* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
// The encoded form of 15-bit inputs: 16-bit integers in their order.
inline void store_inputs(std::int16_t* row, int input, F whole) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + input), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(whole)));
}

// The sums of the lanes of sixteen vectors, side by side: four rounds of interleaving and adding.
inline F sums(const F (&a)[kLanes]) {
    F fours[4];
    for (int i = 0; i < 4; ++i) {
        F const ab = add(_mm512_unpacklo_ps(a[4 * i], a[4 * i + 1]), _mm512_unpackhi_ps(a[4 * i], a[4 * i + 1]));
        F const cd = add(_mm512_unpacklo_ps(a[4 * i + 2], a[4 * i + 3]), _mm512_unpackhi_ps(a[4 * i + 2], a[4 * i + 3]));
        fours[i] = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    }
    // Each of `fours` holds, in each quarter, that quarter's part of four sums: transpose the quarters and add.
    F const low = add(_mm512_shuffle_f32x4(fours[0], fours[1], 0x44), _mm512_shuffle_f32x4(fours[0], fours[1], 0xee));
    F const high = add(_mm512_shuffle_f32x4(fours[2], fours[3], 0x44), _mm512_shuffle_f32x4(fours[2], fours[3], 0xee));
    return add(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

// --- products ---
//
// In assembler, and volatile: sums stay in their registers, and an input is spread when its turn comes. Left to itself
// GCC 12 copies sums around and spreads all inputs at once.

inline I spread_word(const void* x) {
    I all;
    asm volatile("vpbroadcastd %1, %0" : "=v"(all) : "m"(*static_cast<const std::int32_t*>(x)));
    return all;
}

struct DotFloat32 {
    static constexpr int kRows = 8;
    static constexpr int kInputs = 1;  // that one read of weights holds for each output
    static constexpr int kSteps = 1;   // in which they are taken
    static constexpr int kBytes = kLanes * 4;  // of one vector of outputs
    using Input = float;
    using Weights = F;
    static Weights weights(const std::uint8_t* p, int) { return load(reinterpret_cast<const float*>(p)); }
    static F spread(const Input* x, int) { return _mm512_castsi512_ps(spread_word(x)); }
    static void dot(F& sum, Weights w, F x) { asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x)); }
};

#ifdef __AVX512BF16__
struct DotBfloat16 {
    static constexpr int kRows = 8;
    static constexpr int kInputs = 2;
    static constexpr int kSteps = 1;
    static constexpr int kBytes = kLanes * 4;
    using Input = std::uint16_t;
    using Weights = I;
    static Weights weights(const std::uint8_t* p, int) { return _mm512_loadu_si512(p); }
    static I spread(const Input* x, int) { return spread_word(x); }
    static void dot(F& sum, Weights w, I x) { asm volatile("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x)); }
};
#else
struct DotBfloat16 {
    static constexpr int kRows = 8;
    static constexpr int kInputs = 2;
    static constexpr int kSteps = 2;
    static constexpr int kBytes = kLanes * 4;
    using Input = float;
    using Weights = F;
    static Weights weights(const std::uint8_t* p, int step) {
        I const pairs = _mm512_loadu_si512(p);
        return _mm512_castsi512_ps(step == 0 ? _mm512_slli_epi32(pairs, 16)
                                             : _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    }
    static F spread(const Input* x, int step) { return DotFloat32::spread(x + step, 0); }
    static void dot(F& sum, Weights w, F x) { DotFloat32::dot(sum, w, x); }
};
#endif

// Sums of products of 16-bit pairs, the weights widened from 8 or 4 bits.
struct Integers {
    static constexpr int kRows = 8;
    using Input = std::int16_t;
    using Sum = I;
    using Weights = I;
    static Sum zero() { return _mm512_setzero_si512(); }
    static void dot(Sum& sum, Weights w, I x) {
#ifdef __AVX512VNNI__
        asm volatile("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
#else
        // The products go through a register of ours: one of the compiler's costs it copies of the sums.
        asm volatile("vpmaddwd %2, %1, %%zmm15\n\tvpaddd %%zmm15, %0, %0" : "+v"(sum) : "v"(w), "v"(x) : "xmm15");
#endif
    }
    static F finish(Sum sum) { return _mm512_cvtepi32_ps(sum); }
};

struct DotInt8 : Integers {
    static constexpr int kInputs = 2;
    static constexpr int kSteps = 1;
    static constexpr int kBytes = kLanes * 2;
    static Weights weights(const std::uint8_t* p, int) {
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static I spread(const Input* x, int) { return spread_word(x); }
};

struct DotInt4 : Integers {
    static constexpr int kInputs = 4;
    static constexpr int kSteps = 2;
    static constexpr int kBytes = kLanes * 2;
    static Weights weights(const std::uint8_t* p, int step) {
        I const both = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        return step == 0 ? _mm512_and_si512(both, _mm512_set1_epi16(15)) : _mm512_srli_epi16(both, 4);
    }
    static I spread(const Input* x, int step) { return spread_word(x + 2 * step); }
};

inline std::uint64_t read_all(const std::uint8_t* data, std::size_t bytes) {
    I sum[4] = {};
    for (std::size_t i = 0; i + 256 <= bytes; i += 256)
        for (int j = 0; j < 4; ++j) sum[j] = _mm512_xor_si512(sum[j], _mm512_loadu_si512(data + i + 64 * j));
    I const all = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
    std::uint64_t words[8];
    std::memcpy(words, &all, sizeof words);
    return words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7];
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace
