#include "neon.h"

#include "../kernels.inc"

namespace knee {
extern const Kernels kernels_neon;
const Kernels kernels_neon = make_kernels("neon");
}  // namespace knee
