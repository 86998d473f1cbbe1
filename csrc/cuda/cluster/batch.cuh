// From the examples to a batch in shared memory, a step ahead of its use: its rows a step before they are read, which
// rows those are two steps before.
#pragma once
#include "cuda/cluster/block.cuh"
#include "cuda/device/examples.cuh"
#include "cuda/device/loss.cuh"
#include "cuda/device/tile.cuh"

namespace twolayer::cuda {

constexpr int kNoLabel = -1, kCountsForNothing = -2;

__device__ __forceinline__ int64_t row_of(const Block& b, int step, int i) {
  const int64_t at = (b.s.first_step + step) * b.s.batch_size + i;
  if (step >= b.s.steps || i >= b.s.batch_size || at >= b.s.rows) return -1;
  return b.s.order ? b.s.order[at] : at;
}

__device__ __forceinline__ int rows_of(const Block& b, int step) {
  const int64_t left = b.s.rows - (b.s.first_step + step) * b.s.batch_size;
  return static_cast<int>(min(left, b.s.batch_size));
}

// What concerns a step's rows, which are known, but for their inputs: targets, weights and the rule; and the rows of
// the step after it. By one warp.
__device__ __forceinline__ void prepare_step(const Block& b, int step) {
  const Examples<float>& e = b.s.examples;
  const int slot = step & 1;
  double sum = 0;  // of what the rows count for
#pragma unroll 1
  for (int i = b.lane; i < b.plan.batch; i += 32) {
    const int at = slot * b.plan.batch + i;
    const int64_t example = b.at<int64_t>(kRow)[at], next = row_of(b, step + 1, i);
    const int64_t label = example >= 0 && e.classes ? e.classes[example] : kNoLabel;
    const float row_weight = example >= 0 && e.row_weight ? e.row_weight[example] : 1.0f;
    const bool counts = example >= 0 && !is_ignored(b.s, example);
    if (counts) sum += loss_weight(b.s, example);
    b.at<int64_t>(kRow)[(1 - slot) * b.plan.batch + i] = next;
    b.at<int32_t>(kLabel)[at] = counts ? static_cast<int>(label) : kCountsForNothing;
    b.at(kRowWeight)[at] = row_weight;
  }
  sum = sum_of_lanes<32>(sum);
  if (b.lane == 0) {
    b.at<double>(kDivisor)[slot] = sum;
    b.at(kFloatDivisor)[slot] = b.plan.loss_per_row != 0 ? static_cast<float>(sum * b.plan.loss_per_row) : 1.0f;
  }
  if (step >= b.s.steps) return;
  const char* const rule = static_cast<const char*>(b.s.rules) + step * b.plan.rule_bytes;
#pragma unroll 1
  for (int i = b.lane; i < b.plan.rule_bytes / 4; i += 32)
    b.at<uint32_t>(kRule)[slot * b.plan.rule_bytes / 4 + i] = reinterpret_cast<const uint32_t*>(rule)[i];
}

// Rows of `width` bytes, `stride` apart: of each that is there `valid` bytes, then zeros.
template <int kBytes>
__device__ __forceinline__ void copy_rows(const Block& b, const int64_t* rows, const char* from, char* to, int stride,
                                          int valid, int width) {
  const int lanes = 1 << b.plan.copy_lanes, lane = threadIdx.x & (lanes - 1);
#pragma unroll 1
  for (int i = threadIdx.x >> b.plan.copy_lanes; i < b.plan.batch; i += kClusterThreads >> b.plan.copy_lanes) {
    const int64_t row = rows[i];
    const char* const source = row >= 0 ? from + row * b.s.examples.x_stride : from;
    const int given = row >= 0 ? valid : 0;
#pragma unroll 1
    for (int at = lane * kBytes; at < width; at += lanes * kBytes) {
      if constexpr (kBytes >= 4) {
        const int here = max(0, min(given - at, kBytes));
        copy_async<kBytes>(to + i * stride + at, here ? source + at : from, here);
      } else {
        to[i * stride + at] = at < given ? source[at] : char{0};
      }
    }
  }
}

// Where the rows of a step are copied from, and to.
struct Copies {
  const int64_t* rows;
  const char* from;
  char* to;
  int stride, valid, width;  // in bytes

  __device__ __forceinline__ Copies(const Block& b, int step) {
    const Examples<float>& e = b.s.examples;
    const int slot = step & 1, number = b.plan.number_bytes;
    rows = b.at<int64_t>(kRow) + slot * b.plan.batch;
    stride = b.plan.raw_stride ? b.plan.raw_stride : b.plan.column_stride * number;
    width = b.plan.columns * number, valid = b.columns * number;
    from = static_cast<const char*>(e.x) + int64_t{b.column0} * number;
    to = b.at<char>(b.plan.raw_stride ? kRaw : kX) + slot * b.plan.batch * stride;
  }
};

// Starts to copy a step's rows where the copy engine cannot; by all warps that compute.
__device__ __forceinline__ void start_copies(const Block& b, int step) {
  if (b.plan.in_bulk || step >= b.s.steps) return;
  const Copies c(b, step);
  if (b.plan.access == 16)
    copy_rows<16>(b, c.rows, c.from, c.to, c.stride, c.valid, c.width);
  else if (b.plan.access == 8)
    copy_rows<8>(b, c.rows, c.from, c.to, c.stride, c.valid, c.width);
  else if (b.plan.access == 4)
    copy_rows<4>(b, c.rows, c.from, c.to, c.stride, c.valid, c.width);
  else
    copy_rows<1>(b, c.rows, c.from, c.to, c.stride, c.valid, c.width);
  commit_copies();
}

// Tells how much other blocks will send in a step; by one thread.
__device__ __forceinline__ void announce_step(const Block& b, int step) {
  if constexpr (!There::kCounts) return;
  const ClusterPlan& plan = b.plan;
  const int units8 = in_eights(b.units), out = static_cast<int>(b.net.out), bytes = sizeof(float);
  announce(b.arrival(kSums, step), plan.column_groups * plan.parts * b.own_rows * units8 * bytes);
  announce(b.arrival(kOutputs, step), plan.unit_groups * b.own_rows * out * bytes);
  announce(b.arrival(kGradients, step), plan.batch * (2 * units8 + out + 1) * bytes);  // h, grad_z; grad_y; loss
}

// Starts to copy a step's rows where the copy engine can; and where targets are values, those of the block's own rows.
// By one warp.
__device__ __forceinline__ void serve_copies(const Block& b, int step) {
  if (step >= b.s.steps) return;
  const Examples<float>& e = b.s.examples;
  const Copies c(b, step);
  if (b.plan.in_bulk && c.valid > 0) {
    const int there = rows_of(b, step);
    Arrival* const arrival = b.arrival(kRows, step);
    if (b.lane == 0) announce(arrival, there * c.valid);
#pragma unroll 1
    for (int i = b.lane; i < there; i += 32)
      copy_bulk(c.to + i * c.stride, c.from + c.rows[i] * e.x_stride, c.valid, arrival);
#pragma unroll 1
    for (int i = there; i < b.plan.batch; ++i)  // in a short batch
      for (int at = 4 * b.lane; at < c.valid; at += 4 * 32) *reinterpret_cast<uint32_t*>(c.to + i * c.stride + at) = 0;
  }
  if (!e.values) return;
  float* const targets = b.at(kTarget) + (step & 1) * b.plan.own_rows * b.plan.out_stride;
#pragma unroll 1
  for (int i = 0; i < b.own_rows; ++i) {
    const int64_t row = c.rows[b.row0 + i];
#pragma unroll 1
    for (int j = b.lane; row >= 0 && j < b.net.out; j += 32)
      copy_async<4>(targets + i * b.plan.out_stride + j, e.values + row * e.value_stride + j, 4);
  }
  commit_copies();
}

// Waits until the rows and targets of a step are there for all.
__device__ __forceinline__ void wait_for_rows(const Block& b, int step) {
  wait_for_copies<0>();
  if (b.plan.in_bulk && b.columns > 0) wait_for_arrival(b.arrival(kRows, step), step >> 1 & 1);
  __syncthreads();
}

// A byte by its place after a float's point, which is faster than a conversion.
template <class S>
__device__ __forceinline__ float as_float(S x) {
  if constexpr (same<S, uint8_t>)
    return __fadd_rn(__uint_as_float(0x4b000000u | x), -8388608.0f);
  else
    return as_number<float>(x);
}

// Rows as they are stored → x.
template <class S>
__device__ __forceinline__ void convert_rows(const Block& b, int step, const char* raw) {
  constexpr int kNumbers = 8;
  const float scale = b.plan.x_is_exact ? 1 : static_cast<float>(b.s.examples.scale);
  const float shift = static_cast<float>(b.s.examples.shift);
  const int lanes = 1 << b.plan.convert_lanes, lane = threadIdx.x & (lanes - 1);
  const int rows = rows_of(b, step);
  float* const x = b.at(kX);
#pragma unroll 1
  for (int i = threadIdx.x >> b.plan.convert_lanes; i < b.plan.batch; i += kClusterThreads >> b.plan.convert_lanes)
#pragma unroll 1
    for (int c = kNumbers * lane; c < b.plan.columns; c += kNumbers * lanes) {
      const auto stored = *reinterpret_cast<const Pack<S, kNumbers>*>(raw + i * b.plan.raw_stride + c * int{sizeof(S)});
      Pack<float, kNumbers> numbers;
#pragma unroll
      for (int j = 0; j < kNumbers; ++j) numbers.numbers[j] = __fadd_rn(as_float(stored.numbers[j]) * scale, shift);
      if (c + kNumbers > b.columns || i >= rows)
#pragma unroll
        for (int j = 0; j < kNumbers; ++j)
          if (c + j >= b.columns || i >= rows) numbers.numbers[j] = 0;
      *reinterpret_cast<Pack<float, kNumbers>*>(x + i * b.plan.column_stride + c) = numbers;
    }
}

// x of a step whose copies are there; by all warps that compute.
__device__ __forceinline__ const float* x_of(const Block& b, int step) {
  const int slot = step & 1;
  if (!b.plan.raw_stride) return b.at(kX) + slot * b.plan.batch * b.plan.column_stride;
  const char* raw = b.at<char>(kRaw) + slot * b.plan.batch * b.plan.raw_stride;
  with_storage(b.s.examples.storage, [&]<class S>(const S*) { convert_rows<S>(b, step, raw); });
  some_threads_barrier<kClusterThreads>();  // all of x is there
  return b.at(kX);
}

}  // namespace twolayer::cuda
