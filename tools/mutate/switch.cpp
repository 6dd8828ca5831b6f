// Sets the switch of switch.h: from the environment variable EXODUS_MUTANT where the library is loaded, and by calls.
#include "core/switch.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

namespace exodus_mutants {

constexpr int kNumbers = 4096;
bool reached[kNumbers];
int active = 0;

namespace {

void set(int number) {
  active = number;
  std::fill(std::begin(reached), std::end(reached), false);
  for (const auto& update : updates()) update();
}

// Variables that are initialised later than this see the number as it is, those that were before are updated.
const bool is_set = [] {
  const char* number = std::getenv("EXODUS_MUTANT");
  set(number == nullptr ? 0 : std::atoi(number));
  return true;
}();

}  // namespace
}  // namespace exodus_mutants

extern "C" {

// Turns a mutant on, and the one before it off; 0 for none. Forgets what was reached.
__attribute__((visibility("default"))) void exodus_set_mutant(int number) { exodus_mutants::set(number); }

__attribute__((visibility("default"))) bool exodus_mutant_was_reached(int number) {
  return exodus_mutants::reached[number];
}

}
