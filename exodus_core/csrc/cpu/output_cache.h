// Memory of freed outputs, kept for the outputs to come.
#pragma once

#include "../operators.h"

namespace exodus::cpu {

// An unwritten tensor like `tensor`, which is contiguous: where it is large, in memory that an earlier output has left.
Tensor output_like(const Tensor& tensor);

}  // namespace exodus::cpu
