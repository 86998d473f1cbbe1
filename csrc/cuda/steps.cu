// Plans and launches the kernels of a step. Checks nothing.
#include "cuda/steps.h"

#include "cuda/kernels/step_backward.cuh"
#include "cuda/kernels/step_forward.cuh"
#include "cuda/kernels/step_update.cuh"
#include "cuda/launch.h"
#include "cuda/plan.h"

namespace twolayer::cuda {
namespace {

// Hands out pieces of the scratch.
class Bump {
 public:
  explicit Bump(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class N>
  N* take(int64_t count) {
    constexpr int64_t kAlign = 256;
    N* const piece = reinterpret_cast<N*>(memory_ + bytes_);
    bytes_ += ceil_div(count * static_cast<int64_t>(sizeof(N)), kAlign) * kAlign;
    return piece;
  }
  // Rows that begin at multiples of 16 bytes.
  template <class N>
  Matrix<N> take_rows(int64_t rows, int64_t columns) {
    const int64_t stride = row_stride<N>(columns);
    return {take<N>(rows * stride), rows, columns, stride, 16};
  }
  template <class N>
  static int64_t row_stride(int64_t columns) {
    constexpr int64_t kNumbers = 16 / sizeof(N);
    return ceil_div(columns, kNumbers) * kNumbers;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

template <class T, class F>
struct StepPlan {
  StepTask<T, F> task{};
  int64_t scratch_bytes = 0;
};

// What of a step comes after the loss.
template <class T, class F>
void plan_update(StepTask<T, F>& task, Bump& bump, const Device& device) {
  constexpr int kMostParts = 128;
  constexpr int64_t kNormBlocks = 256;
  const Training<T>& t = task.steps.training;
  const int64_t batch = task.steps.batch_size;
  const auto is_trained = [&](int i) { return t.parameters[i].value && !t.parameters[i].frozen; };
  const bool penalised = t.gradient.l1 != 0 || t.gradient.l2 != 0;
  if (is_trained(kW1) || is_trained(kB1)) {
    share_out<HiddenGradProduct<F>>(device, task.hidden_grad_share, batch, t.hidden, t.out, 1);
    task.parts[kW1] = task.parts[kB1] =
        share_out<WeightGradProduct<F>>(device, task.w1_share, t.hidden, is_trained(kW1) ? t.in : 0, batch, kMostParts);
  }
  if (is_trained(kW2) || is_trained(kB2))
    task.parts[kW2] = task.parts[kB2] = share_out<WeightGradProduct<F>>(
        device, task.w2_share, t.out, is_trained(kW2) ? t.hidden : 0, batch, kMostParts);

  const int64_t sizes[kParameters] = {t.hidden * t.in, t.hidden, t.out * t.hidden, t.out};
  for (int i = 0; i < kParameters; ++i) {
    if (is_trained(i)) task.grads[i] = bump.take<T>(task.parts[i] * sizes[i]);
    if (is_trained(i) || (penalised && (i == kW1 || i == kW2)))
      task.updated[i] = {sizes[i], ceil_div(sizes[i], kUpdated)};
    task.update_blocks += task.updated[i].blocks;
  }
  task.norm_blocks = task.update_blocks < kNormBlocks ? task.update_blocks : kNormBlocks;
  task.squares = bump.take<double>(task.norm_blocks);
  task.penalties = bump.take<double>(2 * task.update_blocks);
}

template <class T, class F>
StepPlan<T, F> plan_step(const Steps<T>& steps, void* scratch, bool training, const Launch& launch) {
  constexpr int kMostOutputParts = 32;
  constexpr int64_t kBlocksPerMultiprocessor = 8;
  const Training<T>& t = steps.training;
  const Device& device = launch.device;
  const int64_t batch = steps.batch_size;
  StepPlan<T, F> plan;
  StepTask<T, F>& task = plan.task;
  task.steps = steps;
  task.training = training;
  task.loss_per_row = loss_per_row(t.loss, t.out);

  Bump bump(scratch);
  task.now = bump.take<Now>(1);
  task.x = bump.take_rows<F>(batch, t.in);
  const int64_t runs = ceil_div(t.in, 32 * kGathered);
  task.gather_blocks = ceil_div(batch * runs, kWarps);
  if (task.gather_blocks > kBlocksPerMultiprocessor * device.multiprocessors)
    task.gather_blocks = kBlocksPerMultiprocessor * device.multiprocessors;

  task.h = bump.take_rows<F>(batch, t.hidden);
  const bool separate = saves_input(t.activation) || t.dropout > 0 || !same<T, F>;
  task.saved = separate ? bump.take<T>(batch * task.h.stride) : nullptr;
  if constexpr (same<T, F>)
    if (!separate) task.saved = const_cast<T*>(task.h.data);
  task.grad_hidden = bump.take_rows<F>(batch, t.hidden);

  share_out<RowProduct<F>>(device, task.hidden_share, batch, t.hidden, t.in, 1);
  task.output_part_count =
      share_out<RowProduct<F>>(device, task.output_share, batch, t.out, t.hidden, kMostOutputParts);
  task.output_parts = bump.take<T>(task.output_part_count * batch * t.out);
  task.grad_out = bump.take_rows<F>(batch + kLossRows, t.out);
  if constexpr (same<T, F>)
    task.z = const_cast<T*>(task.grad_out.data);
  else
    task.z = bump.take<T>((batch + kLossRows) * task.grad_out.stride);
  task.row_loss = bump.take<T>(batch);
  task.row_hit = bump.take<int32_t>(batch);

  const auto factor = [&](Parameter i, int64_t rows, int64_t columns, F*& copy) {
    if constexpr (same<T, F>)
      return matrix<F>(t.parameters[i].value, rows, columns);
    else
      return matrix<F>(copy = bump.take<F>(rows * columns), rows, columns);
  };
  task.w1 = factor(kW1, t.hidden, t.in, task.w1_factor);
  task.w2 = factor(kW2, t.out, t.hidden, task.w2_factor);
  if (training) plan_update(task, bump, device);
  plan.scratch_bytes = bump.bytes();
  return plan;
}

template <class Product>
int64_t shared_bytes(const Share& share) {
  const int64_t bytes = share.blocks ? Product::bytes(share.tiling) : 0;
  return bytes > kBlockSumBytes ? bytes : kBlockSumBytes;
}

template <class T, class F>
void launch_forward(const StepTask<T, F>& task, const Launch& launch) {
  start(gather_kernel<T, F>, task, task.gather_blocks + 1, kThreads, kBlockSumBytes, 1, launch);
  start(hidden_kernel<T, F>, task, task.hidden_share.blocks, kThreads, shared_bytes<RowProduct<F>>(task.hidden_share),
        1, launch);
  start(outputs_kernel<T, F>, task, task.output_share.blocks, kThreads, shared_bytes<RowProduct<F>>(task.output_share),
        1, launch);
  const auto launch_loss = [&]<int kLanes>() {
    start(loss_kernel<T, F, kLanes>, task, ceil_div(task.steps.batch_size, kThreads / kLanes), kThreads, 0, 1, launch);
  };
  if (task.steps.training.out <= 16)
    launch_loss.template operator()<8>();
  else
    launch_loss.template operator()<32>();
}

template <class T, class F>
void launch_backward(const StepTask<T, F>& task, const Launch& launch) {
  start(hidden_grad_kernel<T, F>, task, task.hidden_grad_share.blocks + 1, kThreads,
        shared_bytes<HiddenGradProduct<F>>(task.hidden_grad_share), 1, launch);
  const int64_t bytes1 = shared_bytes<WeightGradProduct<F>>(task.w1_share),
                bytes2 = shared_bytes<WeightGradProduct<F>>(task.w2_share);
  start(gradients_kernel<T, F>, task, task.w1_share.blocks + task.w2_share.blocks, kThreads,
        bytes1 > bytes2 ? bytes1 : bytes2, 1, launch);
  const GradientOptions& gradient = task.steps.training.gradient;
  if (gradient.clip_norm != 0) start(norm_kernel<T, F>, task, task.norm_blocks, kThreads, kBlockSumBytes, 1, launch);
  start(update_kernel<T, F>, task, task.update_blocks + 1, kThreads, kBlockSumBytes, 1, launch);
  if (gradient.l1 != 0 || gradient.l2 != 0) start(penalty_kernel<T, F>, task, 1, kThreads, kBlockSumBytes, 1, launch);
}

// Calls f with a null pointer of the type that factors of products are.
template <class T, class F>
void with_factor(const Training<T>& t, F&& f) {
  if constexpr (same<T, float>)
    if (t.bfloat16_compute) return f(static_cast<bfloat16*>(nullptr));
  f(static_cast<T*>(nullptr));
}

}  // namespace

template <class T>
int64_t steps_scratch(const Steps<T>& steps, bool training, const Launch& launch) {
  int64_t bytes = 0;
  with_factor(steps.training,
              [&]<class F>(F*) { bytes = plan_step<T, F>(steps, nullptr, training, launch).scratch_bytes; });
  return bytes;
}

template <class T>
void begin_steps(const Steps<T>& steps, void* scratch, const Launch& launch) {
  constexpr int64_t kMostBlocks = 1024;
  with_factor(steps.training, [&]<class F>(F*) {
    const BeginTask<T, F> task{plan_step<T, F>(steps, scratch, false, launch).task, steps.first_step,
                               steps.steps_before};
    const int64_t blocks = same<T, F> ? 1 : ceil_div(steps.training.hidden * steps.training.in, kThreads);
    start(begin_kernel<T, F>, task, blocks < kMostBlocks ? blocks : kMostBlocks, kThreads, 0, 1, launch);
  });
}

template <class T>
void take_step(const Steps<T>& steps, void* scratch, const Launch& launch) {
  with_factor(steps.training, [&]<class F>(F*) {
    const StepTask<T, F> task = plan_step<T, F>(steps, scratch, true, launch).task;
    launch_forward(task, launch);
    launch_backward(task, launch);
  });
}

template <class T>
void evaluate_batch(const Steps<T>& steps, void* scratch, Totals* totals, const Launch& launch) {
  with_factor(steps.training, [&]<class F>(F*) {
    const TallyTask<T, F> task{plan_step<T, F>(steps, scratch, false, launch).task, totals};
    launch_forward(task.step, launch);
    start(tally_kernel<T, F>, task, 1, kThreads, kBlockSumBytes, 1, launch);
  });
}

#define TWOLAYER_CUDA_STEPS(T)                                          \
  template int64_t steps_scratch(const Steps<T>&, bool, const Launch&); \
  template void begin_steps(const Steps<T>&, void*, const Launch&);     \
  template void take_step(const Steps<T>&, void*, const Launch&);       \
  template void evaluate_batch(const Steps<T>&, void*, Totals*, const Launch&);
TWOLAYER_CUDA_STEPS(float)
TWOLAYER_CUDA_STEPS(double)

}  // namespace twolayer::cuda
