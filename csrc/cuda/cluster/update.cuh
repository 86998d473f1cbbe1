// From gradients to parameters.
#pragma once
#include "cuda/cluster/block.cuh"
#include "cuda/device/loss.cuh"
#include "cuda/device/rule.cuh"
#include "cuda/device/warp_product.cuh"

namespace twolayer::cuda {

// What happens between a gradient and a parameter. A number's states stand `size` numbers behind it each.
struct Updater {
  const int optimizer;
  const char* const rule;
  const float clip_value;
  const bool penalised;
  const int states;
  float l1, l2;
  double absolute = 0, square = 0;  // sums over the weights that this thread has penalised

  __device__ __forceinline__ Updater(const Block& b, int64_t step)
      : optimizer(b.net.optimizer),
        rule(b.at<char>(kRule) + (step & 1) * b.plan.rule_bytes),
        clip_value(static_cast<float>(b.net.gradient.clip_value)),
        penalised(b.net.gradient.l1 != 0 || b.net.gradient.l2 != 0),
        states(b.plan.states) {
    const double weight = b.net.penalty_per_row ? b.at<double>(kDivisor)[step & 1] : 1;
    l1 = static_cast<float>(b.net.gradient.l1 / weight), l2 = static_cast<float>(b.net.gradient.l2 / weight);
  }

  // The gradient of a weight with that of its penalty, whose value is noted.
  __device__ __forceinline__ float penalise(float w, float g) {
    absolute += static_cast<double>(abs(w)), square += static_cast<double>(w) * static_cast<double>(w);
    return fma(l2, w, fma(l1, select(w > 0, 1.0f, select(w < 0, -1.0f, w)), g));
  }

  // Of neighbouring numbers, the first `valid` of them; what is beyond a matrix's columns stays 0.
  template <class Rule, int kCount>
  __device__ __forceinline__ void update(const Rule& of_step, float* numbers, int size,
                                         const Pack<float, kCount>& gradient, int valid = kCount) const {
    using Numbers = Pack<float, kCount>;
    const auto array = [&](int i) { return reinterpret_cast<Numbers*>(numbers + i * size); };
    constexpr int kStates = Learned<float>::kStates;
    Numbers w = *array(0), state[kStates] = {};
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      if (i < states) state[i] = *array(i + 1);
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      float g = gradient.numbers[n], of_number[kStates];
      if (clip_value != 0) g = max(min(g, clip_value), -clip_value);
#pragma unroll
      for (int i = 0; i < kStates; ++i) of_number[i] = state[i].numbers[n];
      const float updated = of_step.step(w.numbers[n], g, of_number);
      if (n < valid) w.numbers[n] = updated;
#pragma unroll
      for (int i = 0; i < kStates; ++i) state[i].numbers[n] = of_number[i];
    }
    *array(0) = w;
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      if (i < states) *array(i + 1) = state[i];
  }
};

constexpr int kPieceColumns = 32;  // of a warp's piece of a weight's gradient

// A piece of W1 or W2, of which `rows` and `columns` are left: its gradient aᵀ b over the batch, and the update.
template <bool kRounded, int kM>
__device__ __forceinline__ void update_piece(const Block& b, Updater& updater, const Across& left, const Across& right,
                                             float* weight, int stride, int size, int rows, int columns, bool frozen) {
  float sums[kM][kPieceColumns / 8][4];
  multiply<kRounded>(sums, left, right, 0, b.plan.batch);
  if (updater.penalised)
    for_each_sum(sums, [&](int row, int column, float& g) {
      if (row < rows && column < columns) g = updater.penalise(weight[row * stride + column], g);
    });
  if (frozen) return;
  with_rule<float>(updater.optimizer, [&]<class Rule>(const Rule*) {
    const Rule rule = *reinterpret_cast<const Rule*>(updater.rule);
    for_each_pair(sums, [&](int row, int column, const Pair& g) {
      if (row < rows && column < columns)
        updater.update(rule, weight + row * stride + column, size, g, columns - column);
    });
  });
}

// A bias's gradient is the sum of its column over the batch, by eight lanes.
__device__ __forceinline__ void update_bias(const Block& b, const Updater& updater, const float* grad, int stride,
                                            float* bias, int count) {
  constexpr int kLanes = 8;
  const int lane = threadIdx.x & (kLanes - 1), mine = threadIdx.x / kLanes;
#pragma unroll 1
  for (int first = 0; first < count; first += kClusterThreads / kLanes) {
    const int j = first + mine;
    float sum = 0;
    for (int row = lane; j < count && row < b.plan.batch; row += kLanes) sum += grad[row * stride + j];
    sum = sum_of_lanes<kLanes>(sum);
    if (lane == 0 && j < count)
      with_rule<float>(updater.optimizer, [&]<class Rule>(const Rule*) {
        updater.update(*reinterpret_cast<const Rule*>(updater.rule), bias + j, count, Pack<float, 1>{{sum}});
      });
  }
}

// All that the block holds, from grad_z, grad_y, x and h.
template <bool kRounded>
__device__ __forceinline__ void update_all(const Block& b, const float* x, int64_t step) {
  const Learned<float>* const p = b.net.parameters;
  Updater updater(b, step);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, out = static_cast<int>(b.net.out);
  const int unit_stride = b.plan.unit_stride, column_stride = b.plan.column_stride;
  const auto pieces = [](int n) { return (n + kPieceColumns - 1) / kPieceColumns; };

  const int across1 = pieces(b.columns), count1 = across1 * pieces(b.units);
  const int across2 = pieces(b.units), count2 = across2 * ((out + 15) / 16);
#pragma unroll 1
  for (int piece = warp; piece < count1 + count2; piece += kClusterWarps) {
    const Learned<float>& w = p[piece < count1 ? kW1 : kW2];
    if (w.frozen && !updater.penalised) continue;
    if (piece < count1) {
      const int unit = piece / across1 * kPieceColumns, column = piece % across1 * kPieceColumns;
      update_piece<kRounded, 2>(b, updater, {b.at(kGradZ) + unit, unit_stride}, {x + column, column_stride},
                                b.at(kWeight1) + unit * column_stride + column, column_stride,
                                in_eights(b.plan.units) * column_stride, b.units - unit, b.columns - column, w.frozen);
    } else {
      const int o = (piece - count1) / across2 * 16, unit = (piece - count1) % across2 * kPieceColumns;
      const double absolute = updater.absolute, square = updater.square;
      update_piece<kRounded, 1>(b, updater, {b.at(kGradY) + o, b.plan.out_stride}, {b.at(kH) + unit, unit_stride},
                                b.at(kWeight2) + o * unit_stride + unit, unit_stride, in_eights(out) * unit_stride,
                                out - o, b.units - unit, w.frozen);
      if (b.column_group != 0) updater.absolute = absolute, updater.square = square;  // others account for the same
    }
  }
  if (p[kB1].value && !p[kB1].frozen) update_bias(b, updater, b.at(kGradZ), unit_stride, b.at(kBias1), b.units);
  if (p[kB2].value && !p[kB2].frozen) update_bias(b, updater, b.at(kGradY), b.plan.out_stride, b.at(kBias2), out);
  if (updater.penalised) {
    const double absolute = sum_of_lanes<32>(updater.absolute), square = sum_of_lanes<32>(updater.square);
    double* const mine = b.at<double>(kPenalty) + ((step & 1) * kClusterWarps + warp) * 2;
    if (lane == 0) mine[0] = absolute, mine[1] = square;
  }
}

}  // namespace twolayer::cuda
