#include "portable.h"

#include "../kernels.inc"

namespace knee {
extern const Kernels kernels_portable;
const Kernels kernels_portable = make_kernels("portable");
}  // namespace knee
