// The row kernels, compiled once for each instruction set: rows_*.cpp defines EXODUS_INSTRUCTION_SET_NAME, sets the
// compiler's target and includes this file. It loops, loads, stores and adds up; what a neuron does is in csrc/core.
//
// Rows never overlap unless both are only read; without being told, the compiler gives up on so many pointers.
#if defined(__clang__)
#define EXODUS_INDEPENDENT_LANES _Pragma("clang loop vectorize(assume_safety)")
#else
#define EXODUS_INDEPENDENT_LANES _Pragma("GCC ivdep")
#endif

namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME {
namespace {

template <Reset reset, bool many_spikes, class Storage>
void lif_forward_lanes(const LifForwardRow<Storage>& row) {
  using Real = compute_t<Storage>;
  const Storage* input = row.input;
  Storage* spikes_out = row.spikes;
  Storage* membrane_out = row.membrane;
  Real* membrane_state = row.membrane_state;
  Real* spikes_state = row.spikes_state;
  const NeuronRows<Real> neuron = row.neuron;
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < row.width; ++i) {
    const Real integrated = integrate<reset>(membrane_state[i], spikes_state[i], load(input[i]), neuron.alpha[i],
                                             neuron.reset_by[i]);
    const Real membrane = clip(integrated, neuron.min_membrane[i]);
    const Storage stored = store<Storage>(membrane);
    const Real spikes = many_spikes ? fire_many(load(stored), neuron.threshold[i], neuron.max_spikes)
                                    : fire_once(load(stored), neuron.threshold[i]);
    membrane_state[i] = membrane;
    spikes_state[i] = spikes;
    membrane_out[i] = stored;
    spikes_out[i] = store<Storage>(spikes);
  }
}

template <Method method, Reset reset, bool with_parameters, class Storage>
void lif_backward_lanes(const LifBackwardRow<Storage>& row) {
  using Real = compute_t<Storage>;
  const Storage* membrane_row = row.membrane;
  const Storage* grad_spikes_row = row.grad_spikes;
  const Storage* grad_membrane_row = row.grad_membrane;
  Storage* grad_input_row = row.grad_input;
  Real* adjoint = row.adjoint;
  const NeuronRows<Real> neuron = row.neuron;
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < row.width; ++i) {
    const Real membrane = load(membrane_row[i]);
    const bool needs_spikes = with_parameters || reset == Reset::zero;
    const Real spikes = needs_spikes ? row.spikes[i] : Real(0);
    const Propagated<Real> from_later =
        propagate<method, reset>(adjoint[i], membrane, spikes, neuron.alpha[i], neuron.reset_by[i]);
    const StepBack<Real> step =
        step_back(row.surrogate[i], load(grad_spikes_row[i]), load(grad_membrane_row[i]), from_later.membrane,
                  from_later.spikes, is_clipped(membrane, neuron.min_membrane[i]));
    if constexpr (with_parameters) {
      row.sums.alpha[i] += from_later.alpha;
      row.sums.threshold[i] += step.threshold;
      row.sums.reset_by[i] += from_later.reset_by;
      row.sums.min_membrane[i] += step.min_membrane;
    }
    adjoint[i] = step.adjoint;
    grad_input_row[i] = store<Storage>(step.adjoint);
  }
}

template <Method method, Reset reset, class Real>
void lif_initial_lanes(const LifInitialRow<Real>& row) {
  const NeuronRows<Real> neuron = row.neuron;
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < row.width; ++i) {
    const Propagated<Real> from_later = propagate<method, reset>(row.adjoint[i], row.membrane[i], row.spikes[i],
                                                                 neuron.alpha[i], neuron.reset_by[i]);
    row.grad_membrane[i] = from_later.membrane;
    row.grad_spikes[i] = from_later.spikes;
    row.sums.alpha[i] += from_later.alpha;
    row.sums.reset_by[i] += from_later.reset_by;
  }
}

template <Reset value>
using ResetIs = std::integral_constant<Reset, value>;
template <Method value>
using MethodIs = std::integral_constant<Method, value>;

// Calls body with the method and the reset as types.
template <class MethodType, class Body>
void with_reset(MethodType method, Reset reset, Body body) {
  switch (reset) {
    case Reset::none:
      return body(method, ResetIs<Reset::none>{});
    case Reset::subtract:
      return body(method, ResetIs<Reset::subtract>{});
    case Reset::subtract_decayed:
      return body(method, ResetIs<Reset::subtract_decayed>{});
    case Reset::zero:
      return body(method, ResetIs<Reset::zero>{});
  }
}

template <class Body>
void with_method_and_reset(Method method, Reset reset, Body body) {
  if (method == Method::exodus) {
    with_reset(MethodIs<Method::exodus>{}, reset, body);
  } else {
    with_reset(MethodIs<Method::slayer>{}, reset, body);
  }
}

template <class Storage>
void lif_forward(Reset reset, bool many_spikes, const LifForwardRow<Storage>& row) {
  with_reset(nullptr, reset, [&row, many_spikes](auto, auto r) {
    if (many_spikes) {
      lif_forward_lanes<r.value, true>(row);
    } else {
      lif_forward_lanes<r.value, false>(row);
    }
  });
}

template <class Storage>
void lif_backward(Method method, Reset reset, const LifBackwardRow<Storage>& row) {
  with_method_and_reset(method, reset, [&row](auto m, auto r) {
    if (row.sums.alpha != nullptr) {
      lif_backward_lanes<m.value, r.value, true>(row);
    } else {
      lif_backward_lanes<m.value, r.value, false>(row);
    }
  });
}

template <class Real>
void lif_initial(Method method, Reset reset, const LifInitialRow<Real>& row) {
  with_method_and_reset(method, reset, [&row](auto m, auto r) { lif_initial_lanes<m.value, r.value>(row); });
}

template <SurrogateKind kind, class Storage, class Real = compute_t<Storage>>
void surrogate_lanes(std::int64_t width, const Storage* membrane, const Real* threshold,
                     Real slope, Real scale, Real* derivative) {
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < width; ++i) {
    derivative[i] = exodus::surrogate<kind>(load(membrane[i]), threshold[i], slope, scale);
  }
}

template <class Storage, class Real = compute_t<Storage>>
void surrogate(SurrogateKind kind, std::int64_t width, const Storage* membrane, const Real* threshold, Real slope,
               Real scale, Real* derivative) {
  switch (kind) {
    case SurrogateKind::exponential:
      return surrogate_lanes<SurrogateKind::exponential>(width, membrane, threshold, slope, scale, derivative);
    case SurrogateKind::boxcar:
      return surrogate_lanes<SurrogateKind::boxcar>(width, membrane, threshold, slope, scale, derivative);
    case SurrogateKind::triangle:
      return surrogate_lanes<SurrogateKind::triangle>(width, membrane, threshold, slope, scale, derivative);
    case SurrogateKind::fast_sigmoid:
      return surrogate_lanes<SurrogateKind::fast_sigmoid>(width, membrane, threshold, slope, scale, derivative);
    case SurrogateKind::sigmoid:
      return surrogate_lanes<SurrogateKind::sigmoid>(width, membrane, threshold, slope, scale, derivative);
    case SurrogateKind::arctan:
      return surrogate_lanes<SurrogateKind::arctan>(width, membrane, threshold, slope, scale, derivative);
    case SurrogateKind::tanh:
      return surrogate_lanes<SurrogateKind::tanh>(width, membrane, threshold, slope, scale, derivative);
    case SurrogateKind::gaussian:
      return surrogate_lanes<SurrogateKind::gaussian>(width, membrane, threshold, slope, scale, derivative);
  }
}

template <class Storage, class Real = compute_t<Storage>>
void fire(std::int64_t width, const Storage* membrane, const Real* threshold, Real max_spikes,
          Real* spikes) {
  if (max_spikes == Real(1)) {
    EXODUS_INDEPENDENT_LANES
    for (std::int64_t i = 0; i < width; ++i) spikes[i] = fire_once(load(membrane[i]), threshold[i]);
  } else {
    EXODUS_INDEPENDENT_LANES
    for (std::int64_t i = 0; i < width; ++i) spikes[i] = fire_many(load(membrane[i]), threshold[i], max_spikes);
  }
}

template <class Storage>
void srm_forward(const SrmForwardRow<Storage>& row) {
  using Real = compute_t<Storage>;
  const Storage* psp = row.psp;
  Storage* spikes_out = row.spikes;
  Storage* membrane_out = row.membrane;
  Real* spikes_state = row.spikes_state;
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < row.width; ++i) {
    const Storage stored = store<Storage>(reset_by_kernel(load(psp[i]), row.reset[i]));
    const Real spikes = fire_once(load(stored), row.threshold[i]);
    membrane_out[i] = stored;
    spikes_state[i] = spikes;
    spikes_out[i] = store<Storage>(spikes);
  }
}

template <class Storage>
void srm_backward(const SrmBackwardRow<Storage>& row) {
  using Real = compute_t<Storage>;
  const Storage* grad_spikes_row = row.grad_spikes;
  const Storage* grad_membrane_row = row.grad_membrane;
  Storage* grad_psp = row.grad_psp;
  Real* adjoint = row.adjoint;
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < row.width; ++i) {
    const StepBack<Real> step = step_back(row.surrogate[i], load(grad_spikes_row[i]), load(grad_membrane_row[i]),
                                          Real(0), row.reset[i], false);
    adjoint[i] = step.adjoint;
    grad_psp[i] = store<Storage>(step.adjoint);
    if (row.threshold_sum != nullptr) row.threshold_sum[i] += step.threshold;
  }
}

template <class Real>
void add_scaled(std::int64_t width, Real coefficient, const Real* row, Real* accumulator) {
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < width; ++i) accumulator[i] += coefficient * row[i];
}

template <class Real>
void mode_step(std::int64_t width, const Mode& mode, const Real* input, Real* p,
               Real* q, Real* output) {
  const Real decay = static_cast<Real>(mode.decay);
  const Real constant = static_cast<Real>(mode.constant);
  const Real linear = static_cast<Real>(mode.linear);
  if (mode.linear == 0) {
    EXODUS_INDEPENDENT_LANES
    for (std::int64_t i = 0; i < width; ++i) {
      output[i] += respond(decay, constant, input[i], p[i]);
    }
  } else {
    EXODUS_INDEPENDENT_LANES
    for (std::int64_t i = 0; i < width; ++i) {
      output[i] += respond(decay, constant, linear, input[i], p[i], q[i]);
    }
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
  return {lif_forward<Storage>, lif_backward<Storage>, lif_initial<Real>,  surrogate<Storage>,
          fire<Storage>,        srm_forward<Storage>,  srm_backward<Storage>, add_scaled<Real>,
          mode_step<Real>,      load_row<Storage>,     store_row<Storage>,    dot<Storage>};
}

}  // namespace

extern const InstructionSet set = {
    EXODUS_INSTRUCTION_SET_LABEL,
    kernels<float>(),
    kernels<double>(),
    kernels<Half>(),
    kernels<BFloat16>(),
};

}  // namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME
