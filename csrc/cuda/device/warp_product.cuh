// Products of matrices in shared memory, by one warp on tensor cores: kM × 16 rows, kN × 8 columns. A factor of float32
// goes in as two numbers of TF32, which keep 22 of its bits; or rounded to bfloat16.
#pragma once
#include "cuda/device/convert.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/tile.cuh"

namespace twolayer::cuda {

using Pair = Pack<float, 2>;

// A factor: at(i, k, t) are the numbers that lane t of a group of four holds of row (or column) i, of eight of k. Which
// two of the eight they are is free, as long as both factors hold the same. Strides are 8 or 24 modulo 32: then the
// lanes of a warp meet no bank twice.
struct Along {  // memory runs along k: neighbours
  const float* data;
  int stride;
  __device__ __forceinline__ Pair at(int i, int k, int t) const {
    return *reinterpret_cast<const Pair*>(data + i * stride + k + 2 * t);
  }
  __device__ __forceinline__ float number(int i, int k) const { return data[i * stride + k]; }
};
struct AlongUpTo : Along {  // the same, of rows up to `last`, which stands in for those beyond
  int last;
  __device__ __forceinline__ Pair at(int i, int k, int t) const { return Along::at(i < last ? i : last, k, t); }
};
struct Across {  // memory runs along i: four apart
  const float* data;
  int stride;
  __device__ __forceinline__ Pair at(int i, int k, int t) const {
    return {{data[(k + t) * stride + i], data[(k + t + 4) * stride + i]}};
  }
  __device__ __forceinline__ float number(int i, int k) const { return data[k * stride + i]; }
};

__device__ __forceinline__ float rounded_to_bfloat16(float x) {
  bfloat16 rounded;
  narrow(x, rounded);
  return widen(rounded);
}

// How a factor goes in: as it is, of no more than TF32's 11 bits; in two parts; or rounded.
enum class Parts { kOne, kTwo, kRounded };

// A pair as tensor cores take it. Where a number is infinite its low part is not a number; see `multiply`.
template <Parts kParts>
__device__ __forceinline__ void split(const Pair& pair, uint32_t (&high)[2], uint32_t (&low)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t bits = __float_as_uint(pair.numbers[i]);
    high[i] = kParts == Parts::kOne   ? bits
              : kParts == Parts::kTwo ? (bits + 0x1000u) & 0xffffe000u  // to the nearest: no part has always x's sign
                                      : __float_as_uint(rounded_to_bfloat16(pair.numbers[i]));
    if constexpr (kParts == Parts::kTwo)
      low[i] = __float_as_uint(__fadd_rn(pair.numbers[i], -__uint_as_float(high[i])));
  }
}

// f(row, column, pair) for the lane's sums: of each row two neighbouring columns.
template <int kM, int kN, class F>
__device__ __forceinline__ void for_each_pair(const float (&sums)[kM][kN][4], F&& f) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int j = 0; j < kN; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        f(16 * m + 8 * half + lane / 4, 8 * j + lane % 4 * 2, Pair{{sums[m][j][2 * half], sums[m][j][2 * half + 1]}});
}

constexpr int kTogether = 64;  // of k that tensor cores add up on their own: they round every sum towards 0

// sums = a b over [k0, k1); false if a sum is not a finite number. Then it need not be what it should be, as an
// infinite factor's parts are infinite and not a number: see `dot`.
template <Parts kA, Parts kB, int kM, int kN, class A, class B>
__device__ __forceinline__ bool multiply(float (&sums)[kM][kN][4], const A& a, const B& b, int k0, int k1) {
  constexpr bool kApart = kA != Parts::kRounded && kM * kN < 4;  // few sums would wait for each other
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const auto each = [&](auto&& f) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int j = 0; j < kN; ++j) f(m, j);
  };
  const auto each_sum = [&](auto&& f) {
    each([&](int m, int j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) f(m, j, e);
    });
  };
  each_sum([&](int m, int j, int e) { sums[m][j][e] = 0; });

#pragma unroll 1
  for (int begin = k0; begin < k1; begin += kTogether) {
    const int end = min(begin + kTogether, k1);
    float some[kM][kN][4] = {}, rest[kM][kN][4] = {};
#pragma unroll 1
    for (int k = begin; k < end; k += 8) {
      uint32_t left[kM][4], left_low[kM][4], right[kN][2], right_low[kN][2];
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t high[2], low[2] = {};
          split<kA>(a.at(16 * m + 8 * half + g, k, t), high, low);
#pragma unroll
          for (int i = 0; i < 2; ++i) left[m][2 * i + half] = high[i], left_low[m][2 * i + half] = low[i];
        }
#pragma unroll
      for (int j = 0; j < kN; ++j) split<kB>(b.at(8 * j + g, k, t), right[j], right_low[j]);

      if constexpr (kA == Parts::kTwo)
        each([&](int m, int j) { mma_tf32((kApart ? rest : some)[m][j], left_low[m], right[j]); });
      if constexpr (kB == Parts::kTwo)
        each([&](int m, int j) { mma_tf32((kApart ? rest : some)[m][j], left[m], right_low[j]); });
      each([&](int m, int j) { mma_tf32(some[m][j], left[m], right[j]); });
    }
    each_sum([&](int m, int j, int e) { sums[m][j][e] += kApart ? some[m][j][e] + rest[m][j][e] : some[m][j][e]; });
  }
  float zero[4] = {};
  each_sum([&](int m, int j, int e) { zero[e] = fma(sums[m][j][e], 0.0f, zero[e]); });
  return kA == Parts::kRounded || !__any_sync(0xffffffffu, (zero[0] + zero[1]) + (zero[2] + zero[3]) != 0);
}

// A sum whose factors need not be finite, without parts.
template <class A, class B>
__device__ __forceinline__ float dot(const A& a, const B& b, int row, int column, int k0, int k1) {
  float sum = 0;
#pragma unroll 1
  for (int k = k0; k < k1; ++k) sum = fma(a.number(row, k), b.number(column, k), sum);
  return sum;
}

// f(row, column) for all of 16 · kM × 8 · kN numbers, one after the other.
template <int kM, int kN, class F>
__device__ __forceinline__ void for_each_number(F&& f) {
  constexpr int kColumns = 8 * kN;
#pragma unroll 1
  for (int i = threadIdx.x % 32; i < 16 * kM * kColumns; i += 32) f(i / kColumns, i % kColumns);
}

}  // namespace twolayer::cuda
