#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "isa/half.h"

namespace knee {

namespace {

// GGML's blocks: 32 elements behind a scale (and a minimum), in half precision.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; low nibbles are elements 0 to 15, high ones 16 to 31.
struct Block {
    float scale, minimum;
    std::int8_t q[kGroup];
};

int block_bytes(Storage storage) {
    switch (storage) {
        case Storage::q8_0: return 34;
        case Storage::q4_0: return 18;
        case Storage::q4_1: return 20;
        default: return 0;
    }
}

int element_bytes(Storage storage) { return storage == Storage::f32 ? 4 : 2; }

float half_at(const std::uint8_t* p) {
    std::uint16_t half;
    std::memcpy(&half, p, 2);
    return f16_to_float(half);
}

void nibbles(const std::uint8_t* from, int shift, std::int8_t* q) {
    for (int i = 0; i < 16; ++i) {
        q[i] = static_cast<std::int8_t>((from[i] & 15) - shift);
        q[i + 16] = static_cast<std::int8_t>((from[i] >> 4) - shift);
    }
}

Block read_block(const Part& part, std::int64_t output, int group) {
    int const bytes = block_bytes(part.storage);
    const std::uint8_t* const p = part.data + (output * (part.columns / kGroup) + group) * bytes;
    Block block{half_at(p), 0.0f, {}};
    if (part.storage == Storage::q8_0) {
        std::memcpy(block.q, p + 2, kGroup);
    } else if (part.storage == Storage::q4_0) {
        nibbles(p + 2, 8, block.q);
    } else {
        block.minimum = half_at(p + 2);
        nibbles(p + 4, 0, block.q);
    }
    return block;
}

float number(const Part& part, std::int64_t output, std::int64_t input) {
    std::int64_t const at = part.transposed ? input * part.columns + output : output * part.columns + input;
    const std::uint8_t* const p = part.data + at * element_bytes(part.storage);
    if (part.storage == Storage::f32) {
        float value;
        std::memcpy(&value, p, 4);
        return value;
    }
    std::uint16_t half;
    std::memcpy(&half, p, 2);
    return part.storage == Storage::f16 ? f16_to_float(half) : bf16_to_float(half);
}

// `count` weights of one output from `first` on.
void read_values(const Part& part, std::int64_t output, int first, int count, float* out) {
    if (block_bytes(part.storage)) {
        Block const block = read_block(part, output, first / kGroup);
        for (int i = 0; i < count; ++i) out[i] = block.scale * static_cast<float>(block.q[i]) + block.minimum;
    } else if (part.storage == Storage::f32 && !part.transposed) {
        std::memcpy(out, part.data + (output * part.columns + first) * 4, 4 * static_cast<std::size_t>(count));
    } else {
        for (int i = 0; i < count; ++i) out[i] = number(part, output, first + i);
    }
}

bool finite(const float* values, int count) {
    std::uint32_t most = 0;
    for (int i = 0; i < count; ++i) most = std::max(most, bits_of_float(values[i]) & 0x7fffffff);
    return most < 0x7f800000;
}

// A scale as it is stored, and as the kernels will see it.
struct Scale {
    std::uint16_t stored;
    float value;
    Scale() : stored(0), value(0.0f) {}
    explicit Scale(float wanted) : stored(float_to_f16(wanted * kScaleGain)), value(f16_to_float(stored) / kScaleGain) {}
    bool fits() const { return (stored & 0x7c00) != 0x7c00; }
};

struct Group8 {
    Scale scale;
    std::int8_t q[kGroup] = {};
};

// Whole numbers from 0 on, of 4 bits each or (to be read faster) of 8.
struct Group4 {
    Scale scale, minimum;
    std::uint8_t q[kGroup] = {};
};

// The nearest whole number, for numbers below 2^22: inline, where the library's rounding is a call.
float nearest(float value) { return (value + 12582912.0f) - 12582912.0f; }

std::int8_t bounded(float value) { return static_cast<std::int8_t>(std::clamp(nearest(value), -127.0f, 127.0f)); }

Group8 from_values8(const float* values, int count) {
    float most = 0.0f;
    for (int i = 0; i < count; ++i) most = std::max(most, std::fabs(values[i]));
    Group8 group{Scale(most / 127.0f), {}};
    float const factor = group.scale.value > 0.0f ? 1.0f / group.scale.value : 0.0f;
    for (int i = 0; i < count; ++i) group.q[i] = bounded(values[i] * factor);
    return group;
}

Group4 from_values4(const float* values, int count) {
    auto const [low, high] = std::minmax_element(values, values + count);
    Group4 group{Scale((*high - *low) / 15.0f), Scale(*low), {}};
    float const factor = group.scale.value > 0.0f ? 1.0f / group.scale.value : 0.0f;
    for (int i = 0; i < count; ++i)
        group.q[i] = static_cast<std::uint8_t>(std::clamp(nearest((values[i] - group.minimum.value) * factor), 0.0f, 15.0f));
    return group;
}

Packed read_group(const Part& part, std::int64_t output, int first, int count, Group8& group) {
    if (part.storage == Storage::q8_0 || part.storage == Storage::q4_0) {
        Block const block = read_block(part, output, first / kGroup);
        if (!std::isfinite(block.scale)) return Packed::not_finite;
        group.scale = Scale(block.scale);
        std::memcpy(group.q, block.q, kGroup);
    } else {
        float values[kGroup];
        read_values(part, output, first, count, values);
        if (!finite(values, count)) return Packed::not_finite;
        group = from_values8(values, count);
    }
    return group.scale.fits() ? Packed::sound : Packed::too_large;
}

Packed read_group(const Part& part, std::int64_t output, int first, int count, Group4& group) {
    if (part.storage == Storage::q4_0 || part.storage == Storage::q4_1) {
        Block const block = read_block(part, output, first / kGroup);
        if (!std::isfinite(block.scale) || !std::isfinite(block.minimum)) return Packed::not_finite;
        int const shift = part.storage == Storage::q4_0 ? 8 : 0;
        group.scale = Scale(block.scale);
        group.minimum = Scale(shift ? -8.0f * block.scale : block.minimum);
        for (int i = 0; i < kGroup; ++i) group.q[i] = static_cast<std::uint8_t>(block.q[i] + shift);
    } else {
        float values[kGroup];
        read_values(part, output, first, count, values);
        if (!finite(values, count)) return Packed::not_finite;
        group = from_values4(values, count);
    }
    return group.scale.fits() && group.minimum.fits() ? Packed::sound : Packed::too_large;
}

// Where element i of a group of output n stands among the group's integers.
int place(int i, int n, int width, int pack) { return (i / pack * width + n) * pack + i % pack; }

// A panel's groups of the same inputs, in the order in which kernels read them.
void put(const Group8* groups, int width, int pack, std::uint8_t* out) {
    for (int n = 0; n < width; ++n) std::memcpy(out + 2 * n, &groups[n].scale.stored, 2);
    out += 2 * width;
    for (int i = 0; i < kGroup; i += pack)
        for (int n = 0; n < width; ++n)
            for (int j = 0; j < pack; ++j) *out++ = static_cast<std::uint8_t>(groups[n].q[i + j]);
}

template <bool Bytes>
void put_with_minimum(const Group4* groups, int width, int pack, std::uint8_t* out) {
    for (int n = 0; n < width; ++n) {
        std::memcpy(out + 2 * n, &groups[n].scale.stored, 2);
        std::memcpy(out + 2 * (width + n), &groups[n].minimum.stored, 2);
    }
    out += 4 * width;
    for (int i = 0; i < kGroup; i += Bytes ? pack : 2 * pack)
        for (int n = 0; n < width; ++n)
            for (int j = 0; j < pack; ++j)
                *out++ = Bytes ? groups[n].q[i + j] : static_cast<std::uint8_t>(groups[n].q[i + j] | groups[n].q[i + pack + j] << 4);
}

template <class Group, class Put>
Packed pack_integers(const Part& part, Keep keep, std::int64_t first, int outputs, int width, int inputs, Put put, std::uint8_t* out) {
    std::size_t const group_bytes = panel_bytes(keep, kGroup, width);
    std::vector<Group> groups(width);
    for (int k = 0; k < inputs; k += kGroup, out += group_bytes) {
        int const count = static_cast<int>(std::min<std::int64_t>(kGroup, part.inputs() - k));
        for (int n = 0; n < outputs; ++n) {
            Packed const how = read_group(part, first + n, k, count, groups[n]);
            if (how != Packed::sound) return how;
        }
        put(groups.data(), out);
    }
    return Packed::sound;
}

Packed pack_numbers(const Part& part, Keep keep, std::int64_t first, int outputs, int width, int inputs, std::uint8_t* out) {
    std::vector<float> values(static_cast<std::size_t>(width) * kGroup, 0.0f);  // [output][input]
    for (int k = 0; k < inputs; k += kGroup) {
        int const count = static_cast<int>(std::min<std::int64_t>(kGroup, part.inputs() - k));
        for (int n = 0; n < outputs; ++n) {
            float* const row = &values[n * kGroup];
            read_values(part, first + n, k, count, row);
            if (!finite(row, count)) return Packed::not_finite;
            std::fill(row + count, row + kGroup, 0.0f);
        }
        if (keep == Keep::float32) {
            for (int i = 0; i < kGroup; ++i)
                for (int n = 0; n < width; ++n, out += 4) std::memcpy(out, &values[n * kGroup + i], 4);
        } else {
            for (int i = 0; i < kGroup; i += 2)
                for (int n = 0; n < width; ++n, out += 4) {
                    std::uint16_t const pair[] = {float_to_bf16(values[n * kGroup + i]), float_to_bf16(values[n * kGroup + i + 1])};
                    if ((pair[0] & 0x7f80) == 0x7f80 || (pair[1] & 0x7f80) == 0x7f80) return Packed::too_large;
                    std::memcpy(out, pair, 4);
                }
        }
    }
    return Packed::sound;
}

}  // namespace

void Part::check() const {
    if (rows <= 0 || columns <= 0 || begin < 0 || begin >= end || end > outputs())
        throw std::invalid_argument("a part outside its tensor");
    int const block = block_bytes(storage);
    if (block && (transposed || columns % kGroup)) throw std::invalid_argument("blocks need whole rows of 32");
    std::size_t const row = block ? static_cast<std::size_t>(columns / kGroup) * block : static_cast<std::size_t>(columns) * element_bytes(storage);
    if (bytes / row != static_cast<std::size_t>(rows) || bytes % row) throw std::invalid_argument("a tensor of another size than its shape");
}

Packed pack_panel(const Part& part, Keep keep, int panel, int width, int pack, int inputs, std::uint8_t* out) {
    std::int64_t const first = part.begin + static_cast<std::int64_t>(panel) * width;
    int const outputs = static_cast<int>(std::min<std::int64_t>(width, part.end - first));
    auto integers = [&]<class Group>(auto put_groups) {
        auto const put_here = [&](const Group* groups, std::uint8_t* to) { put_groups(groups, width, pack, to); };
        return pack_integers<Group>(part, keep, first, outputs, width, inputs, put_here, out);
    };
    if (keep == Keep::int8) return integers.template operator()<Group8>(put);
    if (keep == Keep::int8_minimum) return integers.template operator()<Group4>(put_with_minimum<true>);
    if (keep == Keep::int4) return integers.template operator()<Group4>(put_with_minimum<false>);
    return pack_numbers(part, keep, first, outputs, width, inputs, out);
}

void unpack_row(const Matrix& w, int width, int pack, int output, int count, float* out) {
    const std::uint8_t* const panel = w.panels + output / width * w.panel_bytes;
    int const n = output % width;
    bool const minimum = w.keep == Keep::int4 || w.keep == Keep::int8_minimum;
    std::size_t const group_bytes = panel_bytes(w.keep, kGroup, width);
    for (int k = 0; k < count; ++k) {
        if (w.keep == Keep::float32) {
            std::memcpy(&out[k], panel + (static_cast<std::size_t>(k) * width + n) * 4, 4);
        } else if (w.keep == Keep::bfloat16) {
            std::uint16_t half;
            std::memcpy(&half, panel + ((static_cast<std::size_t>(k) / 2 * width + n) * 2 + k % 2) * 2, 2);
            out[k] = bf16_to_float(half);
        } else {
            const std::uint8_t* const group = panel + k / kGroup * group_bytes;
            const std::uint8_t* const numbers = group + (minimum ? 4 : 2) * width;
            int const i = k % kGroup;
            int q = w.keep == Keep::int4 ? numbers[(i / (2 * pack) * width + n) * pack + i % pack] : numbers[place(i, n, width, pack)];
            if (w.keep == Keep::int4) q = i % (2 * pack) < pack ? q & 15 : q >> 4;
            else if (w.keep == Keep::int8) q = static_cast<std::int8_t>(q);
            out[k] = half_at(group + 2 * n) / kScaleGain * static_cast<float>(q);
            if (minimum) out[k] += half_at(group + 2 * (width + n)) / kScaleGain;
        }
    }
}

}  // namespace knee
