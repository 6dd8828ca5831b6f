// What the CPU library has beside its kernels and the emulated one must have too.
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

std::string instruction_set() { return "emulated CUDA"; }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(exodus, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set));
}
