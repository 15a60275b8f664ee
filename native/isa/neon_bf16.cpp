#include "neon.h"

#include "../kernels.inc"

namespace knee {
extern const Kernels kernels_neon_bf16;
const Kernels kernels_neon_bf16 = make_kernels("neon_bf16");
}  // namespace knee
