// A training step in several launches: what its kernels are told.
//
//   gather         rows of the batch as factors of products, and what the batch is (Now)
//   hidden         h = dropout(act(x W1ᵀ + b1))
//   outputs        parts of h W2ᵀ
//   loss           outputs, each row's loss, and the gradient at the outputs
//   hidden_grad    the gradient at the activation's input; beside it, the loss, and whether the run ends here
//   gradients      of all parameters, in parts of the batch
//   norm           where gradients are clipped by their norm: their squares
//   update         penalties, clipping, the optimiser; the step is counted
//   penalty        where there is one: its value, added to the loss
//
// F is what factors of products are: T, or bfloat16. Which step it is the kernels read from device memory, so that one
// CUDA graph serves all of a run. Each returns at once when the run has ended.
#pragma once
#include "cuda/device/share.cuh"
#include "cuda/steps.h"

namespace twolayer::cuda {

// The step under way, in device memory. The first three are set before a run, the others by gather.
struct Now {
  int64_t first_step, steps_before;
  bool over;             // the run ended before this step; gather then sets nothing else
  int64_t step;          // of the run
  int64_t first, batch;  // rows of the epoch: before the batch, and in it
  double weight;         // what the rows count for
  double divisor;        // of the sum of their losses
};

// The numbers of a parameter, in blocks of kUpdated.
struct Updated {
  int64_t size;  // 0: there is nothing to do
  int64_t blocks;
};
constexpr int kUpdatedAtOnce = 4, kUpdated = kThreads * kUpdatedAtOnce;

template <class T, class F>
struct StepTask {
  Steps<T> steps;  // of which first_step, steps_before and steps are not read
  bool training;
  int64_t loss_per_row;  // what a row of weight 1 adds to the loss's divisor; 0: the loss is a sum
  Now* now;

  // Scratch. Its rows begin at multiples of 16 bytes.
  Matrix<F> x;            // (batch, in)
  Matrix<F> h;            // (batch, hidden): dropout applied
  T* saved;               // as h, what the activation's derivative is computed from; may be h
  Matrix<F> grad_hidden;  // (batch, hidden): at the activation's input
  T* output_parts;        // (parts, batch, out)
  T* z;                   // as grad_out, with room for kLossRows rows more
  Matrix<F> grad_out;     // (batch, out); its data may be z
  T* row_loss;            // (batch)
  int32_t* row_hit;       // (batch)
  T* grads[kParameters];  // (parts, …)
  double* squares;        // (norm_blocks)
  double* penalties;      // (update blocks, 2): sums of |w| and w²

  Matrix<F> w1, w2;          // as products read them
  F *w1_factor, *w2_factor;  // the same where they are copies, else null
  int parts[kParameters];    // of the gradients
  int output_part_count;
  Share hidden_share, output_share, hidden_grad_share, w1_share, w2_share;
  int64_t gather_blocks;
  Updated updated[kParameters];  // what is updated, or penalised
  int64_t update_blocks, norm_blocks;
};

template <class T, class F>
__device__ __forceinline__ bool is_penalised(const StepTask<T, F>& task, int parameter) {
  const GradientOptions& g = task.steps.training.gradient;
  return (parameter == kW1 || parameter == kW2) && (g.l1 != 0 || g.l2 != 0);
}

// What a penalty is multiplied by.
template <class T, class F>
__device__ __forceinline__ double penalty_share(const StepTask<T, F>& task) {
  return task.steps.training.penalty_per_row ? 1 / task.now->weight : 1;
}

}  // namespace twolayer::cuda
