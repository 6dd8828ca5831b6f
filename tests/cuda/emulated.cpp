// Definitions of the CPU library beside its kernels, which the emulated one needs too.
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>
#include <tuple>

namespace {

std::string instruction_set() { return "emulated CUDA"; }

// Keeping the memory of outputs is the CPU's.
std::int64_t keep_memory(std::int64_t) { return 0; }
std::tuple<std::int64_t, std::int64_t> kept_memory() { return {0, 0}; }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(exodus, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set));
  m.impl("keep_memory", TORCH_BOX(&keep_memory));
  m.impl("kept_memory", TORCH_BOX(&kept_memory));
}
