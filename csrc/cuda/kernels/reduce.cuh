// Adds up what blocks left of several arrays, in order.
#pragma once
#include "cuda/device/convert.cuh"
#include "cuda/device/tile.cuh"
#include "cuda/device/types.cuh"

namespace twolayer::cuda {

template <class T>
struct Parts {
  const Compute<T>* parts;  // (count, size)
  int64_t size;             // 0: not wanted
  T* sum;                   // (size)
  int count;
};

template <class T>
struct ReduceTask {
  Parts<T> arrays[4];
};

constexpr int kReduceColumns = 32, kReduceRows = kThreads / kReduceColumns;

// A block sums 32 numbers; warp w takes parts w, w + 8, ….
template <class T>
__global__ void __launch_bounds__(kThreads) reduce_kernel(const __grid_constant__ ReduceTask<T> task) {
  using C = Compute<T>;
  C* const memory = reinterpret_cast<C*>(shared_memory());  // (rows, columns)
  int64_t block = blockIdx.x;
  int i = 0;
  for (; block >= (task.arrays[i].size + kReduceColumns - 1) / kReduceColumns; ++i)
    block -= (task.arrays[i].size + kReduceColumns - 1) / kReduceColumns;
  const Parts<T>& array = task.arrays[i];
  const int lane = threadIdx.x % kReduceColumns, row = threadIdx.x / kReduceColumns;
  const int64_t at = block * kReduceColumns + lane;
  C sum = 0;
  if (at < array.size) {
#pragma unroll 4
    for (int part = row; part < array.count; part += kReduceRows) sum += array.parts[part * array.size + at];
  }
  memory[threadIdx.x] = sum;
  __syncthreads();  // every warp's sums are there
  if (row > 0 || at >= array.size) return;
  for (int other = 1; other < kReduceRows; ++other) sum += memory[other * kReduceColumns + lane];
  narrow(sum, array.sum[at]);
}

}  // namespace twolayer::cuda
