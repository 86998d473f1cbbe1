// How the kernels' work is cut into blocks. Results depend on it in their last bits, so it follows from sizes and from
// the kind of device alone.
#pragma once
#include <cstdint>

#include "cuda/device/share.cuh"
#include "cuda/device/tile.cuh"
#include "cuda/kernels.h"

namespace twolayer::cuda {

// The most of 16, 8, 4, … bytes of which an address and a row's length are both multiples.
template <class T>
Matrix<T> matrix(const T* data, int64_t rows, int64_t columns) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(data) | (rows > 1 ? columns * sizeof(T) : 0) | 16;
  return {data, rows, columns, columns, static_cast<int>(bits & -bits)};
}

// Shared memory that a block asks for at most, where fewer stages can keep it below: two such fit into most devices.
constexpr int64_t kSharedBytes = 100 << 10;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The largest of `candidates` (warps along m, n and k) that makes enough blocks for half the multiprocessors and whose
// shared memory `bytes(tiling)` a block can have; else the last one. None is larger than the result needs.
template <class Blocks, class Bytes, int kCount>
Tiling choose_tiling(const Device& device, const int (&candidates)[kCount][3], int64_t m, int64_t n, int64_t steps,
                     Blocks&& blocks, Bytes&& bytes) {
  const int64_t most = device.shared_bytes < kSharedBytes ? device.shared_bytes : kSharedBytes;
  Tiling tiling{};
  for (int i = 0; i < kCount; ++i) {
    tiling = {candidates[i][0], candidates[i][1], candidates[i][2], steps > 4 ? 8 : steps > 2 ? 4 : steps > 1 ? 2 : 1};
    while (tiling.stages > 2 && bytes(tiling) > most) tiling.stages /= 2;
    const bool too_large = (tiling.warps_m > 1 && tiling.m() / 2 >= m) || (tiling.warps_n > 1 && tiling.n() / 2 >= n);
    if (!too_large && blocks(tiling) * 2 >= device.multiprocessors && bytes(tiling) <= device.shared_bytes) break;
  }
  return tiling;
}

// Shares out a product (m, k) (k, n), its summed dimension too where that is deep and there are blocks to spare;
// returns into how many parts, at most most_parts.
template <class Product>
int share_out(const Device& device, Share& share, int64_t m, int64_t n, int64_t k, int64_t most_parts) {
  constexpr int kWide[][3] = {{2, 4, 1}, {1, 4, 2}, {2, 2, 2}, {1, 2, 4}, {1, 1, 8}};
  constexpr int kPartSteps = 4;  // slices that make a part worth its while
  const auto tiles = [&](const Tiling& t) { return ceil_div(m, t.m()) * (n > t.n() ? ceil_div(n, t.n()) : 1); };
  const int64_t steps = ceil_div(k, Product::kDepth);
  share.tiling = choose_tiling(device, kWide, m, n, steps, tiles, [](const Tiling& t) { return Product::bytes(t); });
  share.m_tiles = ceil_div(m, share.tiling.m());
  share.n_tiles = n > share.tiling.n() ? ceil_div(n, share.tiling.n()) : 1;
  int64_t parts = 1, part_steps = steps;
  if (most_parts > 1 && share.m_tiles) {
    parts = 2 * device.multiprocessors / (share.m_tiles * share.n_tiles);
    parts = parts > most_parts ? most_parts : parts;
    part_steps = ceil_div(steps, parts < 1 ? 1 : parts);
    if (part_steps < kPartSteps) part_steps = kPartSteps;
    parts = part_steps < steps ? ceil_div(steps, part_steps) : 1;
  }
  share.k_part = part_steps * Product::kDepth;
  share.blocks = parts * share.m_tiles * share.n_tiles;
  return static_cast<int>(parts);
}

}  // namespace twolayer::cuda
