// What an instruction set offers: the table of kernels that `kernels.inc` makes of an ISA's primitives.
//
// Kernels know matrices, rows and pointers; they know no model, no threads and no requests. Each works on a part of
// the rows or of the panels, so that threads can share the work. Every output element is summed in one fixed order,
// whatever the number of rows beside it: the same bits come out whatever the batch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace knee {

enum class Keep : std::uint8_t { float32, bfloat16, int8, int8_minimum, int4 };  // how a matrix is kept
enum class KVType : std::uint8_t { float32, bfloat16, float16 };        // how keys and values are kept
enum class Activation : std::uint8_t { none, silu, gelu_tanh, relu };
enum class NormKind : std::uint8_t { rms, layer };

// Integers are scaled in groups of this many inputs, as in GGUF's blocks.
inline constexpr int kGroup = 32;
// Scales are half precision. Times this, exact in binary, they keep away from the subnormal numbers.
inline constexpr float kScaleGain = 256.0f;
// Integer matrices meet inputs of 15 bits: 127 x 128 + 63 < 2^14, so that a value splits into two signed bytes.
inline constexpr int kInputLimit = 127 * 128;

// A matrix in panels of `panel` outputs. Within a panel inputs come first, so that a kernel streams through it:
//   float32   [input][output]
//   bfloat16  [input / 2][output][2]
//   int8      for each group: scale[output] (half), then [input / pack][output][pack]
//   int8_minimum  the same with minimum[output] (half) after the scales: holds stored 4-bit blocks without loss
//   int4      for each group: scale[output], minimum[output] (half), then [input / 2 pack][output][pack] with the
//             inputs of the first half in the low nibbles and those of the second half in the high ones
struct Matrix {
    Keep keep;
    int outputs;   // padded to whole panels
    int inputs;    // padded to whole groups
    std::size_t panel_bytes;
    const std::uint8_t* panels;
};

// Rows of inputs in the form in which a matrix wants them.
struct Inputs {
    const std::uint8_t* rows;
    std::size_t stride;         // bytes from row to row
    const float* scales;        // one a row, for integers
    const float* sums;          // one a group and row, for int4's minimum
    std::size_t sums_stride;    // floats from row to row
    int count;                  // rows
};

// out = activation(x w + bias) + residual; `out`, `bias` and `residual` start at the matrix's first output.
struct Epilogue {
    float* out;
    std::size_t out_stride;
    const float* bias;
    Activation activation;
    const float* residual;
    std::size_t residual_stride;
};

// The greatest logit of a row so far; the lowest token wins a tie. `damage` is NaN once a logit was not finite.
struct Best {
    float value;
    std::int32_t token;
    float damage;
};

// Where logits go: a row that wants its token only has no `rows` entry and never leaves the cache.
struct Logits {
    Best* best;             // one a row
    float* const* rows;     // one a row: where its logits are wanted, or null
    const float* bias;
    int vocabulary;
};

// Some rows of one request against the keys and values of one head of the cache.
struct Attend {
    const float* q;             // first query of the group in the first row
    float* out;                 // likewise
    std::size_t q_stride, out_stride;  // floats from row to row
    int rows, group;            // query heads that share this head
    int dim, padded_dim;
    float scale;
    int start;                  // position of the first row
    KVType type;
    const std::uint8_t* keys;   // of block 0, this head
    const std::uint8_t* values;
    std::size_t block_stride;   // bytes from block to block
    const std::int32_t* table;
    int block_size;
    float* scratch;             // attend_scratch() floats
};

struct Kernels {
    const char* name;
    int lanes;           // floats in a vector
    int panel;           // outputs in a panel
    int pack;            // inputs that stand side by side in an integer panel
    bool bf16_inputs;    // bfloat16 matrices take bfloat16 inputs (else float32)

    void (*encode)(Keep keep, const float* x, int inputs, std::uint8_t* row, float* scale, float* sums);
    void (*linear)(const Matrix&, const Inputs&, const Epilogue&, int first_panel, int last_panel);
    void (*logits)(const Matrix&, const Inputs&, const Logits&, int first_panel, int last_panel);
    void (*norm)(NormKind, const float* x, const float* weight, const float* bias, float eps, int width, float* out);
    void (*gate)(Activation, const float* gate, const float* up, int width, float* out);
    void (*rotate)(float* head, const float* cos, const float* sin, int half);
    void (*store_kv)(KVType, const float* x, int count, std::uint8_t* out);
    std::size_t (*attend_scratch)(int queries, int positions, int padded_dim);
    void (*attend)(const Attend&);
    std::uint64_t (*read)(const std::uint8_t* data, std::size_t bytes);
};

// Bytes of an encoded row.
inline std::size_t input_bytes(const Kernels& kernels, Keep keep, int inputs) {
    bool const wide = keep == Keep::float32 || (keep == Keep::bfloat16 && !kernels.bf16_inputs);
    return static_cast<std::size_t>(inputs) * (wide ? 4 : 2);
}

inline std::size_t panel_bytes(Keep keep, int inputs, int panel) {
    std::size_t const elements = static_cast<std::size_t>(inputs) * panel;
    std::size_t const groups = elements / kGroup;
    switch (keep) {
        case Keep::float32: return elements * 4;
        case Keep::bfloat16: return elements * 2;
        case Keep::int8: return elements + groups * 2;
        case Keep::int8_minimum: return elements + groups * 4;
        case Keep::int4: return elements / 2 + groups * 4;
    }
    return 0;
}

inline bool in_integers(Keep keep) { return keep != Keep::float32 && keep != Keep::bfloat16; }

inline int round_up(int value, int to) { return (value + to - 1) / to * to; }

}  // namespace knee
