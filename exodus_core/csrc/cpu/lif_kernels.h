// The LIF row kernels, included by kernels_impl.h for each instruction set.
//
// A vector keeps its state in registers for kVecSteps steps, so that its traffic with the cache does not count;
// then the next vector follows, so that rows are read and written as they lie in memory. Several rows at once, and
// backward in time, are more than the hardware prefetcher follows: the next rows are prefetched explicitly.

namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME {
namespace {

constexpr std::int64_t kVecSteps = 4;
// The sums' traffic with the cache counts too; but if lines of several rows share a set of the cache, as with a power of
// two of neurons, those of 8 steps and of the 8 before them do not fit.
constexpr std::int64_t kVecStepsWithSums = 6;

// Of the body of a loop over vectors: GCC calls a long one for each vector, if it may.
#if defined(EXODUS_PORTABLE_ONLY)
#define EXODUS_INLINED
#else
#define EXODUS_INLINED __attribute__((always_inline))
#endif

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One vector register of what Storage is computed in.
template <class Storage>
using VecOf = Vec<compute_t<Storage>, EXODUS_VECTOR_BYTES / sizeof(compute_t<Storage>)>;

template <class Storage>
constexpr std::int64_t kVecLanes = EXODUS_VECTOR_BYTES / sizeof(compute_t<Storage>);

template <class Real, class Scalar>
EXODUS_HOST_DEVICE Real at(const ParameterRow<Scalar>& row, std::int64_t lane) {
  return row.per_lane ? Real::read(row.values + lane) : Real(*row.values);
}

template <class Storage, class Scalar>
EXODUS_HOST_DEVICE LifNeuron<VecOf<Storage>> neuron_at(const NeuronRows<Scalar>& rows, std::int64_t lane) {
  using Real = VecOf<Storage>;
  // The bound is rounded as the membrane will be: one that was raised to it must be seen to lie on it.
  return {at<Real>(rows.alpha, lane), at<Real>(rows.threshold, lane), at<Real>(rows.reset_by, lane),
          as_stored<Storage>(at<Real>(rows.min_membrane, lane)), Real(rows.max_spikes)};
}

template <class Scalar, class Real>
EXODUS_HOST_DEVICE void add(const ParameterSums<Scalar>& rows, std::int64_t slot, bool bound_after_reset, Reset reset,
                            Real alpha, const LifSums<Real>& sums) {
  const Real reset_by = by_reset(reset, alpha, sums.reset_by);
  const Real min_membrane = by_bound(bound_after_reset, reset, alpha, sums.min_membrane);
  (Real::read(rows.alpha + slot) + sums.alpha).write(rows.alpha + slot);
  (Real::read(rows.threshold + slot) + sums.threshold).write(rows.threshold + slot);
  (Real::read(rows.reset_by + slot) + reset_by).write(rows.reset_by + slot);
  (Real::read(rows.min_membrane + slot) + min_membrane).write(rows.min_membrane + slot);
}

template <class Scalar>
bool is_bounded(const NeuronRows<Scalar>& neuron) {
  return neuron.min_membrane.per_lane || *neuron.min_membrane.values > -kInfinity;
}

// Calls body(lane, slot) for every vector of a row: its first lane, and where its state is kept.
template <class Storage, class Body>
EXODUS_HOST_DEVICE void for_each_vector(std::int64_t width, Body body) {
  for (std::int64_t slot = 0; slot < width; slot += kVecLanes<Storage>) {
    body(std::min(slot, width - kVecLanes<Storage>), slot);
  }
}

// Prefetches for a vector a line at each of its steps, from `step` on: its rows `later` steps on, or its part of `ahead`,
// in which as many steps as a vector has lanes, of as many lanes, are a line each. Steps that do not divide the lanes
// now and then prefetch a neighbour's line instead of their own.
template <class T>
struct Prefetch {
  const T* line;
  std::int64_t stride;

  EXODUS_HOST_DEVICE Prefetch(const RowBlock<T>& rows, std::int64_t step, std::int64_t later, std::int64_t lane) {
    constexpr std::int64_t n = kVecLanes<std::remove_const_t<T>>;
    if (rows.ahead == nullptr) {
      line = rows[step + later] + lane;
      stride = rows.stride;
    } else {
      line = rows.ahead + (lane + step % n) * rows.ahead_stride + step / n * n;
      stride = rows.ahead_stride;
    }
  }
  EXODUS_HOST_DEVICE void forward() {
    __builtin_prefetch(line, !std::is_const_v<T>);
    line += stride;
  }
  EXODUS_HOST_DEVICE void backward() {
    __builtin_prefetch(line, !std::is_const_v<T>);
    line -= stride;
  }
};

// The store of a vector of a block: non-temporal if that is asked for and the vector is a whole cache line.
template <class Storage>
struct VecStore {
  Storage* to;
  std::int64_t stride;
  bool streamed;

  EXODUS_HOST_DEVICE VecStore(const RowBlock<Storage>& rows, std::int64_t lane)
      : to(rows.first + lane), stride(rows.stride) {
    streamed = rows.streamed && kVecLanes<Storage> == kLineElements<Storage> &&
               reinterpret_cast<std::uintptr_t>(to) % kLineBytes == 0 && stride % kLineElements<Storage> == 0;
  }
  EXODUS_HOST_DEVICE void operator()(std::int64_t step, VecOf<Storage> values) const {
    if (streamed) {
      stream_lanes(to + step * stride, values);
    } else {
      store_lanes(to + step * stride, values);
    }
  }
};

// Reset, many_spikes and bound_after_reset are values, or constants that leave one case.
template <class ResetType, class ManyType, class AfterType, class Storage>
void lif_forward_block(ResetType reset, ManyType many_spikes, AfterType bound_after_reset,
                       const LifForwardBlock<Storage>& block) {
  using Real = VecOf<Storage>;
  const RowBlock<const Storage> input_rows = block.input;
  for (std::int64_t begin = 0; begin < block.steps; begin += kVecSteps) {
    const std::int64_t end = std::min(block.steps, begin + kVecSteps);
    for_each_vector<Storage>(block.width, [&](std::int64_t lane, std::int64_t slot) {
      const LifNeuron<Real> neuron = neuron_at<Storage>(block.neuron, lane);
      const VecStore<Storage> spikes_out(block.spikes, lane), membrane_out(block.membrane, lane);
      Prefetch<const Storage> next_input(input_rows, begin, kVecSteps, lane);
      Prefetch<Storage> next_spikes(block.spikes, begin, kVecSteps, lane);
      Prefetch<Storage> next_membrane(block.membrane, begin, kVecSteps, lane);
      Real membrane = Real::read(block.membrane_state + slot);
      Real spikes = Real::read(block.spikes_state + slot);
      for (std::int64_t t = begin; t < end; ++t) {
        next_input.forward();
        if (!membrane_out.streamed) next_membrane.forward();
        if (!spikes_out.streamed) next_spikes.forward();
        const Real input = load_lanes<Real>(input_rows[t] + lane);
        membrane_out(t, lif_step<Storage>(reset, many_spikes, bound_after_reset, neuron, input, membrane, spikes));
        spikes_out(t, spikes);
      }
      membrane.write(block.membrane_state + slot);
      spikes.write(block.spikes_state + slot);
    });
  }
  finish_streams();
}

// Method, reset and bound_after_reset are values, or constants that leave one case.
template <bool with_sums, bool summed, SurrogateKind kind, class MethodType, class ResetType, class AfterType, class Storage>
void lif_backward_block(MethodType method, ResetType reset, AfterType bound_after_reset,
                        const LifBackwardBlock<Storage>& block) {
  using Real = VecOf<Storage>;
  const RowBlock<const Storage> membrane_rows = block.membrane, grad_spikes_rows = block.grad_spikes,
                                grad_membrane_rows = block.grad_membrane;
  const Real slope(block.surrogate.slope), scale(block.surrogate.scale);  // locals, which stay in registers
  const bool many_spikes = block.neuron.max_spikes > 1;
  const bool bounded = is_bounded(block.neuron) && !bound_after_reset;
  constexpr std::int64_t steps = with_sums ? kVecStepsWithSums : kVecSteps;
  for (std::int64_t end = block.steps; end > 0; end -= steps) {
    const std::int64_t begin = std::max<std::int64_t>(0, end - steps);
    for_each_vector<Storage>(block.width, [&](std::int64_t lane, std::int64_t slot) EXODUS_INLINED {
      const LifNeuron<Real> neuron = neuron_at<Storage>(block.neuron, lane);
      const VecStore<Storage> grad_input_out(block.grad_input, lane);
      Prefetch<const Storage> next_membrane(membrane_rows, end - 1, -steps, lane);
      Prefetch<const Storage> next_grad_spikes(grad_spikes_rows, end - 1, -steps, lane);
      Prefetch<Storage> next_grad_input(block.grad_input, end - 1, -steps, lane);
      Real adjoint = Real::read(block.adjoint + slot);
      Real total = summed ? Real::read(block.total + slot) : Real(0);
      LifSums<Real> sums{Real(0), Real(0), Real(0), Real(0)};
      for (std::int64_t t = end - 1; t >= begin; --t) {
        next_membrane.backward();
        next_grad_spikes.backward();
        if (!grad_input_out.streamed) next_grad_input.backward();
        const Real membrane = load_lanes<Real>(membrane_rows[t] + lane);
        Real spikes(0);
        if (with_sums || reset == Reset::zero || bound_after_reset) {
          spikes = many_spikes ? fire(true, membrane, neuron.threshold, neuron.max_spikes)
                               : fire(false, membrane, neuron.threshold, neuron.max_spikes);
        }
        const Real surrogate = scaled_surrogate(kind, slope, scale, membrane, neuron.threshold);
        const LifStep<Real> step{membrane, spikes, surrogate, load_lanes<Real>(grad_spikes_rows[t] + lane),
                                 load_lanes<Real>(grad_membrane_rows[t] + lane)};
        adjoint = lif_adjoint_step(method, reset, with_sums, bounded, bound_after_reset, neuron, step, adjoint, sums);
        if constexpr (summed) {
          total = total + adjoint;
        } else {
          grad_input_out(t, adjoint);
        }
      }
      adjoint.write(block.adjoint + slot);
      if constexpr (summed) total.write(block.total + slot);
      if constexpr (with_sums) add(block.sums, slot, bound_after_reset, reset, neuron.alpha, sums);
    });
  }
  finish_streams();
}

template <class Scalar>
void lif_initial(Method method, Reset reset, const LifInitialRow<Scalar>& row) {
  using Real = VecOf<Scalar>;
  for_each_vector<Scalar>(row.width, [&](std::int64_t lane, std::int64_t slot) {
    LifSums<Real> sums{Real(0), Real(0), Real(0), Real(0)};
    const LifNeuron<Real> neuron = neuron_at<Scalar>(row.neuron, lane);
    const LifInitialGradient<Real> gradient =
        lif_adjoint_initial(method, reset, row.neuron.bound_after_reset, neuron, Real::read(row.membrane + slot),
                            Real::read(row.spikes + slot), Real::read(row.adjoint + slot), sums);
    gradient.membrane.write(row.grad_membrane + slot);
    gradient.spikes.write(row.grad_spikes + slot);
    add(row.sums, slot, row.neuron.bound_after_reset, reset, neuron.alpha, sums);
  });
}

template <auto value>
using Is = std::integral_constant<decltype(value), value>;

template <class Body>
void with_reset(Reset reset, Body body) {
  switch (reset) {
    case Reset::none:
      return body(Is<Reset::none>{});
    case Reset::subtract:
      return body(Is<Reset::subtract>{});
    case Reset::subtract_decayed:
      return body(Is<Reset::subtract_decayed>{});
    case Reset::zero:
      return body(Is<Reset::zero>{});
  }
}

template <class Body>
void with_surrogate(SurrogateKind kind, Body body) {
  switch (kind) {
    case SurrogateKind::exponential:
      return body(Is<SurrogateKind::exponential>{});
    case SurrogateKind::boxcar:
      return body(Is<SurrogateKind::boxcar>{});
    case SurrogateKind::triangle:
      return body(Is<SurrogateKind::triangle>{});
    case SurrogateKind::fast_sigmoid:
      return body(Is<SurrogateKind::fast_sigmoid>{});
    case SurrogateKind::sigmoid:
      return body(Is<SurrogateKind::sigmoid>{});
    case SurrogateKind::arctan:
      return body(Is<SurrogateKind::arctan>{});
    case SurrogateKind::tanh:
      return body(Is<SurrogateKind::tanh>{});
    case SurrogateKind::gaussian:
      return body(Is<SurrogateKind::gaussian>{});
  }
}

// Looks at the reset in each step. Apart from the loops of single resets: next to it, GCC does not align them.
template <class Storage>
__attribute__((noinline)) void lif_forward_bounded_after_reset(Reset reset, bool many_spikes,
                                                               const LifForwardBlock<Storage>& block) {
  lif_forward_block(reset, many_spikes, Is<true>{}, block);
}

// A loop of its own for every reset, and one for all of them if the bound is after it.
template <class Storage>
void lif_forward(Reset reset, bool many_spikes, const LifForwardBlock<Storage>& block) {
  if (block.neuron.bound_after_reset) return lif_forward_bounded_after_reset(reset, many_spikes, block);
  with_reset(reset, [&](auto r) {
    if (many_spikes) {
      lif_forward_block(r, Is<true>{}, Is<false>{}, block);
    } else {
      lif_forward_block(r, Is<false>{}, Is<false>{}, block);
    }
  });
}

// Looks at the reset in each step.
template <bool summed, SurrogateKind kind, class Storage>
void lif_backward_of_any_reset(Method method, Reset reset, const LifBackwardBlock<Storage>& block) {
  const bool after_reset = block.neuron.bound_after_reset;
  if (block.sums.alpha != nullptr) {
    lif_backward_block<true, summed, kind>(method, reset, after_reset, block);
  } else {
    lif_backward_block<false, summed, kind>(method, reset, after_reset, block);
  }
}

// float32 has a loop of its own for every reset unless the bound is after it, or gradients are summed; other element types
// look at the reset in each step, which costs them little and halves the size of the library.
template <class Storage>
void lif_backward(Method method, Reset reset, const LifBackwardBlock<Storage>& block) {
  const bool with_sums = block.sums.alpha != nullptr, after_reset = block.neuron.bound_after_reset;
  with_surrogate(block.surrogate.kind, [&](auto kind) {
    if constexpr (std::is_same_v<Storage, float>) {
      if (block.total != nullptr) return lif_backward_of_any_reset<true, kind.value>(method, reset, block);
    }
    if (!std::is_same_v<Storage, float> || after_reset || (with_sums && method == Method::slayer)) {
      lif_backward_of_any_reset<false, kind.value>(method, reset, block);
    } else if constexpr (std::is_same_v<Storage, float>) {
      if (with_sums) {
        with_reset(reset, [&](auto r) {
          lif_backward_block<true, false, kind.value>(Is<Method::exodus>{}, r, Is<false>{}, block);
        });
      } else {
        // Without sums, only the adjoint step sees the reset.
        with_reset(differentiated(method, reset), [&](auto r) {
          lif_backward_block<false, false, kind.value>(Is<Method::exodus>{}, r, Is<false>{}, block);
        });
      }
    }
  });
}

}  // namespace
}  // namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME
