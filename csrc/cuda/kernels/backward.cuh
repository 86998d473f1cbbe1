// The gradients of y = act(x W1ᵀ + b1) W2ᵀ + b2 in one launch, whose blocks share out the tiles of three products:
//
//   grad W1 (hidden, in)  = grad_zᵀ x     and beside it, grad b1 = the sums of grad_z's columns
//   grad W2 (out, hidden) = grad_yᵀ h     and beside it, grad b2 = the sums of grad_y's columns
//   grad x (batch, in)    = grad_z W1
//
// grad_z = (grad_y W2) act'(saved) is computed in each block, slice by slice, where it is needed: with few outputs that
// costs less than a launch. Where the batch is deep, blocks take parts of it, and a second launch adds what they found.
#pragma once
#include "cuda/device/activation.cuh"
#include "cuda/device/share.cuh"
#include "cuda/device/tile.cuh"

namespace twolayer::cuda {

template <class T>
struct BackwardTask {
  using C = Compute<T>;
  BackwardParams<T> p;
  Matrix<T> x, w1, grad_y, saved, h;  // h is p.h, or saved
  Share w1_share, w2_share, x_share;
  bool h_is_output;  // and not what the activation is still to be applied to
  // (parts, …) what parts of the batch give, or null where there is one part
  C *part_w1, *part_b1, *part_w2, *part_b2;
};

// grad_z in a slice whose rows are rows of the batch and whose columns are hidden units, from a slice of `saved`.
template <class T, class C>
__device__ __forceinline__ void make_grad_z(const BackwardParams<T>& p, const T* saved, int saved_stride, C* grad_z,
                                            int stride, int64_t row0, int64_t unit0, int rows, int units, bool keep) {
  constexpr int kRows = 4, kOuts = 32 / sizeof(C);  // whose loads are under way together
  const int bits = log2_of(units);
#pragma unroll 1
  for (int i = threadIdx.x; i < rows / kRows << bits; i += kThreads) {
    const int column = i & (units - 1), row = (i >> bits) * kRows;
    const int64_t unit = unit0 + column, left = unit < p.hidden ? p.batch - row0 - row : 0;
    C sums[kRows] = {};
    if (left > 0) {
      const T* weight = p.w2 + unit;
      const T* grad = p.grad_y + (row0 + row) * p.out;
#pragma unroll 1
      for (int64_t o = 0; o < p.out; o += kOuts) {
        C w[kOuts], g[kRows][kOuts];
#pragma unroll
        for (int i = 0; i < kOuts; ++i) {
          const bool valid = o + i < p.out;
          w[i] = valid ? widen(weight[(o + i) * p.hidden]) : 0;
#pragma unroll
          for (int r = 0; r < kRows; ++r) g[r][i] = valid && r < left ? widen(grad[r * p.out + o + i]) : 0;
        }
#pragma unroll
        for (int i = 0; i < kOuts; ++i)
#pragma unroll
          for (int r = 0; r < kRows; ++r) sums[r] = fma(g[r][i], w[i], sums[r]);
      }
    }
    // One at a time from here on: an activation's code is long, and registers are few.
#pragma unroll
    for (int r = 0; r < kRows; ++r) grad_z[(row + r) * stride + column] = sums[r];
    with_activation(p.activation, [&](auto act) {
#pragma unroll 1
      for (int r = 0; r < kRows; ++r) {
        C& g = grad_z[(row + r) * stride + column];
        const bool valid = r < left;
        g = valid ? through(act, g, widen(saved[(row + r) * saved_stride + column])) : 0;
        if (valid && keep) narrow(g, p.grad_z[(row0 + row + r) * p.hidden + unit]);
      }
    });
  }
}

// Where a block's sums go: to the result, or as its part of the batch to scratch.
template <class T, class C>
__device__ __forceinline__ void put(T* result, C* parts, int64_t part, int64_t size, int64_t at, C value) {
  if (parts)
    parts[part * size + at] = value;
  else
    narrow(value, result[at]);
}

template <bool kTf32, class T>
struct BackwardTile {
  using C = Compute<T>;
  using W1 = Product<kTf32, Factor<T, C, false, true>, Factor<T, T, false>>;
  using W2 = Product<kTf32, Factor<T, T, false>, Factor<T, C, false, true>>;
  using X = Product<kTf32, Factor<T, C, true, true>, Factor<T, T, false>>;
};

template <bool kTf32, class T>
__device__ __forceinline__ void grad_w1_tile(const BackwardTask<T>& task, int64_t block, char* memory) {
  using Product = typename BackwardTile<kTf32, T>::W1;
  using C = Compute<T>;
  const BackwardParams<T>& p = task.p;
  const Tiling& t = task.w1_share.tiling;
  const Place at(task.w1_share, block, p.batch);
  const bool first = at.n0 == 0;
  ColumnSums<C> column_sums;
  Product::run(
      t, task.saved, task.x, at.m0, at.n0, at.k_begin, at.k_end, memory,
      [&](const T* saved, int saved_stride, C* grad_z, int stride, int64_t row0) {
        make_grad_z(p, saved, saved_stride, grad_z, stride, row0, at.m0, Product::kDepth, t.m(), first && p.grad_z);
      },
      Unchanged{},
      [&](const C* grad_z, int stride) {
        if (first && p.grad_b1) column_sums.see(grad_z, stride, Product::kDepth, t.m());
      });
  if (p.grad_w1)
    Product::for_each_sum(t, memory, p.hidden - at.m0, p.in - at.n0, [&](int row, int column, C sum) {
      const int64_t to = (at.m0 + row) * p.in + at.n0 + column;
      put(p.grad_w1, task.part_w1, at.part, p.hidden * p.in, to, sum);
    });
  if (first && p.grad_b1)
    column_sums.finish(reinterpret_cast<C*>(memory), t.m(), p.hidden - at.m0, [&](int column, C sum) {
      put(p.grad_b1, task.part_b1, at.part, p.hidden, at.m0 + column, sum);
    });
}

template <bool kTf32, class T>
__device__ __forceinline__ void grad_w2_tile(const BackwardTask<T>& task, int64_t block, char* memory) {
  using Product = typename BackwardTile<kTf32, T>::W2;
  using C = Compute<T>;
  const BackwardParams<T>& p = task.p;
  const Tiling& t = task.w2_share.tiling;
  const Place at(task.w2_share, block, p.batch);
  const bool first = at.n0 == 0;
  ColumnSums<C> column_sums;
  const int activation = task.h_is_output ? 0 : p.activation;  // 0: the identity
  Product::run(
      t, task.grad_y, task.h, at.m0, at.n0, at.k_begin, at.k_end, memory, Unchanged{},
      [&](const T* kept, int kept_stride, C* h, int stride, int64_t) {
        with_activation(activation, [&](auto act) {
          const int bits = log2_of(t.n());
#pragma unroll 1
          for (int i = threadIdx.x; i < Product::kDepth << bits; i += kThreads) {
            const int row = i >> bits, column = i & (t.n() - 1);
            h[row * stride + column] = decltype(act)::value(widen(kept[row * kept_stride + column]));
          }
        });
      },
      [&](const T* grad_y, int stride) {
        if (first && p.grad_b2) column_sums.see(grad_y, stride, Product::kDepth, t.m());
      });
  if (p.grad_w2)
    Product::for_each_sum(t, memory, p.out - at.m0, p.hidden - at.n0, [&](int row, int column, C sum) {
      const int64_t to = (at.m0 + row) * p.hidden + at.n0 + column;
      put(p.grad_w2, task.part_w2, at.part, p.out * p.hidden, to, sum);
    });
  if (first && p.grad_b2)
    column_sums.finish(reinterpret_cast<C*>(memory), t.m(), p.out - at.m0,
                       [&](int column, C sum) { put(p.grad_b2, task.part_b2, at.part, p.out, at.m0 + column, sum); });
}

template <bool kTf32, class T>
__device__ __forceinline__ void grad_x_tile(const BackwardTask<T>& task, int64_t block, char* memory) {
  using Product = typename BackwardTile<kTf32, T>::X;
  using C = Compute<T>;
  const BackwardParams<T>& p = task.p;
  const Tiling& t = task.x_share.tiling;
  const Place at(task.x_share, block, p.hidden);
  Product::run(
      t, task.saved, task.w1, at.m0, at.n0, at.k_begin, at.k_end, memory,
      [&](const T* saved, int saved_stride, C* grad_z, int stride, int64_t unit0) {
        make_grad_z(p, saved, saved_stride, grad_z, stride, at.m0, unit0, t.m(), Product::kDepth, false);
      },
      Unchanged{}, Unchanged{});
  Product::for_each_sum(t, memory, p.batch - at.m0, p.in - at.n0, [&](int row, int column, C sum) {
    narrow(sum, p.grad_x[(at.m0 + row) * p.in + at.n0 + column]);
  });
}

template <bool kTf32, class T>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const __grid_constant__ BackwardTask<T> task) {
  char* const memory = shared_memory();
  int64_t block = blockIdx.x;
  if (block < task.w1_share.blocks) return grad_w1_tile<kTf32>(task, block, memory);
  block -= task.w1_share.blocks;
  if (block < task.x_share.blocks) return grad_x_tile<kTf32>(task, block, memory);
  grad_w2_tile<kTf32>(task, block - task.x_share.blocks, memory);
}

}  // namespace twolayer::cuda
