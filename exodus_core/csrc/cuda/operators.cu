// Registers the CUDA kernels as the operators' implementation.
#include "backend.cuh"

namespace exodus::cuda {

STABLE_TORCH_LIBRARY_IMPL(exodus, EXODUS_DISPATCH_KEY, m) { register_operators<Cuda>(m); }

}  // namespace exodus::cuda
