// Passes over a matrix (rows, columns) in memory, 16 bytes of a row to a thread where its rows allow that.
//
// A block of 256 threads covers `lanes` columns' packs and 256 / lanes rows at a time, and goes down `block_rows` rows.
#pragma once
#include "cuda/device/activation.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/device/tile.cuh"
#include "cuda/device/types.cuh"

namespace twolayer::cuda {

struct PassGrid {
  int64_t rows, columns;
  int64_t column_blocks, block_rows;
  int lanes;  // a power of two, at most kThreads
};

template <class T>
struct BiasActivateTask {
  BiasActivateParams<T> p;
  PassGrid grid;
};

template <class T>
struct DeriveSumTask {
  DeriveSumParams<T> p;
  PassGrid grid;
  Compute<T>* parts;  // (row blocks, columns) sums of each block's rows, or null where it is the result
};

// f(first row, row step, end row, column) once for each thread; the thread of a column beyond the last gets no rows.
template <int kNumbers, class F>
__device__ __forceinline__ void for_my_rows(const PassGrid& g, F&& f) {
  const int lane = threadIdx.x & (g.lanes - 1), row = threadIdx.x >> log2_of(g.lanes);
  const int64_t column = (blockIdx.x % g.column_blocks * g.lanes + lane) * kNumbers;
  const int64_t row0 = blockIdx.x / g.column_blocks * g.block_rows;
  const int64_t end = column < g.columns ? min(row0 + g.block_rows, g.rows) : 0;
  f(row0 + row, kThreads / g.lanes, end, column);
}

constexpr int kRowsAtOnce = 2;  // of a thread, so that their loads are under way together

template <class T, int kNumbers>
__global__ void __launch_bounds__(kThreads) bias_activate_kernel(const __grid_constant__ BiasActivateTask<T> task) {
  using P = Pack<T, kNumbers>;
  using C = Compute<T>;
  const BiasActivateParams<T>& p = task.p;
  for_my_rows<kNumbers>(task.grid, [&](int64_t row, int step, int64_t end, int64_t column) {
    C bias[kNumbers] = {};
    if (p.b1 && row < end)
      for (int i = 0; i < kNumbers; ++i) bias[i] = widen(p.b1[column + i]);
    with_activation(p.activation, [&](auto act) {
      using Act = decltype(act);
      for (; row < end; row += step * kRowsAtOnce) {
        P z[kRowsAtOnce];
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r)
          if (row + r * step < end)
            z[r] = *reinterpret_cast<const P*>(p.z + (row + r * step) * task.grid.columns + column);
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
          if (row + r * step >= end) break;
          const int64_t at = (row + r * step) * task.grid.columns + column;
          P h;
#pragma unroll
          for (int i = 0; i < kNumbers; ++i) {
            const C input = p.b1 ? widen(z[r].numbers[i]) + bias[i] : widen(z[r].numbers[i]);
            narrow(Act::value(input), h.numbers[i]);
            if constexpr (Act::saves_input) narrow(input, z[r].numbers[i]);
          }
          if (p.saved) *reinterpret_cast<P*>(p.saved + at) = Act::saves_input ? z[r] : h;
          *reinterpret_cast<P*>(p.h + at) = h;
        }
      }
    });
  });
}

template <class T, int kNumbers>
__global__ void __launch_bounds__(kThreads) derive_sum_kernel(const __grid_constant__ DeriveSumTask<T> task) {
  using P = Pack<T, kNumbers>;
  using C = Compute<T>;
  const DeriveSumParams<T>& p = task.p;
  const int thread = static_cast<int>(threadIdx.x);
  C* const memory = reinterpret_cast<C*>(shared_memory());  // (threads, numbers), where there is a sum
  for_my_rows<kNumbers>(task.grid, [&](int64_t row, int step, int64_t end, int64_t column) {
    C sums[kNumbers] = {};
    const auto pass = [&](auto&& change) {
      for (; row < end; row += step * kRowsAtOnce) {
        P grad[kRowsAtOnce], saved[kRowsAtOnce];
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
          if (row + r * step >= end) break;
          const int64_t at = (row + r * step) * task.grid.columns + column;
          grad[r] = *reinterpret_cast<const P*>(p.grad + at);
          if (p.saved) saved[r] = *reinterpret_cast<const P*>(p.saved + at);
        }
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
          if (row + r * step >= end) break;
#pragma unroll
          for (int i = 0; i < kNumbers; ++i)
            sums[i] += change(widen(grad[r].numbers[i]), saved[r].numbers[i], grad[r].numbers[i]);
          if (p.saved) *reinterpret_cast<P*>(p.grad + (row + r * step) * task.grid.columns + column) = grad[r];
        }
      }
    };
    if (p.saved)
      with_activation(p.activation, [&](auto act) {
        pass([&](C g, T s, T& out) {
          const C result = through(act, g, widen(s));
          narrow(result, out);
          return result;
        });
      });
    else
      pass([](C g, T, T&) { return g; });

    if (!p.sum) return;
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) memory[thread * kNumbers + i] = sums[i];
    __syncthreads();  // every row's sums are there
    if (thread >= task.grid.lanes || column >= task.grid.columns) return;
    const int64_t part = blockIdx.x / task.grid.column_blocks;
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      C sum = memory[thread * kNumbers + i];
      for (int other = thread + task.grid.lanes; other < kThreads; other += task.grid.lanes)
        sum += memory[other * kNumbers + i];
      if (task.parts)
        task.parts[part * task.grid.columns + column + i] = sum;
      else
        narrow(sum, p.sum[column + i]);
    }
  });
}

}  // namespace twolayer::cuda
