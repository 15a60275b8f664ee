// Plain C++ with the vector types that GCC and Clang have for every machine: the floor.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace {

constexpr int kLanes = 4;
constexpr int kPanelVectors = 2;
constexpr int kPack = 1;
constexpr bool kBf16Inputs = false;

typedef float F __attribute__((vector_size(16)));
typedef std::int32_t I __attribute__((vector_size(16)));
typedef std::uint32_t U __attribute__((vector_size(16)));
typedef std::int8_t Bytes __attribute__((vector_size(4)));
typedef std::uint8_t Nibbles __attribute__((vector_size(4)));

template <class V>
inline V read(const void* p) {
    V value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

inline F load(const float* p) { return read<F>(p); }
inline void store(float* p, F a) { std::memcpy(p, &a, sizeof a); }
inline F splat(float a) { return F{a, a, a, a}; }
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F div(F a, F b) { return a / b; }
inline F fma(F a, F b, F c) { return a * b + c; }
inline F greater(F a, F b) { return a > b ? a : b; }
inline F lesser(F a, F b) { return a < b ? a : b; }
inline F magnitude(F a) { return (F)((U)a & 0x7fffffffu); }
// Adding and taking away 1.5 x 2^23 leaves the nearest whole number, for numbers below 2^22.
inline F nearest(F a) { return (a + 12582912.0f) - 12582912.0f; }
// 2^n for whole n in [-126, 127].
inline F power_of_two(F n) { return (F)((__builtin_convertvector(n, I) + 127) << 23); }
inline bool any_greater(F a, F b) {
    I const is = a > b;
    return is[0] | is[1] | is[2] | is[3];
}

inline F load_bf16(const std::uint16_t* p) {
    return F{bf16_to_float(p[0]), bf16_to_float(p[1]), bf16_to_float(p[2]), bf16_to_float(p[3])};
}
inline void store_bf16(std::uint16_t* p, F a) { for (int i = 0; i < kLanes; ++i) p[i] = float_to_bf16(a[i]); }
inline F load_f16(const std::uint16_t* p) {
    return F{f16_to_float(p[0]), f16_to_float(p[1]), f16_to_float(p[2]), f16_to_float(p[3])};
}
inline void store_f16(std::uint16_t* p, F a) { for (int i = 0; i < kLanes; ++i) p[i] = float_to_f16(a[i]); }
// The encoded form of 15-bit inputs: 16-bit integers in their order.
inline void store_inputs(std::int16_t* row, int input, F whole) {
    for (int i = 0; i < kLanes; ++i) row[input + i] = static_cast<std::int16_t>(whole[i]);
}

inline F sums(const F (&a)[kLanes]) {
    F out;
    for (int i = 0; i < kLanes; ++i) out[i] = (a[i][0] + a[i][1]) + (a[i][2] + a[i][3]);
    return out;
}

// --- products ---

struct DotFloat32 {
    static constexpr int kRows = 4;
    static constexpr int kInputs = 1;  // that one read of weights holds for each output
    static constexpr int kSteps = 1;   // in which they are taken
    static constexpr int kBytes = kLanes * 4;  // of one vector of outputs
    using Input = float;
    using Weights = F;
    static Weights weights(const std::uint8_t* p, int) { return read<F>(p); }
    static float spread(const Input* x, int) { return *x; }
    static void dot(F& sum, Weights w, float x) { sum += w * x; }
};

struct DotBfloat16 {
    static constexpr int kRows = 4;
    static constexpr int kInputs = 2;
    static constexpr int kSteps = 2;
    static constexpr int kBytes = kLanes * 4;
    using Input = float;
    using Weights = F;
    static Weights weights(const std::uint8_t* p, int step) {
        U const pairs = read<U>(p);
        return step == 0 ? (F)(pairs << 16) : (F)(pairs & 0xffff0000u);
    }
    static float spread(const Input* x, int step) { return x[step]; }
    static void dot(F& sum, Weights w, float x) { sum += w * x; }
};

// Whole numbers in float32, since not every machine multiplies vectors of 32-bit integers: a group's sum is rounded in
// its 24th bit.
struct Integers {
    static constexpr int kRows = 4;
    static constexpr int kBytes = kLanes;
    using Input = std::int16_t;
    using Sum = F;
    using Weights = F;
    static Sum zero() { return splat(0.0f); }
    static float spread(const Input* x, int step) { return x[step]; }
    static void dot(Sum& sum, Weights w, float x) { sum += w * x; }
    static F finish(Sum sum) { return sum; }
};

struct DotInt8 : Integers {
    static constexpr int kInputs = 1;
    static constexpr int kSteps = 1;
    static Weights weights(const std::uint8_t* p, int) { return __builtin_convertvector(read<Bytes>(p), F); }
};

struct DotInt4 : Integers {
    static constexpr int kInputs = 2;
    static constexpr int kSteps = 2;
    static Weights weights(const std::uint8_t* p, int step) {
        I const both = __builtin_convertvector(read<Nibbles>(p), I);
        return __builtin_convertvector(step == 0 ? both & 15 : both >> 4, F);
    }
};

inline std::uint64_t read_all(const std::uint8_t* data, std::size_t bytes) {
    std::uint64_t sum[4] = {};
    for (std::size_t i = 0; i + 32 <= bytes; i += 32) {
        std::uint64_t words[4];
        std::memcpy(words, data + i, 32);
        for (int j = 0; j < 4; ++j) sum[j] ^= words[j];
    }
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace
