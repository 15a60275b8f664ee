#include "avx512.h"

#include "../kernels.inc"

namespace knee {
extern const Kernels kernels_avx512_vnni;
const Kernels kernels_avx512_vnni = make_kernels("avx512_vnni");
}  // namespace knee
