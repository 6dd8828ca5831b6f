// The LIF backward pass by chunks of time, for few lanes and long T (docs/equations.md, section 7).
//
// A block has kLanes lanes and kChunks chunks of kSteps steps: one pass covers kChunks * kSteps steps, and passes go from
// the end of time to its start. In a pass every thread reduces its chunk to an affine map, one row of threads chains the
// maps, and every thread replays its chunk from what the chain gives it. The slope of a map is a product of at most kSteps
// factors, and may overflow although the serial result is finite; then the block walks that pass serially.
#include "lif.cuh"

#include "../core/scan.h"

namespace exodus::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kChunks = 16;
constexpr int kSteps = 64;

__device__ __forceinline__ std::int64_t earlier(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

template <class Storage, bool with_sums>
struct Chunk {
  using Real = compute_t<Storage>;
  const LifBackwardArgs<Storage>& args;
  const LifNeuron<Real>& neuron;
  std::int64_t first;  // offset of t = 0

  __device__ __forceinline__ std::int64_t at(std::int64_t t) const { return first + t * args.sweep.layout.inner; }

  __device__ __forceinline__ LifStep<Real> step(std::int64_t t) const {
    Storage from[3];
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      from[j] = args.sweep.in[j] == nullptr ? Storage{} : load_global(args.sweep.in[j] + at(t));
    }
    return args.template step<with_sums>(neuron, from);
  }

  __device__ __forceinline__ AffineMap<Real> reduce(std::int64_t begin, std::int64_t end) const {
    AffineMap<Real> map{Real(1), Real(0)};
    for (std::int64_t t = end - 1; t >= begin; --t) map = before(args.method, args.reset, neuron, step(t), map);
    return map;
  }

  __device__ __forceinline__ Real replay(std::int64_t begin, std::int64_t end, Real later, LifSums<Real>& sums) const {
    for (std::int64_t t = end - 1; t >= begin; --t) {
      later = lif_adjoint_step(args.method, args.reset, with_sums, true, neuron, step(t), later, sums);
      store_global(args.sweep.out[0] + at(t), store<Storage>(later));
    }
    return later;
  }
};

template <class Storage, bool with_sums>
__global__ void __launch_bounds__(kLanes * kChunks, kMinBlocks<Storage>)
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
  const Chunk<Storage, with_sums> piece{args, neuron, layout.offset(mine, 0)};
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
void lif_backward_by_chunks(const LifBackwardArgs<Storage>& args, cudaStream_t stream) {
  constexpr int kOf = with_sums ? sizeof(LifSums<double>) : sizeof(AffineMap<compute_t<Storage>>);  // the maps are smaller
  constexpr int kShared = kLanes * kChunks * kOf;
  EXODUS_LAUNCH((lif_backward_in_chunks<Storage, with_sums>), blocks_for(args.sweep.layout.lanes(), kLanes),
                dim3(kLanes, kChunks), kShared, stream, args);
}

template void lif_backward_by_chunks<float, false>(const LifBackwardArgs<float>&, cudaStream_t);
template void lif_backward_by_chunks<float, true>(const LifBackwardArgs<float>&, cudaStream_t);
template void lif_backward_by_chunks<double, false>(const LifBackwardArgs<double>&, cudaStream_t);
template void lif_backward_by_chunks<double, true>(const LifBackwardArgs<double>&, cudaStream_t);
template void lif_backward_by_chunks<Half, false>(const LifBackwardArgs<Half>&, cudaStream_t);
template void lif_backward_by_chunks<Half, true>(const LifBackwardArgs<Half>&, cudaStream_t);
template void lif_backward_by_chunks<BFloat16, false>(const LifBackwardArgs<BFloat16>&, cudaStream_t);
template void lif_backward_by_chunks<BFloat16, true>(const LifBackwardArgs<BFloat16>&, cudaStream_t);

}  // namespace exodus::cuda
