// What this machine can do, measured with the kernels' own inner loops: the two sides of the roofline.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace knee {

double read_bandwidth(const Kernels&, int threads, std::size_t bytes);  // bytes/s, one pass over fresh memory
double dot_rate(const Kernels&, Keep, int threads);                      // FLOP/s on a panel that stays in the first cache

}  // namespace knee
