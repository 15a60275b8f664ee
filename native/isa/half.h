// Half precision and bfloat16 in plain C++, for instruction sets without conversions and for packing weights.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

inline float float_of_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline std::uint32_t bits_of_float(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float bf16_to_float(std::uint16_t half) { return float_of_bits(static_cast<std::uint32_t>(half) << 16); }

// Round to nearest, ties to even; finite numbers only.
inline std::uint16_t float_to_bf16(float value) {
    std::uint32_t const bits = bits_of_float(value);
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// IEEE 754 binary16. The exponent is moved by multiplying with a power of two, which also makes subnormal numbers right.
inline float f16_to_float(std::uint16_t half) {
    std::uint32_t const sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
    std::uint32_t const rest = static_cast<std::uint32_t>(half & 0x7fff) << 13;
    float value = float_of_bits(rest) * float_of_bits(0x77800000);                    // 2^112
    if (rest >= 0x0f800000) value = float_of_bits(rest | 0x7f800000);                 // infinity and NaN
    return float_of_bits(bits_of_float(value) | sign);
}

// Round to nearest, ties to even; beyond the range infinity.
inline std::uint16_t float_to_f16(float value) {
    std::uint32_t const bits = bits_of_float(value);
    auto const sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000);
    std::uint32_t const size = bits & 0x7fffffff;
    if (size > 0x7f800000) return sign | 0x7e00;
    if (size >= 0x477ff000) return sign | 0x7c00;  // 65520 and more
    if (size < 0x38800000) {                        // subnormal: the addition rounds at the last place of 2^-24
        float const shifted = float_of_bits(size) + 0.5f;
        return sign | static_cast<std::uint16_t>(bits_of_float(shifted) - 0x3f000000);
    }
    std::uint32_t const rounded = size + 0xfff + ((size >> 13) & 1);
    return sign | static_cast<std::uint16_t>((rounded - 0x38000000) >> 13);
}

}  // namespace
