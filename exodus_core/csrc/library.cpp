// The operators of exodus_core, each schema once; the devices register their implementations in folders of their own.
//
// A neuron parameter is a number and, if it differs between neurons or is learned, a tensor that overrides it.
// A kernel is either `taps` or modes (constant + linear k) decay^k.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(exodus, m) {
  m.def(
      "lif_forward(Tensor input, float alpha, float threshold, float reset_by, float min_membrane, float max_spikes, "
      "Tensor? alphas, Tensor? thresholds, Tensor? resets_by, Tensor? min_membranes, Tensor? initial_membrane, "
      "Tensor? initial_spikes, int reset, bool bound_after_reset, int time_dim) -> (Tensor spikes, Tensor membrane)");
  m.def(
      "lif_forward_packed(Tensor input, float alpha, float threshold, float reset_by, float min_membrane, "
      "Tensor? alphas, Tensor? thresholds, Tensor? resets_by, Tensor? min_membranes, Tensor? initial_membrane, "
      "Tensor? initial_spikes, int reset, bool bound_after_reset, int time_dim) -> (Tensor bits, Tensor membrane)");
  m.def(
      "lif_backward(Tensor membrane, Tensor? grad_spikes, Tensor? grad_membrane, float alpha, float threshold, "
      "float reset_by, float min_membrane, float max_spikes, Tensor? alphas, Tensor? thresholds, Tensor? resets_by, "
      "Tensor? min_membranes, Tensor? initial_membrane, Tensor? initial_spikes, int reset, bool bound_after_reset, "
      "int surrogate, float slope, float scale, int method, bool with_lanes, int time_dim) -> (Tensor grad_input, "
      "Tensor lane_gradients)");
  m.def(
      "lif_backward_summed(Tensor membrane, Tensor? grad_spikes, Tensor? grad_membrane, float alpha, float threshold, "
      "float reset_by, float min_membrane, float max_spikes, Tensor? alphas, Tensor? thresholds, Tensor? resets_by, "
      "Tensor? min_membranes, Tensor? initial_membrane, Tensor? initial_spikes, int reset, bool bound_after_reset, "
      "int surrogate, float slope, float scale, int method, bool with_lanes, int time_dim) -> (Tensor sums, "
      "Tensor lane_gradients)");
  m.def(
      "coupled_forward(Tensor input, float[] numbers, Tensor? parameters, Tensor? initial, float max_spikes, "
      "int refractory, int reset, int couplings, int kept, int time_dim) -> (Tensor spikes, Tensor membrane, "
      "Tensor current, Tensor adaptation, Tensor held, Tensor last)");
  m.def(
      "coupled_backward(Tensor membrane, Tensor? current, Tensor? adaptation, Tensor? held, Tensor? grad_spikes, "
      "Tensor? grad_membrane, Tensor? grad_last, float[] numbers, Tensor? parameters, Tensor? initial, float max_spikes, "
      "int refractory, int reset, int couplings, int followed, int surrogate, float slope, float scale, int method, "
      "bool with_lanes, int time_dim) -> (Tensor grad_input, Tensor lane_gradients)");
  m.def(
      "coupled_traces(Tensor membrane, float[] numbers, Tensor? parameters, Tensor? initial, float max_spikes, "
      "int refractory, int reset, int couplings, int kept, int time_dim) -> (Tensor spikes, Tensor adaptation, "
      "Tensor held)");
  m.def(
      "srm_forward(Tensor psp, Tensor? taps, float[] decay, float[] constant, float[] linear, float threshold, "
      "Tensor? thresholds, int time_dim) -> (Tensor spikes, Tensor membrane)");
  m.def(
      "srm_backward(Tensor membrane, Tensor? grad_spikes, Tensor? grad_membrane, Tensor? taps, float[] decay, "
      "float[] constant, float[] linear, float threshold, Tensor? thresholds, int surrogate, float slope, float scale, "
      "int method, bool with_threshold, int time_dim) -> (Tensor grad_psp, Tensor grad_threshold)");
  m.def(
      "filter(Tensor input, Tensor? taps, float[] decay, float[] constant, float[] linear, bool reverse, int time_dim) "
      "-> Tensor");
  m.def("taps_gradient(Tensor grad, Tensor source, int length, int delay, int time_dim) -> Tensor");
  m.def("pack_spikes(Tensor input, float max_density) -> (Tensor bits, int kind)");
  m.def("count_spikes(Tensor bits) -> int");
  m.def("unpack_spikes(Tensor bits, int columns, Tensor like) -> Tensor");
  m.def("spike_linear(Tensor bits, Tensor? values, Tensor weight, Tensor? bias) -> Tensor");
  m.def("spike_linear_weight(Tensor bits, Tensor? values, Tensor grad, int columns) -> Tensor");
  m.def(
      "spike_convolution(Tensor bits, Tensor? values, Tensor weight, Tensor? bias, int[] size, int[] stride, "
      "int[] padding, int[] dilation, int groups) -> Tensor");
  m.def(
      "spike_convolution_weight(Tensor bits, Tensor? values, Tensor grad, Tensor weight, int[] size, int[] stride, "
      "int[] padding, int[] dilation, int groups) -> (Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "sparse_gradient_convolution(Tensor bits, Tensor grad, Tensor weight, int[] size, int[] stride, int[] padding) "
      "-> Tensor");
  m.def(
      "max_pool2d(Tensor input, int[] kernel_size, int[] stride, int[] padding, bool with_places) -> (Tensor output, "
      "Tensor places)");
  m.def(
      "max_pool2d_backward(Tensor grad, Tensor places, int[] size, int[] kernel_size, int[] stride, int[] padding) "
      "-> Tensor");
  m.def("avg_pool2d(Tensor input, int[] kernel_size, int[] stride, int[] padding, int divisor) -> Tensor");
  m.def(
      "avg_pool2d_backward(Tensor grad, int[] size, int[] kernel_size, int[] stride, int[] padding, int divisor) "
      "-> Tensor");
  m.def("instruction_set() -> str");
  m.def("output(Tensor like, int[] size) -> Tensor");
  m.def("keep_memory(int limit) -> int");
  m.def("kept_memory() -> (int bytes, int limit)");
}
