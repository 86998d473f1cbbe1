// The one way in which kernels are started.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace twolayer::cuda {

// kernel<<<blocks, threads, shared_bytes, stream>>>(params), in clusters of `cluster` blocks where that is more than 1.
template <class Params>
void start(void (*kernel)(Params), const Params& params, int64_t blocks, int threads, int64_t shared_bytes, int cluster,
           void* stream) {
  if (blocks == 0) return;
  constexpr int64_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace twolayer::cuda
