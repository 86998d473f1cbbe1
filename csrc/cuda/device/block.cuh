// What all threads of a block of kThreads find together, in an order that depends on nothing.
#pragma once
#include "cuda/device/async.cuh"
#include "cuda/device/loss.cuh"
#include "cuda/device/tile.cuh"

namespace twolayer::cuda {

constexpr int64_t kBlockSumBytes = kWarps * int64_t{sizeof(double)};  // of shared memory, at its start

// The sum of all threads' numbers, the same for all of them.
__device__ __forceinline__ double sum_of_block(double v) {
  double* const memory = reinterpret_cast<double*>(shared_memory());
  v = sum_of_lanes<32>(v);
  __syncthreads();  // the sum before is no longer read
  if (threadIdx.x % 32 == 0) memory[threadIdx.x / 32] = v;
  __syncthreads();  // all warps' sums are there
  double sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += memory[warp];
  return sum;
}

}  // namespace twolayer::cuda
