// The one way in which kernels are started.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels.h"

namespace twolayer::cuda {

// kernel<<<blocks, threads, shared_bytes, launch.stream>>>(params), in clusters of so many blocks; 0: in none.
template <class Params>
void start_in_clusters(void (*kernel)(Params), const Params& params, int64_t blocks, int threads, int64_t shared_bytes,
                       int cluster, const Launch& launch) {
  if (blocks == 0) return;
  constexpr int64_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking)  // always for the same, since other threads launch the same kernel
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.device.shared_bytes);
  constexpr int kPortable = 8;  // blocks of a cluster that every device with clusters takes
  if (cluster > kPortable) cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks < int64_t{1} << 31 ? static_cast<unsigned>(blocks) : 0);  // 0 is refused
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(launch.stream);
  config.attrs = &attribute;
  config.numAttrs = cluster > 0 ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, params);
}

// The same for a kernel that does without what clusters have where `cluster` is 1.
template <class Params>
void start(void (*kernel)(Params), const Params& params, int64_t blocks, int threads, int64_t shared_bytes, int cluster,
           const Launch& launch) {
  start_in_clusters(kernel, params, blocks, threads, shared_bytes, cluster > 1 ? cluster : 0, launch);
}

// One cluster, for a kernel that uses what clusters have also where it is one block: it must be launched as one. A
// device that has none runs the block alone.
template <class Params>
void start_cluster(void (*kernel)(Params), const Params& params, int threads, int64_t shared_bytes, int blocks,
                   const Launch& launch) {
  const bool has_clusters = launch.device.capability >= 90;
  start_in_clusters(kernel, params, blocks, threads, shared_bytes, has_clusters ? blocks : 0, launch);
}

}  // namespace twolayer::cuda
