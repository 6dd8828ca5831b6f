// The part of CUDA that the kernels use, on the host: the same .cu files, compiled as C++, run under a debugger and the
// sanitizers, in any order of blocks and threads. README.md says what this finds and what it cannot.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>

#include "emulation/block.h"
#include "emulation/counters.h"
#include "emulation/failure.h"
#include "emulation/operations.h"
#include "emulation/order.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define EXODUS_SHARED_MEMORY(bytes_name) unsigned char* const bytes_name = ::exodus::emulation::shared_memory()

// EXODUS_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...); a template-id goes in parentheses.
#define EXODUS_LAUNCH(kernel, ...) ::exodus::emulation::launch(#kernel, kernel, __VA_ARGS__)

struct dim3 {
  unsigned x, y, z;

  // 64 bits, so that a count that does not fit is found and not cut.
  constexpr dim3(std::uint64_t x = 1, std::uint64_t y = 1, std::uint64_t z = 1)
      : x(checked(x)), y(checked(y)), z(checked(z)) {}

 private:
  static constexpr unsigned checked(std::uint64_t count) {
    if (count > std::numeric_limits<unsigned>::max()) {
      exodus::emulation::fail("a dimension of dim3 must fit in 32 bits, got " +
                              std::to_string(static_cast<std::int64_t>(count)));
    }
    return static_cast<unsigned>(count);
  }
};

using cudaStream_t = struct CUstream_st*;

inline thread_local dim3 blockDim;
inline thread_local dim3 gridDim;

namespace exodus::emulation {

constexpr std::size_t max_shared_bytes = 48 * 1024;  // without cudaFuncSetAttribute
constexpr std::size_t max_parameter_bytes = 4096;

inline Block& running_block(const char* caller) {
  if (Block::running == nullptr) {
    fail(std::string(caller) + " was called outside a kernel");
  }
  return *Block::running;
}

// Null where the launch asked for none.
inline unsigned char* shared_memory() { return running_block("EXODUS_SHARED_MEMORY").shared_memory(); }

// The limits of compute capability 5.0 and later; a launch beyond them returns an error on a GPU.
inline void check_launch(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes) {
  const auto require = [kernel](bool holds, const char* what, std::uint64_t got, const char* wanted) {
    if (!holds) {
      fail(std::string(kernel) + ": " + what + " must be " + wanted + ", got " + std::to_string(got));
    }
  };
  require(grid.x >= 1 && grid.x <= 2147483647u, "grid.x", grid.x, "1 to 2147483647");
  require(grid.y >= 1 && grid.y <= 65535u, "grid.y", grid.y, "1 to 65535");
  require(grid.z >= 1 && grid.z <= 65535u, "grid.z", grid.z, "1 to 65535");
  require(block.x >= 1 && block.x <= 1024u, "block.x", block.x, "1 to 1024");
  require(block.y >= 1 && block.y <= 1024u, "block.y", block.y, "1 to 1024");
  require(block.z >= 1 && block.z <= 64u, "block.z", block.z, "1 to 64");
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  require(threads <= 1024u, "the threads of a block", threads, "at most 1024");
  require(shared_bytes <= max_shared_bytes, "the shared bytes of a block", shared_bytes, "at most 49152");
}

// Runs the kernel to its end; the stream is not used.
template <class... Parameters, class... Arguments>
void launch(const char* kernel_name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t, Arguments... arguments) {
  static_assert(std::is_invocable_v<void (*)(Parameters...), Arguments...>, "the kernel takes other arguments");
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "the parameters of a kernel are copied as bytes");
  static_assert((!std::is_reference_v<Parameters> && ...), "a kernel takes its parameters by value");
  static_assert((sizeof(Parameters) + ... + 0) <= max_parameter_bytes, "a kernel has 4096 bytes for its parameters");
  static const OrderSetting setting = OrderSetting::from_environment();
  if (Block::running != nullptr) {
    Block::running->fail_here(std::string("launches ") + kernel_name + "; only the host launches");
  }
  check_launch(kernel_name, grid, block, shared_bytes);

  const std::tuple<Parameters...> parameters(arguments...);
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  this_launch = {};
  gridDim = grid;
  blockDim = block;
  Order order(setting, blocks, 0);
  Block emulated(kernel_name, {block.x, block.y, block.z}, shared_bytes, setting,
                 [&] { std::apply(kernel, parameters); });
  for (const std::uint64_t i : order.next()) {
    emulated.run({static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                  static_cast<unsigned>(i / grid.x / grid.y)});
  }

  this_launch.launches = 1;
  this_launch.blocks = static_cast<std::int64_t>(blocks);
  this_launch.threads = this_launch.blocks * block.x * block.y * block.z;
  this_launch.shared_bytes = this_launch.blocks * static_cast<std::int64_t>(shared_bytes);
  counter_table.add(kernel_name, this_launch);
}

// A value of at most 8 bytes, as one thread hands it to another.
template <class T>
T exchange(const char* name, unsigned mask, T value, int width, int (*source)(int lane, int by), int by,
           const char* file, int line) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t), "a shuffle moves 4 or 8 bytes");
  Block& block = running_block(name);
  if (mask != 0xffffffffu || width != static_cast<int>(warp_size)) {
    block.fail_here(std::string("calls ") + name + ", which is emulated for whole warps only: 0xffffffff, width 32");
  }
  std::uint64_t bytes = 0;
  std::memcpy(&bytes, &value, sizeof(T));
  block.wait({Barrier::Scope::warp, file, line}, bytes);
  const int lane = static_cast<int>(block.lane());
  const int from = source(lane, by);
  bytes = block.handed_in_by(static_cast<unsigned>(from < 0 || from >= width ? lane : from));
  std::memcpy(&value, &bytes, sizeof(T));
  return value;
}

// cp.async, its groups, and the wait for them.
inline void copy_async(void* shared, const void* global, std::size_t bytes) {
  running_block("cp.async").copy_async(shared, global, bytes);
}
inline void commit_copies() { running_block("cp.async.commit_group").commit_copies(); }
inline void wait_for_copies(std::int64_t left) { running_block("cp.async.wait_group").wait_for_copies(left); }

}  // namespace exodus::emulation

// The file and line are where the call stands: threads that wait at two different barriers do not meet.
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  using exodus::emulation::Barrier;
  exodus::emulation::running_block("__syncthreads").wait({Barrier::Scope::block, file, line}, 0);
}

inline int __syncthreads_or(int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  using exodus::emulation::Barrier;
  auto& block = exodus::emulation::running_block("__syncthreads_or");
  block.wait({Barrier::Scope::block, file, line}, predicate != 0);
  return block.any_handed_in();
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
  constexpr auto lane_at = [](int, int by) { return by & 31; };
  return exodus::emulation::exchange("__shfl_sync", mask, value, width, +lane_at, source, file, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  constexpr auto lane_below = [](int lane, int by) { return lane - by; };
  return exodus::emulation::exchange("__shfl_up_sync", mask, value, width, +lane_below, int(delta), file, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  constexpr auto lane_above = [](int lane, int by) { return lane + by; };
  return exodus::emulation::exchange("__shfl_down_sync", mask, value, width, +lane_above, int(delta), file, line);
}
