// The row kernels of neurons whose membrane is coupled with other variables, included by kernels_impl.h for each
// instruction set. Their walk over vectors and steps is that of lif_kernels.h.

namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME {
namespace {

// The parameters of a vector, of the variables that there are.
template <class Storage, class Scalar>
EXODUS_HOST_DEVICE CoupledNeuron<VecOf<Storage>> coupled_neuron_at(const Coupling& coupling,
                                                                   const CoupledRows<Scalar>& rows, std::int64_t lane) {
  using Real = VecOf<Storage>;
  const auto read = [&](CoupledParameter which) { return at<Real>(rows.of[which], lane); };
  CoupledNeuron<Real> neuron;
  neuron.alpha = read(kOfAlpha);
  neuron.threshold = read(kOfThreshold);
  neuron.reset_by = read(kOfResetBy);
  neuron.min_membrane = as_stored<Storage>(read(kOfMinMembrane));
  neuron.synapse_alpha = coupling.synapse ? read(kOfSynapseAlpha) : Real(0);
  neuron.synapse_gain = coupling.synapse ? read(kOfSynapseGain) : Real(0);
  neuron.adapt_alpha = coupling.adaptation ? read(kOfAdaptAlpha) : Real(0);
  neuron.adapt_membrane = coupling.adaptation ? read(kOfAdaptMembrane) : Real(0);
  neuron.adapt_by = coupling.adaptation ? read(kOfAdaptBy) : Real(0);
  neuron.adapt_current = coupling.adaptation ? read(kOfAdaptCurrent) : Real(0);
  neuron.adapt_threshold = coupling.adaptation ? read(kOfAdaptThreshold) : Real(0);
  return neuron;
}

// The state of a vector, of the variables that there are; `write_state` leaves the rows of others as they are.
template <class Real, class Scalar>
EXODUS_HOST_DEVICE CoupledState<Real> read_state(const Coupling& coupling, Scalar* const (&rows)[kCoupledStates],
                                                 std::int64_t slot) {
  const auto read = [&](CoupledStateRow which) { return Real::read(rows[which] + slot); };
  return {read(kMembraneRow), read(kSpikesRow), coupling.synapse ? read(kCurrentRow) : Real(0),
          coupling.adaptation ? read(kAdaptationRow) : Real(0), coupling.waits ? read(kWaitingRow) : Real(0)};
}

template <class Real, class Scalar>
EXODUS_HOST_DEVICE void write_state(const Coupling& coupling, const CoupledState<Real>& state,
                                    Scalar* const (&rows)[kCoupledStates], std::int64_t slot) {
  state.membrane.write(rows[kMembraneRow] + slot);
  state.spikes.write(rows[kSpikesRow] + slot);
  if (coupling.synapse) state.current.write(rows[kCurrentRow] + slot);
  if (coupling.adaptation) state.adaptation.write(rows[kAdaptationRow] + slot);
  if (coupling.waits) state.waiting.write(rows[kWaitingRow] + slot);
}

// The rows of an output that a vector writes, if it is given.
template <class Storage>
struct VecRows {
  bool given;
  VecStore<Storage> store;
  Prefetch<Storage> next;

  EXODUS_HOST_DEVICE VecRows(const RowBlock<Storage>& rows, bool given, std::int64_t step, std::int64_t later,
                             std::int64_t lane)
      : given(given), store(rows, lane), next(rows, step, later, lane) {}
  EXODUS_HOST_DEVICE void forward(std::int64_t step, VecOf<Storage> values) {
    if (!given) return;
    if (!store.streamed) next.forward();
    store(step, values);
  }
  EXODUS_HOST_DEVICE void backward(std::int64_t step, VecOf<Storage> values) {
    if (!store.streamed) next.backward();
    store(step, values);
  }
};

// The rows of an input that a vector reads; zeros if it is not given.
template <class Storage>
struct VecInput {
  const RowBlock<const Storage> rows;
  std::int64_t lane;
  bool given;
  Prefetch<const Storage> next;

  EXODUS_HOST_DEVICE VecInput(const RowBlock<const Storage>& rows, bool given, std::int64_t step, std::int64_t later,
                              std::int64_t lane)
      : rows(rows), lane(lane), given(given), next(rows, step, later, lane) {}
  EXODUS_HOST_DEVICE VecOf<Storage> forward(std::int64_t step) {
    next.forward();
    return load_lanes<VecOf<Storage>>(rows[step] + lane);
  }
  EXODUS_HOST_DEVICE VecOf<Storage> backward(std::int64_t step) {
    if (!given) return VecOf<Storage>(0);
    next.backward();
    return load_lanes<VecOf<Storage>>(rows[step] + lane);
  }
};

#if defined(EXODUS_FEW_KERNELS)
constexpr bool kFewKernels = true;  // of a build with sanitizers, whose compiler takes minutes for them
#else
constexpr bool kFewKernels = false;
#endif

// Couplings that are known when the kernels are compiled: of float32, which variables there are, and of its usual neurons
// everything; of other element types, nothing. They are made where they are used: taken by reference by a function that is not
// inlined, they would be asked for in each step, and the state kept in memory.
struct NothingKnown {
  static constexpr bool may_synapse = true, may_adaptation = true, may_wait = true;

  EXODUS_HOST_DEVICE static Coupling of(const Coupling& given) { return given; }
};

template <bool with_synapse, bool with_adaptation>
struct KnownVariables {
  static constexpr bool may_synapse = with_synapse, may_adaptation = with_adaptation, may_wait = true;

  EXODUS_HOST_DEVICE static Coupling of(const Coupling& given) {
    Coupling coupling = given;
    coupling.synapse = with_synapse;
    coupling.adaptation = with_adaptation;
    coupling.delayed = with_synapse && given.delayed;
    coupling.tied = with_adaptation && given.tied;
    coupling.senses = with_adaptation && given.senses;
    coupling.inhibits = with_adaptation && given.inhibits;
    coupling.raises = with_adaptation && given.raises;
    return coupling;
  }
};

template <int bits, Reset reset>
struct KnownCoupling {
  static constexpr bool may_synapse = (bits & 1) != 0, may_adaptation = (bits & 2) != 0, may_wait = false;

  EXODUS_HOST_DEVICE static Coupling of(const Coupling&) {
    return {may_synapse,      may_adaptation,    false, (bits & 4) != 0, (bits & 8) != 0,
            (bits & 16) != 0, (bits & 32) != 0, (bits & 64) != 0, reset, false, bits};
  }
};

template <class Known>
constexpr bool is_whole = false;
template <int bits, Reset reset>
constexpr bool is_whole<KnownCoupling<bits, reset>> = true;

template <class Known, class Storage>
void coupled_forward_block(const CoupledForwardBlock<Storage>& block) {
  using Real = VecOf<Storage>;
  const Real max_spikes(block.max_spikes), refractory(block.refractory);
  for (std::int64_t begin = 0; begin < block.steps; begin += kVecSteps) {
    const std::int64_t end = std::min(block.steps, begin + kVecSteps);
    for_each_vector<Storage>(block.width, [&](std::int64_t lane, std::int64_t slot) __attribute__((always_inline)) {
      const Coupling coupling = Known::of(block.coupling);
      const CoupledNeuron<Real> neuron = coupled_neuron_at<Storage>(coupling, block.neuron, lane);
      VecInput<Storage> input(block.input, true, begin, kVecSteps, lane);
      VecRows<Storage> spikes(block.spikes, true, begin, kVecSteps, lane);
      VecRows<Storage> membrane(block.membrane, true, begin, kVecSteps, lane);
      VecRows<Storage> current(block.current, Known::may_synapse && block.keeps_current, begin, kVecSteps, lane);
      VecRows<Storage> adapted(block.adaptation, Known::may_adaptation && block.keeps_adaptation, begin, kVecSteps, lane);
      VecRows<Storage> held(block.held, Known::may_wait && block.keeps_held, begin, kVecSteps, lane);
      CoupledState<Real> state = read_state<Real>(coupling, block.state, slot);
      for (std::int64_t t = begin; t < end; ++t) {
        const CoupledStored<Real> stored =
            coupled_step<Storage>(coupling, neuron, max_spikes, refractory, input.forward(t), state);
        membrane.forward(t, stored.membrane);
        spikes.forward(t, state.spikes);
        current.forward(t, state.current);
        adapted.forward(t, stored.adaptation);
        held.forward(t, stored.held);
      }
      write_state(coupling, state, block.state, slot);
    });
  }
  finish_streams();
}

// The adjoint of the variables that there are; `write_adjoint` leaves the rows of others as they are.
template <class Real>
EXODUS_HOST_DEVICE CoupledAdjoint<Real> read_adjoint(const Coupling& coupling,
                                                     const CoupledAdjointRows<typename Real::Lane>& rows,
                                                     std::int64_t slot) {
  const auto read = [slot](bool given, const typename Real::Lane* row) { return given ? Real::read(row + slot) : Real(0); };
  return {Real::read(rows.moved + slot),
          read(coupling.adaptation, rows.adaptation),
          read(coupling.synapse, rows.current),
          read(coupling.waits, rows.held),
          read(coupling.adaptation, rows.into_adaptation),
          read(coupling.synapse, rows.into_current)};
}

template <class Real>
EXODUS_HOST_DEVICE void write_adjoint(const Coupling& coupling, const CoupledAdjoint<Real>& adjoint,
                                      const CoupledAdjointRows<typename Real::Lane>& rows, std::int64_t slot) {
  adjoint.moved.write(rows.moved + slot);
  if (coupling.adaptation) adjoint.adaptation.write(rows.adaptation + slot);
  if (coupling.synapse) adjoint.current.write(rows.current + slot);
  if (coupling.waits) adjoint.held.write(rows.held + slot);
  if (coupling.adaptation) adjoint.into_adaptation.write(rows.into_adaptation + slot);
  if (coupling.synapse) adjoint.into_current.write(rows.into_current + slot);
}

// True if a parameter is one of the variables that there are.
EXODUS_HOST_DEVICE bool sums_of(const Coupling& coupling, CoupledParameter which) {
  if (which < kOfSynapseAlpha) return true;
  return which < kOfAdaptAlpha ? coupling.synapse : coupling.adaptation;
}

template <class Scalar, class Real>
EXODUS_HOST_DEVICE void add(const Coupling& coupling, const CoupledSumRows<Scalar>& rows, std::int64_t slot,
                            const CoupledSums<Real>& sums) {
  for (int k = 0; k < kCoupledParameters; ++k) {
    if (sums_of(coupling, static_cast<CoupledParameter>(k))) {
      (Real::read(rows.of[k] + slot) + sums.of[k]).write(rows.of[k] + slot);
    }
  }
}

template <bool with_sums, class Known, class MethodType, class KindType, class Storage>
void coupled_backward_block(MethodType method, KindType kind, const CoupledBackwardBlock<Storage>& block) {
  using Real = VecOf<Storage>;
  const Surrogate<compute_t<Storage>> call = block.surrogate;
  const Real slope(call.slope), scale(call.scale), max_spikes(block.max_spikes);
  constexpr std::int64_t steps = kVecStepsWithSums;  // also without: there are more parameters and states than those of LIF
  for (std::int64_t end = block.steps; end > 0; end -= steps) {
    const std::int64_t begin = std::max<std::int64_t>(0, end - steps);
    for_each_vector<Storage>(block.width, [&](std::int64_t lane, std::int64_t slot) __attribute__((always_inline)) {
      const Coupling coupling = Known::of(block.coupling);
      const CoupledNeuron<Real> neuron = coupled_neuron_at<Storage>(coupling, block.neuron, lane);
      VecInput<Storage> membrane(block.membrane, true, end - 1, -steps, lane);
      VecInput<Storage> current(block.current, Known::may_synapse && with_sums && block.keeps_current, end - 1, -steps, lane);
      VecInput<Storage> adapted(block.adaptation, Known::may_adaptation && block.keeps_adaptation, end - 1, -steps, lane);
      VecInput<Storage> held(block.held, Known::may_wait && block.keeps_held, end - 1, -steps, lane);
      VecInput<Storage> grad_spikes(block.grad_spikes, block.has_grad_spikes, end - 1, -steps, lane);
      VecInput<Storage> grad_membrane(block.grad_membrane, block.has_grad_membrane, end - 1, -steps, lane);
      VecRows<Storage> grad_input(block.grad_input, true, end - 1, -steps, lane);
      CoupledAdjoint<Real> adjoint = read_adjoint<Real>(coupling, block.adjoint, slot);
      CoupledSums<Real> sums;
      for (int k = 0; k < kCoupledParameters; ++k) sums.of[k] = Real(0);
      for (std::int64_t t = end - 1; t >= begin; --t) {
        CoupledStep<Real> step;
        step.membrane = membrane.backward(t);
        step.adaptation = adapted.backward(t);
        step.current = current.backward(t);
        step.held = held.backward(t);
        step.grad_spikes = grad_spikes.backward(t);
        step.grad_membrane = grad_membrane.backward(t);
        const Real threshold = adapted_threshold(coupling, neuron, step.adaptation);
        step.spikes = Real(0);
        if (with_sums || coupling.tied || coupling.reset == Reset::zero) {
          step.spikes = fire(coupling.many_spikes, step.membrane, threshold, max_spikes);
        }
        step.surrogate = scaled_surrogate(kind, slope, scale, step.membrane, threshold);
        if (coupling.waits) {
          const auto held_now = step.held > Real(0);
          step.spikes = select(held_now, Real(0), step.spikes);
          step.surrogate = select(held_now, Real(0), step.surrogate);
        }
        grad_input.backward(t, coupled_adjoint_step(method, coupling, with_sums, neuron, step, adjoint, sums));
      }
      write_adjoint(coupling, adjoint, block.adjoint, slot);
      if constexpr (with_sums) add(coupling, block.sums, slot, sums);
    });
  }
  finish_streams();
}

template <class Scalar>
void coupled_initial(Method method, const CoupledInitialRow<Scalar>& row) {
  using Real = VecOf<Scalar>;
  for_each_vector<Scalar>(row.width, [&](std::int64_t lane, std::int64_t slot) __attribute__((always_inline)) {
    CoupledSums<Real> sums;
    for (int k = 0; k < kCoupledParameters; ++k) sums.of[k] = Real(0);
    const auto read = [&](CoupledStateRow which) { return Real::read(row.initial[which] + slot); };
    Coupling every = row.coupling;  // gradients of variables that there are none of are handed through
    every.synapse = every.adaptation = every.waits = true;
    const CoupledState<Real> gradient = coupled_adjoint_initial(
        method, row.coupling, coupled_neuron_at<Scalar>(row.coupling, row.neuron, lane),
        CoupledState<Real>{read(kMembraneRow), read(kSpikesRow), read(kCurrentRow), read(kAdaptationRow), read(kWaitingRow)},
        read_adjoint<Real>(every, row.adjoint, slot), sums);
    gradient.membrane.write(row.gradient[kMembraneRow] + slot);
    gradient.spikes.write(row.gradient[kSpikesRow] + slot);
    gradient.current.write(row.gradient[kCurrentRow] + slot);
    gradient.adaptation.write(row.gradient[kAdaptationRow] + slot);
    add(row.coupling, row.sums, slot, sums);
  });
}

// Calls body(known) with what is known of a coupling. The usual ones of float32 subtract, and have a synapse, whose current
// the membrane sees at once or late; an adaptation that raises the threshold, also that which a spike subtracts; or one that
// inhibits and senses the membrane.
template <class Storage, class Body>
void with_known(const Coupling& coupling, bool is_usual, Body body) {
  if constexpr (!std::is_same_v<Storage, float> || kFewKernels) {
    body(NothingKnown{});
    static_cast<void>(is_usual);
  } else {
    const auto with = [&](auto bits) {
      if (coupling.reset == Reset::subtract) {
        body(KnownCoupling<bits.value, Reset::subtract>{});
      } else {
        body(KnownCoupling<bits.value, Reset::subtract_decayed>{});
      }
    };
    const bool subtracts = coupling.reset == Reset::subtract || coupling.reset == Reset::subtract_decayed;
    if (is_usual && subtracts && !coupling.waits && !coupling.many_spikes) {
      switch (coupling.bits) {
        case 1:
          return with(Is<1>{});
        case 1 + 4:
          return with(Is<1 + 4>{});
        case 2 + 64:
          return with(Is<2 + 64>{});
        case 2 + 8 + 64:
          return with(Is<2 + 8 + 64>{});
        case 2 + 16 + 32:
          return with(Is<2 + 16 + 32>{});
      }
    }
    if (coupling.synapse) {
      coupling.adaptation ? body(KnownVariables<true, true>{}) : body(KnownVariables<true, false>{});
    } else {
      coupling.adaptation ? body(KnownVariables<false, true>{}) : body(KnownVariables<false, false>{});
    }
  }
}

template <class Storage>
void coupled_forward(const CoupledForwardBlock<Storage>& block) {
  with_known<Storage>(block.coupling, true, [&](auto known) { coupled_forward_block<decltype(known)>(block); });
}

template <class Storage>
void coupled_backward(Method method, const CoupledBackwardBlock<Storage>& block) {
  const bool with_sums = block.sums.of[0] != nullptr;
  with_known<Storage>(block.coupling, method == Method::exodus, [&](auto known) {
    using Known = decltype(known);
    const auto run = [&](auto how, auto kind) {
      with_sums ? coupled_backward_block<true, Known>(how, kind, block)
                : coupled_backward_block<false, Known>(how, kind, block);
    };
    const SurrogateKind kind = block.surrogate.kind;
    if constexpr (is_whole<Known>) {
      if (kind == SurrogateKind::exponential) {
        run(Is<Method::exodus>{}, Is<SurrogateKind::exponential>{});
      } else {
        run(Is<Method::exodus>{}, kind);
      }
    } else {
      run(method, kind);
    }
  });
}

}  // namespace
}  // namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME
