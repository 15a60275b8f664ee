#include "avx2.h"

#include "../kernels.inc"

namespace knee {
extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = make_kernels("avx2");
}  // namespace knee
