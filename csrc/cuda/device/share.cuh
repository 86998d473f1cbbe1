// How blocks share out the tiles of a product, and what they find beside it.
#pragma once
#include "cuda/device/tile.cuh"

namespace twolayer::cuda {

// The tiles of one of the products.
struct Share {
  int64_t blocks;   // 0: not wanted
  int64_t n_tiles;  // a block has, in order: part, tile of m, tile of n
  int64_t m_tiles;
  int64_t k_part;  // of the summed dimension, to a block
  Tiling tiling;
};

// Where in its product a block is.
struct Place {
  int64_t part, m0, n0, k_begin, k_end;
  __device__ Place(const Share& share, int64_t block, int64_t k) {
    const int64_t n = block % share.n_tiles, rest = block / share.n_tiles;
    part = rest / share.m_tiles;
    m0 = rest % share.m_tiles * share.tiling.m();
    n0 = n * share.tiling.n();
    k_begin = part * share.k_part;
    k_end = min(k_begin + share.k_part, k);
  }
};

// The sums of the columns of a slice's rows, as slice after slice is seen.
template <class C>
class ColumnSums {
 public:
  // Adds a slice of `rows` × `columns`; columns is a power of two.
  template <class S>
  __device__ __forceinline__ void see(const S* slice, int stride, int rows, int columns) {
    const int column = threadIdx.x & (columns - 1), step = kThreads / columns;
    for (int row = threadIdx.x >> log2_of(columns); row < rows; row += step)
      sum_ += widen(slice[row * stride + column]);
  }

  // f(column, sum) for the first `valid` columns, by way of `memory`, a number for each thread. Of a product's sums
  // that are still there, a thread overwrites one that only itself has read.
  template <class F>
  __device__ __forceinline__ void finish(C* memory, int columns, int64_t valid, F&& f) {
    const int thread = static_cast<int>(threadIdx.x);
    memory[thread] = sum_;
    __syncthreads();  // all sums are there
    if (thread >= columns || thread >= valid) return;
    C sum = memory[thread];
    for (int i = thread + columns; i < kThreads; i += columns) sum += memory[i];
    f(thread, sum);
  }

 private:
  C sum_ = 0;
};

}  // namespace twolayer::cuda
