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
  float l1, l2;
  double absolute = 0, square = 0;  // sums over the weights that this thread has penalised

  __device__ __forceinline__ Updater(const Block& b, int step)
      : rule(b.at<char>(kRule) + (step & 1) * b.plan.rule_bytes), l1(b.plan.l1), l2(b.plan.l2) {
    if (!b.net.penalty_per_row) return;
    const double weight = b.at<double>(kDivisor)[step & 1];
    l1 = static_cast<float>(b.net.gradient.l1 / weight), l2 = static_cast<float>(b.net.gradient.l2 / weight);
  }

  // The gradient of a weight with that of its penalty, whose value is noted.
  __device__ __forceinline__ float penalise(float w, float g) {
    absolute += static_cast<double>(abs(w)), square += static_cast<double>(w) * static_cast<double>(w);
    return penalised(g, w, l1, l2);
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
    update<states.value>(of_step, b.plan.clip_value, number, size, Pack<float, 1>{{g}});
  });
}

// Works out the pieces; by all threads, once.
__device__ __forceinline__ int list_pieces(const Block& b) {
  constexpr int kRows = 32;
  const auto ceil = [](int n, int by) { return (n + by - 1) / by; };
  const int out = static_cast<int>(b.net.out);
  const int across1 = ceil(b.columns, kPieceColumns), count1 = across1 * ceil(b.units, kRows);
  const int across2 = ceil(b.units, kPieceColumns), count2 = across2 * ceil(out, kRows);
  const auto place = [&](Array array) { return b.plan.at[array] / static_cast<int>(sizeof(float)); };
  for (int i = threadIdx.x; i < count1 + count2; i += kBlockThreads) {
    PieceTask piece{};
    const bool of_w1 = i < count1;
    const int number = of_w1 ? i : i - count1, across = of_w1 ? across1 : across2;
    const int row = number / across * kRows, column = number % across * kPieceColumns;
    piece.left = place(of_w1 ? kGradZ : kGradY) + row;
    piece.left_stride = of_w1 ? b.plan.unit_stride : b.plan.out_stride;
    piece.right = of_w1 ? column : place(kH) + column;
    piece.stride = piece.right_stride = of_w1 ? b.plan.column_stride : b.plan.unit_stride;
    piece.weight = place(of_w1 ? kWeight1 : kWeight2) + row * piece.stride + column;
    piece.size = in_eights(of_w1 ? b.plan.units : out) * piece.stride;
    piece.rows = (of_w1 ? b.units : out) - row, piece.columns = (of_w1 ? b.columns : b.units) - column;
    piece.of_w1 = of_w1, piece.is_idle = b.net.parameters[of_w1 ? kW1 : kW2].frozen;
    piece.is_mine = of_w1 || b.column_group == 0;
    b.at<PieceTask>(kPieces)[i] = piece;
  }
  return count1 + count2;
}

// Its gradient aᵀ b over the batch, and the update.
template <bool kRounded>
__device__ __forceinline__ void update_piece(const Block& b, Updater& updater, const PieceTask& p, const float* x) {
  constexpr int kM = 2, kTiles = kPieceColumns / 8;
  float* const shared = reinterpret_cast<float*>(b.memory);
  const Across left{shared + p.left, p.left_stride}, right{(p.of_w1 ? x : shared) + p.right, p.right_stride};
  const float scale = p.of_w1 ? b.plan.x_scale : 1.0f;
  float sums[kM][kTiles][4];
  bool is_finite;
  if constexpr (kRounded)
    is_finite = multiply<Parts::kRounded, Parts::kRounded>(sums, left, right, 0, b.plan.batch);
  else if (p.of_w1 && b.plan.x_is_exact)
    is_finite = multiply<Parts::kTwo, Parts::kOne>(sums, left, right, 0, b.plan.batch);
  else
    is_finite = multiply<Parts::kTwo, Parts::kTwo>(sums, left, right, 0, b.plan.batch);
  if (!is_finite) {
    for_each_number<kM, kTiles>([&](int row, int column) {
      if (row >= p.rows || column >= p.columns) return;
      float g = scale * dot(left, right, row, column, 0, b.plan.batch);
      float* const w = shared + p.weight + row * p.stride + column;
      if (b.plan.penalised) g = updater.penalise(*w, g);
      if (!p.is_idle) update_number(b, updater.rule, w, p.size, g);
    });
    return;
  }
  const int row = b.lane / 4, column = b.lane % 4 * 2;
  float* const mine = shared + p.weight + row * p.stride + column;
  const int columns = p.columns - column, rows = p.rows - row;
  // Tile after tile, the sums moving up, so that the instructions for one serve all.
  const auto for_each_tile = [&](float factor, auto&& f) {
#pragma unroll 1
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        float first[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) first[e] = factor * sums[m][0][e];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (16 * m + 8 * half < rows && 8 * tile < columns)
            f(mine + (16 * m + 8 * half) * p.stride + 8 * tile, columns - 8 * tile, first[2 * half],
              first[2 * half + 1]);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
#pragma unroll
          for (int j = 1; j < kTiles; ++j) sums[m][j - 1][e] = sums[m][j][e];
          sums[m][kTiles - 1][e] = first[e];
        }
      }
    }
  };
  if (b.plan.penalised)
    for_each_tile(scale, [&](const float* w, int valid, float& g0, float& g1) {
      g0 = updater.penalise(w[0], g0);
      if (valid > 1) g1 = updater.penalise(w[1], g1);
    });
  if (p.is_idle) return;
  with_update(b, updater.rule, [&](const auto& of_step, auto states) {
    const auto rule = of_step;
    for_each_tile(b.plan.penalised ? 1.0f : scale, [&](float* w, int valid, float g0, float g1) {
      update<states.value>(rule, b.plan.clip_value, w, p.size, Pair{{g0, g1}}, valid);
    });
  });
}

// The biases, whose gradients are the sums of columns over the batch; by one warp, each lane with a column of its own.
__device__ __forceinline__ void update_biases(const Block& b, int step) {
  const Learned<float>* const p = b.net.parameters;
  const char* const rule = b.at<char>(kRule) + (step & 1) * b.plan.rule_bytes;
  const int units = p[kB1].value && !p[kB1].frozen ? b.units : 0;
  const int outs = p[kB2].value && !p[kB2].frozen ? static_cast<int>(b.net.out) : 0;
#pragma unroll 1
  for (int i = b.lane; i < units + outs; i += 32) {
    const bool first = i < units;
    const int j = first ? i : i - units, stride = first ? b.plan.unit_stride : b.plan.out_stride;
    const float* grad = b.at(first ? kGradZ : kGradY) + j;
    float sums[8] = {};  // of every eighth row; the batch is a multiple of 16
#pragma unroll 1
    for (int row = 0; row < b.plan.batch; row += 8)
#pragma unroll
      for (int k = 0; k < 8; ++k, grad += stride) sums[k] += *grad;
    const float sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    update_number(b, rule, b.at(first ? kBias1 : kBias2) + j, first ? b.units : static_cast<int>(b.net.out), sum);
  }
}

// The weights that the block holds, from grad_z, grad_y, x and h.
template <bool kRounded>
__device__ __forceinline__ void update_weights(const Block& b, int pieces, const float* x, int step) {
  Updater updater(b, step);
#pragma unroll 1
  for (int i = b.warp; i < pieces; i += kClusterWarps) {
    const PieceTask piece = b.at<PieceTask>(kPieces)[i];
    const double absolute = updater.absolute, square = updater.square;
    if (!piece.is_idle || b.plan.penalised) update_piece<kRounded>(b, updater, piece, x);
    if (!piece.is_mine) updater.absolute = absolute, updater.square = square;
  }
  if (b.plan.penalised) {
    const double absolute = sum_of_lanes<32>(updater.absolute), square = sum_of_lanes<32>(updater.square);
    double* const mine = b.at<double>(kPenalty) + ((step & 1) * kClusterWarps + b.warp) * 2;
    if (b.lane == 0) mine[0] = absolute, mine[1] = square;
  }
}

}  // namespace twolayer::cuda
