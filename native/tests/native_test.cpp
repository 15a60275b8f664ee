// Checks every kernel that this processor can run against plain double arithmetic, on random and odd shapes, and the
// law that a row's bits do not depend on the rows beside it. Built with sanitizers, it is a fuzzer: `native_test SEED N`.
// Prints what it checked; exits with 1 at the first difference.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../isa.h"
#include "../model.h"
#include "../pack.h"

using namespace knee;

namespace {

std::mt19937 random_source;
std::string context;

int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_source); }

std::vector<float> normal(std::size_t count, float size = 1.0f) {
    std::normal_distribution<float> draw(0.0f, size);
    std::vector<float> values(count);
    for (float& value : values) value = draw(random_source);
    return values;
}

void check(bool right, const char* what) {
    if (right) return;
    std::printf("FAILED: %s: %s\n", context.c_str(), what);
    std::exit(1);
}

void check_near(double is, double should, double room, const char* what) {
    if (std::fabs(is - should) <= room && std::isfinite(is)) return;
    std::printf("FAILED: %s: %s: %.9g instead of %.9g (room %.3g)\n", context.c_str(), what, is, should, room);
    std::exit(1);
}

Part floats(const std::vector<float>& values, int rows, int columns, bool transposed = false) {
    return {reinterpret_cast<const std::uint8_t*>(values.data()), values.size() * 4, Storage::f32, rows, columns,
            transposed, 0, transposed ? columns : rows};
}

constexpr Keep kKeeps[] = {Keep::float32, Keep::bfloat16, Keep::int8, Keep::int8_minimum, Keep::int4};
constexpr const char* kKeepNames[] = {"float32", "bfloat16", "int8", "int8 with minimum", "int4"};

// --- packing ---

struct Packed8 {
    std::vector<std::uint8_t> bytes;
    Matrix matrix;
};

Packed8 packed(const Kernels& kernels, const Part& part, Keep keep) {
    int const inputs = round_up(static_cast<int>(part.inputs()), kGroup), width = kernels.panel;
    int const panels = round_up(static_cast<int>(part.end - part.begin), width) / width;
    std::size_t const bytes = panel_bytes(keep, inputs, width);
    Packed8 result{std::vector<std::uint8_t>(panels * bytes), {}};
    for (int p = 0; p < panels; ++p)
        check(pack_panel(part, keep, p, width, kernels.pack, inputs, result.bytes.data() + p * bytes) == Packed::sound, "packing");
    result.matrix = {keep, panels * width, inputs, bytes, result.bytes.data()};
    return result;
}

void test_stored_blocks_are_kept(const Kernels& kernels) {
    for (auto [storage, keep, size] : {std::tuple{Storage::q4_1, Keep::int4, 20}, {Storage::q4_0, Keep::int4, 18},
                                       {Storage::q8_0, Keep::int8, 34}, {Storage::q4_0, Keep::int8, 18},
                                       {Storage::q4_1, Keep::int8_minimum, 20}}) {
        int const outputs = between(1, 70), groups = between(1, 5);
        std::vector<std::uint8_t> blocks(static_cast<std::size_t>(outputs) * groups * size);
        for (auto& byte : blocks) byte = static_cast<std::uint8_t>(between(0, 255));
        for (std::size_t at = 0; at < blocks.size(); at += size) {
            std::uint16_t const scale = static_cast<std::uint16_t>(between(0x2000, 0x2bff)), low = static_cast<std::uint16_t>(between(0xa800, 0xafff));
            std::memcpy(&blocks[at], &scale, 2);
            if (storage == Storage::q4_1) std::memcpy(&blocks[at + 2], &low, 2);
        }
        Part const part{blocks.data(), blocks.size(), storage, outputs, groups * kGroup, false, 0, outputs};
        part.check();
        Packed8 const is = packed(kernels, part, keep), should = packed(kernels, part, Keep::float32);
        std::vector<float> a(groups * kGroup), b(a);
        for (int n = 0; n < outputs; ++n) {
            unpack_row(is.matrix, kernels.panel, kernels.pack, n, groups * kGroup, a.data());
            unpack_row(should.matrix, kernels.panel, kernels.pack, n, groups * kGroup, b.data());
            for (int k = 0; k < groups * kGroup; ++k) check_near(a[k], b[k], 2e-6 * std::fabs(b[k]) + 1e-7, "a stored block");
        }
    }
}

// --- linear layers ---

struct Encoded {
    std::vector<std::uint8_t> rows;
    std::vector<float> scales, sums;
    Inputs inputs;
};

Encoded encoded(const Kernels& kernels, Keep keep, const std::vector<float>& x, int rows, int inputs) {
    std::size_t const stride = input_bytes(kernels, keep, inputs), groups = inputs / kGroup;
    Encoded result{std::vector<std::uint8_t>(rows * stride), std::vector<float>(rows), std::vector<float>(rows * groups), {}};
    for (int row = 0; row < rows; ++row)
        kernels.encode(keep, x.data() + static_cast<std::size_t>(row) * inputs, inputs, result.rows.data() + row * stride,
                       &result.scales[row], &result.sums[row * groups]);
    result.inputs = {result.rows.data(), stride, result.scales.data(), result.sums.data(), groups, rows};
    return result;
}

Inputs one_row(const Inputs& all, int row) {
    return {all.rows + row * all.stride, all.stride, all.scales + row, all.sums + row * all.sums_stride, all.sums_stride, 1};
}

double activated(Activation kind, double x) {
    if (kind == Activation::silu) return x / (1 + std::exp(-x));
    if (kind == Activation::gelu_tanh) return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    if (kind == Activation::relu) return std::max(x, 0.0);
    return x;
}

void test_linear(const Kernels& kernels, Keep keep) {
    int const outputs = between(1, 100), width = between(1, 200), rows = between(1, 40);
    bool const transposed = between(0, 1);
    std::vector<float> const weights = normal(static_cast<std::size_t>(outputs) * width);
    Part const part = transposed ? floats(weights, width, outputs, true) : floats(weights, outputs, width);
    Packed8 const w = packed(kernels, part, keep);
    int const inputs = w.matrix.inputs, padded = w.matrix.outputs;
    std::vector<float> x = normal(static_cast<std::size_t>(rows) * inputs, std::exp(between(-5, 5)));
    for (int row = 0; row < rows; ++row)
        for (int k = width; k < inputs; ++k) x[row * inputs + k] = 0;
    Encoded const in = encoded(kernels, keep, x, rows, inputs);
    auto const activation = static_cast<Activation>(between(0, 3));
    std::vector<float> const bias = normal(padded), residual = normal(static_cast<std::size_t>(rows) * padded);
    bool const with_bias = between(0, 1), with_residual = between(0, 1);
    std::vector<float> out(static_cast<std::size_t>(rows) * padded, NAN), alone(padded, NAN);
    Epilogue end{out.data(), static_cast<std::size_t>(padded), with_bias ? bias.data() : nullptr, activation,
                 with_residual ? residual.data() : nullptr, static_cast<std::size_t>(padded)};
    kernels.linear(w.matrix, in.inputs, end, 0, padded / kernels.panel);
    bool const rough = keep == Keep::bfloat16 && kernels.bf16_inputs;
    std::vector<float> row_weights(inputs);
    for (int n = 0; n < outputs; ++n) {
        unpack_row(w.matrix, kernels.panel, kernels.pack, n, inputs, row_weights.data());
        for (int row = 0; row < rows; ++row) {
            double sum = 0, size = 0, most = 0;
            for (int k = 0; k < width; ++k) {
                double const value = x[row * inputs + k];
                sum += value * row_weights[k], size += std::fabs(value * row_weights[k]), most = std::max(most, std::fabs(value));
            }
            double room = 1e-5 * size + 1e-6;
            if (in_integers(keep))
                for (int k = 0; k < width; ++k) room += most / kInputLimit * std::fabs(row_weights[k]);
            if (rough) room += size / 128;
            if (with_bias) sum += bias[n];
            double should = activated(activation, sum);
            if (with_residual) should += residual[row * padded + n];
            check_near(out[row * padded + n], should, 1.2 * room + 1e-5, kKeepNames[static_cast<int>(keep)]);
        }
    }
    for (int row = 0; row < rows; ++row) {
        end.out = alone.data();
        end.residual = with_residual ? residual.data() + row * padded : nullptr;
        kernels.linear(w.matrix, one_row(in.inputs, row), end, 0, padded / kernels.panel);
        check(std::memcmp(alone.data(), out.data() + row * padded, sizeof(float) * padded) == 0, "a row's bits changed with the batch");
    }
}

void test_logits(const Kernels& kernels, Keep keep) {
    int const outputs = between(1, 150), width = between(1, 70), rows = between(1, 12);
    std::vector<float> const weights = normal(static_cast<std::size_t>(outputs) * width);
    Packed8 const w = packed(kernels, floats(weights, outputs, width), keep);
    std::vector<float> x(static_cast<std::size_t>(rows) * w.matrix.inputs, 0.0f);
    for (int row = 0; row < rows; ++row)
        for (int k = 0; k < width; ++k) x[row * w.matrix.inputs + k] = normal(1)[0];
    bool const damaged = between(0, 3) == 0;
    if (damaged) x[0] = between(0, 1) ? NAN : INFINITY;
    Encoded const in = encoded(kernels, keep, x, rows, w.matrix.inputs);
    std::vector<float> all(static_cast<std::size_t>(rows) * outputs);
    std::vector<float*> wanted(rows), none(rows, nullptr);
    for (int row = 0; row < rows; ++row) wanted[row] = all.data() + row * outputs;
    std::vector<Best> best(rows, Best{-INFINITY, 0, 0}), ignored(best);
    kernels.logits(w.matrix, in.inputs, {ignored.data(), wanted.data(), nullptr, outputs}, 0, w.matrix.outputs / kernels.panel);
    kernels.logits(w.matrix, in.inputs, {best.data(), none.data(), nullptr, outputs}, 0, w.matrix.outputs / kernels.panel);
    for (int row = 0; row < rows; ++row) {
        if (damaged && row == 0) {
            check(!(best[row].damage == 0) && !(ignored[row].damage == 0), "damage went unseen");
            continue;
        }
        check(best[row].damage == 0 && ignored[row].damage == 0, "damage where there is none");
        check(best[row].token == std::max_element(wanted[row], wanted[row] + outputs) - wanted[row], "argmax");
    }
}

// --- rows ---

void test_rows(const Kernels& kernels) {
    int const width = between(1, 150), padded = round_up(width, 32);
    std::vector<float> const x = normal(padded, 3), weight = normal(padded), bias = normal(padded);
    std::vector<float> out(padded, 0.0f);
    for (NormKind kind : {NormKind::rms, NormKind::layer}) {
        kernels.norm(kind, x.data(), weight.data(), bias.data(), 1e-5f, width, out.data());
        double mean = 0, square = 0;
        for (int i = 0; i < width; ++i) mean += x[i];
        mean = kind == NormKind::layer ? mean / width : 0;
        for (int i = 0; i < width; ++i) square += (x[i] - mean) * (x[i] - mean);
        for (int i = 0; i < width; ++i)
            check_near(out[i], (x[i] - mean) / std::sqrt(square / width + 1e-5) * weight[i] + bias[i], 2e-4, "norm");
    }
    std::vector<float> const gates = normal(padded, 20);
    for (Activation kind : {Activation::silu, Activation::gelu_tanh, Activation::relu}) {
        kernels.gate(kind, gates.data(), x.data(), width, out.data());
        for (int i = 0; i < width; ++i)
            check_near(out[i], activated(kind, gates[i]) * x[i], 2e-6 * std::fabs(gates[i] * x[i]) + 1e-6, "gate");
    }
    int const half = between(1, 70);
    std::vector<float> head = normal(2 * half), const_head = head, cos(half), sin(half);
    for (int i = 0; i < half; ++i) cos[i] = std::cos(i * 0.3f), sin[i] = std::sin(i * 0.3f);
    kernels.rotate(head.data(), cos.data(), sin.data(), half);
    for (int i = 0; i < half; ++i) {
        check_near(head[i], const_head[i] * cos[i] - const_head[i + half] * sin[i], 1e-5, "rope");
        check_near(head[i + half], const_head[i + half] * cos[i] + const_head[i] * sin[i], 1e-5, "rope");
    }
}

// --- attention ---

void test_attention(const Kernels& kernels, KVType type) {
    int const dim = between(1, 140), padded = round_up(dim, 16), group = between(1, 9), rows = between(1, 8);
    int const start = between(0, 80), limit = start + rows, block_size = between(1, 40);
    int const blocks = (limit + block_size - 1) / block_size + 2;
    std::size_t const width = type == KVType::float32 ? 4 : 2, block_bytes = static_cast<std::size_t>(block_size) * padded * width;
    std::vector<std::uint8_t> keys(blocks * block_bytes), values(keys.size());
    std::vector<std::int32_t> table(blocks);
    for (int i = 0; i < blocks; ++i) table[i] = i;
    std::shuffle(table.begin(), table.end(), random_source);
    std::vector<float> k = normal(static_cast<std::size_t>(limit) * padded), v = normal(k.size());
    for (int p = 0; p < limit; ++p) {
        for (int d = dim; d < padded; ++d) k[p * padded + d] = v[p * padded + d] = 0;
        std::size_t const place = table[p / block_size] * block_bytes + p % block_size * padded * width;
        kernels.store_kv(type, &k[p * padded], padded, keys.data() + place);
        kernels.store_kv(type, &v[p * padded], padded, values.data() + place);
    }
    std::vector<float> const q = normal(static_cast<std::size_t>(rows) * group * dim);
    std::vector<float> out(q.size(), NAN), alone(static_cast<std::size_t>(group) * dim, NAN);
    std::vector<float> scratch(kernels.attend_scratch(rows * group, limit, padded));
    float const scale = 1 / std::sqrt(static_cast<float>(dim));
    std::size_t const stride = static_cast<std::size_t>(group) * dim;
    Attend a{q.data(), out.data(), stride, stride, rows, group, dim, padded, scale, start, type, keys.data(), values.data(),
             block_bytes, table.data(), block_size, scratch.data()};
    kernels.attend(a);
    double const room = type == KVType::float32 ? 2e-5 : type == KVType::float16 ? 1e-2 : 6e-2;
    for (int row = 0; row < rows; ++row)
        for (int h = 0; h < group; ++h) {
            int const seen = start + row + 1;
            std::vector<double> weight(seen);
            double most = -1e300, total = 0;
            for (int p = 0; p < seen; ++p) {
                double dot = 0;
                for (int d = 0; d < dim; ++d) dot += static_cast<double>(q[(row * group + h) * dim + d]) * k[p * padded + d];
                most = std::max(most, weight[p] = dot * scale);
            }
            for (double& w : weight) total += w = std::exp(w - most);
            for (int d = 0; d < dim; ++d) {
                double should = 0;
                for (int p = 0; p < seen; ++p) should += weight[p] / total * v[p * padded + d];
                check_near(out[(row * group + h) * dim + d], should, room, "attention");
            }
        }
    for (int row = 0; row < rows; ++row) {
        Attend one = a;
        one.q += row * stride, one.out = alone.data(), one.rows = 1, one.start += row;
        kernels.attend(one);
        check(std::memcmp(alone.data(), &out[row * stride], sizeof(float) * stride) == 0, "a row's attention changed with the rows beside it");
    }
}

// --- a whole model ---

struct Tiny {
    int heads, kv_heads, dim, hidden, inner, vocabulary;
};

void build(Model& model, const Tiny& size, Keep keep, std::uint32_t seed) {
    random_source.seed(seed);
    auto matrix = [&](std::vector<int> outputs, int inputs) {
        std::vector<std::vector<float>> values;
        std::vector<Part> parts;
        for (int n : outputs) values.push_back(normal(static_cast<std::size_t>(n) * inputs, 1 / std::sqrt(static_cast<float>(inputs))));
        for (std::size_t i = 0; i < outputs.size(); ++i) parts.push_back(floats(values[i], outputs[i], inputs));
        return model.add_matrix(parts, keep);
    };
    int const panel = model.kernels().panel, q = size.heads * size.dim, k = size.kv_heads * size.dim;
    int const k_at = round_up(q, panel), v_at = k_at + round_up(k, panel), inner_at = round_up(size.inner, panel);
    int const x = model.add_buffer(size.hidden), qkv = model.add_buffer(v_at + round_up(k, panel)), mixed = model.add_buffer(q);
    int const wide = model.add_buffer(2 * inner_at), last = model.add_buffer(size.hidden);
    View const xs{x, 0, size.hidden}, qs{qkv, 0, q}, ks{qkv, k_at, k}, vs{qkv, v_at, k}, mix{mixed, 0, q};
    int const embedding = matrix({size.vocabulary}, size.hidden), ones = model.add_vector(std::vector<float>(size.hidden, 1.0f));
    std::vector<float> turns(size.dim / 2);
    for (std::size_t i = 0; i < turns.size(); ++i) turns[i] = std::pow(0.1f, static_cast<float>(i));
    int const rope = size.dim % 2 == 0 ? model.add_rope(turns) : -1;
    model.add_op({.kind = Op::embed, .out = xs, .matrix = embedding});
    for (int layer = 0; layer < 2; ++layer) {
        Prologue const norm{.kind = Prepare::rms, .x = xs, .weight = ones, .eps = 1e-5f};
        model.add_op({.kind = Op::linear, .out = qs, .prologue = norm, .matrix = matrix({q, k, k}, size.hidden)});
        model.add_op({.kind = Op::write_kv, .q = qs, .k = ks, .v = vs, .rope = rope, .layer = layer});
        model.add_op({.kind = Op::attention, .out = mix, .q = qs, .k = ks, .v = vs, .layer = layer, .scale = 0.5f});
        model.add_op({.kind = Op::linear, .out = xs, .residual = xs, .prologue = {.x = mix}, .matrix = matrix({size.hidden}, q)});
        model.add_op({.kind = Op::linear, .out = {wide, 0, size.inner}, .prologue = norm, .matrix = matrix({size.inner, size.inner}, size.hidden)});
        Prologue const gate{.kind = Prepare::gate, .x = {wide, 0, size.inner}, .up = {wide, inner_at, size.inner}, .activation = Activation::silu};
        model.add_op({.kind = Op::linear, .out = xs, .residual = xs, .prologue = gate, .matrix = matrix({size.hidden}, size.inner)});
    }
    model.add_op({.kind = Op::select_outputs, .out = {last, 0, size.hidden}, .x = xs});
    model.add_op({.kind = Op::logits, .prologue = {.kind = Prepare::layer, .x = {last, 0, size.hidden}, .weight = ones, .eps = 1e-5f}, .matrix = embedding, .vocabulary = size.vocabulary});
}

// Every request's logits, with its tokens run in `chunk`s in steps that all requests share.
std::vector<std::vector<float>> run(Model& model, const std::vector<std::vector<std::int32_t>>& requests, int chunk, int block_size) {
    std::vector<std::vector<float>> logits(requests.size());
    if (chunk == 0) {  // without a cache
        for (std::size_t r = 0; r < requests.size(); ++r) {
            logits[r].resize(requests[r].size() * model.vocabulary());
            model.execute({{requests[r], 0, {}, Want::all_logits}}, logits[r].data());
        }
        return logits;
    }
    std::vector<std::vector<std::int32_t>> tables(requests.size());
    int blocks = 0;
    for (std::size_t r = 0; r < requests.size(); ++r)
        for (std::size_t i = 0; i < (requests[r].size() + block_size - 1) / block_size; ++i) tables[r].push_back(blocks++);
    model.allocate_kv(2, blocks, block_size);
    for (std::size_t done = 0;; done += chunk) {
        std::vector<Span> spans;
        std::vector<std::size_t> who;
        std::size_t rows = 0;
        for (std::size_t r = 0; r < requests.size(); ++r) {
            if (done >= requests[r].size()) continue;
            auto const end = std::min(requests[r].size(), done + chunk);
            spans.push_back({{requests[r].begin() + done, requests[r].begin() + end}, static_cast<std::int32_t>(done), tables[r], Want::all_logits});
            rows += end - done;
            who.push_back(r);
        }
        if (spans.empty()) return logits;
        std::vector<float> step(rows * model.vocabulary());
        model.execute(spans, step.data());
        auto from = step.begin();
        for (std::size_t i = 0; i < who.size(); ++i) {
            auto const count = static_cast<std::ptrdiff_t>(spans[i].tokens.size()) * model.vocabulary();
            logits[who[i]].insert(logits[who[i]].end(), from, from + count);
            from += count;
        }
    }
}

void test_model(const Kernels& kernels, Keep keep) {
    int const kv_heads = between(1, 3);
    Tiny const size{kv_heads * between(1, 3), kv_heads, between(1, 40), between(1, 90), between(1, 120), between(2, 200)};
    std::uint32_t const seed = random_source();
    std::vector<std::vector<std::int32_t>> requests(between(1, 5));
    for (auto& request : requests) {
        request.resize(between(1, between(0, 5) ? 40 : 300));
        for (auto& token : request) token = between(0, size.vocabulary - 1);
    }
    int const chunk = between(1, 64), block_size = between(1, 70), threads = between(1, 4);
    auto const after = random_source();
    Model one(kernels, 1, keep, size.heads, size.kv_heads, size.dim), many(kernels, threads, keep, size.heads, size.kv_heads, size.dim);
    build(one, size, keep, seed);
    build(many, size, keep, seed);
    auto const should = run(one, requests, 0, 0), is = run(many, requests, chunk, block_size);
    for (std::size_t r = 0; r < requests.size(); ++r) {
        check(should[r].size() == is[r].size(), "number of logits");
        check(std::memcmp(should[r].data(), is[r].data(), sizeof(float) * is[r].size()) == 0, "logits changed with batch, chunks, blocks or threads");
        check(std::all_of(is[r].begin(), is[r].end(), [](float value) { return std::isfinite(value); }), "logits are not finite");
    }
    random_source.seed(after);
}

}  // namespace

int main(int argc, char** argv) {
    int const seed = argc > 1 ? std::atoi(argv[1]) : 1, rounds = argc > 2 ? std::atoi(argv[2]) : 20;
    for (const Kernels* kernels : supported_kernels()) {
        random_source.seed(seed);
        for (int round = 0; round < rounds; ++round) {
            context = std::string(kernels->name) + ", seed " + std::to_string(seed) + ", round " + std::to_string(round);
            test_rows(*kernels);
            test_stored_blocks_are_kept(*kernels);
            for (Keep keep : kKeeps) {
                test_linear(*kernels, keep);
                test_logits(*kernels, keep);
                test_model(*kernels, keep);
            }
            for (KVType type : {KVType::float32, KVType::bfloat16, KVType::float16}) test_attention(*kernels, type);
        }
        std::printf("%s: %d rounds passed\n", kernels->name, rounds);
    }
    return 0;
}
