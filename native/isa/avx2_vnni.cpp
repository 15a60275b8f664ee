#include "avx2.h"

#include "../kernels.inc"

namespace knee {
extern const Kernels kernels_avx2_vnni;
const Kernels kernels_avx2_vnni = make_kernels("avx2_vnni");
}  // namespace knee
