// From gradients to parameters.
#pragma once
#include "cuda/cluster/block.cuh"
#include "cuda/device/loss.cuh"
#include "cuda/device/rule.cuh"
#include "cuda/device/warp_product.cuh"

namespace twolayer::cuda {

// What happens between a gradient and a parameter.
struct Updater {
  const char* const rule;
  const int64_t step;
  const float clip_value;
  const bool penalised;
  float l1, l2;
  double absolute = 0, square = 0;  // sums over the weights that this thread has penalised

  __device__ __forceinline__ Updater(const Block& b, int64_t of_step)
      : rule(b.at<char>(kRule) + (of_step & 1) * b.plan.rule_bytes),
        step(of_step),
        clip_value(static_cast<float>(b.net.gradient.clip_value)),
        penalised(b.net.gradient.l1 != 0 || b.net.gradient.l2 != 0) {
    const double weight = b.net.penalty_per_row ? b.at<double>(kDivisor)[step & 1] : 1;
    l1 = static_cast<float>(b.net.gradient.l1 / weight), l2 = static_cast<float>(b.net.gradient.l2 / weight);
  }

  // The gradient of a weight with that of its penalty, whose value is noted.
  __device__ __forceinline__ float penalise(float w, float g) {
    absolute += static_cast<double>(abs(w)), square += static_cast<double>(w) * static_cast<double>(w);
    return fma(l2, w, fma(l1, select(w > 0, 1.0f, select(w < 0, -1.0f, w)), g));
  }
};

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

// Calls f(rule, Count<states>{}) with the step's rule and how many states stand behind a parameter.
template <class F>
__device__ __forceinline__ void with_update(const Block& b, const char* rule, F&& f) {
  with_rule<float>(b.net.optimizer, [&]<class Rule>(const Rule* type) {
    type = reinterpret_cast<const Rule*>(rule);
    if constexpr (Rule::kLeast <= 0)
      if (b.plan.states == 0) return f(*type, Count<0>{});
    if constexpr (Rule::kLeast <= 1 && Rule::kMost >= 1)
      if (b.plan.states == 1) return f(*type, Count<1>{});
    if constexpr (Rule::kLeast <= 2 && Rule::kMost >= 2)
      if (b.plan.states == 2) return f(*type, Count<2>{});
    if constexpr (Rule::kMost >= 3) return f(*type, Count<3>{});
  });
}

// Neighbouring numbers of a parameter, the first `valid` of them, and the states that stand `size` numbers behind each
// other; what is beyond a matrix's columns stays 0.
template <int kStates, class Rule, int kCount>
__device__ __forceinline__ void update(const Rule& rule, float clip_value, float* numbers, int size,
                                       const Pack<float, kCount>& gradient, int valid = kCount) {
  using Numbers = Pack<float, kCount>;
  Numbers w = *reinterpret_cast<Numbers*>(numbers), state[kStates + 1];
#pragma unroll
  for (int i = 0; i < kStates; ++i) state[i] = *reinterpret_cast<Numbers*>(numbers + (i + 1) * size);
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
    float g = gradient.numbers[n], of_number[3] = {};
    if (clip_value != 0) g = max(min(g, clip_value), -clip_value);
#pragma unroll
    for (int i = 0; i < kStates; ++i) of_number[i] = state[i].numbers[n];
    const float updated = rule.step(w.numbers[n], g, of_number);
    if (n < valid) w.numbers[n] = updated;
#pragma unroll
    for (int i = 0; i < kStates; ++i) state[i].numbers[n] = of_number[i];
  }
  *reinterpret_cast<Numbers*>(numbers) = w;
#pragma unroll
  for (int i = 0; i < kStates; ++i) *reinterpret_cast<Numbers*>(numbers + (i + 1) * size) = state[i];
}

// One number, out of line.
static __device__ __attribute__((noinline)) void update_number(const Block& b, const char* rule, float* number,
                                                               int size, float g) {
  with_update(b, rule, [&](const auto& of_step, auto states) {
    update<states.value>(of_step, static_cast<float>(b.net.gradient.clip_value), number, size, Pack<float, 1>{{g}});
  });
}

// A piece of W1 or W2: where its factors and its weights stand, and how many of its rows and columns there are.
struct Piece32 {
  Across left, right;
  float* weight;
  int stride, size, rows, columns;
  bool frozen, is_mine;  // the last: to account for in the penalty; others hold the same
};

constexpr int kPieceRows = 32, kPieceColumns = 32, kPieceTiles = kPieceColumns / 8;

// Its gradient aᵀ b over the batch, and the update.
template <bool kRounded>
__device__ __forceinline__ void update_piece(const Block& b, Updater& updater, const Piece32& p) {
  constexpr int kM = 2;
  float sums[kM][kPieceTiles][4];
  if (!multiply<kRounded>(sums, p.left, p.right, 0, b.plan.batch)) {
    for_each_number<kM, kPieceTiles>([&](int row, int column) {
      if (row >= p.rows || column >= p.columns) return;
      float g = dot(p.left, p.right, row, column, 0, b.plan.batch);
      float* const w = p.weight + row * p.stride + column;
      if (updater.penalised) g = updater.penalise(*w, g);
      if (!p.frozen) update_number(b, updater.rule, w, p.size, g);
    });
    return;
  }
  const int lane = threadIdx.x % 32, row = lane / 4;
  float* const mine = p.weight + row * p.stride + lane % 4 * 2;
  const int columns = p.columns - lane % 4 * 2, rows = p.rows - row;
  // Tile after tile, the sums moving up, so that the instructions for one serve all.
  const auto for_each_tile = [&](auto&& f) {
#pragma unroll 1
    for (int tile = 0; tile < kPieceTiles; ++tile) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        float first[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) first[e] = sums[m][0][e];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (16 * m + 8 * half < rows && 8 * tile < columns)
            f(mine + (16 * m + 8 * half) * p.stride + 8 * tile, columns - 8 * tile, first[2 * half],
              first[2 * half + 1]);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
#pragma unroll
          for (int j = 1; j < kPieceTiles; ++j) sums[m][j - 1][e] = sums[m][j][e];
          sums[m][kPieceTiles - 1][e] = first[e];
        }
      }
    }
  };
  if (updater.penalised)
    for_each_tile([&](const float* w, int valid, float& g0, float& g1) {
      g0 = updater.penalise(w[0], g0);
      if (valid > 1) g1 = updater.penalise(w[1], g1);
    });
  if (p.frozen) return;
  with_update(b, updater.rule, [&](const auto& of_step, auto states) {
    const auto rule = of_step;
    for_each_tile([&](float* w, int valid, float g0, float g1) {
      update<states.value>(rule, updater.clip_value, w, p.size, Pair{{g0, g1}}, valid);
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
#pragma unroll 4
    for (int row = lane; j < count && row < b.plan.batch; row += kLanes) sum += grad[row * stride + j];
    sum = sum_of_lanes<kLanes>(sum);
    if (lane == 0 && j < count) update_number(b, updater.rule, bias + j, count, sum);
  }
}

// Piece number i of W1, or W2.
__device__ __forceinline__ Piece32 piece_of_w1(const Block& b, const float* x, int i) {
  const int across = (b.columns + kPieceColumns - 1) / kPieceColumns, stride = b.plan.column_stride;
  const int unit = i / across * kPieceRows, column = i % across * kPieceColumns;
  return {{b.at(kGradZ) + unit, b.plan.unit_stride},
          {x + column, stride},
          b.at(kWeight1) + unit * stride + column,
          stride,
          in_eights(b.plan.units) * stride,
          b.units - unit,
          b.columns - column,
          b.net.parameters[kW1].frozen,
          true};
}
__device__ __forceinline__ Piece32 piece_of_w2(const Block& b, int i) {
  const int across = (b.units + kPieceColumns - 1) / kPieceColumns, stride = b.plan.unit_stride;
  const int out = static_cast<int>(b.net.out), o = i / across * kPieceRows, unit = i % across * kPieceColumns;
  return {{b.at(kGradY) + o, b.plan.out_stride},
          {b.at(kH) + unit, stride},
          b.at(kWeight2) + o * stride + unit,
          stride,
          in_eights(out) * stride,
          out - o,
          b.units - unit,
          b.net.parameters[kW2].frozen,
          b.column_group == 0};
}

// All that the block holds, from grad_z, grad_y, x and h.
template <bool kRounded>
__device__ __forceinline__ void update_all(const Block& b, const float* x, int64_t step) {
  const Learned<float>* const p = b.net.parameters;
  Updater updater(b, step);
  const auto pieces = [](int n) { return (n + kPieceColumns - 1) / kPieceColumns; };
  const int count1 = pieces(b.columns) * pieces(b.units);
  const int count2 = pieces(b.units) * pieces(static_cast<int>(b.net.out));
#pragma unroll 1
  for (int i = b.warp; i < count1 + count2; i += kClusterWarps) {
    const Piece32 piece = i < count1 ? piece_of_w1(b, x, i) : piece_of_w2(b, i - count1);
    const double absolute = updater.absolute, square = updater.square;
    if (!piece.frozen || updater.penalised) update_piece<kRounded>(b, updater, piece);
    if (!piece.is_mine) updater.absolute = absolute, updater.square = square;
  }
  if (p[kB1].value && !p[kB1].frozen) update_bias(b, updater, b.at(kGradZ), b.plan.unit_stride, b.at(kBias1), b.units);
  if (p[kB2].value && !p[kB2].frozen)
    update_bias(b, updater, b.at(kGradY), b.plan.out_stride, b.at(kBias2), static_cast<int>(b.net.out));
  if (updater.penalised) {
    const double absolute = sum_of_lanes<32>(updater.absolute), square = sum_of_lanes<32>(updater.square);
    double* const mine = b.at<double>(kPenalty) + ((step & 1) * kClusterWarps + b.warp) * 2;
    if (threadIdx.x % 32 == 0) mine[0] = absolute, mine[1] = square;
  }
}

}  // namespace twolayer::cuda
