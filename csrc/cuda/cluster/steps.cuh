// Steps of training, all in one launch of one cluster. What a block needs of others is written by them into its shared
// memory, and every sum over blocks has the order of their ranks.
#pragma once
#include "cuda/cluster/batch.cuh"
#include "cuda/cluster/update.cuh"
#include "cuda/device/activation_call.cuh"
#include "cuda/device/dropout.cuh"

namespace twolayer::cuda {

// ---- The net, between global and shared memory

// f(shared, global, number of the parameter) for all that the block holds.
template <class F>
__device__ __forceinline__ void for_each_parameter(const Block& b, F&& f) {
  const Learned<float>* const p = b.net.parameters;
  const int out = static_cast<int>(b.net.out);
  const int size1 = in_eights(b.plan.units) * b.plan.column_stride, size2 = in_eights(out) * b.plan.unit_stride;
  for (int i = 0; i <= b.plan.states; ++i) {
    const auto array = [&](int parameter) { return i == 0 ? p[parameter].value : p[parameter].state[i - 1]; };
    if (float* const w1 = array(kW1))
      for (int unit = b.warp; unit < b.units; unit += kBlockThreads / 32)
        for (int c = b.lane; c < b.columns; c += 32)
          f(b.at(kWeight1) + i * size1 + unit * b.plan.column_stride + c,
            w1 + (b.unit0 + unit) * b.net.in + b.column0 + c, kW1);
    if (float* const w2 = array(kW2))
      for (int o = b.warp; o < out; o += kBlockThreads / 32)
        for (int unit = b.lane; unit < b.units; unit += 32)
          f(b.at(kWeight2) + i * size2 + o * b.plan.unit_stride + unit, w2 + o * b.net.hidden + b.unit0 + unit, kW2);
    if (float* const b1 = array(kB1))
      for (int unit = threadIdx.x; unit < b.units; unit += kBlockThreads)
        f(b.at(kBias1) + i * b.units + unit, b1 + b.unit0 + unit, kB1);
    if (float* const b2 = array(kB2))
      for (int o = threadIdx.x; o < out; o += kBlockThreads) f(b.at(kBias2) + i * out + o, b2 + o, kB2);
  }
}

__device__ __forceinline__ void load_net(const Block& b) {
  for (int i = threadIdx.x; i < b.plan.shared_bytes / 4; i += kBlockThreads)
    reinterpret_cast<uint32_t*>(b.memory)[i] = 0;
  __syncthreads();  // before anything is written that must not become 0
  for_each_parameter(b, [](float* shared, const float* global, int) { *shared = *global; });
}

__device__ __forceinline__ void store_net(const Block& b) {
  for_each_parameter(b, [&](const float* shared, float* global, int parameter) {
    const bool is_mine = parameter == kW1 || (b.column_group == 0 && (parameter != kB2 || b.is_first()));
    if (is_mine && !b.net.parameters[parameter].frozen) *global = *shared;
  });
}

// ---- Forward

// Works out the tasks of the product; by all threads, once.
__device__ __forceinline__ int list_forward_tasks(const Block& b) {
  constexpr int kUnits = 32;
  const ClusterPlan& plan = b.plan;
  const int tiles = plan.batch / 16, steps = in_eights(b.columns) / 8, units8 = in_eights(b.units);
  const int part_steps = (steps + plan.parts - 1) / plan.parts, across = (units8 + kUnits - 1) / kUnits;
  const int count = tiles * plan.parts * across;
  for (int i = threadIdx.x; i < count; i += kBlockThreads) {
    ForwardTask task{};
    const int row = i % tiles * 16, unit = i / tiles % across * kUnits, part = i / tiles / across;
    task.x = row * plan.column_stride, task.weight = unit * plan.column_stride, task.units = units8 - unit;
    task.owner = row / plan.own_rows;
    task.z = ((b.column_group * plan.parts + part) * plan.own_rows + row % plan.own_rows) * plan.unit_stride + unit;
    task.k0 = min(part * part_steps, steps) * 8, task.k1 = min((part + 1) * part_steps, steps) * 8;
    b.at<ForwardTask>(kForward)[i] = task;
  }
  return count;
}

template <Parts kX, Parts kW, int kN>
__device__ __forceinline__ void multiply_inputs(const Block& b, const float* x, const ForwardTask& task, int step) {
  const int stride = b.plan.unit_stride;
  const Along left{x + task.x, b.plan.column_stride};
  const AlongUpTo right{{b.at(kWeight1) + task.weight, b.plan.column_stride}, task.units - 1};
  const There there(b.at(kZ) + task.z, b.unit_group * b.plan.column_groups + task.owner, b.arrival(kSums, step));
  float sums[1][kN][4];
  if (multiply<kX, kW>(sums, left, right, task.k0, task.k1))
    for_each_pair(sums, [&](int i, int j, const Pair& pair) {
      if (j < task.units) there.send(i * stride + j, pair.numbers[0], pair.numbers[1]);
    });
  else
    for_each_number<1, kN>([&](int i, int j) {
      if (j < task.units) there.send(i * stride + j, dot(left, right, i, j, task.k0, task.k1));
    });
}

// x W1ᵀ over the block's inputs, to those who complete its rows.
template <bool kRounded>
__device__ __forceinline__ void multiply_inputs(const Block& b, int tasks, const float* x, int step) {
#pragma unroll 1
  for (int i = b.warp; i < tasks; i += kClusterWarps) {
    const ForwardTask task = b.at<ForwardTask>(kForward)[i];
    if constexpr (kRounded)
      multiply_inputs<Parts::kRounded, Parts::kRounded, 4>(b, x, task, step);
    else if (b.plan.x_is_exact)
      multiply_inputs<Parts::kOne, Parts::kTwo, 4>(b, x, task, step);
    else if (task.units > 8)
      multiply_inputs<Parts::kTwo, Parts::kTwo, 4>(b, x, task, step);
    else
      multiply_inputs<Parts::kTwo, Parts::kTwo, 1>(b, x, task, step);
  }
}

// A hidden value, or its gradient, as dropout scales it.
__device__ __forceinline__ float drop_out(const Block& b, int step, int row, int unit, float value) {
  return Dropout<float>(b.net.dropout, b.net.dropout_key, b.s.steps_before + step).apply(value, row, b.unit0 + unit);
}

// A factor as products take it.
template <bool kRounded>
__device__ __forceinline__ float factor(float x) {
  return kRounded ? rounded_to_bfloat16(x) : x;
}

// ---- Between the two large products: the block's own rows, each by one warp

// The hidden values of its rows, to all of its unit group, and what they contribute to the outputs, to all of its
// column group.
template <bool kRounded>
__device__ __forceinline__ void complete_hidden(const Block& b, int step, int rows) {
  using Quad = Pack<float, 4>;
  const ClusterPlan& plan = b.plan;
  const int sources = plan.column_groups * plan.parts, units8 = in_eights(b.units);
  float* const y = b.at(kY) + ((step & 1) * plan.unit_groups + b.unit_group) * plan.own_rows * plan.out_stride;
#pragma unroll 1
  for (int row = b.warp; row < b.own_rows; row += kClusterWarps) {
    float* const h = b.at(kH) + (b.row0 + row) * plan.unit_stride;
#pragma unroll 1
    for (int unit = b.lane; unit < units8; unit += 32) {
      const float* from = b.at(kZ) + row * plan.unit_stride + unit;
      float z = 0;
#pragma unroll 4
      for (int source = 0; source < sources; ++source, from += plan.own_rows * plan.unit_stride) z += *from;
      z = fma(plan.x_scale, z, plan.has_b1 && unit < b.units ? b.at(kBias1)[unit] : 0.0f);
      float value = activation_value(b.net.activation, z);
      b.at(kSaved)[row * plan.unit_stride + unit] = plan.saves_input ? z : value;
      if (plan.drops) value = drop_out(b, step, b.row0 + row, unit, value);
      value = unit < b.units && b.row0 + row < rows ? factor<kRounded>(value) : 0.0f;
      b.to_unit_group(h + unit, value, b.arrival(kGradients, step));
    }
    __syncwarp();  // the row's hidden values are there
#pragma unroll 1
    for (int o = b.lane; o < b.net.out; o += 32) {
      const float* const w = b.at(kWeight2) + o * plan.unit_stride;
      float sums[4] = {};
#pragma unroll 2
      for (int unit = 0; unit < units8; unit += 4) {
        const Quad left = *reinterpret_cast<const Quad*>(h + unit), right = *reinterpret_cast<const Quad*>(w + unit);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[j] = fma(left.numbers[j], factor<kRounded>(right.numbers[j]), sums[j]);
      }
      const float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      b.to_column_group(y + row * plan.out_stride + o, sum, b.arrival(kOutputs, step));
    }
  }
}

// The outputs of its rows, their loss, and the gradients at the outputs and at the hidden layer's inputs, to all of the
// unit group. Two rows to a warp, as there are often few outputs.
template <bool kRounded>
__device__ __forceinline__ void complete_gradients(const Block& b, int step, int rows) {
  constexpr int kLanes = 16, kRows = 32 / kLanes;
  const ClusterPlan& plan = b.plan;
  const int slot = step & 1, out = static_cast<int>(b.net.out), units8 = in_eights(b.units);
  const int lane = b.lane & (kLanes - 1);
  const float divisor = b.at(kFloatDivisor)[slot];
  Arrival* const there = b.arrival(kGradients, step);
  const auto output = [&](int row, int j) {
    const float* from = b.at(kY) + (slot * plan.unit_groups * plan.own_rows + row) * plan.out_stride + j;
    float sum = plan.has_b2 ? b.at(kBias2)[j] : 0.0f;
#pragma unroll 4
    for (int group = 0; group < plan.unit_groups; ++group, from += plan.own_rows * plan.out_stride) sum += *from;
    return sum;
  };
#pragma unroll 1
  for (int first = b.warp * kRows; first < b.own_rows; first += kClusterWarps * kRows) {
    const int row = first + b.lane / kLanes, of_batch = b.row0 + row;
    float* const grad = b.at(kGradY) + of_batch * plan.out_stride;
    const int label = b.at<int32_t>(kLabel)[slot * plan.batch + of_batch];
    const float* values =
        b.s.examples.values ? b.at(kTarget) + (slot * plan.own_rows + row) * plan.out_stride : nullptr;
    const RowTarget<float> target{label, values, b.s.examples.class_weight,
                                  b.at(kRowWeight)[slot * plan.batch + of_batch], label != kCountsForNothing};
    float row_loss = 0;
    if (out <= kLanes) {
      float z = lane < out ? output(row, lane) : 0.0f;
      with_loss(b.net.loss, [&](auto loss) {
        row_loss = loss_of_short_row<kLanes>(loss, b.net.loss_options, out, target, divisor, z);
      });
      if (lane < out) b.to_unit_group(grad + lane, factor<kRounded>(z), there);
    } else {
      for (int j = lane; j < out; j += kLanes) grad[j] = output(row, j);
      __syncwarp();  // a row's outputs are there for all its lanes
      with_loss(b.net.loss, [&](auto loss) {
        row_loss = loss_of_row<kLanes>(loss, b.net.loss_options, out, target, divisor, grad);
      });
      for (int j = lane; j < out; j += kLanes) b.to_unit_group(grad + j, factor<kRounded>(grad[j]), there);
    }
    if (divisor == 0) row_loss = NAN;  // of a mean over nothing
    if (lane == 0) b.to_unit_group(b.at(kRowLoss) + of_batch, row_loss, there);
    __syncwarp();  // both rows' gradients are there
#pragma unroll 1
    for (int row = first; row < first + kRows; ++row) {
      const float* const grad = b.at(kGradY) + (b.row0 + row) * plan.out_stride;
#pragma unroll 1
      for (int unit = b.lane; unit < units8; unit += 32) {
        const float* w = b.at(kWeight2) + unit;
        float g = 0;
#pragma unroll 4
        for (int o = 0; o < out; ++o, w += plan.unit_stride) g = fma(grad[o], factor<kRounded>(*w), g);
        if (plan.drops) g = drop_out(b, step, b.row0 + row, unit, g);
        g = gradient_through_activation(b.net.activation, g, b.at(kSaved)[row * plan.unit_stride + unit]);
        g = unit < b.units && b.row0 + row < rows ? factor<kRounded>(g) : 0.0f;
        b.to_unit_group(b.at(kGradZ) + (b.row0 + row) * plan.unit_stride + unit, g, there);
      }
    }
  }
}

// The sum of a lane's share of the rows' losses; what they were is soon overwritten.
__device__ __forceinline__ double share_of_loss(const Block& b) {
  double sum = 0;
#pragma unroll 1
  for (int i = b.lane; i < b.plan.batch; i += 32) sum += static_cast<double>(b.at(kRowLoss)[i]);
  return sum;
}
// The batch's loss, from its warp's shares.
__device__ __forceinline__ double loss_of_batch(const Block& b, int step, double share) {
  const double sum = sum_of_lanes<32>(share);
  return b.plan.loss_per_row != 0 ? sum / (b.at<double>(kDivisor)[step & 1] * b.plan.loss_per_row) : sum;
}

// Whether that is a finite number, without computing it; the same for all threads of all blocks.
__device__ __forceinline__ bool has_finite_loss(const Block& b) {
  bool bad = false;
#pragma unroll 1
  for (int i = b.lane; i < b.plan.batch; i += 32) bad |= !(abs(b.at(kRowLoss)[i]) < INFINITY);
  return !__any_sync(0xffffffffu, bad);
}

// The penalty's part in the loss of a step whose update is over, in all blocks; by one thread of the first.
__device__ __forceinline__ double penalty_of(const Block& b, int step) {
  double absolute = 0, square = 0;
  double* const mine = b.at<double>(kPenalty) + (step & 1) * kClusterWarps * 2;
  for (int rank = 0; rank < b.plan.blocks; ++rank) {
    const double* sums = b.plan.blocks > 1 ? cluster_shared(mine, rank) : mine;
    for (int warp = 0; warp < kClusterWarps; ++warp) absolute += sums[2 * warp], square += sums[2 * warp + 1];
  }
  const double weight = b.net.penalty_per_row ? b.at<double>(kDivisor)[step & 1] : 1;
  return b.net.gradient.l1 / weight * absolute + b.net.gradient.l2 / weight / 2 * square;
}

// ---- All of it

// Puts down a step's loss, with the penalty that its update found; by one warp of the first block.
__device__ __forceinline__ void note_loss(const Block& b, int step, double share) {
  if (!b.is_first() || step < 0) return;
  double loss = loss_of_batch(b, step, share);
  if (b.plan.penalised) loss += penalty_of(b, step);
  if (b.lane == 0) b.s.losses[step] = loss;
}

// The warps that compute, and the one that serves them, go through a step side by side: both return whether its loss
// has ended the run. x is the batch's, and there.
//
// No block waits for another but for what it sends. None overwrites what another still reads: to send what belongs to
// a step, it needs what the other sends when it has read the same of the step before; and outputs, which unit groups
// exchange, have a place for every other step. A block without rows of its own sends sums alone, and is held to by
// them.
template <bool kRounded>
__device__ __forceinline__ bool compute_step(const Block& b, int tasks, int pieces, int step) {
  const float* const x = x_of(b, step);
  const int rows = rows_of(b, step);
  multiply_inputs<kRounded>(b, tasks, x, step);
  start_copies(b, step + 1);
  b.wait_for(kSums, step);
  complete_hidden<kRounded>(b, step, rows);
  b.wait_for(kOutputs, step);
  some_threads_barrier<kClusterThreads>();  // what its own warps keep of its rows is there
  complete_gradients<kRounded>(b, step, rows);
  b.wait_for(kGradients, step);
  if (b.s.stop_if_not_finite && !has_finite_loss(b)) return true;
  update_weights<kRounded>(b, pieces, x, step);
  return false;
}

// `share` is the lane's share of the loss of the step before, and becomes that of this one.
__device__ __forceinline__ bool serve_step(const Block& b, int step, double& share) {
  if (b.lane == 0) announce_step(b, step);
  serve_copies(b, step + 1);
  note_loss(b, step - 1, share);
  prepare_step(b, step + 1);
  b.wait_for(kGradients, step);
  share = share_of_loss(b);
  if (b.s.stop_if_not_finite && !has_finite_loss(b)) return true;
  update_biases(b, step);
  return false;
}

template <bool kRounded>
__global__ void __launch_bounds__(kBlockThreads, 1) cluster_kernel(const __grid_constant__ ClusterTask task) {
  const Block b(task);
  const Steps<float>& s = b.s;
  if (s.progress->ended) return;

  load_net(b);
  const int tasks = list_forward_tasks(b), pieces = list_pieces(b);
  if (threadIdx.x < 2 * kKinds) prepare_arrival(b.at<Arrival>(kArrivals) + threadIdx.x);
  hand_over_to_copies();
  b.meet();  // nothing arrives before memory is cleared
  if (b.serves()) {
    for (int i = b.lane; i < b.plan.batch; i += 32) b.at<int64_t>(kRow)[i] = row_of(b, 0, i);
    __syncwarp();
    serve_copies(b, 0);
    prepare_step(b, 0);
  }
  __syncthreads();  // the first batch's rows are known
  if (!b.serves()) start_copies(b, 0);

  int step = 0;
  bool ended = false;
  double share = 0;
#pragma unroll 1
  for (const int steps = static_cast<int>(s.steps); step < steps && !ended; ++step) {
    wait_for_rows(b, step);          // and for the step before to be over
    if (b.plan.penalised) b.meet();  // in all blocks, so that its penalty is known
    ended = b.serves() ? serve_step(b, step, share) : compute_step<kRounded>(b, tasks, pieces, step);
  }

  if (ended) --step;
  if (ended && step + 1 < s.steps) wait_for_rows(b, step + 1);  // no copy is under way any more
  b.meet();  // all blocks have updated what they hold, and have what was sent to them
  store_net(b);
  if (b.serves()) {
    if (!ended) note_loss(b, step - 1, share);
    const double loss = ended ? loss_of_batch(b, step, share) : 0;
    if (b.is_first() && b.lane == 0) {
      if (ended) s.losses[step] = loss;
      s.progress->steps += step;
      if (ended) s.progress->ended = 1;
    }
  }
  b.meet();  // no block's memory goes while another reads it
}

}  // namespace twolayer::cuda
