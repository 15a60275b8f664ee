// NEON (AArch64): 4 floats a vector, 32 registers. With the dot product four signed bytes are multiplied and added a
// lane, and inputs of 15 bits become two signed bytes (128 high + low). With BF16 two bfloat16 products a lane.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = 4;
constexpr int kPanelVectors = 4;
#ifdef __ARM_FEATURE_DOTPROD
constexpr int kPack = 4;
#else
constexpr int kPack = 1;
#endif
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
constexpr bool kBf16Inputs = true;
#else
constexpr bool kBf16Inputs = false;
#endif

using F = float32x4_t;
using I = int32x4_t;

inline F load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, F a) { vst1q_f32(p, a); }
inline F splat(float a) { return vdupq_n_f32(a); }
inline F add(F a, F b) { return vaddq_f32(a, b); }
inline F sub(F a, F b) { return vsubq_f32(a, b); }
inline F mul(F a, F b) { return vmulq_f32(a, b); }
inline F div(F a, F b) { return vdivq_f32(a, b); }
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
inline F greater(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F lesser(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline F magnitude(F a) { return vabsq_f32(a); }
inline F nearest(F a) { return vrndnq_f32(a); }
// 2^n for whole n in [-126, 127].
inline F power_of_two(F n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23)); }
inline bool any_greater(F a, F b) { return vmaxvq_u32(vcgtq_f32(a, b)) != 0; }

inline F load_bf16(const std::uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
// Round to nearest, ties to even; finite numbers only.
inline void store_bf16(std::uint16_t* p, F a) {
    uint32x4_t const bits = vreinterpretq_u32_f32(a);
    uint32x4_t const odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    vst1_u16(p, vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16));
}
inline F load_f16(const std::uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline void store_f16(std::uint16_t* p, F a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }

#ifdef __ARM_FEATURE_DOTPROD
// The encoded form of 15-bit inputs: for four inputs their four high bytes, then their four low ones (in [-64, 63]).
inline void store_inputs(std::int16_t* row, int input, F whole) {
    I const value = vcvtq_s32_f32(whole);
    I const high = vshrq_n_s32(vaddq_s32(value, vdupq_n_s32(64)), 7);
    I const low = vsubq_s32(value, vshlq_n_s32(high, 7));
    vst1_s8(reinterpret_cast<std::int8_t*>(row + input), vmovn_s16(vcombine_s16(vmovn_s32(high), vmovn_s32(low))));
}
#else
// The encoded form of 15-bit inputs: 16-bit integers in their order.
inline void store_inputs(std::int16_t* row, int input, F whole) { vst1_s16(row + input, vmovn_s32(vcvtq_s32_f32(whole))); }
#endif

inline F sums(const F (&a)[kLanes]) { return vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3])); }

// --- products ---

struct DotFloat32 {
    static constexpr int kRows = 4;
    static constexpr int kInputs = 1;  // that one read of weights holds for each output
    static constexpr int kSteps = 1;   // in which they are taken
    static constexpr int kBytes = kLanes * 4;  // of one vector of outputs
    using Input = float;
    using Weights = F;
    static Weights weights(const std::uint8_t* p, int) { return load(reinterpret_cast<const float*>(p)); }
    static F spread(const Input* x, int) { return vld1q_dup_f32(x); }
    static void dot(F& sum, Weights w, F x) { sum = fma(w, x, sum); }
};

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
struct DotBfloat16 {
    static constexpr int kRows = 4;
    static constexpr int kInputs = 2;
    static constexpr int kSteps = 1;
    static constexpr int kBytes = kLanes * 4;
    using Input = std::uint16_t;
    using Weights = bfloat16x8_t;
    static Weights weights(const std::uint8_t* p, int) {
        return vreinterpretq_bf16_u16(vld1q_u16(reinterpret_cast<const std::uint16_t*>(p)));
    }
    static bfloat16x8_t spread(const Input* x, int) {
        return vreinterpretq_bf16_u32(vld1q_dup_u32(reinterpret_cast<const std::uint32_t*>(x)));
    }
    static void dot(F& sum, Weights w, bfloat16x8_t x) { sum = vbfdotq_f32(sum, w, x); }
};
#else
struct DotBfloat16 {
    static constexpr int kRows = 4;
    static constexpr int kInputs = 2;
    static constexpr int kSteps = 2;
    static constexpr int kBytes = kLanes * 4;
    using Input = float;
    using Weights = F;
    static Weights weights(const std::uint8_t* p, int step) {
        uint32x4_t const pairs = vld1q_u32(reinterpret_cast<const std::uint32_t*>(p));
        return vreinterpretq_f32_u32(step == 0 ? vshlq_n_u32(pairs, 16) : vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
    }
    static F spread(const Input* x, int step) { return vld1q_dup_f32(x + step); }
    static void dot(F& sum, Weights w, F x) { sum = fma(w, x, sum); }
};
#endif

#ifdef __ARM_FEATURE_DOTPROD

struct Integers {
    using Input = std::int16_t;
    using Weights = int8x16_t;
    struct Sum { I high, low; };
    struct Bytes { int8x16_t high, low; };
    static constexpr int kBytes = kLanes * 4;
    static Sum zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
    static Bytes spread(const Input* x, int step) {
        auto const* const words = reinterpret_cast<const std::int32_t*>(x + 4 * step);
        return {vreinterpretq_s8_s32(vld1q_dup_s32(words)), vreinterpretq_s8_s32(vld1q_dup_s32(words + 1))};
    }
    static void dot(Sum& sum, Weights w, Bytes x) {
        sum.high = vdotq_s32(sum.high, w, x.high);
        sum.low = vdotq_s32(sum.low, w, x.low);
    }
    static F finish(Sum sum) { return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(sum.high, 7), sum.low)); }
};

struct DotInt8 : Integers {
    static constexpr int kRows = 3;
    static constexpr int kInputs = 4;
    static constexpr int kSteps = 1;
    static Weights weights(const std::uint8_t* p, int) { return vld1q_s8(reinterpret_cast<const std::int8_t*>(p)); }
};

struct DotInt4 : Integers {
    static constexpr int kRows = 3;
    static constexpr int kInputs = 8;
    static constexpr int kSteps = 2;
    static Weights weights(const std::uint8_t* p, int step) {
        uint8x16_t const both = vld1q_u8(p);
        return vreinterpretq_s8_u8(step == 0 ? vandq_u8(both, vdupq_n_u8(15)) : vshrq_n_u8(both, 4));
    }
};

#else

struct Integers {
    static constexpr int kRows = 4;
    static constexpr int kBytes = kLanes;
    using Input = std::int16_t;
    using Sum = I;
    using Weights = int16x4_t;
    static Sum zero() { return vdupq_n_s32(0); }
    static std::int16_t spread(const Input* x, int step) { return x[step]; }
    static void dot(Sum& sum, Weights w, std::int16_t x) { sum = vmlal_n_s16(sum, w, x); }
    static F finish(Sum sum) { return vcvtq_f32_s32(sum); }
    static int8x8_t four_bytes(const std::uint8_t* p) {
        std::int32_t four;
        std::memcpy(&four, p, 4);
        return vreinterpret_s8_s32(vdup_n_s32(four));
    }
};

struct DotInt8 : Integers {
    static constexpr int kInputs = 1;
    static constexpr int kSteps = 1;
    static Weights weights(const std::uint8_t* p, int) { return vget_low_s16(vmovl_s8(four_bytes(p))); }
};

struct DotInt4 : Integers {
    static constexpr int kInputs = 2;
    static constexpr int kSteps = 2;
    static Weights weights(const std::uint8_t* p, int step) {
        uint16x4_t const both = vget_low_u16(vmovl_u8(vreinterpret_u8_s8(four_bytes(p))));
        return vreinterpret_s16_u16(step == 0 ? vand_u16(both, vdup_n_u16(15)) : vshr_n_u16(both, 4));
    }
};

#endif

inline std::uint64_t read_all(const std::uint8_t* data, std::size_t bytes) {
    uint64x2_t sum[4] = {};
    for (std::size_t i = 0; i + 64 <= bytes; i += 64)
        for (int j = 0; j < 4; ++j)
            sum[j] = veorq_u64(sum[j], vld1q_u64(reinterpret_cast<const std::uint64_t*>(data + i) + 2 * j));
    return vgetq_lane_u64(veorq_u64(veorq_u64(sum[0], sum[1]), veorq_u64(sum[2], sum[3])), 0);
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace
