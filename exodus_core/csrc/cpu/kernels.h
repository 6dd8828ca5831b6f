// Row kernels: steps in time of up to kMaxTileLanes lanes (neurons) that lie next to each other.
//
// They are the only loops over neurons. A table of them is compiled for each instruction set (kernels_*.cpp from
// kernels_impl.h) and chosen once at load time; lif.cpp, srm.cpp and filter.cpp sweep the rows through time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/adjoint.h"
#include "../core/causal_kernel.h"
#include "../core/coupled_adjoint.h"
#include "../core/neuron.h"
#include "../core/dtypes.h"
#include "../core/surrogate.h"

namespace exodus::cpu {

// Rows of state have this many lanes at most: 16 KiB of floats, which stay in a first-level cache.
constexpr std::int64_t kMaxTileLanes = 4096;

// The lanes of the widest vector. Narrower tensors are copied to rows of their own.
constexpr std::int64_t kMinTileLanes = 16;

// Steps that are staged together, and after which the short sums of parameter gradients are added to the long ones.
constexpr std::int64_t kBlockSteps = 128;

constexpr std::int64_t kLineBytes = 64;  // a cache line

template <class Storage>
constexpr std::int64_t kLineElements = kLineBytes / static_cast<std::int64_t>(sizeof(Storage));

enum class Direction { forward, backward };

// A parameter of the neurons in a tile: one value for all lanes, or one a lane.
template <class Real>
struct ParameterRow {
  const Real* values;
  bool per_lane;
};

template <class Real>
struct NeuronRows {
  ParameterRow<Real> alpha;
  ParameterRow<Real> threshold;
  ParameterRow<Real> reset_by;
  ParameterRow<Real> min_membrane;
  Real max_spikes;
  bool bound_after_reset;
};

// Successive rows of a tile, from one step to the next; `stride` elements lie between two. Null reads as zeros.
template <class T>
struct RowBlock {
  T* first;
  std::int64_t stride;
  bool streamed;  // the kernel writes them with non-temporal stores
  // For rows that are copied to or from a tensor whose last axis is time: the elements of that tensor that the kernel
  // prefetches meanwhile, at lane 0 and step 0 of the block, and how many lie between two lanes. If it is null, the
  // kernel prefetches rows of this block.
  const T* ahead;
  std::int64_t ahead_stride;

  T* operator[](std::int64_t step) const { return first + step * stride; }
};

// LIF kernels sweep a block of steps over vectors: as many lanes as a vector register holds. The last vector of a row ends
// where the row ends, and so computes some lanes a second time, with the same result. State and sums are kept vector
// after vector (tiles.h has the way to and from lanes).
template <class Storage>
struct LifForwardBlock {
  using Real = compute_t<Storage>;
  std::int64_t width;
  std::int64_t steps;
  NeuronRows<Real> neuron;
  RowBlock<const Storage> input;
  RowBlock<Storage> spikes;
  RowBlock<Storage> membrane;
  Real* membrane_state;  // u before the block in, after it out
  Real* spikes_state;    // s likewise
};

// Sums over time, per lane, of the parameter gradients. Null if they are not wanted (all of them or none).
template <class Real>
struct ParameterSums {
  Real* alpha;
  Real* threshold;
  Real* reset_by;
  Real* min_membrane;
};

template <class Storage>
struct LifBackwardBlock {
  using Real = compute_t<Storage>;
  std::int64_t width;
  std::int64_t steps;
  NeuronRows<Real> neuron;
  Surrogate<Real> surrogate;
  RowBlock<const Storage> membrane;
  RowBlock<const Storage> grad_spikes;
  RowBlock<const Storage> grad_membrane;
  RowBlock<Storage> grad_input;
  Real* adjoint;  // lam after the block in time in, at its first step out
  Real* total;    // float32: lam is added to it in each step, and grad_input is not written; null if that is not wanted
  ParameterSums<Real> sums;
};

// The step from t = -1 to t = 0, whose membrane and spikes are given: it closes the backward pass.
template <class Real>
struct LifInitialRow {
  std::int64_t width;
  NeuronRows<Real> neuron;
  const Real* membrane;  // u[-1]
  const Real* spikes;    // s[-1]
  const Real* adjoint;   // lam[0]
  Real* grad_membrane;
  Real* grad_spikes;
  ParameterSums<Real> sums;
};

// The parameters of neurons with coupled variables, in the order of CoupledParameter.
template <class Real>
struct CoupledRows {
  ParameterRow<Real> of[kCoupledParameters];
};

// As LifForwardBlock. `state` has the rows of CoupledStateRow: before the block in, after it out.
template <class Storage>
struct CoupledForwardBlock {
  using Real = compute_t<Storage>;
  std::int64_t width;
  std::int64_t steps;
  CoupledRows<Real> neuron;
  Coupling coupling;
  Real max_spikes;
  Real refractory;
  RowBlock<const Storage> input;
  RowBlock<Storage> spikes;
  RowBlock<Storage> membrane;
  RowBlock<Storage> current;
  RowBlock<Storage> adaptation;
  RowBlock<Storage> held;
  bool keeps_current;
  bool keeps_adaptation;
  bool keeps_held;
  Real* state[kCoupledStates];
};

// The rows of CoupledAdjoint.
template <class Real>
struct CoupledAdjointRows {
  Real* moved;
  Real* adaptation;
  Real* current;
  Real* held;
  Real* into_adaptation;
  Real* into_current;
};

// In the order of CoupledParameter; null if they are not wanted.
template <class Real>
struct CoupledSumRows {
  Real* of[kCoupledParameters];
};

template <class Storage>
struct CoupledBackwardBlock {
  using Real = compute_t<Storage>;
  std::int64_t width;
  std::int64_t steps;
  CoupledRows<Real> neuron;
  Coupling coupling;
  Real max_spikes;
  Surrogate<Real> surrogate;
  RowBlock<const Storage> membrane;
  RowBlock<const Storage> current;
  RowBlock<const Storage> adaptation;
  RowBlock<const Storage> held;
  RowBlock<const Storage> grad_spikes;
  RowBlock<const Storage> grad_membrane;
  bool keeps_current;
  bool keeps_adaptation;
  bool keeps_held;
  bool has_grad_spikes;
  bool has_grad_membrane;
  RowBlock<Storage> grad_input;
  CoupledAdjointRows<Real> adjoint;  // after the block in time in, at its first step out
  CoupledSumRows<Real> sums;
};

// The step from t = -1 to t = 0: it closes the backward pass.
template <class Real>
struct CoupledInitialRow {
  std::int64_t width;
  CoupledRows<Real> neuron;
  Coupling coupling;
  const Real* initial[kCoupledStates];
  CoupledAdjointRows<Real> adjoint;
  Real* gradient[kCoupledStates];
  CoupledSumRows<Real> sums;
};

// As CoupledForwardBlock, of a membrane that is known.
template <class Storage>
struct CoupledTracesBlock {
  using Real = compute_t<Storage>;
  std::int64_t width;
  std::int64_t steps;
  CoupledRows<Real> neuron;
  Coupling coupling;
  Real max_spikes;
  Real refractory;
  RowBlock<const Storage> membrane;
  RowBlock<Storage> spikes;
  RowBlock<Storage> adaptation;
  RowBlock<Storage> held;
  bool keeps_spikes;
  bool keeps_adaptation;
  bool keeps_held;
  Real* state[kCoupledStates];
};

template <class Storage>
struct SrmForwardRow {
  using Real = compute_t<Storage>;
  std::int64_t width;
  const Real* threshold;
  const Storage* psp;
  const Real* reset;  // (nu * s)[t-1]
  Storage* spikes;
  Storage* membrane;
  Real* spikes_state;  // s[t] out
};

template <class Storage>
struct SrmBackwardRow {
  using Real = compute_t<Storage>;
  std::int64_t width;
  const Storage* grad_spikes;
  const Storage* grad_membrane;
  const Real* surrogate;
  const Real* reset;  // sum over j of nu[j] delta[t+1+j]
  Storage* grad_psp;
  Real* adjoint;        // delta[t] out
  Real* threshold_sum;
};

// One step of the modes of a kernel. Rows have room for whole vectors.
template <class Real>
struct ModesRow {
  std::int64_t width;
  const Mode* modes;
  std::int64_t count;
  const Real* input;
  double* state;  // p and q of each mode, `stride` elements from one row to the next
  std::int64_t stride;
  bool forget_faded;  // before the step
  Real* response;
};

// Rows of a block of steps, to be written with non-temporal stores to a tensor whose last axis is time: in whole cache
// lines, so that the partial lines at the ends of a block wait in `pending` for the next block in `direction`.
template <class Storage>
struct StreamedBlock {
  std::int64_t lanes;
  std::int64_t steps;
  std::int64_t before;  // steps of the tensor before the block
  std::int64_t after;   // and after it
  Direction direction;
  const Storage* rows;
  std::int64_t rows_stride;
  Storage* tensor;  // lane 0 at the first step of the block
  std::int64_t tensor_stride;
  Storage* pending;  // a row a lane; its steps lie kLineElements behind its beginning
  std::int64_t pending_stride;
};

// Sums of chosen rows of a panel: sums[r] = base[r] + the sum of value[k] panel[index[k]] for k from first[r] to
// first[r + 1] - 1, added in this order, before the base.
template <class Real>
struct PanelSums {
  std::int64_t rows;
  std::int64_t bytes;  // of a row of the panel, one of kPanelBytes
  const Real* panel;
  std::int64_t panel_stride;
  const std::uint32_t* first;
  const std::uint32_t* index;
  const Real* values;  // null if all are one
  const Real* base;    // null if it is zero
  std::int64_t base_stride;
  Real* sums;
  std::int64_t sums_stride;
};

// Sums of chosen rows, each added to what is there: sums[to[r]] += value[k] rows[from[k]] for k from first[r] to
// last[r] - 1, in this order. `to` and `from` are offsets of elements.
template <class Real>
struct ChosenRows {
  std::int64_t lists;
  std::int64_t bytes;  // of a row: a multiple of kLineBytes, kMostChosenBytes at most
  const std::uint32_t* first;
  const std::uint32_t* last;
  const std::uint32_t* from;
  const Real* values;
  const Real* rows;
  const std::uint32_t* to;
  Real* sums;
};

// Sums over the ones of rows of bits: of the terms of the columns for each row, or of the terms of the rows for each column.
template <class Storage>
struct BitSums {
  using Real = compute_t<Storage>;

  std::int64_t rows;
  std::int64_t bytes;    // of a row of terms and of sums, one of kPanelBytes
  std::int64_t columns;  // the first is the lowest bit of the first byte of a row
  const std::uint8_t* bits;
  std::int64_t bits_stride;  // in bytes
  const Storage* values;     // factors of the terms, of each row and column; null if all are one
  std::int64_t values_stride;
  const Real* terms;
  const Real* base;  // of sum_of_columns; null if it is zero
  Real* sums;
  std::int64_t sums_stride;
};

// The windows of a convolution that see a place, along one axis: windows first[i] to first[i + 1] see place i.
struct WindowsOfPlaces {
  struct Window {
    std::uint32_t tap;     // offset of the kernel's element
    std::uint32_t output;  // offset of the output
  };
  const std::uint32_t* first;
  const Window* windows;
};

// For every element of an image that is not zero and every window that sees it: sums[output] += value terms[tap], or if
// `to_taps`, sums[tap] += value terms[output]. Rows of sums and terms are `bytes` long, one of kPanelBytes or
// kHalfPanelBytes; those of outputs begin `margin` before the first one, and those of a row of outputs `pitch` behind
// those of the row before.
//
// Without strides, the windows of an element are found without lists: tap (j, k) belongs to the output at
//   element + (padding_y - j dilation_y) pitch + padding_x - k dilation_x.
// Where a row of outputs ends, these meet outputs that do not exist, in its margins, where terms are zero.
template <class Real>
struct WindowSums {
  std::int64_t channels;
  std::int64_t height;
  const std::uint32_t* rows;      // elements rows[r] to rows[r + 1] - 1 lie in row r, channel after channel
  const std::uint32_t* elements;  // y pitch + x
  const Real* values;             // null if all are one
  std::int64_t pitch;
  std::int64_t margin;
  bool listed;  // the windows are those of the lists, and have no margins to meet
  WindowsOfPlaces y;
  WindowsOfPlaces x;
  std::int64_t taps_y, padding_y, dilation_y, outputs_y;
  std::int64_t taps_x, padding_x, dilation_x;
  std::int64_t bytes;
  bool to_taps;
  const Real* terms;
  Real* sums;
};

// Windows of an image of bits, by tables of what rows of the kernel add: for every output place (y, x), channel c and row
// j, sums[y][x] += tables[c][j][pattern], where bit i of the pattern is the image's at (c, y + j dilation_y, x + i).
// Rows of tables and sums are kTableBytes long. Word s of a row of the image holds bits kTablePlaces s to
// kTablePlaces (s + 1) + kTableTaps - 2, the first one lowest.
template <class Real>
struct TableSums {
  std::int64_t channels;
  std::int64_t height;
  std::int64_t segments;
  std::int64_t taps_y, dilation_y;
  std::int64_t outputs_y, outputs_x;
  const Real* tables;          // (channels, taps_y, kTableEntries) rows
  const std::uint16_t* words;  // (channels, height, segments)
  Real* sums;                  // (outputs_y, outputs_x) rows
};

// The windows of a pooling along one axis: window i covers `taps` places from i stride - padding on.
struct PoolAxis {
  std::int64_t size;
  std::int64_t outputs;
  std::int64_t taps;
  std::int64_t stride;
  std::int64_t padding;

  EXODUS_HOST_DEVICE std::int64_t first_place(std::int64_t window) const { return window * stride - padding; }
  // The first tap of a window that lies in the plane, and the one behind the last.
  EXODUS_HOST_DEVICE std::int64_t first_tap(std::int64_t window) const {
    const std::int64_t place = first_place(window);
    return place < 0 ? -place : 0;
  }
  EXODUS_HOST_DEVICE std::int64_t last_tap(std::int64_t window) const {
    const std::int64_t room = size - first_place(window);
    return room < taps ? room : taps;
  }
  // Two places for each window, side by side.
  EXODUS_HOST_DEVICE bool has_pairs() const { return taps == 2 && stride == 2 && padding == 0; }
};

struct PoolWindows {
  PoolAxis y;
  PoolAxis x;
  double divisor;  // of the sums of windows; 0: the number of their places that lie in the plane

  EXODUS_HOST_DEVICE bool has_pairs() const { return y.has_pairs() && x.has_pairs(); }
};

// A thread's memory for windows that are not pairs. Rows of a plane are kept as phases: phase r has every stride-th
// place from place r - padding on, so that one tap of neighbouring windows is a run of elements. Row y is in slot
// y % slots. Rows of outputs are whole vectors.
template <class Real>
struct PoolScratch {
  std::int64_t slots;
  std::int64_t phases;
  std::int64_t span;  // elements of a phase
  Real* rows;         // (slots, phases, span); sums of one plane for the gradients of largest values of half precision
  Real* line;         // a row of the plane, in whole pairs of vectors
  Real* values;
  Real* divisors;
  std::uint8_t* places;
  std::uint8_t* first_taps;
};

// Planes (height, width) of which each window gives one output: its largest value, or its mean.
template <class Storage>
struct PoolForward {
  std::int64_t planes;
  std::int64_t more_planes;  // behind these in the tensor: they may be read
  PoolWindows windows;
  const Storage* input;
  Storage* output;
  std::uint8_t* places;  // of the largest value in its window, row after row; null if not wanted
  PoolScratch<compute_t<Storage>> scratch;
};

template <class Storage>
struct PoolBackward {
  std::int64_t planes;
  std::int64_t more_planes;
  PoolWindows windows;
  const Storage* grad;
  const std::uint8_t* places;  // null for means
  Storage* grad_input;
  PoolScratch<compute_t<Storage>> scratch;
};

// Taps of a kernel's row for which there are kernels without lists.
constexpr bool has_kernel_without_lists(std::int64_t taps) { return taps >= 1 && taps <= 5; }

// Bytes of a row of a panel: whole vectors of any instruction set, as sums in registers.
constexpr std::int64_t kPanelBytes[] = {64, 128, 256, 512};
// Of a panel of few outputs of a convolution.
constexpr std::int64_t kHalfPanelBytes = 32;
// Of the rows of ChosenRows: their sums stay in registers.
constexpr std::int64_t kMostChosenBytes = 6 * kLineBytes;

// Of TableSums: the taps of a kernel's row and their patterns, the bytes of a row of a table, and the places that a word
// is for. With fewer taps the tables gain nothing, with more they leave the caches.
constexpr int kTableTaps = 5;
constexpr std::int64_t kTableEntries = 1 << kTableTaps;
constexpr std::int64_t kTableBytes = kLineBytes;
constexpr std::int64_t kTablePlaces = 8;

// Elements that are not zero.
struct NonZeros {
  std::int64_t count;
  bool only_ones;
};

template <class Storage>
struct RowKernels {
  using Real = compute_t<Storage>;
  std::int64_t vector_lanes;
  void (*lif_forward)(Reset, bool many_spikes, const LifForwardBlock<Storage>&);
  void (*lif_backward)(Method, Reset, const LifBackwardBlock<Storage>&);
  void (*lif_initial)(Method, Reset, const LifInitialRow<Real>&);
  void (*coupled_forward)(const CoupledForwardBlock<Storage>&);
  void (*coupled_backward)(Method, const CoupledBackwardBlock<Storage>&);
  void (*coupled_initial)(Method, const CoupledInitialRow<Real>&);
  void (*coupled_traces)(const CoupledTracesBlock<Storage>&);
  void (*surrogate)(const Surrogate<Real>&, std::int64_t width, const Storage* membrane, const Real* threshold,
                    Real* derivative);
  void (*srm_forward)(const SrmForwardRow<Storage>&);
  void (*srm_backward)(const SrmBackwardRow<Storage>&);
  void (*add_tap)(std::int64_t width, Real tap, const Real* pushed, Real* response);
  void (*push_modes)(const ModesRow<Real>&);
  void (*load)(std::int64_t width, const Storage* stored, Real* row);
  void (*store)(std::int64_t width, const Real* row, Storage* stored);
  // rows[t][lane] = tensor[lane][t] for a tensor whose last axis is time, and back.
  void (*to_rows)(std::int64_t lanes, std::int64_t steps, const Storage* tensor, std::int64_t tensor_stride,
                  Storage* rows, std::int64_t rows_stride);
  void (*from_rows)(std::int64_t lanes, std::int64_t steps, const Storage* rows, std::int64_t rows_stride,
                    Storage* tensor, std::int64_t tensor_stride);
  void (*stream_rows)(const StreamedBlock<Storage>&);
  // sum of a[i] b[i]
  double (*dot)(std::int64_t count, const Storage* a, const Storage* b);
  void (*add_panel_rows)(const PanelSums<Real>&);
  // sums[r] = base + the sum of value terms[c], in ascending order of the columns c where row r has a one
  void (*sum_of_columns)(const BitSums<Storage>&);
  // sums[c] += value terms[r], in ascending order of the rows r that have a one in column c
  void (*add_to_columns)(const BitSums<Storage>&);
  void (*add_windows)(const WindowSums<Real>&);
  void (*add_from_tables)(const TableSums<Real>&);
  void (*add_chosen_rows)(const ChosenRows<Real>&);
  // Bit i of `bits` is 1 where element i is not zero; the bits behind the last element are 0.
  NonZeros (*pack)(std::int64_t count, const Storage* elements, std::uint8_t* bits);
  // The same for some rows.
  void (*pack_rows)(std::int64_t rows, std::int64_t count, const Storage* elements, std::int64_t stride,
                    std::uint8_t* bits, std::int64_t bits_stride);
  void (*unpack)(std::int64_t count, const std::uint8_t* bits, Storage* elements);
  void (*max_pool)(const PoolForward<Storage>&);
  void (*max_pool_backward)(const PoolBackward<Storage>&);
  void (*avg_pool)(const PoolForward<Storage>&);
  void (*avg_pool_backward)(const PoolBackward<Storage>&);
};

struct InstructionSet {
  const char* name;
  bool streams;  // a vector is a cache line, which non-temporal stores write as a whole
  std::int64_t (*count_ones)(std::int64_t bytes, const std::uint8_t* bits);
  RowKernels<float> float32;
  RowKernels<double> float64;
  RowKernels<Half> float16;
  RowKernels<BFloat16> bfloat16;
};

// The widest instruction set that this processor has and that EXODUS_INSTRUCTION_SET (portable, avx2, avx512)
// allows; read once. Throws std::invalid_argument for any other value.
const InstructionSet& instruction_set();

template <class Storage>
const RowKernels<Storage>& row_kernels();

}  // namespace exodus::cpu
