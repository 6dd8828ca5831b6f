// Caching allocator of outputs: reuses the memory of freed ones.
#pragma once

#include <optional>
#include <vector>

#include "../operators.h"

namespace exodus::cpu {

// An uninitialised tensor like `tensor`, which is contiguous; a large one in cached memory.
Tensor output_like(const Tensor& tensor);

// The same with these sizes, and of this dtype instead of that of `tensor`.
Tensor output_of(const Tensor& tensor, const std::vector<std::int64_t>& sizes,
                 std::optional<ScalarType> dtype = std::nullopt);

}  // namespace exodus::cpu
