// From the examples to a batch in shared memory, a step ahead of its use: its rows a step before they are read, which
// rows those are two steps before.
#pragma once
#include "cuda/cluster/block.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/device/loss.cuh"
#include "cuda/device/tile.cuh"

namespace twolayer::cuda {

constexpr int kNoLabel = -1, kCountsForNothing = -2;

// What a thread has asked for and will put down when the step is over. Nothing is done with it before, so that nobody
// waits for it.
struct Ahead {
  int64_t row = -1;      // of the step after the next
  int64_t example = -1;  // of the next step
  int64_t label = kNoLabel;
  float row_weight = 1;
  uint32_t rule = 0;
};

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
  Ahead ahead;
  if (i < b.plan.batch) {
    ahead.row = row_of(b, step + 1, i);
    ahead.example = b.at<int64_t>(kRow)[(step & 1) * b.plan.batch + i];
    if (ahead.example >= 0 && e.classes) ahead.label = e.classes[ahead.example];
    if (ahead.example >= 0 && e.row_weight) ahead.row_weight = e.row_weight[ahead.example];
  }
  if (i * 4 < b.plan.rule_bytes && step < b.s.steps)
    ahead.rule = reinterpret_cast<const uint32_t*>(static_cast<const char*>(b.s.rules) + step * b.plan.rule_bytes)[i];
  return ahead;
}

__device__ __forceinline__ void put_down(const Block& b, int64_t step, const Ahead& ahead) {
  const Examples<float>& e = b.s.examples;
  const int i = threadIdx.x, slot = static_cast<int>(step & 1), at = slot * b.plan.batch + i;
  if (i < b.plan.batch) {
    const bool counts = ahead.example >= 0 && !(e.classes && ahead.label == b.net.loss_options.ignore_index);
    double loss_weight = counts ? static_cast<double>(ahead.row_weight) : 0;
    if (counts && e.classes && e.class_weight) loss_weight *= static_cast<double>(e.class_weight[ahead.label]);
    b.at<int64_t>(kRow)[(1 - slot) * b.plan.batch + i] = ahead.row;
    b.at<int32_t>(kLabel)[at] = counts ? static_cast<int>(ahead.label) : kCountsForNothing;
    b.at(kRowWeight)[at] = ahead.row_weight;
    b.at<double>(kLossWeight)[i] = loss_weight;
  }
  if (i * 4 < b.plan.rule_bytes) b.at<uint32_t>(kRule)[slot * b.plan.rule_bytes / 4 + i] = ahead.rule;
}

__device__ __forceinline__ int bytes_per_number(Storage storage) {
  return storage == Storage::kUInt8 ? 1 : storage == Storage::kBFloat16 ? 2 : storage == Storage::kFloat32 ? 4 : 8;
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

// The same by the copy engine.
__device__ __forceinline__ void copy_rows_in_bulk(const Block& b, int64_t step, const int64_t* rows, const char* from,
                                                  char* to, int stride, int valid) {
  if (valid == 0) return;
  const int there = rows_of(b, step);
  Arrival* const arrival = b.at<Arrival>(kArrival) + (step & 1);
  if (threadIdx.x == 0) announce(arrival, there * valid);
  // One row after the other, as the engine is told about one at a time; each warp has its share.
  if (b.lane == 0)
#pragma unroll 1
    for (int i = b.warp; i < there; i += kClusterWarps)
      copy_bulk(to + i * stride, from + rows[i] * b.s.examples.x_stride, valid, arrival);
#pragma unroll 1
  for (int i = there + b.warp; i < b.plan.batch; i += kClusterWarps)  // in a short batch
    for (int at = 4 * b.lane; at < valid; at += 4 * 32) *reinterpret_cast<uint32_t*>(to + i * stride + at) = 0;
}

// Starts to copy the rows of a step, and where targets are values those of the block's own rows.
__device__ __forceinline__ void start_copies(const Block& b, int64_t step) {
  if (step >= b.s.steps) return;
  const Examples<float>& e = b.s.examples;
  const int slot = static_cast<int>(step & 1);
  const int64_t* rows = b.at<int64_t>(kRow) + slot * b.plan.batch;
  const int number = bytes_per_number(e.storage);
  const int stride = b.plan.raw_stride ? b.plan.raw_stride : b.plan.column_stride * number;
  const int width = b.plan.columns * number, valid = b.columns * number;
  const char* const from = static_cast<const char*>(e.x) + int64_t{b.column0} * number;
  char* const to = b.at<char>(b.plan.raw_stride ? kRaw : kX) + slot * b.plan.batch * stride;
  if (b.plan.in_bulk)
    copy_rows_in_bulk(b, step, rows, from, to, stride, valid);
  else if (b.plan.access == 16)
    copy_rows<16>(b, rows, from, to, stride, valid, width);
  else if (b.plan.access == 8)
    copy_rows<8>(b, rows, from, to, stride, valid, width);
  else if (b.plan.access == 4)
    copy_rows<4>(b, rows, from, to, stride, valid, width);
  else
    copy_rows<1>(b, rows, from, to, stride, valid, width);
  if (!e.values) return;
  float* const targets = b.at(kTarget) + slot * b.plan.own_rows * b.plan.out_stride;
#pragma unroll 1
  for (int i = b.warp; i < b.own_rows; i += kClusterWarps) {
    const int64_t row = rows[b.row0 + i];
    for (int j = b.lane; row >= 0 && j < b.net.out; j += 32)
      copy_async<4>(targets + i * b.plan.out_stride + j, e.values + row * e.value_stride + j, 4);
  }
}

__device__ __forceinline__ float as_float(float x) { return x; }
__device__ __forceinline__ float as_float(double x) { return static_cast<float>(x); }
__device__ __forceinline__ float as_float(bfloat16 x) { return widen(x); }
__device__ __forceinline__ float as_float(uint8_t x) {  // by its place after a float's point, faster than a conversion
  return __fadd_rn(__uint_as_float(0x4b000000u | x), -8388608.0f);
}

// Waits until the rows and targets of a step are there for all.
__device__ __forceinline__ void wait_for_rows(const Block& b, int64_t step) {
  wait_for_copies<0>();
  if (b.plan.in_bulk && b.columns > 0)
    wait_for_arrival(b.at<Arrival>(kArrival) + (step & 1), static_cast<int>(step >> 1 & 1));
  __syncthreads();
}

// Rows as they are stored → x.
template <class S>
__device__ __forceinline__ void convert_rows(const Block& b, int64_t step, const char* raw) {
  constexpr int kNumbers = 8;
  const float scale = static_cast<float>(b.s.examples.scale), shift = static_cast<float>(b.s.examples.shift);
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

// x of a step whose copies are there.
__device__ __forceinline__ const float* x_of(const Block& b, int64_t step) {
  const int slot = static_cast<int>(step & 1);
  if (!b.plan.raw_stride) return b.at(kX) + slot * b.plan.batch * b.plan.column_stride;
  const char* raw = b.at<char>(kRaw) + slot * b.plan.batch * b.plan.raw_stride;
  switch (b.s.examples.storage) {
    case Storage::kFloat32:
      convert_rows<float>(b, step, raw);
      break;
    case Storage::kFloat64:
      convert_rows<double>(b, step, raw);
      break;
    case Storage::kBFloat16:
      convert_rows<bfloat16>(b, step, raw);
      break;
    case Storage::kUInt8:
      convert_rows<uint8_t>(b, step, raw);
      break;
  }
  __syncthreads();  // all of x is there
  return b.at(kX);
}

// What the step's loss is divided by, from what its rows count for; by one warp.
__device__ __forceinline__ void sum_loss_weights(const Block& b, int64_t step) {
  double sum = 0;
  for (int i = threadIdx.x % 32; i < b.plan.batch; i += 32) sum += b.at<double>(kLossWeight)[i];
  sum = sum_of_lanes<32>(sum);
  if (b.lane != 0) return;
  b.at<double>(kDivisor)[step & 1] = sum;
  b.at(kScale)[step & 1] = b.plan.loss_per_row != 0 ? static_cast<float>(sum * b.plan.loss_per_row) : 1.0f;
}

}  // namespace twolayer::cuda
