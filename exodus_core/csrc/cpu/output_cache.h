// Caching allocator of outputs: reuses the memory of freed ones.
#pragma once

#include "../operators.h"

namespace exodus::cpu {

// An uninitialised tensor like `tensor`, which is contiguous; a large one in cached memory.
Tensor output_like(const Tensor& tensor);

}  // namespace exodus::cpu
