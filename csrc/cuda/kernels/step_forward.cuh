// From the rows of a batch to its loss.
#pragma once
#include "cuda/device/activation.cuh"
#include "cuda/device/block.cuh"
#include "cuda/device/dropout.cuh"
#include "cuda/device/examples.cuh"
#include "cuda/kernels/step.cuh"

namespace twolayer::cuda {

// ---- Before the first step of a run

template <class T, class F>
struct BeginTask {
  StepTask<T, F> step;
  int64_t first_step, steps_before;
};

// Weights as products read them, where those are copies.
template <class T, class F>
__global__ void __launch_bounds__(kThreads) begin_kernel(const __grid_constant__ BeginTask<T, F> task) {
  const Training<T>& t = task.step.steps.training;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x, threads = int64_t{gridDim.x} * kThreads;
  if (thread == 0) {
    task.step.now->first_step = task.first_step;
    task.step.now->steps_before = task.steps_before;
    task.step.now->over = false;
  }
  if constexpr (!same<T, F>) {
    for (int64_t i = thread; i < t.hidden * t.in; i += threads)
      narrow(t.parameters[kW1].value[i], task.step.w1_factor[i]);
    for (int64_t i = thread; i < t.out * t.hidden; i += threads)
      narrow(t.parameters[kW2].value[i], task.step.w2_factor[i]);
  }
}

// ---- The batch

// The row of the data that is number i of the epoch.
template <class T>
__device__ __forceinline__ int64_t data_row(const Steps<T>& s, int64_t i) {
  return s.order ? s.order[i] : i;
}

constexpr int kGathered = 8;  // numbers that a lane reads at a time

template <class T, class F>
__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ StepTask<T, F> task) {
  const Steps<T>& s = task.steps;
  if (s.progress->ended) {
    if (blockIdx.x == 0 && threadIdx.x == 0) task.now->over = true;
    return;
  }
  const int64_t step = s.progress->steps;
  const int64_t first = (task.now->first_step + step) * s.batch_size;
  const int64_t batch = min(s.batch_size, s.rows - first);

  if (blockIdx.x == task.gather_blocks) {
    double weight = 0;
    for (int64_t i = threadIdx.x; i < batch; i += kThreads) weight += loss_weight(s, data_row(s, first + i));
    weight = sum_of_block(weight);
    if (threadIdx.x > 0) return;
    Now& now = *task.now;
    now.step = step, now.first = first, now.batch = batch, now.weight = weight;
    now.divisor = task.loss_per_row ? weight * static_cast<double>(task.loss_per_row) : 1;
    return;
  }

  const int lane = threadIdx.x % 32;
  const int64_t in = s.training.in, runs = (in + 32 * kGathered - 1) / (32 * kGathered);
  const T scale = static_cast<T>(s.examples.scale), shift = static_cast<T>(s.examples.shift);
  F* const x = const_cast<F*>(task.x.data);
  with_storage(s.examples.storage, [&]<class S>(const S*) {
#pragma unroll 1
    for (int64_t run = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; run < batch * runs;
         run += task.gather_blocks * kWarps) {
      const int64_t row = run / runs, column = run % runs * (32 * kGathered) + lane;
      const S* const from = reinterpret_cast<const S*>(static_cast<const char*>(s.examples.x) +
                                                       data_row(s, first + row) * s.examples.x_stride);
      S numbers[kGathered];
#pragma unroll
      for (int i = 0; i < kGathered; ++i)
        if (column + 32 * i < in) numbers[i] = from[column + 32 * i];
#pragma unroll
      for (int i = 0; i < kGathered; ++i)
        if (column + 32 * i < in)
          narrow(as_number<T>(numbers[i]) * scale + shift, x[row * task.x.stride + column + 32 * i]);
    }
  });
}

// ---- The hidden layer and the outputs

template <class F>
using RowProduct = Product<false, Factor<F, F, true>, Factor<F, F, true>>;

// A factor whose rows are the batch's.
template <class F>
__device__ __forceinline__ Matrix<F> rows_of_batch(Matrix<F> factor, int64_t batch) {
  factor.rows = batch;
  return factor;
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) hidden_kernel(const __grid_constant__ StepTask<T, F> task) {
  using Product = RowProduct<F>;
  const Training<T>& p = task.steps.training;
  if (task.steps.progress->ended) return;
  const Now now = *task.now;
  const Tiling& t = task.hidden_share.tiling;
  const Place at(task.hidden_share, blockIdx.x, p.in);
  if (at.m0 >= now.batch) return;
  char* const memory = shared_memory();
  Product::run(t, rows_of_batch(task.x, now.batch), task.w1, at.m0, at.n0, at.k_begin, at.k_end, memory, Unchanged{},
               Unchanged{}, Unchanged{});
  const bool drops = task.training && p.dropout > 0;
  const Dropout<T> dropout(p.dropout, p.dropout_key, now.steps_before + now.step);
  const T* const bias = p.parameters[kB1].value;
  F* const hidden = const_cast<F*>(task.h.data);
  with_activation(p.activation, [&](auto act) {
    using Act = decltype(act);
    Product::for_each_sum(t, memory, now.batch - at.m0, p.hidden - at.n0, [&](int row, int column, T z) {
      const int64_t unit = at.n0 + column, to = (at.m0 + row) * task.h.stride + unit;
      if (bias) z += bias[unit];
      T h = Act::value(z);
      if (task.training) task.saved[to] = Act::saves_input ? z : h;
      if (drops) h = dropout.apply(h, at.m0 + row, unit);
      narrow(h, hidden[to]);
    });
  });
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) outputs_kernel(const __grid_constant__ StepTask<T, F> task) {
  using Product = RowProduct<F>;
  const Training<T>& p = task.steps.training;
  if (task.steps.progress->ended) return;
  const int64_t batch = task.now->batch;
  const Tiling& t = task.output_share.tiling;
  const Place at(task.output_share, blockIdx.x, p.hidden);
  if (at.m0 >= batch) return;
  char* const memory = shared_memory();
  Product::run(t, rows_of_batch(task.h, batch), task.w2, at.m0, at.n0, at.k_begin, at.k_end, memory, Unchanged{},
               Unchanged{}, Unchanged{});
  T* const part = task.output_parts + at.part * task.steps.batch_size * p.out;
  Product::for_each_sum(t, memory, batch - at.m0, p.out - at.n0,
                        [&](int row, int column, T sum) { part[(at.m0 + row) * p.out + at.n0 + column] = sum; });
}

// ---- The loss

// Whether the first of the largest of n outputs is the row's class; to all of the row's lanes.
template <int kLanes, class T>
__device__ __forceinline__ bool is_hit(int n, const T* z, int64_t label) {
  const int lane = threadIdx.x & (kLanes - 1);
  const T lowest = -static_cast<T>(INFINITY);
  T top = lowest;
  int best = n;
  for (int j = lane; j < n; j += kLanes)
    if (best == n || z[j] > top) {
      top = z[j] == z[j] ? z[j] : lowest;
      best = j;
    }
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) {
    const T theirs = __shfl_xor_sync(0xffffffffu, top, other);
    const int index = __shfl_xor_sync(0xffffffffu, best, other);
    if (theirs > top || (theirs == top && index < best)) top = theirs, best = index;
  }
  const bool first_is_nan = __shfl_sync(0xffffffffu, static_cast<int>(lane == 0 && z[0] != z[0]),
                                        static_cast<int>(threadIdx.x % 32) & ~(kLanes - 1)) != 0;
  return label == (first_is_nan ? 0 : best);  // to a NaN, as any other comparison, ">" says no
}

constexpr int kLossRows = kThreads / 8;  // of a block, at most

// kLanes to a row.
template <class T, class F, int kLanes>
__global__ void __launch_bounds__(kThreads) loss_kernel(const __grid_constant__ StepTask<T, F> task) {
  const Steps<T>& s = task.steps;
  const Training<T>& p = s.training;
  const Examples<T>& e = s.examples;
  if (s.progress->ended) return;
  const Now now = *task.now;
  const int lane = threadIdx.x & (kLanes - 1), out = static_cast<int>(p.out);
  const int64_t i = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  T* const z = task.z + i * task.grad_out.stride;
  RowTarget<T> target{0, e.values, e.class_weight, T(0), i < now.batch};  // of all rows of a warp, of one kind
  if (target.counts) {
    const int64_t row = data_row(s, now.first + i);
    if (e.classes) target.label = e.classes[row];
    if (e.values) target.values = e.values + row * e.value_stride;
    target.weight = e.row_weight ? e.row_weight[row] : T(1);
    target.counts = !is_ignored(s, row);
    const T* const bias = p.parameters[kB2].value;
    for (int j = lane; j < out; j += kLanes) {
      T sum = 0;
      for (int part = 0; part < task.output_part_count; ++part)
        sum += task.output_parts[(part * s.batch_size + i) * out + j];
      z[j] = bias ? sum + bias[j] : sum;
    }
  }
  if (!task.training && e.classes) {
    const bool hit = is_hit<kLanes>(out, z, target.label);
    if (lane == 0 && i < now.batch) task.row_hit[i] = hit;
  }
  __syncwarp();  // a row's outputs are there for all its lanes
  with_loss(p.loss, [&](auto loss) {
    const T value = loss_of_row<kLanes>(loss, p.loss_options, out, target, static_cast<T>(now.divisor), z);
    if (lane == 0 && i < now.batch) task.row_loss[i] = value;
  });
  if constexpr (!same<T, F>) {
    F* const grad = const_cast<F*>(task.grad_out.data) + i * task.grad_out.stride;
    for (int j = lane; i < now.batch && j < out; j += kLanes) narrow(z[j], grad[j]);
  }
}

// The sum of the batch's losses; all threads of a block call it, and get it.
template <class T, class F>
__device__ __forceinline__ double loss_sum(const StepTask<T, F>& task) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < task.now->batch; i += kThreads) sum += static_cast<double>(task.row_loss[i]);
  return sum_of_block(sum);
}

// ---- Evaluation

template <class T, class F>
struct TallyTask {
  StepTask<T, F> step;
  Totals* totals;
};

// Adds the batch to the totals and counts it. One block.
template <class T, class F>
__global__ void __launch_bounds__(kThreads) tally_kernel(const __grid_constant__ TallyTask<T, F> task) {
  const StepTask<T, F>& step = task.step;
  const double loss = loss_sum(step);
  double hits = 0;
  for (int64_t i = threadIdx.x; step.steps.examples.classes && i < step.now->batch; i += kThreads)
    hits += step.row_hit[i];
  hits = sum_of_block(hits);
  if (threadIdx.x > 0) return;
  Totals& totals = *task.totals;
  totals.loss_sum += loss;
  totals.divisor = step.loss_per_row ? totals.divisor + step.now->divisor : 1;
  totals.hits += static_cast<int64_t>(hits);
  step.steps.progress->steps = step.now->step + 1;
}

}  // namespace twolayer::cuda
