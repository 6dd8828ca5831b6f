// Selects the row kernels for this processor, once.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/library.h>

#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(EXODUS_PORTABLE_ONLY)
#define EXODUS_X86_VARIANTS 1
#else
#define EXODUS_X86_VARIANTS 0
#endif

namespace exodus::cpu {

namespace portable {
extern const InstructionSet set;
}

#if EXODUS_X86_VARIANTS
namespace avx2 {
extern const InstructionSet set;
}
namespace avx512 {
extern const InstructionSet set;
}
#endif

namespace {

const InstructionSet& choose() {
  const char* asked = std::getenv("EXODUS_INSTRUCTION_SET");
  const std::string limit = asked == nullptr || *asked == '\0' ? "avx512" : asked;
  if (limit != "avx512" && limit != "avx2" && limit != "portable") {
    throw std::invalid_argument("EXODUS_INSTRUCTION_SET must be one of portable, avx2, avx512, got " + limit);
  }
#if EXODUS_X86_VARIANTS
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (limit == "avx512" && has_avx512) return avx512::set;
  if (limit != "portable" && has_avx2) return avx2::set;
#endif
  return portable::set;
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet& chosen = choose();
  return chosen;
}

namespace {

std::string instruction_set_name() { return instruction_set().name; }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(exodus, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set_name));
}

template <>
const RowKernels<float>& row_kernels<float>() {
  return instruction_set().float32;
}
template <>
const RowKernels<double>& row_kernels<double>() {
  return instruction_set().float64;
}
template <>
const RowKernels<Half>& row_kernels<Half>() {
  return instruction_set().float16;
}
template <>
const RowKernels<BFloat16>& row_kernels<BFloat16>() {
  return instruction_set().bfloat16;
}

}  // namespace exodus::cpu
