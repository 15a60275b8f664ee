#include "isa.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace knee {

#if defined(__x86_64__)

extern const Kernels kernels_avx512_vnni, kernels_avx512, kernels_avx2_vnni, kernels_avx2, kernels_portable;

namespace {

struct Processor {
    bool avx2 = false, avx_vnni = false, avx512 = false, avx512_vnni_bf16 = false;

    // Intel SDM vol. 2, CPUID: leaf 1 and leaf 7; XCR0 says which registers the operating system saves.
    Processor() {
        unsigned a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d)) return;
        bool const saves = c & bit_OSXSAVE, fma = c & bit_FMA, f16c = c & bit_F16C;
        if (!saves || !fma || !f16c) return;
        unsigned low, high;
        asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        if ((low & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        avx2 = b & bit_AVX2;
        unsigned const wanted = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
        avx512 = avx2 && (low & 0xe6) == 0xe6 && (b & wanted) == wanted;
        bool const vnni = c & (1u << 11);
        unsigned const leaves = a;
        if (leaves < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return;
        avx_vnni = avx2 && (a & (1u << 4));
        avx512_vnni_bf16 = avx512 && vnni && (a & (1u << 5));
    }
};

bool supported(const Kernels* kernels) {
    static const Processor processor;
    if (kernels == &kernels_avx512_vnni) return processor.avx512_vnni_bf16;
    if (kernels == &kernels_avx512) return processor.avx512;
    if (kernels == &kernels_avx2_vnni) return processor.avx_vnni;
    if (kernels == &kernels_avx2) return processor.avx2;
    return true;
}

}  // namespace

std::vector<const Kernels*> compiled_kernels() {
    return {&kernels_avx512_vnni, &kernels_avx512, &kernels_avx2_vnni, &kernels_avx2, &kernels_portable};
}

#elif defined(__aarch64__)

extern const Kernels kernels_neon_bf16, kernels_neon_dotprod, kernels_neon, kernels_portable;

namespace {

#if defined(__APPLE__)
bool has(const char* name) {
    int value = 0;
    std::size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
}
bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_bf16() { return has("hw.optional.arm.FEAT_BF16"); }
#else
// https://docs.kernel.org/arch/arm64/elf_hwcaps.html
bool has_dotprod() { return getauxval(AT_HWCAP) & (1ul << 20); }
bool has_bf16() { return getauxval(AT_HWCAP2) & (1ul << 14); }
#endif

bool supported(const Kernels* kernels) {
    if (kernels == &kernels_neon_bf16) return has_dotprod() && has_bf16();
    if (kernels == &kernels_neon_dotprod) return has_dotprod();
    return true;
}

}  // namespace

std::vector<const Kernels*> compiled_kernels() {
    return {&kernels_neon_bf16, &kernels_neon_dotprod, &kernels_neon, &kernels_portable};
}

#else

extern const Kernels kernels_portable;

namespace {
bool supported(const Kernels*) { return true; }
}  // namespace

std::vector<const Kernels*> compiled_kernels() { return {&kernels_portable}; }

#endif

std::vector<const Kernels*> supported_kernels() {
    std::vector<const Kernels*> found;
    for (const Kernels* kernels : compiled_kernels())
        if (supported(kernels)) found.push_back(kernels);
    return found;
}

const Kernels* find_kernels(const char* name) {
    for (const Kernels* kernels : supported_kernels())
        if (std::strcmp(kernels->name, name) == 0) return kernels;
    return nullptr;
}

}  // namespace knee
