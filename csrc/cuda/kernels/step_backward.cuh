// From the gradient at the outputs to those of the parameters.
#pragma once
#include "cuda/kernels/step_forward.cuh"

namespace twolayer::cuda {

// Leaves the batch's loss, and ends the run where that must be finite and is not. One block.
template <class T, class F>
__device__ __forceinline__ void note_loss(const StepTask<T, F>& task) {
  const double loss = loss_sum(task) / task.now->divisor;
  if (threadIdx.x > 0) return;
  task.steps.losses[task.now->step] = loss;
  const bool is_finite = loss - loss == 0;
  if (task.steps.stop_if_not_finite && !is_finite) task.steps.progress->ended = 1;
}

template <class F>
using HiddenGradProduct = Product<false, Factor<F, F, true>, Factor<F, F, false>>;

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) hidden_grad_kernel(const __grid_constant__ StepTask<T, F> task) {
  using Product = HiddenGradProduct<F>;
  const Training<T>& p = task.steps.training;
  if (task.now->over) return;  // not progress->ended, which turns while this runs
  if (blockIdx.x == 0) return note_loss(task);
  const Now now = *task.now;
  const Tiling& t = task.hidden_grad_share.tiling;
  const Place at(task.hidden_grad_share, int64_t{blockIdx.x} - 1, p.out);
  if (at.m0 >= now.batch) return;
  char* const memory = shared_memory();
  Product::run(t, rows_of_batch(task.grad_out, now.batch), task.w2, at.m0, at.n0, at.k_begin, at.k_end, memory,
               Unchanged{}, Unchanged{}, Unchanged{});
  const bool drops = p.dropout > 0;
  const Dropout<T> dropout(p.dropout, p.dropout_key, now.steps_before + now.step);
  F* const grad = const_cast<F*>(task.grad_hidden.data);
  with_activation(p.activation, [&](auto act) {
    Product::for_each_sum(t, memory, now.batch - at.m0, p.hidden - at.n0, [&](int row, int column, T g) {
      const int64_t unit = at.n0 + column, to = (at.m0 + row) * task.h.stride + unit;
      if (drops) g = dropout.apply(g, at.m0 + row, unit);
      narrow(through(act, g, task.saved[to]), grad[to]);
    });
  });
}

template <class F>
using WeightGradProduct = Product<false, Factor<F, F, false>, Factor<F, F, false>>;

// A tile of the gradient of `weight` (m, n), that is aᵀ b, and of its bias, the sums of a's columns.
template <class T, class F>
__device__ __forceinline__ void weight_grad_tile(const StepTask<T, F>& task, const Share& share, int64_t block,
                                                 const Matrix<F>& a, const Matrix<F>& b, Parameter weight,
                                                 Parameter bias) {
  using Product = WeightGradProduct<F>;
  const int64_t batch = task.now->batch;
  const Tiling& t = share.tiling;
  const Place at(share, block, batch);
  T* const grad_bias = at.n0 == 0 ? task.grads[bias] : nullptr;
  T* const grad_weight = task.grads[weight];
  char* const memory = shared_memory();
  ColumnSums<T> column_sums;
  Product::run(t, rows_of_batch(a, batch), rows_of_batch(b, batch), at.m0, at.n0, at.k_begin, at.k_end, memory,
               Unchanged{}, Unchanged{}, [&](const F* slice, int stride) {
                 if (grad_bias) column_sums.see(slice, stride, Product::kDepth, t.m());
               });
  const int64_t m = a.columns, n = b.columns;
  if (grad_weight)
    Product::for_each_sum(t, memory, m - at.m0, n - at.n0, [&](int row, int column, T sum) {
      grad_weight[(at.part * m + at.m0 + row) * n + at.n0 + column] = sum;
    });
  if (grad_bias)
    column_sums.finish(reinterpret_cast<T*>(memory), t.m(), m - at.m0,
                       [&](int column, T sum) { grad_bias[at.part * m + at.m0 + column] = sum; });
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) gradients_kernel(const __grid_constant__ StepTask<T, F> task) {
  if (task.steps.progress->ended) return;
  const int64_t block = blockIdx.x;
  if (block < task.w1_share.blocks)
    return weight_grad_tile(task, task.w1_share, block, task.grad_hidden, task.x, kW1, kB1);
  weight_grad_tile(task, task.w2_share, block - task.w1_share.blocks, task.grad_out, task.h, kW2, kB2);
}

}  // namespace twolayer::cuda
