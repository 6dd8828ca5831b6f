// Treatment of large arrays: the size of the last-level cache, and huge pages.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace exodus::cpu {

// Bytes of the last-level cache of a core, as Linux reports it; glibc, the fallback, adds up the caches of all cores on
// some processors, of which a core reaches only one. EXODUS_LAST_CACHE overrides both. Throws std::invalid_argument if
// that is not a number.
inline std::int64_t last_cache_bytes() {
  const char* asked = std::getenv("EXODUS_LAST_CACHE");
  if (asked != nullptr && *asked != '\0') {
    const std::string given = asked;
    const bool is_number = given.find_first_not_of("0123456789") == std::string::npos && given.size() <= 18;
    const std::int64_t bytes = is_number ? std::stoll(given) : 0;
    if (bytes < 1) throw std::invalid_argument("EXODUS_LAST_CACHE must be a number of bytes, at least 1, got " + given);
    return bytes;
  }
  std::int64_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream size("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
    std::int64_t kibibytes = 0;
    if (size >> kibibytes) largest = std::max(largest, kibibytes << 10);
  }
#if defined(_SC_LEVEL3_CACHE_SIZE)
  if (largest == 0) largest = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  constexpr std::int64_t kDefaultCacheBytes = 32 << 20;
  return largest > 0 ? largest : kDefaultCacheBytes;
}

// True if so many bytes exceed the last-level cache. Non-temporal stores then save reading the lines that they overwrite,
// and the next reader would not have found the data in the cache anyway.
inline bool exceeds_caches(std::int64_t bytes) {
  static const std::int64_t most = last_cache_bytes();
  return bytes > most;
}

constexpr std::size_t kHugePageBytes = 2 << 20;

// Requests pages of 2 MiB for memory of at least two of them: one page fault instead of 512.
inline void use_huge_pages(void* memory, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < static_cast<std::int64_t>(2 * kHugePageBytes)) return;
  const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(memory) + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  const std::uintptr_t last = (reinterpret_cast<std::uintptr_t>(memory) + bytes) / kHugePageBytes * kHugePageBytes;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: nothing to check
#else
  static_cast<void>(memory);
  static_cast<void>(bytes);
#endif
}

}  // namespace exodus::cpu
