#include "avx512.h"

#include "../kernels.inc"

namespace knee {
extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = make_kernels("avx512");
}  // namespace knee
