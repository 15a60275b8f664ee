#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace knee {

namespace {

// A longer step is run in parts of this many rows: buffers stay small, and reading the weights again for the next part
// costs about 2 % of the arithmetic.
constexpr int kRowsAtOnce = 256;
// Queries of one share of attention: enough to widen each key once for many of them, few enough to share the work.
constexpr int kQueriesAtOnce = 24;
// With so few rows every thread prepares the inputs for itself, rather than wait for another to do it.
constexpr int kOwnRows = 1;

KVType kv_type_for(Keep keep) {
    if (keep == Keep::float32) return KVType::float32;
    return keep == Keep::bfloat16 ? KVType::bfloat16 : KVType::float16;
}

// The next piece of `total` for one of `threads`: large ones first, single ones at the end, so that all end together.
bool take(std::atomic<int>& next, int total, int threads, int& first, int& last) {
    int at = next.load(std::memory_order_relaxed);
    while (at < total) {
        int const size = std::max(1, (total - at) / (2 * threads));
        if (next.compare_exchange_weak(at, at + size, std::memory_order_relaxed)) {
            first = at;
            last = at + size;
            return true;
        }
    }
    return false;
}

// The part of `count` that thread `thread` of `threads` does.
std::pair<int, int> part_of(int count, int thread, int threads) {
    return {static_cast<int>(static_cast<std::int64_t>(count) * thread / threads),
            static_cast<int>(static_cast<std::int64_t>(count) * (thread + 1) / threads)};
}

// One caller at a time: Python's other threads run while a step does.
class Busy {
  public:
    explicit Busy(std::atomic_flag& flag) : flag_(flag) {
        if (flag_.test_and_set()) throw std::logic_error("the model is at work in another thread");
    }
    ~Busy() { flag_.clear(); }

  private:
    std::atomic_flag& flag_;
};

// Rounding and subnormal numbers as IEEE 754 has them on every thread, whatever another library told this one.
class StandardFloats {
  public:
#if defined(__x86_64__)
    StandardFloats() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(0x1f80); }
    ~StandardFloats() { __builtin_ia32_ldmxcsr(before_); }

  private:
    unsigned before_;
#elif defined(__aarch64__)
    StandardFloats() {
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        asm volatile("msr fpcr, %0" : : "r"(std::uint64_t{0}));
    }
    ~StandardFloats() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

  private:
    std::uint64_t before_;
#endif
};

}  // namespace

Model::Model(const Kernels& kernels, int threads, Keep keep, int heads, int kv_heads, int head_dim)
    : kernels_(kernels),
      pool_(threads),
      heads_(heads),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      padded_dim_(round_up(head_dim, 16)),
      kv_type_(kv_type_for(keep)),
      best_(pool_.size()),
      workers_(pool_.size()) {
    if (heads < 1 || kv_heads < 1 || heads % kv_heads || head_dim < 1) throw std::invalid_argument("heads that do not fit");
    for (int i = 0; i < pool_.size(); ++i) workers_[i].thread = i;
}

// --- building --------------------------------------------------------------------------------------------------

int Model::add_matrix(const std::vector<Part>& parts, Keep keep) {
    if (parts.empty()) throw std::invalid_argument("a matrix of no parts");
    // Blocks with a minimum keep their values in 8 bits, too, if they keep it. Others would be rounded to 4 bits by it.
    auto is = [](Storage storage) { return [storage](const Part& part) { return part.storage == storage; }; };
    if (keep == Keep::int8 && std::any_of(parts.begin(), parts.end(), is(Storage::q4_1))) {
        for (const Part& part : parts)
            if (part.storage != Storage::q4_1 && part.storage != Storage::q4_0)
                throw std::invalid_argument("4-bit blocks and others in one matrix");
        keep = Keep::int8_minimum;
    }
    int const width = kernels_.panel;
    int const inputs = round_up(static_cast<int>(parts.front().inputs()), kGroup);
    std::size_t const bytes = panel_bytes(keep, inputs, width);
    struct Piece {
        const Part* part;
        int panel;
    };
    std::vector<Piece> pieces;
    for (const Part& part : parts) {
        part.check();
        if (part.inputs() != parts.front().inputs()) throw std::invalid_argument("parts of different widths");
        int const panels = round_up(static_cast<int>(part.end - part.begin), width) / width;
        for (int panel = 0; panel < panels; ++panel) pieces.push_back({&part, panel});
    }
    std::uint8_t* const data = arena_.take(pieces.size() * bytes);
    std::atomic<std::size_t> next{0};
    std::atomic<Packed> worst{Packed::sound};
    pool_.run([&](int) {
        for (std::size_t i; (i = next.fetch_add(1)) < pieces.size();) {
            auto const [part, panel] = pieces[i];
            Packed const how = pack_panel(*part, keep, panel, width, kernels_.pack, inputs, data + i * bytes);
            if (how != Packed::sound) worst = how;
        }
    });
    if (worst == Packed::not_finite) throw std::domain_error("not finite");
    if (worst == Packed::too_large) throw std::domain_error("too large");
    matrices_.push_back({keep, static_cast<int>(pieces.size()) * width, inputs, bytes, data});
    widest_ = std::max(widest_, inputs);
    return static_cast<int>(matrices_.size()) - 1;
}

int Model::add_vector(std::vector<float> values) {
    vector_widths_.push_back(static_cast<int>(values.size()));
    values.resize(round_up(static_cast<int>(values.size()), std::max(kernels_.panel, kGroup)));
    vectors_.push_back(std::move(values));
    return static_cast<int>(vectors_.size()) - 1;
}

int Model::add_table(std::vector<float> values, int width) {
    if (width <= 0 || values.size() % width) throw std::invalid_argument("a table of broken rows");
    tables_.push_back({width, std::move(values)});
    return static_cast<int>(tables_.size()) - 1;
}

int Model::add_rope(std::vector<float> inverse_frequencies) {
    if (static_cast<int>(inverse_frequencies.size()) != head_dim_ / 2)
        throw std::invalid_argument("a rope turns pairs of a whole head");
    ropes_.push_back({std::move(inverse_frequencies), {}, {}});
    return static_cast<int>(ropes_.size()) - 1;
}

int Model::add_buffer(int width) {
    if (width <= 0) throw std::invalid_argument("a buffer of no width");
    Buffer buffer;
    buffer.stride = round_up(width, std::max(kernels_.panel, kGroup));
    buffers_.push_back(std::move(buffer));
    return static_cast<int>(buffers_.size()) - 1;
}

void Model::add_op(Op op) {
    auto need = [](bool fits, const char* what) {
        if (!fits) throw std::invalid_argument(what);
    };
    for (const View* view : {&op.out, &op.x, &op.q, &op.k, &op.v, &op.residual, &op.prologue.x, &op.prologue.up})
        if (view->buffer >= 0)
            need(view->column >= 0 && view->width > 0 && view->width <= buffers_.at(view->buffer).stride - view->column,
                 "a view outside its buffer");
    for (int vector : {op.vector, op.bias, op.prologue.weight, op.prologue.bias})
        if (vector >= 0) (void)vectors_.at(vector);
    // Threads read inputs while others already write outputs.
    need(op.out.buffer < 0 || (op.out.buffer != op.prologue.x.buffer && op.out.buffer != op.prologue.up.buffer),
         "an operation that overwrites its own input");
    if (op.kind == Op::embed) {
        need(op.out.buffer >= 0 && op.out.width <= matrices_.at(op.matrix).inputs, "rows wider than their matrix");
        if (op.table >= 0) need(tables_.at(op.table).width == op.out.width, "a table of another width");
        embedded_ = std::min(embedded_, matrices_[op.matrix].outputs);
    }
    if (op.kind == Op::norm)
        need(op.x.buffer >= 0 && op.out.width == op.x.width && op.group > 0 && op.x.width % op.group == 0 &&
                 static_cast<int>(vectors_.at(op.vector).size()) >= op.group, "a norm over broken groups");
    if (op.kind == Op::select_outputs)
        need(op.x.buffer >= 0 && op.out.buffer >= 0 && op.x.buffer != op.out.buffer && op.x.width <= op.out.width,
             "outputs that do not fit");
    if (op.kind == Op::write_kv || op.kind == Op::attention) {
        int const q = heads_ * head_dim_, k = kv_heads_ * head_dim_;
        need(op.q.buffer >= 0 && op.k.buffer >= 0 && op.v.buffer >= 0 && op.q.width == q && op.k.width == k && op.v.width == k,
             "queries, keys or values of another width");
        need(op.kind == Op::write_kv || (op.out.buffer >= 0 && op.out.width == q), "attention of another width");
        if (op.rope >= 0) (void)ropes_.at(op.rope);
    }
    if (op.kind == Op::linear || op.kind == Op::logits) check_linear(op);
    if (op.layer < 0) throw std::invalid_argument("a layer below the first");
    layers_ = std::max(layers_, op.layer + 1);
    if (op.kind == Op::select_outputs) select_at_ = static_cast<std::ptrdiff_t>(ops_.size());
    if (op.kind == Op::logits) {
        vocabulary_ = op.vocabulary;
        if (vocabulary_ > matrices_.at(op.matrix).outputs) throw std::invalid_argument("a vocabulary beyond the matrix");
    }
    ops_.push_back(op);
    counters_ = std::vector<Counter>(ops_.size());
}

void Model::check_linear(const Op& op) const {
    auto need = [](bool fits, const char* what) {
        if (!fits) throw std::invalid_argument(what);
    };
    const Matrix& matrix = matrices_.at(op.matrix);
    const Prologue& how = op.prologue;
    need(how.x.buffer >= 0 && round_up(how.x.width, kGroup) == matrix.inputs, "a matrix of other inputs than its buffer");
    if (how.kind == Prepare::gate) need(how.up.buffer >= 0 && how.up.width == how.x.width, "a gate of another width");
    if (how.kind == Prepare::rms || how.kind == Prepare::layer)
        need(how.weight >= 0 && vector_widths_[how.weight] >= how.x.width && (how.bias < 0 || vector_widths_[how.bias] >= how.x.width),
             "a norm of another width");
    need(op.bias < 0 || static_cast<int>(vectors_[op.bias].size()) >= matrix.outputs, "a bias shorter than its outputs");
    if (op.kind == Op::logits) return;
    for (const View* view : {&op.out, &op.residual})
        need((view != &op.out && view->buffer < 0) || view->column + matrix.outputs <= buffers_.at(view->buffer).stride,
             "a linear wider than its buffer");
}

std::size_t Model::weight_bytes() const {
    std::size_t floats = 0;
    for (auto const& vector : vectors_) floats += vector.size();
    for (auto const& table : tables_) floats += table.values.size();
    return arena_.used() + floats * sizeof(float);
}

// --- a step ----------------------------------------------------------------------------------------------------

Model::Pool Model::make_pool(int layers, std::int64_t blocks, int block_size) const {
    Pool pool;
    pool.blocks = blocks;
    pool.block_size = block_size;
    pool.keys = Pages(layers * layer_bytes(pool));
    pool.values = Pages(layers * layer_bytes(pool));
    return pool;
}

void Model::allocate_kv(int layers, std::int64_t blocks, int block_size) {
    Busy const busy(busy_);
    if (layers < layers_ || blocks < 0 || block_size < 1) throw std::invalid_argument("a KV pool of no size");
    kv_ = Pool();  // first: both need not fit
    kv_ = make_pool(layers, blocks, block_size);
}

// Spans without blocks keep their keys and values for this step only: one block each, as long as the longest.
void Model::use_scratch_pool(const std::vector<Span>& spans) {
    int count = 0, longest = 0;
    for (const Span& span : spans)
        if (span.table.empty()) count += 1, longest = std::max(longest, static_cast<int>(span.tokens.size()));
    if (count == 0) return;
    longest = round_up(longest, 64);
    if (scratch_kv_.blocks < count || scratch_kv_.block_size < longest) {
        auto const blocks = std::max<std::int64_t>(count, scratch_kv_.blocks);
        longest = std::max(longest, scratch_kv_.block_size);
        scratch_kv_ = Pool();
        scratch_kv_ = make_pool(layers_, blocks, longest);
    }
    scratch_tables_.resize(spans.size());
    std::int32_t block = 0;
    for (std::size_t i = 0; i < spans.size(); ++i)
        if (spans[i].table.empty()) scratch_tables_[i] = block++;
}

std::vector<std::int32_t> Model::execute(const std::vector<Span>& spans, float* logits) {
    Busy const busy(busy_);
    std::vector<std::int32_t> tokens(spans.size(), kNoToken);
    for (const Span& span : spans) {
        if (span.tokens.empty() || span.start < 0) throw std::invalid_argument("a span of no tokens");
        std::int64_t const end = static_cast<std::int64_t>(span.start) + static_cast<std::int64_t>(span.tokens.size());
        if (span.table.empty() ? span.start != 0 : end > static_cast<std::int64_t>(span.table.size()) * kv_.block_size)
            throw std::invalid_argument("a span beyond its blocks");
        for (std::int32_t block : span.table)
            if (block < 0 || block >= kv_.blocks) throw std::invalid_argument("a block outside the pool");
        for (std::int32_t token : span.tokens)
            if (token < 0 || token >= std::min(vocabulary_, embedded_)) throw std::invalid_argument("a token outside the vocabulary");
        for (const Table& table : tables_)
            if (end * table.width > static_cast<std::int64_t>(table.values.size()))
                throw std::invalid_argument("a position beyond the model's");
    }
    use_scratch_pool(spans);
    std::size_t span = 0;
    int token = 0;
    while (span < spans.size()) {
        fill_pass(spans, span, token, logits);
        run_pass();
        collect(tokens);
    }
    return tokens;
}

// Takes up to kRowsAtOnce rows, from token number `token` of span number `span` on, and moves these (and the place for
// logits) behind them.
void Model::fill_pass(const std::vector<Span>& spans, std::size_t& span, int& token, float*& logits) {
    Pass& pass = pass_;
    pass.rows = 0;
    for (auto* numbers : {&pass.tokens, &pass.positions}) numbers->clear();
    for (auto* numbers : {&pass.segment_of, &pass.output_rows, &pass.output_span}) numbers->clear();
    pass.segments.clear();
    pass.output_logits.clear();
    int furthest = 0;
    while (span < spans.size() && pass.rows < kRowsAtOnce) {
        const Span& from = spans[span];
        int const count = static_cast<int>(from.tokens.size());
        int const rows = std::min(kRowsAtOnce - pass.rows, count - token);
        bool const off = from.table.empty();
        pass.segments.push_back({pass.rows, rows, from.start + token, off ? &scratch_tables_[span] : from.table.data(),
                                 off ? &scratch_kv_ : &kv_});
        for (int i = token; i < token + rows; ++i) {
            if (from.want == Want::all_logits || (from.want != Want::nothing && i == count - 1)) {
                pass.output_rows.push_back(pass.rows + i - token);
                pass.output_span.push_back(static_cast<int>(span));
                pass.output_logits.push_back(from.want == Want::token ? nullptr : logits);
                if (from.want != Want::token) logits += vocabulary_;
            }
            pass.tokens.push_back(from.tokens[i]);
            pass.positions.push_back(from.start + i);
            pass.segment_of.push_back(static_cast<int>(pass.segments.size()) - 1);
        }
        pass.rows += rows;
        token += rows;
        furthest = std::max(furthest, from.start + token);
        if (token == count) span += 1, token = 0;
    }
    share_attention();
    grow(pass.rows, furthest);
    grow_ropes(furthest);
}

void Model::share_attention() {
    pass_.shares.clear();
    int const most = std::max(1, kQueriesAtOnce / (heads_ / kv_heads_));
    for (const Segment& segment : pass_.segments)
        for (int first = 0; first < segment.rows; first += most)
            pass_.shares.push_back({&segment, first, std::min(most, segment.rows - first)});
}

void Model::grow(int rows, int positions) {
    if (rows > row_capacity_) {
        for (Buffer& buffer : buffers_) buffer.data.at_least(static_cast<std::size_t>(rows) * buffer.stride);
        encoded_.at_least(static_cast<std::size_t>(rows) * round_up(widest_, 16));
        scales_.resize(rows);
        sums_.resize(static_cast<std::size_t>(rows) * (widest_ / kGroup));
        for (auto& best : best_) best.resize(rows);
        row_capacity_ = rows;  // last: what throws above is tried again
    }
    int queries = 0;
    for (const Share& share : pass_.shares) queries = std::max(queries, share.rows * (heads_ / kv_heads_));
    for (Worker& worker : workers_) {
        worker.row.at_least(std::max(widest_, padded_dim_) + 64);
        worker.own.at_least(kOwnRows * (static_cast<std::size_t>(widest_) + 64));
        worker.own_sums.resize(kOwnRows * (widest_ / kGroup));
        std::size_t const needed = kernels_.attend_scratch(queries, positions, padded_dim_);
        if (worker.attention.size() < needed) worker.attention.at_least(needed + needed / 4);
    }
}

// Angles as the reference makes them: the product in float32, then its cosine.
void Model::grow_ropes(int positions) {
    for (Rope& rope : ropes_) {
        std::size_t const half = rope.inverse_frequencies.size();
        if (half == 0) continue;
        auto known = static_cast<int>(rope.sin.size() / half);  // the one that grows last
        if (known >= positions) continue;
        int const wanted = round_up(positions, 256);
        rope.cos.resize(wanted * half);
        rope.sin.resize(wanted * half);
        for (; known < wanted; ++known)
            for (std::size_t i = 0; i < half; ++i) {
                double const angle = static_cast<float>(known) * rope.inverse_frequencies[i];
                rope.cos[known * half + i] = static_cast<float>(std::cos(angle));
                rope.sin[known * half + i] = static_cast<float>(std::sin(angle));
            }
    }
}

void Model::run_pass() {
    for (Counter& counter : counters_) counter.next.store(0, std::memory_order_relaxed);
    for (auto& best : best_)
        for (std::size_t i = 0; i < pass_.output_rows.size(); ++i) best[i] = {-INFINITY, 0, 0.0f};
    pool_.run([this](int thread) { work(thread); });
}

// The greatest of the threads' greatest logits; the lowest token wins a tie.
void Model::collect(std::vector<std::int32_t>& tokens) {
    for (std::size_t i = 0; i < pass_.output_rows.size(); ++i) {
        Best best = best_[0][i];
        for (std::size_t t = 1; t < best_.size(); ++t) {
            const Best& other = best_[t][i];
            if (other.value > best.value || (other.value == best.value && other.token < best.token))
                best.value = other.value, best.token = other.token;
            best.damage += other.damage;
        }
        std::int32_t& token = tokens[pass_.output_span[i]];
        if (!(best.damage == 0.0f)) token = kDamaged;
        else if (!pass_.output_logits[i] && token != kDamaged) token = best.token;
    }
}

// --- what a thread does ----------------------------------------------------------------------------------------

void Model::work(int thread) {
    StandardFloats const floats;
    Worker& worker = workers_[thread];
    for (std::size_t i = 0; i < ops_.size(); ++i) {
        const Op& op = ops_[i];
        if (rows_of(op) == 0) break;  // no logits are wanted: the rest has nothing to do
        switch (op.kind) {
            case Op::embed: embed(op, worker); break;
            case Op::norm: norm(op, worker); break;
            case Op::linear: linear(op, worker, counters_[i]); break;
            case Op::write_kv: write_kv(op, worker); break;
            case Op::attention: attention(op, worker, counters_[i]); break;
            case Op::select_outputs: select_outputs(op, worker); break;
            case Op::logits: logits(op, worker, counters_[i]); break;
        }
        pool_.barrier();
    }
}

void Model::embed(const Op& op, Worker& worker) {
    auto const [first, last] = part_of(pass_.rows, worker.thread, pool_.size());
    for (int row = first; row < last; ++row) {
        float* const out = at(op.out, row);
        unpack_row(matrices_[op.matrix], kernels_.panel, kernels_.pack, pass_.tokens[row], op.out.width, out);
        if (op.table < 0) continue;
        const Table& table = tables_[op.table];
        const float* const place = table.values.data() + static_cast<std::size_t>(pass_.positions[row]) * table.width;
        for (int i = 0; i < op.out.width; ++i) out[i] += place[i];
    }
}

void Model::norm(const Op& op, Worker& worker) {
    auto const [first, last] = part_of(rows_of(op), worker.thread, pool_.size());
    const float* const weight = vectors_[op.vector].data();
    const float* const bias = op.bias < 0 ? nullptr : vectors_[op.bias].data();
    for (int row = first; row < last; ++row)
        for (int i = 0; i < op.x.width; i += op.group)
            kernels_.norm(op.norm_kind, at(op.x, row) + i, weight, bias, op.eps, op.group, at(op.out, row) + i);
}

// One row of inputs in the form that the matrix wants.
void Model::prepare_row(const Prologue& how, const Matrix& matrix, int row, float* scratch, std::uint8_t* bytes, float* scale, float* sums) {
    const float* const x = at(how.x, row);
    int const width = how.x.width;
    if (how.kind == Prepare::copy && width == matrix.inputs)
        return kernels_.encode(matrix.keep, x, matrix.inputs, bytes, scale, sums);
    switch (how.kind) {
        case Prepare::copy: std::memcpy(scratch, x, sizeof(float) * width); break;
        case Prepare::gate: kernels_.gate(how.activation, x, at(how.up, row), width, scratch); break;
        case Prepare::rms:
        case Prepare::layer:
            kernels_.norm(how.kind == Prepare::rms ? NormKind::rms : NormKind::layer, x, vectors_[how.weight].data(),
                          how.bias < 0 ? nullptr : vectors_[how.bias].data(), how.eps, width, scratch);
    }
    std::fill(scratch + width, scratch + matrix.inputs, 0.0f);
    kernels_.encode(matrix.keep, scratch, matrix.inputs, bytes, scale, sums);
}

Inputs Model::prepare(const Op& op, Worker& worker, int rows) {
    const Matrix& matrix = matrices_[op.matrix];
    std::size_t const bytes = (input_bytes(kernels_, matrix.keep, matrix.inputs) + 63) / 64 * 64;
    std::size_t const groups = matrix.inputs / kGroup;
    bool const own = rows <= kOwnRows;
    auto* const encoded = reinterpret_cast<std::uint8_t*>(own ? worker.own.data() : encoded_.data());
    float* const scales = own ? worker.own_scales : scales_.data();
    float* const sums = own ? worker.own_sums.data() : sums_.data();
    auto const [first, last] = own ? std::pair(0, rows) : part_of(rows, worker.thread, pool_.size());
    for (int row = first; row < last; ++row)
        prepare_row(op.prologue, matrix, row, worker.row.data(), encoded + row * bytes, scales + row, sums + row * groups);
    if (!own) pool_.barrier();
    return {encoded, bytes, scales, sums, groups, rows};
}

void Model::linear(const Op& op, Worker& worker, Counter& counter) {
    Inputs const inputs = prepare(op, worker, rows_of(op));
    const Matrix& matrix = matrices_[op.matrix];
    bool const add = op.residual.buffer >= 0;
    Epilogue const end{at(op.out, 0), stride(op.out), op.bias < 0 ? nullptr : vectors_[op.bias].data(), op.activation,
                       add ? at(op.residual, 0) : nullptr, add ? stride(op.residual) : 0};
    int first, last;
    while (take(counter.next, matrix.outputs / kernels_.panel, pool_.size(), first, last))
        kernels_.linear(matrix, inputs, end, first, last);
}

void Model::logits(const Op& op, Worker& worker, Counter& counter) {
    Inputs const inputs = prepare(op, worker, rows_of(op));
    const Matrix& matrix = matrices_[op.matrix];
    Logits const end{best_[worker.thread].data(), pass_.output_logits.data(),
                     op.bias < 0 ? nullptr : vectors_[op.bias].data(), op.vocabulary};
    int const panels = (op.vocabulary + kernels_.panel - 1) / kernels_.panel;
    int first, last;
    while (take(counter.next, panels, pool_.size(), first, last)) kernels_.logits(matrix, inputs, end, first, last);
}

void Model::write_kv(const Op& op, Worker& worker) {
    auto const [first, last] = part_of(pass_.rows, worker.thread, pool_.size());
    int const half = head_dim_ / 2;
    float* const padded = worker.row.data();
    std::fill(padded + head_dim_, padded + padded_dim_, 0.0f);
    for (int row = first; row < last; ++row) {
        int const position = pass_.positions[row];
        const Segment& segment = pass_.segments[pass_.segment_of[row]];
        const Pool& pool = *segment.pool;
        if (op.rope >= 0) {
            const float* const cos = ropes_[op.rope].cos.data() + static_cast<std::size_t>(position) * half;
            const float* const sin = ropes_[op.rope].sin.data() + static_cast<std::size_t>(position) * half;
            for (int i = 0; i < op.q.width; i += head_dim_) kernels_.rotate(at(op.q, row) + i, cos, sin, half);
            for (int i = 0; i < op.k.width; i += head_dim_) kernels_.rotate(at(op.k, row) + i, cos, sin, half);
        }
        std::size_t const block = static_cast<std::size_t>(segment.table[position / pool.block_size]) * kv_heads_;
        std::size_t const slot = position % pool.block_size * padded_dim_ * kv_width();
        for (int head = 0; head < kv_heads_; ++head) {
            std::size_t const place = op.layer * layer_bytes(pool) + (block + head) * head_bytes(pool) + slot;
            std::memcpy(padded, at(op.k, row) + head * head_dim_, sizeof(float) * head_dim_);
            kernels_.store_kv(kv_type_, padded, padded_dim_, pool.keys.data() + place);
            std::memcpy(padded, at(op.v, row) + head * head_dim_, sizeof(float) * head_dim_);
            kernels_.store_kv(kv_type_, padded, padded_dim_, pool.values.data() + place);
        }
    }
}

void Model::attention(const Op& op, Worker& worker, Counter& counter) {
    int const group = heads_ / kv_heads_;
    int const items = static_cast<int>(pass_.shares.size()) * kv_heads_;
    for (int item; (item = counter.next.fetch_add(1, std::memory_order_relaxed)) < items;) {
        const Share& share = pass_.shares[item / kv_heads_];
        const Segment& segment = *share.segment;
        const Pool& pool = *segment.pool;
        int const head = item % kv_heads_, row = segment.row + share.first;
        std::size_t const place = op.layer * layer_bytes(pool) + head * head_bytes(pool);
        Attend const a{
            .q = at(op.q, row) + head * group * head_dim_,
            .out = at(op.out, row) + head * group * head_dim_,
            .q_stride = stride(op.q),
            .out_stride = stride(op.out),
            .rows = share.rows,
            .group = group,
            .dim = head_dim_,
            .padded_dim = padded_dim_,
            .scale = op.scale,
            .start = segment.start + share.first,
            .type = kv_type_,
            .keys = pool.keys.data() + place,
            .values = pool.values.data() + place,
            .block_stride = kv_heads_ * head_bytes(pool),
            .table = segment.table,
            .block_size = pool.block_size,
            .scratch = worker.attention.data(),
        };
        kernels_.attend(a);
    }
}

void Model::select_outputs(const Op& op, Worker& worker) {
    auto const [first, last] = part_of(static_cast<int>(pass_.output_rows.size()), worker.thread, pool_.size());
    for (int i = first; i < last; ++i)
        std::memcpy(at(op.out, i), at(op.x, pass_.output_rows[i]), sizeof(float) * op.x.width);
}

}  // namespace knee
