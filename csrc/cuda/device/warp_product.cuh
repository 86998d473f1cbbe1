// Products of matrices in shared memory, by one warp on tensor cores: kM × 16 rows, kN × 8 columns. Factors of float32
// go in as two numbers of TF32 each, so that products have 22 bits and more; or rounded to bfloat16.
#pragma once
#include "cuda/device/convert.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/tile.cuh"

namespace twolayer::cuda {

using Pair = Pack<float, 2>;

// The numbers of k that lane t of a group of four holds of row (or column) i, of eight from k on. Which two they are is
// free, as long as both factors hold the same.
struct Along {  // memory runs along k: neighbours
  const float* data;
  int stride;
  __device__ __forceinline__ Pair at(int i, int k, int t) const {
    return *reinterpret_cast<const Pair*>(data + i * stride + k + 2 * t);
  }
};
struct Across {  // memory runs along i: four apart
  const float* data;
  int stride;
  __device__ __forceinline__ Pair at(int i, int k, int t) const {
    return {{data[(k + t) * stride + i], data[(k + t + 4) * stride + i]}};
  }
};
struct AcrossToMeetAlong {
  const float* data;
  int stride;
  __device__ __forceinline__ Pair at(int i, int k, int t) const {
    return {{data[(k + 2 * t) * stride + i], data[(k + 2 * t + 1) * stride + i]}};
  }
};

__device__ __forceinline__ float rounded_to_bfloat16(float x) {
  bfloat16 rounded;
  narrow(x, rounded);
  return widen(rounded);
}

// sums += a b over [k0, k1), of the first n of kN columns of tiles.
template <bool kRounded, int kM, int kN, class A, class B>
__device__ __forceinline__ void multiply(float (&sums)[kM][kN][4], const A& a, const B& b, int n, int k0, int k1) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const auto split = [](float x, uint32_t& high, uint32_t& low, uint32_t& finite) {
    if constexpr (kRounded) {
      high = __float_as_uint(rounded_to_bfloat16(x));
    } else {
      const Tf32 parts = fetch_tf32<true>(&x);
      high = parts.high, low = parts.low, finite = finite_or_0(parts.high);
    }
  };
#pragma unroll 1
  for (int k = k0; k < k1; k += 8) {
    uint32_t left[kM][4], left_low[kM][4], left_finite[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Pair pair = a.at(16 * m + 8 * half + g, k, t);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          split(pair.numbers[i], left[m][2 * i + half], left_low[m][2 * i + half], left_finite[m][2 * i + half]);
      }
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      if (j >= n) break;
      const Pair pair = b.at(8 * j + g, k, t);
      uint32_t right[2], right_low[2], right_finite[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) split(pair.numbers[i], right[i], right_low[i], right_finite[i]);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        if constexpr (!kRounded) {
          mma_tf32(sums[m][j], left_low[m], right_finite);
          mma_tf32(sums[m][j], left_finite[m], right_low);
        }
        mma_tf32(sums[m][j], left[m], right);
      }
    }
  }
}

// f(row, column, pair) for the lane's sums: of each row two neighbouring columns.
template <int kM, int kN, class F>
__device__ __forceinline__ void for_each_pair(float (&sums)[kM][kN][4], int n, F&& f) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      if (j >= n) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Pair pair{{sums[m][j][2 * half], sums[m][j][2 * half + 1]}};
        f(16 * m + 8 * half + lane / 4, 8 * j + lane % 4 * 2, pair);
        sums[m][j][2 * half] = pair.numbers[0], sums[m][j][2 * half + 1] = pair.numbers[1];
      }
    }
}

}  // namespace twolayer::cuda
