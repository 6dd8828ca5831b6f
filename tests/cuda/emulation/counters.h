// Work of a kernel, counted and summed over its launches.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace exodus::emulation {

struct Counters {
  std::int64_t launches = 0;
  std::int64_t blocks = 0;
  std::int64_t threads = 0;
  std::int64_t barriers = 0;      // __syncthreads, once for each block that passes one
  std::int64_t shared_bytes = 0;  // dynamic shared memory of all blocks
  std::int64_t loads = 0;         // of global memory, as are the next three
  std::int64_t loaded_bytes = 0;
  std::int64_t stores = 0;
  std::int64_t stored_bytes = 0;
  std::int64_t additions = 0;  // these five only where the element type is Counted (operations.h)
  std::int64_t multiplications = 0;
  std::int64_t divisions = 0;
  std::int64_t comparisons = 0;
  std::int64_t exponentials = 0;
};

struct CounterField {
  const char* name;
  std::int64_t Counters::*value;
};

constexpr CounterField counter_fields[] = {
    {"launches", &Counters::launches},
    {"blocks", &Counters::blocks},
    {"threads", &Counters::threads},
    {"barriers", &Counters::barriers},
    {"shared_bytes", &Counters::shared_bytes},
    {"loads", &Counters::loads},
    {"loaded_bytes", &Counters::loaded_bytes},
    {"stores", &Counters::stores},
    {"stored_bytes", &Counters::stored_bytes},
    {"additions", &Counters::additions},
    {"multiplications", &Counters::multiplications},
    {"divisions", &Counters::divisions},
    {"comparisons", &Counters::comparisons},
    {"exponentials", &Counters::exponentials},
};

// Those of the launch that runs on this thread.
inline thread_local Counters this_launch;

inline void count_global_load(std::int64_t bytes) {
  this_launch.loads += 1;
  this_launch.loaded_bytes += bytes;
}

inline void count_global_store(std::int64_t bytes) {
  this_launch.stores += 1;
  this_launch.stored_bytes += bytes;
}

// By the kernel's name as the launch spells it. Autograd launches from a thread of its own, hence the lock.
class CounterTable {
 public:
  void add(const std::string& kernel, const Counters& counters) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Counters& sum = by_kernel_[kernel];
    for (const CounterField& field : counter_fields) {
      sum.*field.value += counters.*field.value;
    }
  }

  void reset() {
    const std::lock_guard<std::mutex> lock(mutex_);
    by_kernel_.clear();
  }

  std::map<std::string, Counters> snapshot() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return by_kernel_;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, Counters> by_kernel_;
};

inline CounterTable counter_table;

// {"kernel": {"launches": 1, ...}, ...}
inline std::string counters_as_json() {
  std::string json = "{";
  for (const auto& [kernel, counted] : counter_table.snapshot()) {
    json += (json.size() > 1 ? ", \"" : "\"") + kernel + "\": {";
    for (const CounterField& field : counter_fields) {
      json += std::string(&field == counter_fields ? "\"" : ", \"") + field.name +
              "\": " + std::to_string(counted.*field.value);
    }
    json += "}";
  }
  return json + "}";
}

}  // namespace exodus::emulation
