// Small kernels, right and wrong ones, that test_emulator.py runs by name: `example_kernels NAME` prints the numbers
// that the kernel gave.
#include "emulator.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/adjoint.h"
#include "core/neuron.h"
#include "core/surrogate.h"

template <>
struct exodus::SmallestNormal<exodus::emulation::Counted> : exodus::SmallestNormal<float> {};

namespace {

using exodus::emulation::count_global_load;
using exodus::emulation::count_global_store;

constexpr unsigned whole_warp = 0xffffffffu;
constexpr cudaStream_t no_stream = nullptr;

template <class T>
void print(const std::vector<T>& values) {
  for (const T value : values) {
    std::printf("%g ", static_cast<double>(value));
  }
}

// Right.

template <class T, int threads>
__global__ void __launch_bounds__(threads) sum_of_block(const T* in, T* out, std::int64_t count) {
  EXODUS_SHARED_MEMORY(bytes);
  T* const partial = reinterpret_cast<T*>(bytes);
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  partial[threadIdx.x] = T(0);
  if (i < count) {
    count_global_load(sizeof(T));
    partial[threadIdx.x] = in[i];
  }
  for (unsigned width = blockDim.x / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) {
      partial[threadIdx.x] += partial[threadIdx.x + width];
    }
  }
  if (threadIdx.x == 0) {
    count_global_store(sizeof(T));
    out[blockIdx.x] = partial[0];
  }
}

// Each thread adds up the first three of four numbers, of which `left` may still be on their way.
template <int left>
__global__ void reads_copies_in_turn(float* numbers) {
  EXODUS_SHARED_MEMORY(bytes);
  float* const ring = reinterpret_cast<float*>(bytes) + 4 * threadIdx.x;
  float* const mine = numbers + 4 * threadIdx.x;
  for (int i = 0; i < 4; ++i) {
    exodus::emulation::copy_async(ring + i, mine + i, sizeof(float));
    exodus::emulation::commit_copies();
  }
  exodus::emulation::wait_for_copies(left);
  float sum = 0;
  for (int i = 0; i < 4 - 1; ++i) sum += ring[i];
  mine[0] = sum;
}

__global__ void copies_beyond_shared_memory(float* numbers) {
  EXODUS_SHARED_MEMORY(bytes);
  exodus::emulation::copy_async(bytes + 4 * threadIdx.x, numbers, 8);
}

__global__ void copies_across_alignment(float* numbers) {
  EXODUS_SHARED_MEMORY(bytes);
  exodus::emulation::copy_async(bytes, numbers + 1, 8);
}

template <class Kernel>
void run_copies(Kernel kernel, unsigned shared_bytes) {
  alignas(16) float numbers[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  EXODUS_LAUNCH(kernel, 1, 2, shared_bytes, no_stream, numbers);
  print(std::vector<float>{numbers[0], numbers[4]});
}

std::vector<double> block_sums() {
  std::vector<double> in(1000), out(4);
  for (std::size_t i = 0; i < in.size(); ++i) {
    in[i] = static_cast<double>(i);
  }
  EXODUS_LAUNCH((sum_of_block<double, 256>), 4, 256, 256 * sizeof(double), no_stream, in.data(), out.data(), 1000);
  return out;
}

__global__ void mark_each_place(int* seen) {
  const unsigned x = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned y = blockIdx.y * blockDim.y + threadIdx.y;
  seen[y * (gridDim.x * blockDim.x) + x] += 1;
}

__global__ void any_thread(int chosen, int* out) {
  const int first = __syncthreads_or(static_cast<int>(threadIdx.x) == chosen ? 6 : 0);
  const int second = __syncthreads_or(0);
  out[threadIdx.x] = 10 * (first != 0) + (second != 0);
}

__global__ void neighbours_in_warp(int* below, int* above, int* second) {
  const int lane = static_cast<int>(threadIdx.x);
  below[lane] = __shfl_up_sync(whole_warp, lane, 1);
  above[lane] = __shfl_down_sync(whole_warp, lane, 2);
  second[lane] = __shfl_sync(whole_warp, lane, 1);
}

__global__ void record_turns(int* turns, int* taken) {
  const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  turns[(*taken)++] = thread;
  __syncthreads();
  turns[(*taken)++] = thread;
}

// Elements of any type, as the kernels of the extension are.
template <class Storage>
__global__ void neuron_steps(const Storage* in, Storage* spikes, Storage* gradients, int steps) {
  using Real = exodus::compute_t<Storage>;
  using exodus::load;
  constexpr auto reset = exodus::Reset::subtract;
  const exodus::LifNeuron<Real> neuron{Real(0.5), Real(1), Real(1), Real(-1000), Real(1)};
  Real membrane = Real(0), fired = Real(0);
  for (int t = 0; t < steps; ++t) {
    membrane = exodus::integrate(reset, neuron, membrane, fired, Real(load(in[t])));
    fired = exodus::fire(false, membrane, neuron.threshold, neuron.max_spikes);
    spikes[t] = exodus::store<Storage>(fired);
    gradients[t] = exodus::store<Storage>(
        exodus::surrogate_derivative(exodus::SurrogateKind::exponential, membrane - neuron.threshold, Real(2)));
  }
}

// Wrong.

__global__ void reads_what_nobody_wrote(float* out) {
  EXODUS_SHARED_MEMORY(bytes);
  float* const shared = reinterpret_cast<float*>(bytes);
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x];
  __syncthreads();
  shared[threadIdx.x] = 1.0f;
}

__global__ void forgets_a_barrier(float* out) {
  EXODUS_SHARED_MEMORY(bytes);
  float* const shared = reinterpret_cast<float*>(bytes);
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = threadIdx.x == 0 ? 0.0f : shared[threadIdx.x - 1];
}

__global__ void reads_another_block(float* out) { out[blockIdx.x + 1] = out[blockIdx.x] + 1.0f; }

__global__ void leaves_before_the_barrier(int count) {
  if (static_cast<int>(threadIdx.x) >= count) {
    return;
  }
  __syncthreads();
}

__global__ void waits_at_two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void waits_more_often_than_others() {
  for (unsigned i = 0; i <= threadIdx.x; ++i) {
    __syncthreads();
  }
}

__global__ void shuffles_without_a_lane(int* out) {
  if (threadIdx.x != 5) {
    out[threadIdx.x] = __shfl_sync(whole_warp, 1, 0);
  }
}

__global__ void shuffles_half_a_warp(int* out) { out[threadIdx.x] = __shfl_sync(0xffffu, 1, 0); }

__global__ void writes_beyond_shared_memory() {
  EXODUS_SHARED_MEMORY(bytes);
  __syncthreads();
  bytes[threadIdx.x] = 1;
}

__device__ int element(const int* array, unsigned place) { return array[place]; }

__global__ void reads_beyond_a_local_array(int* out) {
  int local[32] = {};
  __syncthreads();
  out[threadIdx.x] = element(local, threadIdx.x + 1);
}

struct alignas(16) Four {
  float values[4];
};

__global__ void loads_across_alignment(const Four* in, float* out) {
  const Four four = *in;
  out[0] = four.values[0];
}

__global__ void throws() {
  if (threadIdx.x == 3) {
    throw std::runtime_error("as asked");
  }
}

__device__ int depth_of_recursion(int left) {
  volatile char frame[1024] = {};
  return left == 0 ? frame[0] : 1 + depth_of_recursion(left - 1);
}

// 400 KiB of stack: more than a thread has, less than the stacks of the threads that wait beside it.
__global__ void recurses_deeply(int* out) {
  __syncthreads();
  if (threadIdx.x == 0) {
    out[0] = depth_of_recursion(400);
  }
}

__global__ void does_nothing() {}

__global__ void launches_a_kernel() { EXODUS_LAUNCH(does_nothing, 1, 1, 0, no_stream); }

// Launches. The commands that end the program print nothing.

void run_blocks_of_two_dimensions() {
  std::vector<int> seen(6 * 12);
  EXODUS_LAUNCH(mark_each_place, dim3(2, 3), dim3(3, 4), 0, no_stream, seen.data());
  print(seen);
}

void run_any_thread(int chosen) {
  std::vector<int> out(64);
  EXODUS_LAUNCH(any_thread, 1, 64, 0, no_stream, chosen, out.data());
  print(out);
}

void run_shuffles() {
  std::vector<int> below(40), above(40), second(40);
  EXODUS_LAUNCH(neighbours_in_warp, 1, 40, 0, no_stream, below.data(), above.data(), second.data());
  print(below);
  print(above);
  print(second);
}

void run_turns() {
  std::vector<int> turns(16);
  int taken = 0;
  EXODUS_LAUNCH(record_turns, 2, 4, 0, no_stream, turns.data(), &taken);
  print(turns);
}

void run_on_two_threads() {
  std::vector<double> here(4), there(4);
  std::atomic<int> ready{0};
  const auto add_many = [&ready](std::vector<double>& sums) {
    ready += 1;
    while (ready < 2) {
      std::this_thread::yield();
    }
    for (int launch = 0; launch < 10; ++launch) {
      const std::vector<double> once = block_sums();
      std::transform(sums.begin(), sums.end(), once.begin(), sums.begin(), std::plus<double>());
    }
  };
  std::thread other([&] { add_many(there); });
  add_many(here);
  other.join();
  print(here);
  print(there);
}

void run_counters() {
  block_sums();
  block_sums();
  std::puts(exodus::emulation::counters_as_json().c_str());
  exodus::emulation::counter_table.reset();
  std::puts(exodus::emulation::counters_as_json().c_str());
}

void run_operations() {
  using exodus::emulation::Counted;
  const std::vector<float> in = {0.7f, 0.8f, 0.9f, -0.3f, 2.5f};
  const int steps = static_cast<int>(in.size());
  std::vector<float> spikes(in.size()), gradients(in.size());
  EXODUS_LAUNCH(neuron_steps<float>, 1, 1, 0, no_stream, in.data(), spikes.data(), gradients.data(), steps);
  const std::vector<Counted> counted_in(in.begin(), in.end());
  std::vector<Counted> counted_spikes(in.size()), counted_gradients(in.size());
  EXODUS_LAUNCH(neuron_steps<Counted>, 1, 1, 0, no_stream, counted_in.data(), counted_spikes.data(),
                counted_gradients.data(), steps);
  print(spikes);
  print(gradients);
  print(counted_spikes);
  print(counted_gradients);
  std::printf("\n%s\n", exodus::emulation::counters_as_json().c_str());
}

void run_floats(void (*kernel)(float*), unsigned blocks, unsigned threads) {
  std::vector<float> out(blocks * threads + 1);
  EXODUS_LAUNCH(kernel, blocks, threads, 4 * threads, no_stream, out.data());
  print(out);
}

void run_ints(void (*kernel)(int*)) {
  std::vector<int> out(32);
  EXODUS_LAUNCH(kernel, 1, 32, 0, no_stream, out.data());
}

void run_misaligned() {
  alignas(16) float in[8] = {};
  float out = 0;
  EXODUS_LAUNCH(loads_across_alignment, 1, 1, 0, no_stream, reinterpret_cast<const Four*>(in + 1), &out);
}

const std::map<std::string, std::function<void()>> commands = {
    {"block_sums", [] { print(block_sums()); }},
    {"blocks_of_two_dimensions", run_blocks_of_two_dimensions},
    {"any_thread_40", [] { run_any_thread(40); }},
    {"any_thread_none", [] { run_any_thread(-1); }},
    {"shuffles", run_shuffles},
    {"turns", run_turns},
    {"waits_for_copies", [] { run_copies(reads_copies_in_turn<1>, 32); }},
    {"reads_a_copy_under_way", [] { run_copies(reads_copies_in_turn<2>, 32); }},
    {"copies_beyond_shared_memory", [] { run_copies(copies_beyond_shared_memory, 8); }},
    {"copies_across_alignment", [] { run_copies(copies_across_alignment, 8); }},
    {"two_threads", run_on_two_threads},
    {"counters", run_counters},
    {"operations", run_operations},
    {"reads_what_nobody_wrote", [] { run_floats(reads_what_nobody_wrote, 2, 4); }},
    {"forgets_a_barrier", [] { run_floats(forgets_a_barrier, 1, 8); }},
    {"reads_another_block", [] { run_floats(reads_another_block, 8, 1); }},
    {"leaves_before_the_barrier",
     [] { EXODUS_LAUNCH(leaves_before_the_barrier, dim3(3, 2), dim3(8, 2), 0, no_stream, 7); }},
    {"waits_at_two_barriers", [] { EXODUS_LAUNCH(waits_at_two_barriers, 1, 64, 0, no_stream); }},
    {"waits_more_often_than_others", [] { EXODUS_LAUNCH(waits_more_often_than_others, 1, 2, 0, no_stream); }},
    {"shuffles_without_a_lane", [] { run_ints(shuffles_without_a_lane); }},
    {"shuffles_half_a_warp", [] { run_ints(shuffles_half_a_warp); }},
    {"writes_beyond_shared_memory", [] { EXODUS_LAUNCH(writes_beyond_shared_memory, 1, 33, 32, no_stream); }},
    {"reads_beyond_a_local_array", [] { run_ints(reads_beyond_a_local_array); }},
    {"loads_across_alignment", run_misaligned},
    {"throws", [] { EXODUS_LAUNCH(throws, 1, 8, 0, no_stream); }},
    {"launches_a_kernel", [] { EXODUS_LAUNCH(launches_a_kernel, 1, 2, 0, no_stream); }},
    {"recurses_deeply", [] { run_ints(recurses_deeply); }},
    {"barrier_on_the_host", [] { __syncthreads(); }},
    {"no_blocks", [] { EXODUS_LAUNCH(does_nothing, 0, 32, 0, no_stream); }},
    {"no_threads", [] { EXODUS_LAUNCH(does_nothing, 1, 0, 0, no_stream); }},
    {"many_blocks_in_x", [] { EXODUS_LAUNCH(does_nothing, dim3(2147483648), 1, 0, no_stream); }},
    {"many_blocks_in_y", [] { EXODUS_LAUNCH(does_nothing, dim3(1, 65536), 1, 0, no_stream); }},
    {"many_threads", [] { EXODUS_LAUNCH(does_nothing, 1, dim3(32, 33), 0, no_stream); }},
    {"much_shared_memory", [] { EXODUS_LAUNCH(does_nothing, 1, 1, 49153, no_stream); }},
    {"a_count_beyond_32_bits", [] { EXODUS_LAUNCH(does_nothing, std::int64_t{1} << 32, 1, 0, no_stream); }},
};

}  // namespace

int main(int, char** arguments) { commands.at(arguments[1])(); }
