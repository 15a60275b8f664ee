#include "roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <vector>

#include "pages.h"
#include "thread_pool.h"

namespace knee {

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

constexpr int kRows = 24;        // a whole number of tiles for every kernel
constexpr int kInputs = 256;
constexpr int kPasses = 5;
constexpr double kPassSeconds = 0.02;

// What one thread multiplies: a panel and some rows of inputs, all in the first cache.
struct Work {
    std::vector<std::uint8_t> panel, rows;
    std::vector<float> out, scales, sums;
    Matrix matrix;
    Inputs inputs;
    Epilogue end;

    Work(const Kernels& kernels, Keep keep)
        : panel(panel_bytes(keep, kInputs, kernels.panel), 0x11),
          rows(kRows * input_bytes(kernels, keep, kInputs), 0x11),
          out(kRows * kernels.panel),
          scales(kRows, 1.0f),
          sums(kRows * kInputs / kGroup, 1.0f),
          matrix{keep, kernels.panel, kInputs, panel.size(), panel.data()},
          inputs{rows.data(), rows.size() / kRows, scales.data(), sums.data(), kInputs / kGroup, kRows},
          end{out.data(), static_cast<std::size_t>(kernels.panel), nullptr, Activation::none, nullptr, 0} {}
};

}  // namespace

double read_bandwidth(const Kernels& kernels, int threads, std::size_t bytes) {
    threads = std::max(1, threads);
    Pages const memory(bytes, true);
    ThreadPool pool(threads);
    std::size_t const part = bytes / threads / 4096 * 4096;
    pool.run([&](int thread) { std::memset(memory.data() + thread * part, 1, part); });  // near its reader
    std::atomic<std::uint64_t> kept{0};
    double best = 0.0;
    for (int pass = 0; pass < kPasses; ++pass) {
        double const start = now();
        pool.run([&](int thread) {
            kept += kernels.read(memory.data() + thread * part, part);
        });
        best = std::max(best, static_cast<double>(part * threads) / (now() - start));
    }
    return best;
}

double dot_rate(const Kernels& kernels, Keep keep, int threads) {
    ThreadPool pool(threads);
    double best = 0.0;
    for (int pass = 0; pass < kPasses; ++pass) {
        std::atomic<std::int64_t> products{0};
        double const start = now();
        pool.run([&](int) {
            Work work(kernels, keep);
            std::int64_t done = 0;
            while (now() - start < kPassSeconds)
                for (int i = 0; i < 16; ++i, ++done) kernels.linear(work.matrix, work.inputs, work.end, 0, 1);
            products += done;
        });
        double const flops = 2.0 * kRows * kInputs * kernels.panel * static_cast<double>(products.load());
        best = std::max(best, flops / (now() - start));
    }
    return best;
}

}  // namespace knee
