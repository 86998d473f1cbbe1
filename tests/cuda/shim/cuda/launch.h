// Stands in for csrc/cuda/launch.h.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels.h"

namespace twolayer::cuda {

template <class Params>
void start_in_clusters(void (*kernel)(Params), const Params& params, int64_t blocks, int threads, int64_t shared_bytes,
                       int cluster, const Launch& launch) {
  if (blocks == 0) return;
  const emulation::Grid grid{static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                             static_cast<size_t>(shared_bytes), cluster > 0 ? cluster : 1, cluster > 0};
  const bool fits = blocks < int64_t{1} << 31;
  emulation::launch(static_cast<cudaStream_t>(launch.stream),
                    [=] { return fits && emulation::run(grid, [&] { kernel(params); }); });
}

template <class Params>
bool has_room_for_cluster(void (*)(Params), int, int64_t, int, const Device&) {
  return true;
}

template <class Params>
void start(void (*kernel)(Params), const Params& params, int64_t blocks, int threads, int64_t shared_bytes, int cluster,
           const Launch& launch) {
  start_in_clusters(kernel, params, blocks, threads, shared_bytes, cluster > 1 ? cluster : 0, launch);
}

template <class Params>
void start_cluster(void (*kernel)(Params), const Params& params, int threads, int64_t shared_bytes, int blocks,
                   const Launch& launch) {
  start_in_clusters(kernel, params, blocks, threads, shared_bytes, blocks, launch);
}

}  // namespace twolayer::cuda
