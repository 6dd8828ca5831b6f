// The row kernels, compiled once for each instruction set: kernels_*.cpp defines EXODUS_INSTRUCTION_SET_NAME, sets the
// compiler's target and EXODUS_VECTOR_BYTES, and includes this file. No arithmetic of neurons is here: it is in csrc/core.
#include "lif_kernels.h"
#include "coupled_kernels.h"
#include "coupled_traces.h"
#include "sparse_kernels.h"
#include "pool_kernels.h"

// Rows never overlap unless both are only read; without this hint the compiler does not vectorise so many pointers.
#if defined(__clang__)
#define EXODUS_INDEPENDENT_LANES _Pragma("clang loop vectorize(assume_safety)")
#else
#define EXODUS_INDEPENDENT_LANES _Pragma("GCC ivdep")
#endif

namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME {
namespace {

constexpr std::int64_t kDoubleVecLanes = EXODUS_VECTOR_BYTES / sizeof(double);
using DoubleVec = Vec<double, kDoubleVecLanes>;

template <class Storage, class Real = compute_t<Storage>>
void surrogate(const Surrogate<Real>& call, std::int64_t width, const Storage* membrane, const Real* threshold,
               Real* derivative) {
  with_surrogate(call.kind, [&](auto kind) {
    const Surrogate<Real> surrogate{kind.value, call.slope, call.scale};
    EXODUS_INDEPENDENT_LANES
    for (std::int64_t i = 0; i < width; ++i) derivative[i] = surrogate(load(membrane[i]), threshold[i]);
  });
}

template <class Storage>
void srm_forward(const SrmForwardRow<Storage>& row) {
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < row.width; ++i) {
    row.membrane[i] =
        store<Storage>(srm_step<Storage>(load(row.psp[i]), row.reset[i], row.threshold[i], row.spikes_state[i]));
    row.spikes[i] = store<Storage>(row.spikes_state[i]);
  }
}

template <class Storage>
void srm_backward(const SrmBackwardRow<Storage>& row) {
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < row.width; ++i) {
    row.adjoint[i] = srm_adjoint_step(row.surrogate[i], load(row.grad_spikes[i]), load(row.grad_membrane[i]),
                                      row.reset[i], row.threshold_sum[i]);
    row.grad_psp[i] = store<Storage>(row.adjoint[i]);
  }
}

template <class Real>
void add_tap(std::int64_t width, Real tap, const Real* pushed, Real* response) {
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < width; ++i) exodus::add_tap(tap, pushed[i], response[i]);
}

template <class Real>
void forget_faded_modes(const ModesRow<Real>& row) {
  for (std::int64_t m = 0; m < row.count; ++m) {
    double* p_row = row.state + 2 * m * row.stride;
    for (std::int64_t i = 0; i < row.width; i += kDoubleVecLanes) {
      DoubleVec p = DoubleVec::read(p_row + i), q = DoubleVec::read(p_row + row.stride + i);
      forget_faded(DoubleVec(row.modes[m].least), p, q);
      p.write(p_row + i);
      q.write(p_row + row.stride + i);
    }
  }
}

// The share of one mode in the response of a vector.
template <bool has_linear>
EXODUS_HOST_DEVICE DoubleVec push_vector(const Mode& mode, DoubleVec input, double* p_row, double* q_row) {
  const DoubleVec decay(mode.decay), constant(mode.constant), linear(mode.linear);
  DoubleVec p = DoubleVec::read(p_row), response;
  if constexpr (has_linear) {
    DoubleVec q = DoubleVec::read(q_row);
    response = linear_step(decay, constant, linear, input, p, q);
    q.write(q_row);
  } else {
    response = exponential_step(decay, constant, input, p);
  }
  p.write(p_row);
  return response;
}

// Nearly every kernel has one mode: its constants stay in registers.
template <bool has_linear, class Real>
void push_one_mode(const ModesRow<Real> row, const Mode mode) {
  for (std::int64_t i = 0; i < row.width; i += kDoubleVecLanes) {
    double* p_row = row.state + i;
    const DoubleVec input = widen<DoubleVec>(row.input + i);
    narrow(row.response + i, DoubleVec(0.0) + push_vector<has_linear>(mode, input, p_row, p_row + row.stride));
  }
}

// Several modes are added up in registers, and rounded once.
template <class Real>
void push_several_modes(const ModesRow<Real> row) {
  for (std::int64_t i = 0; i < row.width; i += kDoubleVecLanes) {
    const DoubleVec input = widen<DoubleVec>(row.input + i);
    DoubleVec response(0.0);
    for (std::int64_t m = 0; m < row.count; ++m) {
      double* p_row = row.state + 2 * m * row.stride + i;
      double* q_row = p_row + row.stride;
      response += row.modes[m].has_linear() ? push_vector<true>(row.modes[m], input, p_row, q_row)
                                            : push_vector<false>(row.modes[m], input, p_row, q_row);
    }
    narrow(row.response + i, response);
  }
}

template <class Real>
void push_modes(const ModesRow<Real>& row) {
  if (row.forget_faded) forget_faded_modes(row);
  if (row.count > 1) {
    push_several_modes(row);
  } else if (row.modes->has_linear()) {
    push_one_mode<true>(row, *row.modes);
  } else {
    push_one_mode<false>(row, *row.modes);
  }
}

template <class Storage, class Real = compute_t<Storage>>
void load_row(std::int64_t width, const Storage* stored, Real* row) {
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < width; ++i) row[i] = load(stored[i]);
}

template <class Storage, class Real = compute_t<Storage>>
void store_row(std::int64_t width, const Real* row, Storage* stored) {
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < width; ++i) stored[i] = store<Storage>(row[i]);
}

// A square of lanes and steps is transposed in registers: each of log2(n) rounds interleaves the rows of its upper half
// with those of its lower half.
template <class Element>
constexpr int kSquare = EXODUS_VECTOR_BYTES / sizeof(Element) < 16 ? EXODUS_VECTOR_BYTES / sizeof(Element) : 16;

template <int n, class Element>
EXODUS_HOST_DEVICE void transpose_square(const Element* from, std::int64_t from_stride, Element* to,
                                         std::int64_t to_stride) {
  using Integer = std::conditional_t<sizeof(Element) == 8, std::int64_t,
                                     std::conditional_t<sizeof(Element) == 4, std::int32_t, std::int16_t>>;
  typedef Integer Vector __attribute__((vector_size(n * sizeof(Integer))));
  Vector low, high;
  for (int i = 0; i < n; ++i) {
    low[i] = static_cast<Integer>(i / 2 + (i % 2) * n);
    high[i] = static_cast<Integer>(n / 2 + i / 2 + (i % 2) * n);
  }
  Vector rows[n], turned[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) std::memcpy(&rows[i], from + i * from_stride, sizeof(Vector));
#pragma GCC unroll 4
  for (int round = 1; round < n; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
      turned[2 * i] = __builtin_shuffle(rows[i], rows[i + n / 2], low);
      turned[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + n / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = turned[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) std::memcpy(to + i * to_stride, &rows[i], sizeof(Vector));
}

// Between a tensor whose last axis is time, a row a lane, and rows of lanes, a row a step. A lane is finished before the
// next is begun, since only contiguous memory is fast to read and write. The last square of a row ends
// where the row ends.
template <bool to_lanes, class Element, int n = kSquare<Element>>
void turn(std::int64_t lanes, std::int64_t steps, const Element* from, std::int64_t from_stride, Element* to,
          std::int64_t to_stride) {
  if (lanes < n || steps < n) {
    if constexpr (n > 4) return turn<to_lanes, Element, n / 2>(lanes, steps, from, from_stride, to, to_stride);
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      for (std::int64_t t = 0; t < steps; ++t) {
        if (to_lanes) {
          to[t * to_stride + lane] = from[lane * from_stride + t];
        } else {
          to[lane * to_stride + t] = from[t * from_stride + lane];
        }
      }
    }
    return;
  }
  for (std::int64_t first_lane = 0; first_lane < lanes; first_lane += n) {
    const std::int64_t lane = std::min(first_lane, lanes - n);
    for (std::int64_t first_step = 0; first_step < steps; first_step += n) {
      const std::int64_t t = std::min(first_step, steps - n);
      if (to_lanes) {
        for (std::int64_t next = lane + n; next < std::min(lanes, lane + 2 * n); ++next) {
          __builtin_prefetch(from + next * from_stride + t);
        }
        transpose_square<n>(from + lane * from_stride + t, from_stride, to + t * to_stride + lane, to_stride);
      } else {
        transpose_square<n>(from + t * from_stride + lane, from_stride, to + lane * to_stride + t, to_stride);
      }
    }
  }
}

template <class Element>
EXODUS_HOST_DEVICE void stream_line(const Element* from, Element* to) {
  constexpr int count = EXODUS_VECTOR_BYTES / sizeof(float);
  for (std::int64_t i = 0; i < kLineElements<float>; i += count) {
    const auto vector = Vec<float, count>::read(reinterpret_cast<const float*>(from) + i);
    stream_lanes(reinterpret_cast<float*>(to) + i, vector);
  }
}

// Writes the elements [begin, end) with non-temporal stores; those of partial lines are written as usual.
template <class Element>
EXODUS_HOST_DEVICE void stream_run(std::int64_t begin, std::int64_t end, const Element* from, Element* to) {
  std::int64_t i = begin;
  for (; i < end && reinterpret_cast<std::uintptr_t>(to + i) % kLineBytes != 0; ++i) to[i] = from[i];
  for (; i + kLineElements<Element> <= end; i += kLineElements<Element>) stream_line(from + i, to + i);
  for (; i < end; ++i) to[i] = from[i];
}

template <class Element>
void stream_rows(const StreamedBlock<Element>& block) {
  constexpr std::int64_t line = kLineElements<Element>;
  if (block.before == 0 && block.after == 0) {  // lane after lane without gaps: few steps have no whole line of their own
    turn<false>(block.lanes, block.steps, block.rows, block.rows_stride, block.pending, block.steps);
    stream_run(0, block.lanes * block.steps, block.pending, block.tensor);
    finish_streams();
    return;
  }
  const bool forward = block.direction == Direction::forward;
  constexpr std::int64_t n = kMinTileLanes;
  for (std::int64_t first = 0; first < block.lanes; first += n) {
    const std::int64_t lanes = std::min(n, block.lanes - first);
    turn<false>(lanes, block.steps, block.rows + first, block.rows_stride,
                block.pending + first * block.pending_stride + line, block.pending_stride);
    for (std::int64_t lane = first; lane < first + lanes; ++lane) {
      Element* from = block.pending + lane * block.pending_stride + line;
      Element* to = block.tensor + lane * block.tensor_stride;
      const std::int64_t in_line = reinterpret_cast<std::uintptr_t>(to) % kLineBytes / sizeof(Element);
      const std::int64_t in_last = (in_line + block.steps) % line;
      if (forward) {
        stream_run(-std::min(in_line, block.before), block.after == 0 ? block.steps : block.steps - in_last, from, to);
        std::memmove(from - line, from + block.steps - line, kLineBytes);
      } else {
        stream_run(block.before == 0 ? 0 : (line - in_line) % line,
                   block.steps + std::min(block.after, (line - in_last) % line), from, to);
        std::memmove(from + kBlockSteps, from, kLineBytes);
      }
    }
  }
  finish_streams();
}

// Sixteen sums side by side, added in one fixed order: the same bits on every instruction set.
template <class Storage>
double dot(std::int64_t count, const Storage* a, const Storage* b) {
  constexpr std::int64_t lanes = 16;
  double sums[lanes] = {};
  const std::int64_t whole = count - count % lanes;
  for (std::int64_t i = 0; i < whole; i += lanes) {
    for (std::int64_t j = 0; j < lanes; ++j) {
      sums[j] += static_cast<double>(load(a[i + j])) * static_cast<double>(load(b[i + j]));
    }
  }
  double total = 0;
  for (std::int64_t j = 0; j < lanes; ++j) total += sums[j];
  for (std::int64_t i = whole; i < count; ++i) {
    total += static_cast<double>(load(a[i])) * static_cast<double>(load(b[i]));
  }
  return total;
}

template <class Storage>
constexpr RowKernels<Storage> kernels() {
  using Real = compute_t<Storage>;
  return {kVecLanes<Storage>,   lif_forward<Storage>, lif_backward<Storage>, lif_initial<Real>,
          coupled_forward<Storage>, coupled_backward<Storage>, coupled_initial<Real>,
          coupled_traces<Storage>,
          surrogate<Storage>,   srm_forward<Storage>, srm_backward<Storage>, add_tap<Real>,
          push_modes<Real>,     load_row<Storage>,    store_row<Storage>,    turn<true, Storage>,
          turn<false, Storage>, stream_rows<Storage>, dot<Storage>,       add_panel_rows<Real>,
          sum_of_columns<Storage>, add_to_columns<Storage>, add_windows<Real>,
          add_from_tables<Real>, add_chosen_rows<Real>,
          pack<Storage>,        pack_rows<Storage>,   unpack<Storage>,
          max_pool<Storage>,    max_pool_backward<Storage>,
          avg_pool<Storage>,    avg_pool_backward<Storage>};
}

}  // namespace

extern const InstructionSet set = {
    EXODUS_INSTRUCTION_SET_LABEL,
    EXODUS_VECTOR_BYTES == kLineBytes,
    count_ones,
    kernels<float>(),
    kernels<double>(),
    kernels<Half>(),
    kernels<BFloat16>(),
};

}  // namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME
