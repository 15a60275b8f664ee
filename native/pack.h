// From stored tensors to packed matrices. Knows the storage formats and the panels of kernels.h; runs once, at load.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace knee {

enum class Storage : std::uint8_t { f32, f16, bf16, q8_0, q4_0, q4_1 };

// Some outputs of a stored tensor.
struct Part {
    const std::uint8_t* data;
    std::size_t bytes;
    Storage storage;
    std::int64_t rows, columns;  // as stored
    bool transposed;             // stored as (inputs, outputs); numbers only, no blocks
    std::int64_t begin, end;     // outputs to take

    std::int64_t inputs() const { return transposed ? rows : columns; }
    std::int64_t outputs() const { return transposed ? columns : rows; }
    // Throws std::invalid_argument where the description does not fit the bytes.
    void check() const;
};

enum class Packed : std::uint8_t { sound, not_finite, too_large };

// Packs the part's panel number `panel` (of `width` outputs, `pack` inputs side by side) to `out`. `inputs` is padded.
Packed pack_panel(const Part&, Keep, int panel, int width, int pack, int inputs, std::uint8_t* out);

// One output's weights as floats, exactly as the kernels see them.
void unpack_row(const Matrix&, int width, int pack, int output, int count, float* out);

}  // namespace knee
