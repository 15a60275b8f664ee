#include "neon.h"

#include "../kernels.inc"

namespace knee {
extern const Kernels kernels_neon_dotprod;
const Kernels kernels_neon_dotprod = make_kernels("neon_dotprod");
}  // namespace knee
