// y = act(x W1ᵀ + b1) W2ᵀ + b2 in one launch, or two.
//
// A cluster of blocks owns a tile of rows. Each block takes tiles of hidden units in turn: computes them, activates
// them, and adds what they contribute to the outputs, all in shared memory. At the end the blocks add up their outputs
// in the order of their ranks. Where that would leave most of the device idle, several clusters share the hidden units
// of a tile of rows, and a second launch adds what they found.
#pragma once
#include "cuda/device/activation.cuh"
#include "cuda/device/cluster.cuh"
#include "cuda/device/tile.cuh"

namespace twolayer::cuda {

template <class T>
struct ForwardTask {
  ForwardParams<T> p;
  Matrix<T> x, w1, w2;
  Tiling tiling;
  int cluster;
  int64_t unit_tiles;   // of tiling.n() hidden units each
  int64_t group_tiles;  // of them to a cluster
  int groups;           // clusters that share a tile of rows
  int chunk;            // outputs at a time
  int64_t chunks;       // blocks beyond the first chunk compute the hidden layer again
  Compute<T>* parts;    // (groups, batch, out), or null where there is one group
};

template <bool kTf32, class T>
struct ForwardTile {
  using C = Compute<T>;
  using Hidden = Product<kTf32, Factor<T, T, true>, Factor<T, T, true>>;

  // Shared memory: the product's; the hidden units (m, n + 1); the outputs (chunk, m); W2's slice (chunk, n + padding).
  static __host__ __device__ int w2_stride(const Tiling& t) { return t.n() + 16 / static_cast<int>(sizeof(T)); }
  static __host__ __device__ int64_t hidden_bytes(const Tiling& t) { return t.m() * (t.n() + 1) * int64_t{sizeof(C)}; }
  static __host__ __device__ int64_t sums_bytes(const Tiling& t, int chunk) {
    return int64_t{t.m()} * chunk * sizeof(C);
  }
  static __host__ int64_t bytes(const Tiling& t, int chunk) {
    return Hidden::bytes(t) + hidden_bytes(t) + sums_bytes(t, chunk) + int64_t{chunk} * w2_stride(t) * sizeof(T);
  }
};

template <bool kTf32, class T>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(const __grid_constant__ ForwardTask<T> task) {
  using Tile = ForwardTile<kTf32, T>;
  using Hidden = typename Tile::Hidden;
  using C = Compute<T>;
  const ForwardParams<T>& p = task.p;
  const Tiling& t = task.tiling;
  const int rank = task.cluster > 1 ? cluster_rank() : 0;
  const int64_t tile = blockIdx.x / task.cluster / task.groups;
  const int group = static_cast<int>(blockIdx.x / task.cluster % task.groups);
  const int64_t row0 = tile / task.chunks * t.m(), out0 = tile % task.chunks * task.chunk;
  const int rows = static_cast<int>(min<int64_t>(t.m(), p.batch - row0));
  const int outs = static_cast<int>(min<int64_t>(task.chunk, p.out - out0));

  char* const memory = shared_memory();
  C* const hidden = reinterpret_cast<C*>(memory + Hidden::bytes(t));
  C* const sums = reinterpret_cast<C*>(memory + Hidden::bytes(t) + Tile::hidden_bytes(t));
  T* const w2 = reinterpret_cast<T*>(reinterpret_cast<char*>(sums) + Tile::sums_bytes(t, task.chunk));
  const int hidden_stride = t.n() + 1, w2_stride = Tile::w2_stride(t);
  const int row_bits = log2_of(t.m());

  for (int i = threadIdx.x; i < outs << row_bits; i += kThreads) sums[i] = 0;
  const int64_t first_tile = group * task.group_tiles;
  const int64_t last_tile = min(first_tile + task.group_tiles, task.unit_tiles);
#pragma unroll 1
  for (int64_t unit_tile = first_tile + rank; unit_tile < last_tile; unit_tile += task.cluster) {
    const int64_t unit0 = unit_tile * t.n();
    const int units = static_cast<int>(min<int64_t>(t.n(), p.hidden - unit0));
    if (unit_tile != first_tile + rank) __syncthreads();  // the tile before is no longer read
    copy_tile(w2, w2_stride, task.w2, out0, unit0, task.chunk, t.n());
    Hidden::run(t, task.x, task.w1, row0, unit0, 0, p.z ? 0 : p.in, memory, Unchanged{}, Unchanged{}, Unchanged{});

    with_activation(p.activation, [&](auto act) {
      using Act = decltype(act);
      Hidden::for_each_sum(t, memory, rows, units, [&](int row, int column, C z) {
        const int64_t unit = unit0 + column, at = (row0 + row) * p.hidden + unit;
        if (p.z)
          z = widen(p.z[at]);
        else if (p.b1)
          z += widen(p.b1[unit]);
        const C h = Act::value(z);
        hidden[row * hidden_stride + column] = h;
        if (out0 == 0) {
          if (p.saved) narrow(Act::saves_input ? z : h, p.saved[at]);
          if (p.h) narrow(h, p.h[at]);
        }
      });
    });
    __syncthreads();  // the hidden units are there

#pragma unroll 1
    for (int i = threadIdx.x; i < outs << row_bits; i += kThreads) {
      const C* from = hidden + (i & (t.m() - 1)) * hidden_stride;
      const T* weight = w2 + (i >> row_bits) * w2_stride;
      C sum = sums[i];
#pragma unroll 8
      for (int unit = 0; unit < units; ++unit) sum = fma(from[unit], widen(weight[unit]), sum);
      sums[i] = sum;
    }
  }

  if (task.cluster > 1)  // all outputs are there
    cluster_barrier();
  else
    __syncthreads();
#pragma unroll 1
  for (int i = rank * kThreads + threadIdx.x; i < rows * outs; i += task.cluster * kThreads) {
    const int row = i / outs, column = i % outs;
    C* const mine = sums + (column << row_bits) + row;
    C sum = 0;
    for (int other = 0; other < task.cluster; ++other) sum += *(task.cluster > 1 ? cluster_shared(mine, other) : mine);
    if (p.b2 && group == 0) sum += widen(p.b2[out0 + column]);
    const int64_t at = (row0 + row) * p.out + out0 + column;
    if (task.parts)
      task.parts[group * p.batch * p.out + at] = sum;
    else
      narrow(sum, p.y[at]);
  }
  if (task.cluster > 1) cluster_barrier();  // no block's memory goes while another reads it
}

}  // namespace twolayer::cuda
