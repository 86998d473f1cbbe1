// How the kernels' work is cut into blocks. Results depend on it in their last bits, so it follows from sizes and from
// the kind of device alone.
#pragma once
#include <cstdint>

#include "cuda/device/tile.cuh"
#include "cuda/kernels.h"

namespace twolayer::cuda {

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

}  // namespace twolayer::cuda
