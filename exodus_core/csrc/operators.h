// The operators, common to all devices: they check the tensors, allocate the results and hand a call to the backend of
// the device, which has is_on_device, kDevice, empty_like and a run() for each kind of call.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "core/adjoint.h"
#include "core/causal_kernel.h"
#include "core/coupled_adjoint.h"
#include "core/layout.h"
#include "core/neuron.h"
#include "core/surrogate.h"

namespace exodus {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Doubles = std::vector<double>;

// A neuron parameter: one number for all lanes, or a tensor with one element or one for each inner index.
struct Parameter {
  double value;
  const OptionalTensor& tensor;
};

struct LifParameters {
  Parameter alpha;
  Parameter threshold;
  Parameter reset_by;
  Parameter min_membrane;
  double max_spikes;
  bool bound_after_reset;  // min_membrane bounds what the reset leaves
};

// u[-1] and s[-1], one element a lane; zero if not given.
struct InitialState {
  const OptionalTensor& membrane;
  const OptionalTensor& spikes;
};

struct LifForwardCall {
  const Layout& layout;
  const Layout& input_layout;  // of one step, if each step has the same input
  const Tensor& input;
  LifParameters parameters;
  InitialState initial;
  Reset reset;
  const Tensor& spikes;
  const Tensor& membrane;
  bool packed = false;  // spikes are bits, of uint8
};

struct LifBackwardCall {
  const Layout& layout;
  const Tensor& membrane;
  const OptionalTensor& grad_spikes;
  const OptionalTensor& grad_membrane;
  LifParameters parameters;
  InitialState initial;
  Reset reset;
  Surrogate<double> surrogate;
  Method method;
  const Tensor& grad_input;
  const Tensor& lane_gradients;  // kLaneGradients rows, or none
  bool summed = false;           // grad_input is its sum over time, one element a lane
};

// Numbers, in the order of CoupledParameter, or a tensor (kCoupledParameters, 1 or inner) in their place.
struct CoupledParameters {
  const Doubles& numbers;
  const OptionalTensor& tensor;
};

// A state is (kCoupledStates, outer, inner); the initial one is zero if not given. Outputs without elements are not wanted.
struct CoupledForwardCall {
  const Layout& layout;
  const Layout& input_layout;  // as of LifForwardCall
  const Tensor& input;
  CoupledParameters parameters;
  const OptionalTensor& initial;
  Coupling coupling;
  double max_spikes;
  std::int64_t refractory;
  const Tensor& spikes;
  const Tensor& membrane;
  const Tensor& current;
  const Tensor& adaptation;
  const Tensor& held;
  const Tensor& last;
};

struct CoupledBackwardCall {
  const Layout& layout;
  const Tensor& membrane;
  const OptionalTensor& current;
  const OptionalTensor& adaptation;
  const OptionalTensor& held;
  const OptionalTensor& grad_spikes;
  const OptionalTensor& grad_membrane;
  const OptionalTensor& grad_last;  // its rows of the current and the adaptation
  CoupledParameters parameters;
  const OptionalTensor& initial;
  Coupling coupling;
  double max_spikes;
  std::int64_t refractory;
  bool follows_adaptation;  // it is computed from the membrane
  bool follows_held;
  Surrogate<double> surrogate;
  Method method;
  const Tensor& grad_input;
  const Tensor& lane_gradients;  // those of the state and of the parameters, or none
};

// The variables that follow from a membrane trace. Outputs without elements are not wanted.
struct CoupledTracesCall {
  const Layout& layout;
  const Tensor& membrane;
  CoupledParameters parameters;
  const OptionalTensor& initial;
  Coupling coupling;
  double max_spikes;
  std::int64_t refractory;
  const Tensor& spikes;
  const Tensor& adaptation;
  const Tensor& held;
};

// Taps, or modes.
struct CausalKernel {
  const OptionalTensor& taps;
  std::vector<Mode> modes;
  std::int64_t length;  // of the taps, without those beyond the last step
};

struct SrmForwardCall {
  const Layout& layout;
  const Tensor& psp;
  const CausalKernel& kernel;
  Parameter threshold;
  const Tensor& spikes;
  const Tensor& membrane;
};

struct SrmBackwardCall {
  const Layout& layout;
  const Tensor& membrane;
  const OptionalTensor& grad_spikes;
  const OptionalTensor& grad_membrane;
  const CausalKernel& kernel;
  Parameter threshold;
  Surrogate<double> surrogate;
  Method method;
  const Tensor& grad_psp;
  const Tensor& grad_threshold;  // one element a lane, or none
};

struct FilterCall {
  const Layout& layout;
  const Tensor& input;
  const CausalKernel& kernel;
  bool reverse;
  const Tensor& output;
};

// gradient[k] = sum over n and lanes of grad[n] source[n - k - delay]
struct TapsGradientCall {
  const Layout& layout;
  const Tensor& grad;
  const Tensor& source;
  std::int64_t delay;
  const Tensor& gradient;
};

inline ScalarType compute_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class T>
const T* elements(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* elements(const OptionalTensor& tensor) {
  return tensor.has_value() ? elements<T>(*tensor) : nullptr;
}

template <class T>
T* mutable_elements(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls f with a value of the element type of `tensor`.
template <class F>
void dispatch(const Tensor& tensor, F f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, "a tensor must be float32, float64, float16 or bfloat16");
  }
}

template <class Backend>
class Operators {
 public:
  static std::tuple<Tensor, Tensor> lif_forward(const Tensor& input, double alpha, double threshold, double reset_by,
                                                double min_membrane, double max_spikes, OptionalTensor alphas,
                                                OptionalTensor thresholds, OptionalTensor resets_by,
                                                OptionalTensor min_membranes, OptionalTensor initial_membrane,
                                                OptionalTensor initial_spikes, std::int64_t reset,
                                                bool bound_after_reset, std::int64_t time_dim) {
    const Layout layout = layout_of_input(input, time_dim), input_layout = stored_layout(layout, input, time_dim);
    const LifParameters parameters{{alpha, alphas},
                                   {threshold, thresholds},
                                   {reset_by, resets_by},
                                   {min_membrane, min_membranes},
                                   max_spikes,
                                   bound_after_reset};
    check_lif(parameters, {initial_membrane, initial_spikes}, input, layout);
    const Reset kind = reset_of(reset, max_spikes);
    Tensor spikes = Backend::empty_like(input);
    Tensor membrane = Backend::empty_like(input);
    if (input.numel() > 0) {
      Backend::run(LifForwardCall{layout, input_layout, input, parameters, {initial_membrane, initial_spikes}, kind,
                                  spikes, membrane});
    }
    return {spikes, membrane};
  }

  // The spikes as bits, shape (outer, time, bytes of inner). Of a backend with output_of.
  static std::tuple<Tensor, Tensor> lif_forward_packed(const Tensor& input, double alpha, double threshold,
                                                       double reset_by, double min_membrane, OptionalTensor alphas,
                                                       OptionalTensor thresholds, OptionalTensor resets_by,
                                                       OptionalTensor min_membranes, OptionalTensor initial_membrane,
                                                       OptionalTensor initial_spikes, std::int64_t reset,
                                                       bool bound_after_reset, std::int64_t time_dim) {
    const Layout layout = layout_of_input(input, time_dim), input_layout = stored_layout(layout, input, time_dim);
    STD_TORCH_CHECK(layout.inner >= Backend::kPackedLanes, "at least ", Backend::kPackedLanes,
                    " neurons must lie next to each other, got ", layout.inner);
    const LifParameters parameters{{alpha, alphas},
                                   {threshold, thresholds},
                                   {reset_by, resets_by},
                                   {min_membrane, min_membranes},
                                   1,
                                   bound_after_reset};
    check_lif(parameters, {initial_membrane, initial_spikes}, input, layout);
    const Reset kind = reset_of(reset, 1);
    Tensor bits = Backend::output_of(input, {layout.outer, layout.time, (layout.inner + 7) / 8}, ScalarType::Byte);
    Tensor membrane = Backend::empty_like(input);
    if (input.numel() > 0) {
      Backend::run(LifForwardCall{layout, input_layout, input, parameters, {initial_membrane, initial_spikes}, kind, bits,
                                  membrane, true});
    }
    return {bits, membrane};
  }

  // `summed`: dL/dx is summed over time, (outer, inner), for an input that is the same in every step. float32 alone.
  template <bool summed>
  static std::tuple<Tensor, Tensor> lif_backward(
      const Tensor& membrane, OptionalTensor grad_spikes, OptionalTensor grad_membrane, double alpha, double threshold,
      double reset_by, double min_membrane, double max_spikes, OptionalTensor alphas, OptionalTensor thresholds,
      OptionalTensor resets_by, OptionalTensor min_membranes, OptionalTensor initial_membrane,
      OptionalTensor initial_spikes, std::int64_t reset, bool bound_after_reset, std::int64_t surrogate, double slope,
      double scale, std::int64_t method, bool with_lanes, std::int64_t time_dim) {
    const Layout layout = layout_of(membrane, time_dim);
    check_like(grad_spikes, membrane);
    check_like(grad_membrane, membrane);
    const LifParameters parameters{{alpha, alphas},
                                   {threshold, thresholds},
                                   {reset_by, resets_by},
                                   {min_membrane, min_membranes},
                                   max_spikes,
                                   bound_after_reset};
    check_lif(parameters, {initial_membrane, initial_spikes}, membrane, layout);
    const Reset kind = reset_of(reset, max_spikes);
    const Surrogate<double> derivative = surrogate_of(surrogate, slope, scale);
    const Method how = method_of(method);
    STD_TORCH_CHECK(!summed || membrane.scalar_type() == ScalarType::Float, "a gradient summed over time must be float32");
    Tensor grad_input =
        summed ? lanes_like(membrane, {layout.outer, layout.inner}, layout) : Backend::empty_like(membrane);
    Tensor lane_gradients = lanes_like(membrane, {with_lanes ? kLaneGradients : 0, layout.outer, layout.inner}, layout);
    if (membrane.numel() > 0) {
      Backend::run(LifBackwardCall{layout, membrane, grad_spikes, grad_membrane, parameters,
                                   {initial_membrane, initial_spikes}, kind, derivative, how, grad_input,
                                   lane_gradients, summed});
    }
    return {grad_input, lane_gradients};
  }

  // `kept`: which of current (1), adaptation (2) and the refractory steps (4) are traced for the backward pass.
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> coupled_forward(
      const Tensor& input, Doubles numbers, OptionalTensor parameters, OptionalTensor initial, double max_spikes,
      std::int64_t refractory, std::int64_t reset, std::int64_t couplings, std::int64_t kept, std::int64_t time_dim) {
    const Layout layout = layout_of_input(input, time_dim), input_layout = stored_layout(layout, input, time_dim);
    STD_TORCH_CHECK(refractory >= 0, "refractory must be at least 0, got ", refractory);
    const bool waits = refractory > 0 || initial.has_value() || (kept & 4) != 0;
    const Coupling coupling = coupling_of(numbers, parameters, initial, couplings, waits, reset, max_spikes, input, layout);
    Tensor spikes = Backend::empty_like(input);
    Tensor membrane = Backend::empty_like(input);
    Tensor current = trace_like(input, (kept & 1) != 0);
    Tensor adaptation = trace_like(input, (kept & 2) != 0);
    Tensor held = trace_like(input, (kept & 4) != 0);
    Tensor last = lanes_like(input, {kCoupledStates, layout.outer, layout.inner}, layout);
    if (input.numel() > 0) {
      Backend::run(CoupledForwardCall{layout, input_layout, input, {numbers, parameters}, initial, coupling, max_spikes,
                                      refractory, spikes, membrane, current, adaptation, held, last});
    }
    return {spikes, membrane, current, adaptation, held, last};
  }

  static std::tuple<Tensor, Tensor> coupled_backward(
      const Tensor& membrane, OptionalTensor current, OptionalTensor adaptation, OptionalTensor held,
      OptionalTensor grad_spikes, OptionalTensor grad_membrane, OptionalTensor grad_last, Doubles numbers,
      OptionalTensor parameters, OptionalTensor initial, double max_spikes, std::int64_t refractory, std::int64_t reset,
      std::int64_t couplings, std::int64_t followed, std::int64_t surrogate, double slope, double scale,
      std::int64_t method, bool with_lanes, std::int64_t time_dim) {
    const Layout layout = layout_of(membrane, time_dim);
    STD_TORCH_CHECK(refractory >= 0, "refractory must be at least 0, got ", refractory);
    const bool follows_adaptation = (followed & 2) != 0, follows_held = (followed & 4) != 0;
    STD_TORCH_CHECK(followed == 0 || Backend::kFollows, "traces must be given to ", Backend::kDevice, " kernels");
    STD_TORCH_CHECK(followed == 0 || (couplings & 16) == 0 || compute_dtype(membrane) == membrane.scalar_type(),
                    "traces of a rounded membrane must be given");
    STD_TORCH_CHECK(!(follows_adaptation && adaptation.has_value()) && !(follows_held && held.has_value()),
                    "a trace must be given or computed from the membrane, not both");
    for (const OptionalTensor* like : {&current, &adaptation, &held, &grad_spikes, &grad_membrane}) check_like(*like, membrane);
    const Coupling coupling =
        coupling_of(numbers, parameters, initial, couplings, held.has_value() || follows_held, reset, max_spikes, membrane,
                    layout);
    check_states(grad_last, membrane, layout);
    STD_TORCH_CHECK(!(coupling.raises || (coupling.adaptation && with_lanes)) || adaptation.has_value() ||
                        follows_adaptation,
                    "the trace of the adaptation must be given, or computed from the membrane");
    STD_TORCH_CHECK(!coupling.synapse || !with_lanes || current.has_value(), "the trace of the current must be given");
    const Surrogate<double> derivative = surrogate_of(surrogate, slope, scale);
    STD_TORCH_CHECK(method >= 0 && method <= 2, "method must be in [0, 2], got ", method);
    Tensor grad_input = Backend::empty_like(membrane);
    Tensor lane_gradients = lanes_like(
        membrane, {with_lanes ? kCoupledStates + kCoupledParameters : 0, layout.outer, layout.inner}, layout);
    if (membrane.numel() > 0) {
      Backend::run(CoupledBackwardCall{layout, membrane, current, adaptation, held, grad_spikes, grad_membrane, grad_last,
                                       {numbers, parameters}, initial, coupling, max_spikes, refractory,
                                       follows_adaptation, follows_held, derivative, static_cast<Method>(method), grad_input, lane_gradients});
    }
    return {grad_input, lane_gradients};
  }

  // `kept`: which of spikes (1), adaptation (2) and the refractory steps (4) are wanted.
  static std::tuple<Tensor, Tensor, Tensor> coupled_traces(const Tensor& membrane, Doubles numbers,
                                                           OptionalTensor parameters, OptionalTensor initial,
                                                           double max_spikes, std::int64_t refractory, std::int64_t reset,
                                                           std::int64_t couplings, std::int64_t kept,
                                                           std::int64_t time_dim) {
    const Layout layout = layout_of(membrane, time_dim);
    STD_TORCH_CHECK(refractory >= 0, "refractory must be at least 0, got ", refractory);
    const bool waits = refractory > 0 || initial.has_value() || (kept & 4) != 0;
    const Coupling coupling =
        coupling_of(numbers, parameters, initial, couplings, waits, reset, max_spikes, membrane, layout);
    Tensor spikes = trace_like(membrane, (kept & 1) != 0);
    Tensor adaptation = trace_like(membrane, (kept & 2) != 0);
    Tensor held = trace_like(membrane, (kept & 4) != 0);
    if (membrane.numel() > 0) {
      Backend::run(CoupledTracesCall{layout, membrane, {numbers, parameters}, initial, coupling, max_spikes, refractory,
                                     spikes, adaptation, held});
    }
    return {spikes, adaptation, held};
  }

  static std::tuple<Tensor, Tensor> srm_forward(const Tensor& psp, OptionalTensor taps, Doubles decay, Doubles constant,
                                                Doubles linear, double threshold, OptionalTensor thresholds,
                                                std::int64_t time_dim) {
    const Layout layout = layout_of(psp, time_dim);
    const CausalKernel kernel = kernel_of(taps, decay, constant, linear, psp, layout);
    const Parameter parameter{threshold, thresholds};
    check_parameter(parameter, psp, layout);
    Tensor spikes = Backend::empty_like(psp);
    Tensor membrane = Backend::empty_like(psp);
    if (psp.numel() > 0) Backend::run(SrmForwardCall{layout, psp, kernel, parameter, spikes, membrane});
    return {spikes, membrane};
  }

  static std::tuple<Tensor, Tensor> srm_backward(const Tensor& membrane, OptionalTensor grad_spikes,
                                                 OptionalTensor grad_membrane, OptionalTensor taps, Doubles decay,
                                                 Doubles constant, Doubles linear, double threshold,
                                                 OptionalTensor thresholds, std::int64_t surrogate, double slope,
                                                 double scale, std::int64_t method, bool with_threshold,
                                                 std::int64_t time_dim) {
    const Layout layout = layout_of(membrane, time_dim);
    check_like(grad_spikes, membrane);
    check_like(grad_membrane, membrane);
    const CausalKernel kernel = kernel_of(taps, decay, constant, linear, membrane, layout);
    const Parameter parameter{threshold, thresholds};
    check_parameter(parameter, membrane, layout);
    const Surrogate<double> derivative = surrogate_of(surrogate, slope, scale);
    const Method how = method_of(method);
    Tensor grad_psp = Backend::empty_like(membrane);
    Tensor grad_threshold = lanes_like(membrane, {with_threshold ? layout.outer : 0, layout.inner}, layout);
    if (membrane.numel() > 0) {
      Backend::run(SrmBackwardCall{layout, membrane, grad_spikes, grad_membrane, kernel, parameter, derivative, how,
                                   grad_psp, grad_threshold});
    }
    return {grad_psp, grad_threshold};
  }

  // y[n] = sum over k of kernel[k] x[n - k]; reverse: the transpose, y[m] = sum over k of kernel[k] x[m + k].
  static Tensor filter(const Tensor& input, OptionalTensor taps, Doubles decay, Doubles constant, Doubles linear,
                       bool reverse, std::int64_t time_dim) {
    const Layout layout = layout_of(input, time_dim);
    const CausalKernel kernel = kernel_of(taps, decay, constant, linear, input, layout);
    Tensor output = Backend::empty_like(input);
    if (input.numel() > 0) Backend::run(FilterCall{layout, input, kernel, reverse, output});
    return output;
  }

  static Tensor taps_gradient(const Tensor& grad, const Tensor& source, std::int64_t length, std::int64_t delay,
                              std::int64_t time_dim) {
    const Layout layout = layout_of(grad, time_dim);
    STD_TORCH_CHECK(length > 0 && delay >= 0, "length must be positive, and delay at least 0");
    check_like(source, grad);
    Tensor gradient = torch::stable::new_zeros(grad, {length}, compute_dtype(grad));
    if (grad.numel() > 0) Backend::run(TapsGradientCall{layout, grad, source, delay, gradient});
    return gradient;
  }

 private:
  static void check_dense(const Tensor& tensor) {
    STD_TORCH_CHECK(Backend::is_on_device(tensor) && tensor.is_contiguous(), "a tensor must be contiguous and on ", Backend::kDevice);
  }

  static Layout layout_of(const Tensor& tensor, std::int64_t time_dim) {
    check_dense(tensor);
    return shape_of(tensor, time_dim);
  }

  // The same of an input that need not be contiguous if it is a tensor without time that is expanded over the steps.
  static Layout layout_of_input(const Tensor& input, std::int64_t time_dim) {
    if (!is_constant(input, time_dim)) check_dense(input);
    return shape_of(input, time_dim);
  }

  static Layout shape_of(const Tensor& tensor, std::int64_t time_dim) {
    STD_TORCH_CHECK(time_dim >= 0 && time_dim < tensor.dim(), "time_dim must be in [0, ", tensor.dim(), "), got ",
                    time_dim);
    Layout layout{1, tensor.size(time_dim), 1};
    for (std::int64_t d = 0; d < time_dim; ++d) layout.outer *= tensor.size(d);
    for (std::int64_t d = time_dim + 1; d < tensor.dim(); ++d) layout.inner *= tensor.size(d);
    return layout;
  }

  static Layout stored_layout(const Layout& layout, const Tensor& input, std::int64_t time_dim) {
    return {layout.outer, is_constant(input, time_dim) ? 1 : layout.time, layout.inner};
  }

  // True for a contiguous tensor without time, expanded over the steps, of a backend that reads one step again and again.
  static bool is_constant(const Tensor& input, std::int64_t time_dim) {
    if (!Backend::kReadsConstantInputs || !Backend::is_on_device(input) || time_dim < 0 || time_dim >= input.dim() ||
        input.size(time_dim) == 1) {
      return false;
    }
    std::int64_t stride = 1;
    for (std::int64_t d = input.dim(); d-- > 0;) {
      const std::int64_t wanted = d == time_dim ? 0 : stride;
      if (input.size(d) != 1 && input.stride(d) != wanted) return false;
      if (d != time_dim) stride *= input.size(d);
    }
    return true;
  }

  static void check_like(const OptionalTensor& tensor, const Tensor& like) {
    if (!tensor.has_value()) return;
    check_dense(*tensor);
    STD_TORCH_CHECK(tensor->scalar_type() == like.scalar_type() && tensor->numel() == like.numel(),
                    "tensors must be of one dtype and size");
  }

  static void check_parameter(const Parameter& parameter, const Tensor& like, const Layout& layout) {
    if (!parameter.tensor.has_value()) return;
    check_dense(*parameter.tensor);
    const std::int64_t count = parameter.tensor->numel();
    STD_TORCH_CHECK(parameter.tensor->scalar_type() == compute_dtype(like) && (count == 1 || count == layout.inner),
                    "a parameter must be a tensor of the compute dtype with 1 or ", layout.inner, " elements");
  }

  static void check_lif(const LifParameters& parameters, const InitialState& initial, const Tensor& like,
                        const Layout& layout) {
    for (const Parameter* parameter :
         {&parameters.alpha, &parameters.threshold, &parameters.reset_by, &parameters.min_membrane}) {
      check_parameter(*parameter, like, layout);
    }
    for (const OptionalTensor* lanes : {&initial.membrane, &initial.spikes}) {
      if (!lanes->has_value()) continue;
      check_dense(**lanes);
      STD_TORCH_CHECK((*lanes)->scalar_type() == compute_dtype(like) && (*lanes)->numel() == layout.lanes(),
                      "an initial state must be a tensor of the compute dtype with ", layout.lanes(), " elements");
    }
  }

  static void check_states(const OptionalTensor& states, const Tensor& like, const Layout& layout) {
    if (!states.has_value()) return;
    check_dense(*states);
    STD_TORCH_CHECK(states->scalar_type() == compute_dtype(like) && states->numel() == kCoupledStates * layout.lanes(),
                    "a state must be a tensor of the compute dtype with ", kCoupledStates * layout.lanes(), " elements");
  }

  static Coupling coupling_of(const Doubles& numbers, const OptionalTensor& parameters, const OptionalTensor& initial,
                              std::int64_t couplings, bool waits, std::int64_t reset, double max_spikes,
                              const Tensor& like, const Layout& layout) {
    STD_TORCH_CHECK(static_cast<int>(numbers.size()) == kCoupledParameters, "numbers must be ", kCoupledParameters,
                    " parameters, got ", numbers.size());
    if (parameters.has_value()) {
      check_dense(*parameters);
      const std::int64_t count = parameters->numel();
      STD_TORCH_CHECK(parameters->scalar_type() == compute_dtype(like) &&
                          (count == kCoupledParameters || count == kCoupledParameters * layout.inner),
                      "parameters must be a tensor of the compute dtype with ", kCoupledParameters, " rows of 1 or ",
                      layout.inner, " elements");
    }
    check_states(initial, like, layout);
    STD_TORCH_CHECK(couplings >= 0 && couplings < 128, "couplings must be in [0, 127], got ", couplings);
    return Coupling::of(couplings, waits, reset_of(reset, max_spikes), max_spikes);
  }

  static Reset reset_of(std::int64_t code, double max_spikes) {
    STD_TORCH_CHECK(code >= 0 && code <= 3, "reset must be in [0, 3], got ", code);
    const Reset reset = static_cast<Reset>(code);
    STD_TORCH_CHECK(max_spikes >= 1 && (max_spikes == 1 || reset != Reset::zero), "reset to zero goes with max_spikes 1");
    return reset;
  }

  static Surrogate<double> surrogate_of(std::int64_t code, double slope, double scale) {
    STD_TORCH_CHECK(code >= 0 && code <= 7, "surrogate must be in [0, 7], got ", code);
    return {static_cast<SurrogateKind>(code), slope, scale};
  }

  static Method method_of(std::int64_t code) {
    STD_TORCH_CHECK(code == 0 || code == 1, "method must be 0 or 1, got ", code);
    return static_cast<Method>(code);
  }

  static CausalKernel kernel_of(const OptionalTensor& taps, const Doubles& decay, const Doubles& constant,
                                const Doubles& linear, const Tensor& like, const Layout& layout) {
    STD_TORCH_CHECK(decay.size() == constant.size() && decay.size() == linear.size(),
                    "decay, constant and linear must be of one length");
    STD_TORCH_CHECK(taps.has_value() == decay.empty(), "a kernel must be either taps or modes");
    if (taps.has_value()) {
      check_dense(*taps);
      STD_TORCH_CHECK(taps->dim() == 1 && taps->numel() > 0 && taps->scalar_type() == compute_dtype(like),
                      "taps must be a 1-d tensor of the compute dtype with at least one element");
    }
    CausalKernel kernel{taps, {}, taps.has_value() ? std::min(taps->numel(), layout.time) : 0};
    const auto make = compute_dtype(like) == ScalarType::Double ? mode_of<double> : mode_of<float>;
    for (std::size_t i = 0; i < decay.size(); ++i) kernel.modes.push_back(make(decay[i], constant[i], linear[i]));
    return kernel;
  }

  // An output like a tensor; without elements if it is not wanted.
  static Tensor trace_like(const Tensor& tensor, bool wanted) {
    return wanted ? Backend::empty_like(tensor) : torch::stable::new_empty(tensor, {0}, tensor.scalar_type());
  }

  // One element a lane; zeros if there is no step that would write them.
  static Tensor lanes_like(const Tensor& tensor, const std::vector<std::int64_t>& shape, const Layout& layout) {
    return layout.time > 0 ? torch::stable::new_empty(tensor, shape, compute_dtype(tensor))
                           : torch::stable::new_zeros(tensor, shape, compute_dtype(tensor));
  }
};

// Registers every operator of a backend; `library` is that of STABLE_TORCH_LIBRARY_IMPL.
template <class Backend, class Library>
void register_operators(Library& library) {
  using Ops = Operators<Backend>;
  library.impl("lif_forward", TORCH_BOX(&Ops::lif_forward));
  library.impl("lif_backward", TORCH_BOX(&Ops::template lif_backward<false>));
  library.impl("coupled_forward", TORCH_BOX(&Ops::coupled_forward));
  library.impl("coupled_backward", TORCH_BOX(&Ops::coupled_backward));
  library.impl("coupled_traces", TORCH_BOX(&Ops::coupled_traces));
  library.impl("srm_forward", TORCH_BOX(&Ops::srm_forward));
  library.impl("srm_backward", TORCH_BOX(&Ops::srm_backward));
  library.impl("filter", TORCH_BOX(&Ops::filter));
  library.impl("taps_gradient", TORCH_BOX(&Ops::taps_gradient));
}

}  // namespace exodus
