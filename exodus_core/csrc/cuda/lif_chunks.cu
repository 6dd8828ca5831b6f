// The LIF backward pass by chunks of time, for few lanes and long T (docs/equations.md, section 7).
//
// A block has kLanes lanes and kChunks chunks of kSteps steps: one pass covers kChunks * kSteps steps, and passes go from
// the end of time to its start. In a pass every thread reduces its chunk to an affine map, one row of threads chains the
// maps, and every thread replays its chunk from what the chain gives it. The slope of a map is a product of at most kSteps
// factors, and may overflow although the serial result is finite; then the block walks that pass serially.
#include "in_place.cuh"
#include "lif.cuh"

#include "../core/scan.h"

namespace exodus::cuda {
namespace {

constexpr int kLanes = 16;
constexpr int kChunks = 16;
constexpr int kSteps = 64;
constexpr int kThreadsOfABlock = kLanes * kChunks;

// The rows of a chunk: while one group of steps is computed, the next one is under way, but for half types.
template <class Storage>
constexpr int kStepsTogether = sizeof(Storage) == 8 ? 2 : kSideBySide;
template <class Storage>
using ChunkRows = Rows<1, kStepsTogether<Storage>, 2, kThreadsOfABlock, Storage, 3>;

__device__ __forceinline__ std::int64_t earlier(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// One lane of a block's pass, whose chunks are walked from their ends.
template <class Storage, bool with_sums>
struct Chunk {
  using Real = compute_t<Storage>;
  static constexpr int kTogether = kStepsTogether<Storage>;

  const LifBackwardArgs<Storage>& args;
  const LifNeuron<Real>& neuron;
  unsigned char* ring;
  int thread;          // of the block
  std::int64_t first;  // offset of t = 0

  // Calls use(step, t) for every step of [begin, end), the last one first.
  template <class Use>
  __device__ __forceinline__ void for_each(std::int64_t begin, std::int64_t end, Use use) const {
    if (begin >= end) return;
    const std::int64_t inner = args.sweep.layout.inner;
    ChunkRows<Storage> rows(args.sweep.in, first + (end - 1) * inner, -inner, static_cast<int>(end - begin), ring, thread);
    Vector<Storage, 1> x[kTogether][3];
#pragma unroll 1
    for (std::int64_t t = end - 1; t >= begin; t -= kTogether) {
      const int steps = static_cast<int>(earlier(kTogether, t - begin + 1));
      rows.take(x, steps);
      Storage from[kTogether][1][3];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
#pragma unroll
        for (int j = 0; j < 3; ++j) from[k][0][j] = x[k][j].at[0];
      }
      args.template for_each<with_sums>({&neuron}, from, [&](int k, int, const LifStep<Real>& step) {
        if (k < steps) use(step, t - k);
      });
    }
  }

  __device__ __forceinline__ AffineMap<Real> reduce(std::int64_t begin, std::int64_t end) const {
    AffineMap<Real> map{Real(1), Real(0)};
    for_each(begin, end, [&](const LifStep<Real>& step, std::int64_t) {
      map = before(args.method, args.reset, args.neurons.bound_after_reset, neuron, step, map);
    });
    return map;
  }

  __device__ __forceinline__ Real replay(std::int64_t begin, std::int64_t end, Real later, LifSums<Real>& sums) const {
    for_each(begin, end, [&](const LifStep<Real>& step, std::int64_t t) {
      later = lif_adjoint_step(args.method, args.reset, with_sums, !args.neurons.bound_after_reset, args.neurons.bound_after_reset, neuron, step, later, sums);
      store_global(args.sweep.out[0] + first + t * args.sweep.layout.inner, store<Storage>(later));
    });
    return later;
  }
};

// Shared memory for the maps of a block, and at its end for their sums, which are larger.
template <class Storage, bool with_sums>
constexpr int kMapBytes = kLanes * kChunks *
                          static_cast<int>(with_sums ? sizeof(LifSums<double>) : sizeof(AffineMap<compute_t<Storage>>));

template <class Storage, bool with_sums>
__global__ void __launch_bounds__(kLanes * kChunks, 1)
    lif_backward_in_chunks(LifBackwardArgs<Storage> args) {
  using Real = compute_t<Storage>;
  const Layout& layout = args.sweep.layout;
  EXODUS_SHARED_MEMORY(shared);
  AffineMap<Real>* maps = reinterpret_cast<AffineMap<Real>*>(shared);  // [chunk][lane]
  const int column = static_cast<int>(threadIdx.x);
  const int chunk = static_cast<int>(threadIdx.y);
  const std::int64_t lane = static_cast<std::int64_t>(blockIdx.x) * kLanes + column;
  const bool active = lane < layout.lanes();
  const std::int64_t mine = active ? lane : 0;
  const LifNeuron<Real> neuron = args.neurons.of(mine % layout.inner);
  const Chunk<Storage, with_sums> piece{args, neuron, shared + kMapBytes<Storage, with_sums>, chunk * kLanes + column,
                                        layout.offset(mine, 0)};
  BlockSums<Real> sums;
  Real carry = 0;  // lam at the end of the pass; every thread of a column has it

  constexpr std::int64_t kPass = static_cast<std::int64_t>(kChunks) * kSteps;
  for (std::int64_t pass = (layout.time - 1) / kPass * kPass; pass >= 0; pass -= kPass) {
    const std::int64_t begin = earlier(pass + static_cast<std::int64_t>(chunk) * kSteps, layout.time);
    const std::int64_t end = earlier(begin + kSteps, layout.time);
    const AffineMap<Real> map = active ? piece.reduce(begin, end) : AffineMap<Real>{Real(1), Real(0)};
    maps[chunk * kLanes + column] = map;
    const bool overflow = !map.is_bounded();
    const bool serial = __syncthreads_or(overflow ? 1 : 0) != 0;
    // Chain: lam at the end of each chunk takes the place of its map, the last chunk first.
    Real later = carry;
    if (chunk == 0 && active) {
      for (int c = kChunks - 1; c >= 0; --c) {
        const AffineMap<Real> reduced = maps[c * kLanes + column];
        maps[c * kLanes + column].offset = later;
        if (serial) {
          const std::int64_t start = earlier(pass + static_cast<std::int64_t>(c) * kSteps, layout.time);
          later = piece.replay(start, earlier(start + kSteps, layout.time), later, sums.block);
          sums.add_block();
        } else {
          later = reduced(later);
        }
      }
    }
    __syncthreads();
    if (!serial && active) {
      later = piece.replay(begin, end, maps[chunk * kLanes + column].offset, sums.block);
      sums.add_block();
    }
    __syncthreads();
    // The result of chunk 0 is the carry of the pass before it in time: from the replay, so that it equals the output.
    if (chunk == 0) maps[column].offset = later;
    __syncthreads();
    carry = maps[column].offset;
    __syncthreads();
  }

  if constexpr (with_sums) {
    LifSums<double>* totals = reinterpret_cast<LifSums<double>*>(shared);  // [chunk][lane]
    totals[chunk * kLanes + column] = sums.total;
    __syncthreads();
    if (chunk == 0 && active) {
      LifSums<double> total{};
      for (int c = 0; c < kChunks; ++c) total += totals[c * kLanes + column];
      args.close(neuron, lane, carry, total);
    }
  }
}

}  // namespace

template <class Storage, bool with_sums>
void lif_backward_by_chunks(const LifBackwardArgs<Storage>& args, const OnDeviceOf& device) {
  const int ring = device.copies_ahead() ? args.sweep.given() * ChunkRows<Storage>::kRingBytes : 0;
  const int shared_bytes = kMapBytes<Storage, with_sums> + ring;
  EXODUS_LAUNCH((lif_backward_in_chunks<Storage, with_sums>), blocks_for(args.sweep.layout.lanes(), kLanes),
                dim3(kLanes, kChunks), shared_bytes, device.stream(), args);
}

template void lif_backward_by_chunks<float, false>(const LifBackwardArgs<float>&, const OnDeviceOf&);
template void lif_backward_by_chunks<float, true>(const LifBackwardArgs<float>&, const OnDeviceOf&);
template void lif_backward_by_chunks<double, false>(const LifBackwardArgs<double>&, const OnDeviceOf&);
template void lif_backward_by_chunks<double, true>(const LifBackwardArgs<double>&, const OnDeviceOf&);
template void lif_backward_by_chunks<Half, false>(const LifBackwardArgs<Half>&, const OnDeviceOf&);
template void lif_backward_by_chunks<Half, true>(const LifBackwardArgs<Half>&, const OnDeviceOf&);
template void lif_backward_by_chunks<BFloat16, false>(const LifBackwardArgs<BFloat16>&, const OnDeviceOf&);
template void lif_backward_by_chunks<BFloat16, true>(const LifBackwardArgs<BFloat16>&, const OnDeviceOf&);

}  // namespace exodus::cuda
