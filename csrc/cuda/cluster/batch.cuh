// From the examples to a batch in shared memory, a step ahead of its use: its rows a step before they are read, which
// rows those are two steps before.
#pragma once
#include "cuda/cluster/block.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/device/loss.cuh"

namespace twolayer::cuda {

// What a thread has asked for and will put down when the step is over.
struct Ahead {
  int64_t row;  // of the step after the next
  int label;    // of the next step
  float row_weight;
  double loss_weight;
  uint32_t rule;
};

constexpr int kNoLabel = -1, kCountsForNothing = -2;

__device__ __forceinline__ int64_t row_of(const Block& b, int64_t step, int i) {
  const int64_t at = (b.s.first_step + step) * b.s.batch_size + i;
  if (step >= b.s.steps || i >= b.s.batch_size || at >= b.s.rows) return -1;
  return b.s.order ? b.s.order[at] : at;
}

__device__ __forceinline__ int rows_of(const Block& b, int64_t step) {
  const int64_t left = b.s.rows - (b.s.first_step + step) * b.s.batch_size;
  return static_cast<int>(min(left, b.s.batch_size));
}

// Asks for what the thread will put down: for `step` its row's target and the rule, the row for the step after it.
__device__ __forceinline__ Ahead ask(const Block& b, int64_t step) {
  const Examples<float>& e = b.s.examples;
  const int i = threadIdx.x;
  Ahead ahead{-1, kCountsForNothing, 0, 0, 0};
  if (i < b.plan.batch) {
    ahead.row = row_of(b, step + 1, i);
    const int64_t row = b.at<int64_t>(kRow)[(step & 1) * b.plan.batch + i];
    if (row >= 0) {
      const int64_t label = e.classes ? e.classes[row] : kNoLabel;
      const bool counts = !e.classes || label != b.net.loss_options.ignore_index;
      ahead.label = counts ? static_cast<int>(label) : kCountsForNothing;
      ahead.row_weight = e.row_weight ? e.row_weight[row] : 1.0f;
      ahead.loss_weight = counts ? static_cast<double>(ahead.row_weight) : 0;
      if (counts && e.classes && e.class_weight) ahead.loss_weight *= static_cast<double>(e.class_weight[label]);
    }
  }
  if (i * 4 < b.plan.rule_bytes && step < b.s.steps)
    ahead.rule = reinterpret_cast<const uint32_t*>(static_cast<const char*>(b.s.rules) + step * b.plan.rule_bytes)[i];
  return ahead;
}

__device__ __forceinline__ void put_down(const Block& b, int64_t step, const Ahead& ahead) {
  const int i = threadIdx.x, slot = static_cast<int>(step & 1);
  if (i < b.plan.batch) {
    b.at<int64_t>(kRow)[(1 - slot) * b.plan.batch + i] = ahead.row;
    b.at<int32_t>(kLabel)[slot * b.plan.batch + i] = ahead.label;
    b.at(kRowWeight)[slot * b.plan.batch + i] = ahead.row_weight;
    b.at<double>(kLossWeight)[i] = ahead.loss_weight;
  }
  if (i * 4 < b.plan.rule_bytes) b.at<uint32_t>(kRule)[slot * b.plan.rule_bytes / 4 + i] = ahead.rule;
}

// One row by one warp: `valid` bytes of it, zeros up to `width`.
template <int kBytes>
__device__ __forceinline__ void copy_row(char* to, const char* from, int valid, int width) {
  for (int at = threadIdx.x % 32 * kBytes; at < width; at += 32 * kBytes) {
    const int here = max(0, min(valid - at, kBytes));
    copy_async<kBytes>(to + at, here ? from + at : from, here);
  }
}

// Starts to copy the rows of a step, and where targets are values those of the block's own rows.
__device__ __forceinline__ void start_copies(const Block& b, int64_t step) {
  const Examples<float>& e = b.s.examples;
  const int slot = static_cast<int>(step & 1), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t* rows = b.at<int64_t>(kRow) + slot * b.plan.batch;
  const int number = b.plan.raw_stride ? (e.storage == Storage::kUInt8      ? 1
                                          : e.storage == Storage::kBFloat16 ? 2
                                          : e.storage == Storage::kFloat32  ? 4
                                                                            : 8)
                                       : 4;
  const int stride = b.plan.raw_stride ? b.plan.raw_stride : b.plan.column_stride * 4;
  const int width = b.plan.columns * number, valid = b.columns * number;
  char* const to = b.at<char>(b.plan.raw_stride ? kRaw : kX) + slot * b.plan.batch * stride;
#pragma unroll 1
  for (int i = warp; i < b.plan.batch; i += kWarps) {
    const int64_t row = rows[i];
    const char* from = static_cast<const char*>(e.x);
    if (row >= 0) from += row * e.x_stride + int64_t{b.column0} * number;
    const int given = row >= 0 ? valid : 0;
    char* const mine = to + i * stride;
    if (b.plan.access == 16)
      copy_row<16>(mine, from, given, width);
    else if (b.plan.access == 8)
      copy_row<8>(mine, from, given, width);
    else if (b.plan.access == 4)
      copy_row<4>(mine, from, given, width);
    else
      for (int at = lane; at < width; at += 32) mine[at] = at < given ? from[at] : char{0};
  }
  if (!e.values) return;
  float* const targets = b.at(kTarget) + slot * b.plan.own_rows * b.plan.out_stride;
#pragma unroll 1
  for (int i = warp; i < b.own_rows; i += kWarps) {
    const int64_t row = rows[b.row0 + i];
    for (int j = lane; row >= 0 && j < b.net.out; j += 32)
      copy_async<4>(targets + i * b.plan.out_stride + j, e.values + row * e.value_stride + j, 4);
  }
}

// Rows as they are stored → x.
template <class S>
__device__ __forceinline__ void convert_rows(const Block& b, const char* raw) {
  const float scale = static_cast<float>(b.s.examples.scale), shift = static_cast<float>(b.s.examples.shift);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* const x = b.at(kX);
#pragma unroll 1
  for (int i = warp; i < b.plan.batch; i += kWarps)
    for (int c = 4 * lane; c < b.plan.columns; c += 4 * 32) {
      const auto stored = *reinterpret_cast<const Pack<S, 4>*>(raw + i * b.plan.raw_stride + c * int{sizeof(S)});
      Pack<float, 4> numbers;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float number;
        if constexpr (same<S, bfloat16>)
          number = widen(stored.numbers[j]);
        else
          number = static_cast<float>(stored.numbers[j]);
        numbers.numbers[j] = c + j < b.columns ? __fadd_rn(number * scale, shift) : 0.0f;
      }
      *reinterpret_cast<Pack<float, 4>*>(x + i * b.plan.column_stride + c) = numbers;
    }
}

// x of a step whose copies are there.
__device__ __forceinline__ const float* x_of(const Block& b, int64_t step) {
  const int slot = static_cast<int>(step & 1);
  if (!b.plan.raw_stride) return b.at(kX) + slot * b.plan.batch * b.plan.column_stride;
  const char* raw = b.at<char>(kRaw) + slot * b.plan.batch * b.plan.raw_stride;
  switch (b.s.examples.storage) {
    case Storage::kFloat32:
      convert_rows<float>(b, raw);
      break;
    case Storage::kFloat64:
      convert_rows<double>(b, raw);
      break;
    case Storage::kBFloat16:
      convert_rows<bfloat16>(b, raw);
      break;
    case Storage::kUInt8:
      convert_rows<uint8_t>(b, raw);
      break;
  }
  __syncthreads();  // all of x is there
  return b.at(kX);
}

// What the step's loss is divided by, and what its rows count for; by the last warp.
__device__ __forceinline__ void sum_loss_weights(const Block& b, int64_t step) {
  if (threadIdx.x / 32 != kWarps - 1) return;
  double sum = 0;
  for (int i = threadIdx.x % 32; i < b.plan.batch; i += 32) sum += b.at<double>(kLossWeight)[i];
  sum = sum_of_lanes<32>(sum);
  if (threadIdx.x % 32 == 0) b.at<double>(kDivisor)[step & 1] = sum;
}

}  // namespace twolayer::cuda
