// The row kernels, compiled once for each instruction set: rows_*.cpp defines EXODUS_INSTRUCTION_SET_NAME, sets the
// compiler's target and includes this file. It holds no arithmetic of its own: that is in csrc/core.

// Rows never overlap unless both are only read; without being told, the compiler gives up on so many pointers.
#if defined(__clang__)
#define EXODUS_INDEPENDENT_LANES _Pragma("clang loop vectorize(assume_safety)")
#else
#define EXODUS_INDEPENDENT_LANES _Pragma("GCC ivdep")
#endif

namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME {
namespace {

template <class Real>
LifNeuron<Real> neuron_of(const NeuronRows<Real>& rows, std::int64_t i) {
  return {rows.alpha[i], rows.threshold[i], rows.reset_by[i], rows.min_membrane[i], rows.max_spikes};
}

template <class Real>
void add(const ParameterSums<Real>& rows, std::int64_t i, const LifSums<Real>& sums) {
  rows.alpha[i] += sums.alpha;
  rows.threshold[i] += sums.threshold;
  rows.reset_by[i] += sums.reset_by;
  rows.min_membrane[i] += sums.min_membrane;
}

template <Reset reset, bool many_spikes, class Storage>
void lif_forward_lanes(const LifForwardRow<Storage>& row) {
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < row.width; ++i) {
    row.membrane[i] = lif_step<Storage>(reset, many_spikes, neuron_of(row.neuron, i), load(row.input[i]),
                                        row.membrane_state[i], row.spikes_state[i]);
    row.spikes[i] = store<Storage>(row.spikes_state[i]);
  }
}

template <Method method, Reset reset, bool with_sums, class Storage>
void lif_backward_lanes(const LifBackwardRow<Storage>& row) {
  using Real = compute_t<Storage>;
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < row.width; ++i) {
    const LifStep<Real> step{load(row.membrane[i]), with_sums || reset == Reset::zero ? row.spikes[i] : Real(0),
                             row.surrogate[i], load(row.grad_spikes[i]), load(row.grad_membrane[i])};
    LifSums<Real> sums{};
    row.adjoint[i] =
        lif_adjoint_step(method, reset, with_sums, neuron_of(row.neuron, i), step, row.adjoint[i], sums);
    row.grad_input[i] = store<Storage>(row.adjoint[i]);
    if constexpr (with_sums) add(row.sums, i, sums);
  }
}

template <Method method, Reset reset, class Real>
void lif_initial_lanes(const LifInitialRow<Real>& row) {
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < row.width; ++i) {
    LifSums<Real> sums{};
    const LifInitialGradient<Real> gradient = lif_adjoint_initial(
        method, reset, neuron_of(row.neuron, i), row.membrane[i], row.spikes[i], row.adjoint[i], sums);
    row.grad_membrane[i] = gradient.membrane;
    row.grad_spikes[i] = gradient.spikes;
    add(row.sums, i, sums);
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
    derivative[i] = scale * surrogate_derivative(kind, load(membrane[i]) - threshold[i], slope);
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
void fire_row(std::int64_t width, const Storage* membrane, const Real* threshold, Real max_spikes, Real* spikes) {
  if (max_spikes == Real(1)) {
    EXODUS_INDEPENDENT_LANES
    for (std::int64_t i = 0; i < width; ++i) spikes[i] = fire(false, load(membrane[i]), threshold[i], max_spikes);
  } else {
    EXODUS_INDEPENDENT_LANES
    for (std::int64_t i = 0; i < width; ++i) spikes[i] = fire(true, load(membrane[i]), threshold[i], max_spikes);
  }
}

template <class Storage>
void srm_forward(const SrmForwardRow<Storage>& row) {
  EXODUS_INDEPENDENT_LANES
  for (std::int64_t i = 0; i < row.width; ++i) {
    row.membrane[i] = srm_step<Storage>(load(row.psp[i]), row.reset[i], row.threshold[i], row.spikes_state[i]);
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
      p[i] = exponential_step(decay, p[i], input[i]);
      output[i] += constant * p[i];
    }
  } else {
    EXODUS_INDEPENDENT_LANES
    for (std::int64_t i = 0; i < width; ++i) {
      q[i] = linear_step(decay, q[i], p[i]);
      p[i] = exponential_step(decay, p[i], input[i]);
      output[i] += constant * p[i] + linear * q[i];
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
          fire_row<Storage>,     srm_forward<Storage>,  srm_backward<Storage>, add_scaled<Real>,
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
