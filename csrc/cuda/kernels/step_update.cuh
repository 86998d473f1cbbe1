// From gradients to parameters.
#pragma once
#include "cuda/device/block.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/device/rule.cuh"
#include "cuda/kernels/step.cuh"

namespace twolayer::cuda {

// The parameter that a block of `task.updated` belongs to; `block` becomes its number among those of that parameter.
template <class T, class F>
__device__ __forceinline__ int parameter_of(const StepTask<T, F>& task, int64_t& block) {
  int i = 0;
  for (; block >= task.updated[i].blocks; ++i) block -= task.updated[i].blocks;
  return i;
}

// The gradient of number `at` of parameter i: its parts, and what the penalty adds for the weight w.
template <class T, class F>
class Gradient {
 public:
  __device__ Gradient(const StepTask<T, F>& task, int i)
      : grads_(task.grads[i]),
        size_(task.updated[i].size),
        parts_(task.parts[i]),
        penalised_(is_penalised(task, i)),
        l1_(static_cast<T>(task.steps.training.gradient.l1 * penalty_share(task))),
        l2_(static_cast<T>(task.steps.training.gradient.l2 * penalty_share(task))) {}

  __device__ __forceinline__ T at(int64_t at, T w) const {
    T g = grads_[at];
    for (int part = 1; part < parts_; ++part) g += grads_[part * size_ + at];
    return penalised_ ? penalised(g, w, l1_, l2_) : g;
  }

 private:
  const T* grads_;
  int64_t size_;
  int parts_;
  bool penalised_;
  T l1_, l2_;
};

// Makes whole gradients of parts of them, and sums their squares.
template <class T, class F>
__global__ void __launch_bounds__(kThreads) norm_kernel(const __grid_constant__ StepTask<T, F> task) {
  if (task.steps.progress->ended) return;
  double squares = 0;
  for (int64_t all = blockIdx.x; all < task.update_blocks; all += task.norm_blocks) {
    int64_t block = all;
    const int i = parameter_of(task, block);
    const Learned<T>& param = task.steps.training.parameters[i];
    if (param.frozen) continue;
    const Gradient<T, F> gradient(task, i);
    for (int r = 0; r < kUpdatedAtOnce; ++r) {
      const int64_t at = block * kUpdated + r * kThreads + threadIdx.x;
      if (at >= task.updated[i].size) break;
      const T g = task.grads[i][at] = gradient.at(at, param.value[at]);
      squares = fma(static_cast<double>(g), static_cast<double>(g), squares);
    }
  }
  squares = sum_of_block(squares);
  if (threadIdx.x == 0) task.squares[blockIdx.x] = squares;
}

// What clip_norm makes gradients shorter by, as torch.nn.utils.clip_grad_norm_ has it; NaN for a norm that is NaN. All
// threads of a block call it, and get it.
template <class T, class F>
__device__ __forceinline__ T clip_factor(const StepTask<T, F>& task) {
  double squares = 0;
  for (int64_t i = threadIdx.x; i < task.norm_blocks; i += kThreads) squares += task.squares[i];
  const double factor = task.steps.training.gradient.clip_norm / (sqrt(sum_of_block(squares)) + 1e-6);
  return static_cast<T>(factor > 1 ? 1 : factor);
}

// Updates a block's numbers of parameter i.
template <class T, class F>
__device__ __forceinline__ void update_block(const StepTask<T, F>& task, int i, int64_t block, T factor) {
  constexpr int kStates = Learned<T>::kStates;
  const Training<T>& t = task.steps.training;
  const Learned<T>& param = t.parameters[i];
  const T clip_value = static_cast<T>(t.gradient.clip_value);
  const bool whole = t.gradient.clip_norm != 0;
  F* const read_by_products = i == kW1 ? task.w1_factor : i == kW2 ? task.w2_factor : nullptr;
  const Gradient<T, F> gradient(task, i);
  with_rule<T>(t.optimizer, [&]<class Rule>(const Rule*) {
    const Rule rule = static_cast<const Rule*>(task.steps.rules)[task.now->step];
#pragma unroll 1
    for (int r = 0; r < kUpdatedAtOnce; ++r) {
      const int64_t at = block * kUpdated + r * kThreads + threadIdx.x;
      if (at >= task.updated[i].size) break;
      T w = param.value[at];
      T g = whole ? task.grads[i][at] * factor : gradient.at(at, w);
      if (clip_value != 0) g = max(min(g, clip_value), -clip_value);
      T state[kStates] = {};
#pragma unroll
      for (int s = 0; s < kStates; ++s)
        if (param.state[s]) state[s] = param.state[s][at];
      param.value[at] = w = rule.step(w, g, state);
#pragma unroll
      for (int s = 0; s < kStates; ++s)
        if (param.state[s]) param.state[s][at] = state[s];
      if constexpr (!same<T, F>)
        if (read_by_products) narrow(w, read_by_products[at]);
    }
  });
}

// Leaves the sums of a block's |w| and w² of parameter i.
template <class T, class F>
__device__ __forceinline__ void note_penalty(const StepTask<T, F>& task, int i, int64_t block) {
  T absolute = 0, square = 0;
  for (int r = 0; r < kUpdatedAtOnce; ++r) {
    const int64_t at = block * kUpdated + r * kThreads + threadIdx.x;
    if (at >= task.updated[i].size) break;
    const T w = task.steps.training.parameters[i].value[at];
    absolute += abs(w);
    square = fma(w, w, square);
  }
  const double absolute_sum = sum_of_block(static_cast<double>(absolute));
  const double square_sum = sum_of_block(static_cast<double>(square));
  if (threadIdx.x > 0) return;
  task.penalties[2 * int64_t{blockIdx.x}] = absolute_sum;
  task.penalties[2 * int64_t{blockIdx.x} + 1] = square_sum;
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads) update_kernel(const __grid_constant__ StepTask<T, F> task) {
  if (task.steps.progress->ended) return;
  if (blockIdx.x == task.update_blocks) {
    if (threadIdx.x == 0) task.steps.progress->steps = task.now->step + 1;
    return;
  }
  int64_t block = blockIdx.x;
  const int i = parameter_of(task, block);
  if (is_penalised(task, i)) note_penalty(task, i, block);
  if (task.steps.training.parameters[i].frozen) return;
  const T factor = task.steps.training.gradient.clip_norm != 0 ? clip_factor(task) : T(1);
  update_block(task, i, block, factor);
}

// Adds the penalty's value, at the weights before the update, to the loss. One block.
template <class T, class F>
__global__ void __launch_bounds__(kThreads) penalty_kernel(const __grid_constant__ StepTask<T, F> task) {
  if (task.steps.progress->ended) return;
  double absolute = 0, square = 0;
  const int64_t blocks_of_w1 = task.updated[kW1].blocks, w2 = blocks_of_w1 + task.updated[kB1].blocks;
  for (int64_t i = threadIdx.x; i < blocks_of_w1 + task.updated[kW2].blocks; i += kThreads) {
    const double* const sums = task.penalties + 2 * (i < blocks_of_w1 ? i : i - blocks_of_w1 + w2);
    absolute += sums[0];
    square += sums[1];
  }
  absolute = sum_of_block(absolute);
  square = sum_of_block(square);
  if (threadIdx.x > 0) return;
  const GradientOptions& g = task.steps.training.gradient;
  task.steps.losses[task.now->step] += (g.l1 * absolute + g.l2 / 2 * square) * penalty_share(task);
}

}  // namespace twolayer::cuda
