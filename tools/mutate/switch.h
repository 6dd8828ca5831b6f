// The switch behind which the mutants of a header stand. It is read at run time, so that one build has all of them.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace exodus_mutants {

extern int active;      // the number of the mutant that is on; 0: none
extern bool reached[];  // by number: true once the place of a mutant was computed

inline __attribute__((always_inline)) bool is_on(int number) {
  reached[number] = true;
  return active == number;
}

// Functions that give the variables that were constants their values, anew for each mutant.
inline std::vector<std::function<void()>>& updates() {
  static std::vector<std::function<void()>> all;
  return all;
}

template <class Update>
bool keep_up_to_date(Update update) {
  updates().push_back(update);
  update();
  return true;
}

}  // namespace exodus_mutants

#define EXODUS_MUTANT(number) (::exodus_mutants::is_on(number))
