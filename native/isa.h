// Which kernels were compiled, and which of them this processor can run.
#pragma once

#include <vector>

#include "kernels.h"

namespace knee {

std::vector<const Kernels*> compiled_kernels();   // best first
std::vector<const Kernels*> supported_kernels();  // of these, what this processor has
const Kernels* find_kernels(const char* name);    // supported ones; null if there is none of that name

}  // namespace knee
