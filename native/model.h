// A program in native form: packed matrices, buffers and a list of operations, run a step at a time by all threads.
//
// Knows no files, no sampling and no requests' histories. A step takes spans (new tokens, where they start, their
// blocks of the cache) and gives greedy tokens or logits. Rows are independent of each other everywhere but in
// attention, which looks at its own request's positions only; so a long step is run in parts, with the same bits.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"
#include "pages.h"
#include "pack.h"
#include "thread_pool.h"

namespace knee {

struct View {
    int buffer = -1, column = 0, width = 0;
};

enum class Prepare : std::uint8_t { copy, rms, layer, gate };

// How a linear's inputs come about: as they are, normalized, or activation(x) * up.
struct Prologue {
    Prepare kind = Prepare::copy;
    View x, up;
    int weight = -1, bias = -1;
    float eps = 0.0f;
    Activation activation = Activation::none;
};

struct Op {
    enum Kind : std::uint8_t { embed, norm, linear, write_kv, attention, select_outputs, logits } kind;
    View out, x, q, k, v, residual;
    Prologue prologue;
    int matrix = -1, vector = -1, bias = -1, table = -1, rope = -1, layer = 0, vocabulary = 0;
    int group = 0;  // columns that are normalized together
    NormKind norm_kind = NormKind::rms;
    Activation activation = Activation::none;
    float eps = 0.0f, scale = 1.0f;
};

enum class Want : std::uint8_t { nothing, token, logits, all_logits };

struct Span {
    std::vector<std::int32_t> tokens;
    std::int32_t start = 0;
    std::vector<std::int32_t> table;  // empty: nothing is cached, the span is the whole prefix
    Want want = Want::nothing;

    int outputs() const {
        if (want == Want::nothing) return 0;
        return want == Want::all_logits ? static_cast<int>(tokens.size()) : 1;
    }
};

class Model {
  public:
    static constexpr int kNoToken = -1, kDamaged = -2;

    Model(const Kernels& kernels, int threads, Keep keep, int heads, int kv_heads, int head_dim);

    // --- building: weights, buffers and operations, by number
    int add_matrix(const std::vector<Part>& parts, Keep keep);
    int add_vector(std::vector<float> values);
    int add_table(std::vector<float> values, int width);
    int add_rope(std::vector<float> inverse_frequencies);
    int add_buffer(int width);
    void add_op(Op op);
    int vector_width(int vector) const { return vector_widths_.at(vector); }
    int matrix_outputs(int matrix) const { return matrices_.at(matrix).outputs; }

    // --- running
    void allocate_kv(int layers, std::int64_t blocks, int block_size);
    // A token for each span (or kNoToken, kDamaged); rows of logits are written to `logits`, spans in their order.
    std::vector<std::int32_t> execute(const std::vector<Span>& spans, float* logits);

    std::size_t weight_bytes() const;
    std::size_t kv_bytes_per_token(int layers) const { return 2ull * layers * kv_heads_ * padded_dim_ * kv_width(); }
    const Kernels& kernels() const { return kernels_; }
    int threads() const { return pool_.size(); }
    int vocabulary() const { return vocabulary_; }

  private:
    struct Buffer {
        int stride = 0;
        Floats data;
    };
    struct Table {
        int width;
        std::vector<float> values;
    };
    struct Rope {
        std::vector<float> inverse_frequencies;
        std::vector<float> cos, sin;  // of every position so far, half a head each
    };
    // Keys and values of all layers: [layer][block][head][slot][dim].
    struct Pool {
        Pages keys, values;
        std::int64_t blocks = 0;
        int block_size = 1;
    };
    // Rows of one span in a part of a step.
    struct Segment {
        int row, rows, start;
        const std::int32_t* table;
        const Pool* pool;
    };
    // Some rows of a segment, small enough to share the attention's work among threads.
    struct Share {
        const Segment* segment;
        int first, rows;
    };
    // A part of a step.
    struct Pass {
        int rows = 0;
        std::vector<std::int32_t> tokens, positions;
        std::vector<int> segment_of;
        std::vector<Segment> segments;
        std::vector<Share> shares;
        std::vector<int> output_rows, output_span;
        std::vector<float*> output_logits;
    };
    struct alignas(64) Counter {
        std::atomic<int> next{0};
    };
    struct Worker;

    std::size_t kv_width() const { return kv_type_ == KVType::float32 ? 4 : 2; }
    std::size_t head_bytes(const Pool& pool) const { return static_cast<std::size_t>(pool.block_size) * padded_dim_ * kv_width(); }
    std::size_t layer_bytes(const Pool& pool) const { return pool.blocks * kv_heads_ * head_bytes(pool); }
    Pool make_pool(int layers, std::int64_t blocks, int block_size) const;
    void use_scratch_pool(const std::vector<Span>& spans);
    void fill_pass(const std::vector<Span>& spans, std::size_t& span, int& token, float*& logits);
    void share_attention();
    void grow(int rows, int positions);
    void grow_ropes(int positions);
    void run_pass();
    void collect(std::vector<std::int32_t>& tokens);

    void work(int thread);
    void embed(const Op&, Worker&);
    void norm(const Op&, Worker&);
    void linear(const Op&, Worker&, Counter&);
    void logits(const Op&, Worker&, Counter&);
    void write_kv(const Op&, Worker&);
    void attention(const Op&, Worker&, Counter&);
    void select_outputs(const Op&, Worker&);
    Inputs prepare(const Op&, Worker&, int rows);
    void prepare_row(const Prologue&, const Matrix&, int row, float* scratch, std::uint8_t* bytes, float* scale, float* sums);

    float* at(const View& view, int row) const {
        const Buffer& buffer = buffers_[view.buffer];
        return buffer.data.data() + static_cast<std::size_t>(row) * buffer.stride + view.column;
    }
    std::size_t stride(const View& view) const { return buffers_[view.buffer].stride; }
    int rows_of(const Op& op) const { return after_select(op) ? static_cast<int>(pass_.output_rows.size()) : pass_.rows; }
    void check_linear(const Op& op) const;
    bool after_select(const Op& op) const { return &op - ops_.data() > select_at_; }

    const Kernels& kernels_;
    ThreadPool pool_;
    int const heads_, kv_heads_, head_dim_, padded_dim_;
    KVType const kv_type_;
    int layers_ = 1, vocabulary_ = 0, embedded_ = 1 << 30;
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::ptrdiff_t select_at_ = 1 << 30;

    Arena arena_;
    std::vector<Matrix> matrices_;
    std::vector<std::vector<float>> vectors_;  // padded with zeros
    std::vector<int> vector_widths_;
    std::vector<Table> tables_;
    std::vector<Rope> ropes_;
    std::vector<Buffer> buffers_;
    std::vector<Op> ops_;
    Pool kv_, scratch_kv_;
    std::vector<std::int32_t> scratch_tables_;

    Pass pass_;
    int row_capacity_ = 0;
    int widest_ = 0;  // inputs of any matrix
    Floats encoded_;         // rows of inputs for the matrix at work, shared by the threads
    std::vector<float> scales_, sums_;
    std::vector<std::vector<Best>> best_;  // by thread, then by row
    std::vector<Counter> counters_;
    std::vector<Worker> workers_;
};

// What one thread needs for itself.
struct Model::Worker {
    int thread = 0;
    Floats row;       // one row of inputs before it is encoded
    Floats own;       // encoded inputs, where every thread makes all of them for itself
    std::vector<float> own_sums;
    float own_scales[2] = {};
    Floats attention;
};

}  // namespace knee
