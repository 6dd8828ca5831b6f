// Counts of the emulator, for Python: torch.ops.exodus_emulation.counters() returns a JSON object,
// {"kernel": {"launches": 1, "loaded_bytes": 4096, ...}, ...}, and reset_counters() starts again from nothing.
#include <torch/csrc/stable/library.h>

#include <string>

#include "emulation/counters.h"

namespace {

std::string counters() { return exodus::emulation::counters_as_json(); }

void reset_counters() { exodus::emulation::counter_table.reset(); }

}  // namespace

STABLE_TORCH_LIBRARY(exodus_emulation, m) {
  m.def("counters() -> str");
  m.def("reset_counters() -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(exodus_emulation, CompositeExplicitAutograd, m) {
  m.impl("counters", TORCH_BOX(&counters));
  m.impl("reset_counters", TORCH_BOX(&reset_counters));
}
