// Stands in for csrc/cuda/launch.h.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels.h"

namespace twolayer::cuda {

template <class Params>
void start(void (*kernel)(Params), const Params& params, int64_t blocks, int threads, int64_t shared_bytes, int cluster,
           const Launch& launch) {
  if (blocks == 0) return;
  const emulation::Grid grid{static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                             static_cast<size_t>(shared_bytes), cluster};
  const bool fits = blocks < int64_t{1} << 31;
  emulation::launch(static_cast<cudaStream_t>(launch.stream),
                    [=] { return fits && emulation::run(grid, [&] { kernel(params); }); });
}

}  // namespace twolayer::cuda
