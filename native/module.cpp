// The extension module `knee.devices.cpu._native`: Python's view of Model. Its interface is documented in _native.pyi.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>

#include "isa.h"
#include "roofline.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace knee {

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ViewTuple = std::tuple<int, int, int>;
using PartTuple = std::tuple<Bytes, std::string, std::int64_t, std::int64_t, bool, std::int64_t, std::int64_t>;
using PrologueTuple = std::tuple<std::string, ViewTuple, ViewTuple, int, int, float, std::string>;

template <class Value>
struct Named {
    const char* name;
    Value value;
};

template <class Value, std::size_t N>
Value by_name(const std::string& name, const Named<Value> (&known)[N]) {
    for (auto const& item : known)
        if (name == item.name) return item.value;
    throw std::invalid_argument("unknown name: " + name);
}

Keep keep_of(const std::string& name) {
    return by_name<Keep>(name, {{"float32", Keep::float32}, {"bfloat16", Keep::bfloat16}, {"int8", Keep::int8}, {"int4", Keep::int4}});
}

Storage storage_of(const std::string& name) {
    return by_name<Storage>(name, {{"F32", Storage::f32}, {"F16", Storage::f16}, {"BF16", Storage::bf16},
                                   {"Q8_0", Storage::q8_0}, {"Q4_0", Storage::q4_0}, {"Q4_1", Storage::q4_1}});
}

Activation activation_of(const std::string& name) {
    return by_name<Activation>(name, {{"", Activation::none}, {"silu", Activation::silu},
                                      {"gelu_tanh", Activation::gelu_tanh}, {"relu", Activation::relu}});
}

NormKind norm_of(const std::string& name) {
    return by_name<NormKind>(name, {{"rms", NormKind::rms}, {"layer", NormKind::layer}});
}

View view_of(const ViewTuple& view) { return {std::get<0>(view), std::get<1>(view), std::get<2>(view)}; }

Prologue prologue_of(const PrologueTuple& from) {
    auto const& [kind, x, up, weight, bias, eps, activation] = from;
    Prepare const how = by_name<Prepare>(kind, {{"copy", Prepare::copy}, {"rms", Prepare::rms}, {"layer", Prepare::layer}, {"gate", Prepare::gate}});
    return {how, view_of(x), view_of(up), weight, bias, eps, activation_of(activation)};
}

const Kernels& kernels_of(const std::string& isa) {
    if (const Kernels* const found = find_kernels(isa.c_str())) return *found;
    throw std::invalid_argument("this processor has no " + isa);
}

std::vector<std::string> names(const std::vector<const Kernels*>& kernels) {
    std::vector<std::string> found;
    for (const Kernels* one : kernels) found.emplace_back(one->name);
    return found;
}

std::vector<float> copy(const float* data, std::size_t count) { return {data, data + count}; }

int add_matrix(Model& model, const std::vector<PartTuple>& parts, const std::string& keep) {
    std::vector<Part> native;
    for (auto const& [data, storage, rows, columns, transposed, begin, end] : parts)
        native.push_back({data.data(), data.size(), storage_of(storage), rows, columns, transposed, begin, end});
    Keep const how = keep_of(keep);
    nb::gil_scoped_release const released;
    return model.add_matrix(native, how);
}

std::vector<std::int32_t> numbers(nb::handle sequence) {
    std::vector<std::int32_t> found;
    found.reserve(nb::len(sequence));
    for (nb::handle item : sequence) found.push_back(nb::cast<std::int32_t>(item));
    return found;
}

Span span_of(nb::handle item) {
    auto const fields = nb::borrow<nb::tuple>(item);
    return {numbers(fields[0]), nb::cast<std::int32_t>(fields[1]), numbers(fields[2]),
            static_cast<Want>(std::clamp(nb::cast<int>(fields[3]), 0, 3))};
}

nb::tuple execute(Model& model, nb::list batch) {
    std::vector<Span> spans;
    std::size_t rows = 0;
    for (nb::handle item : batch) {
        spans.push_back(span_of(item));
        if (spans.back().want >= Want::logits) rows += spans.back().outputs();
    }
    std::size_t const vocabulary = model.vocabulary();
    std::unique_ptr<float[]> logits(rows ? new float[rows * vocabulary] : nullptr);
    std::vector<std::int32_t> tokens;
    {
        nb::gil_scoped_release const released;
        tokens = model.execute(spans, logits.get());
    }
    nb::object wanted = nb::none();
    if (rows) {
        float* const data = logits.release();
        nb::capsule const owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
        wanted = nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(data, {rows, vocabulary}, owner));
    }
    return nb::make_tuple(tokens, wanted);
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Kernels for the CPU: a program in native form, run a step at a time.";
    m.def("compiled_isas", [] { return names(compiled_kernels()); });
    m.def("supported_isas", [] { return names(supported_kernels()); });
    m.def("read_bandwidth", [](const std::string& isa, int threads, std::size_t bytes) {
        return read_bandwidth(kernels_of(isa), threads, bytes);
    }, "isa"_a, "threads"_a, "bytes"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def("dot_rate", [](const std::string& isa, const std::string& dtype, int threads) {
        return dot_rate(kernels_of(isa), keep_of(dtype), threads);
    }, "isa"_a, "dtype"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());

    nb::class_<Model>(m, "Model")
        .def("__init__", [](Model* self, const std::string& isa, int threads, const std::string& dtype, int heads, int kv_heads, int head_dim) {
            new (self) Model(kernels_of(isa), threads, keep_of(dtype), heads, kv_heads, head_dim);
        }, "isa"_a, "threads"_a, "dtype"_a, "heads"_a, "kv_heads"_a, "head_dim"_a)
        .def_prop_ro("panel", [](const Model& self) { return self.kernels().panel; })
        .def_prop_ro("isa", [](const Model& self) { return self.kernels().name; })
        .def_prop_ro("threads", &Model::threads)
        .def_prop_ro("weight_bytes", &Model::weight_bytes)
        .def("kv_bytes_per_token", &Model::kv_bytes_per_token, "layers"_a)
        .def("matrix", &add_matrix, "parts"_a, "keep"_a)
        .def("vector", [](Model& self, Vector values) { return self.add_vector(copy(values.data(), values.size())); }, "values"_a)
        .def("table", [](Model& self, Rows values) {
            return self.add_table(copy(values.data(), values.size()), static_cast<int>(values.shape(1)));
        }, "values"_a)
        .def("rope", [](Model& self, Vector values) { return self.add_rope(copy(values.data(), values.size())); }, "inverse_frequencies"_a)
        .def("buffer", [](Model& self, int width, bool) { return self.add_buffer(width); }, "width"_a, "outputs"_a)
        .def("embed", [](Model& self, ViewTuple out, int matrix, int table) {
            self.add_op({.kind = Op::embed, .out = view_of(out), .matrix = matrix, .table = table});
        }, "out"_a, "matrix"_a, "table"_a)
        .def("norm", [](Model& self, ViewTuple out, ViewTuple x, const std::string& kind, int weight, int bias, float eps) {
            self.add_op({.kind = Op::norm, .out = view_of(out), .x = view_of(x), .vector = weight, .bias = bias,
                         .group = self.vector_width(weight), .norm_kind = norm_of(kind), .eps = eps});
        }, "out"_a, "x"_a, "kind"_a, "weight"_a, "bias"_a, "eps"_a)
        .def("linear", [](Model& self, ViewTuple out, const PrologueTuple& prologue, int matrix, int bias,
                          const std::string& activation, nb::object residual) {
            self.add_op({.kind = Op::linear, .out = view_of(out),
                         .residual = residual.is_none() ? View{} : view_of(nb::cast<ViewTuple>(residual)),
                         .prologue = prologue_of(prologue), .matrix = matrix, .bias = bias,
                         .activation = activation_of(activation)});
        }, "out"_a, "prologue"_a, "matrix"_a, "bias"_a, "activation"_a, "residual"_a.none())
        .def("write_kv", [](Model& self, int layer, ViewTuple q, ViewTuple k, ViewTuple v, int rope) {
            self.add_op({.kind = Op::write_kv, .q = view_of(q), .k = view_of(k), .v = view_of(v), .rope = rope, .layer = layer});
        }, "layer"_a, "q"_a, "k"_a, "v"_a, "rope"_a)
        .def("attention", [](Model& self, int layer, ViewTuple out, ViewTuple q, ViewTuple k, ViewTuple v, float scale) {
            self.add_op({.kind = Op::attention, .out = view_of(out), .q = view_of(q), .k = view_of(k), .v = view_of(v),
                         .layer = layer, .scale = scale});
        }, "layer"_a, "out"_a, "q"_a, "k"_a, "v"_a, "scale"_a)
        .def("select_outputs", [](Model& self, ViewTuple out, ViewTuple x) {
            self.add_op({.kind = Op::select_outputs, .out = view_of(out), .x = view_of(x)});
        }, "out"_a, "x"_a)
        .def("logits", [](Model& self, const PrologueTuple& prologue, int matrix, int bias, int vocab) {
            self.add_op({.kind = Op::logits, .prologue = prologue_of(prologue), .matrix = matrix, .bias = bias, .vocabulary = vocab});
        }, "prologue"_a, "matrix"_a, "bias"_a, "vocab"_a)
        .def("allocate_kv", &Model::allocate_kv, "layers"_a, "num_blocks"_a, "block_size"_a)
        .def("execute", &execute, "spans"_a);
}

}  // namespace knee
