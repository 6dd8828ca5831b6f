// Where a kernel is, and how an error in it ends the program: with the kernel, block and thread that it was found in.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

struct uint3 {
  unsigned x, y, z;
};

namespace exodus::emulation {

inline std::string place(const char* what, uint3 index) {
  return std::string(what) + " (" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

[[noreturn]] inline void fail(const std::string& message) {
  std::fprintf(stderr, "exodus emulation: %s\n", message.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace exodus::emulation
