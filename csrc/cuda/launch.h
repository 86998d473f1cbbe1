// The one way in which kernels are started.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels.h"

namespace twolayer::cuda {

// What says that a launch is in clusters.
struct ClusterConfig {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};

  template <class Params>
  ClusterConfig(void (*kernel)(Params), int64_t blocks, int threads, int64_t shared_bytes, int cluster,
                const Device& device) {
    constexpr int64_t kWithoutAsking = 48 << 10;
    if (shared_bytes > kWithoutAsking)  // always for the same, since other threads launch the same kernel
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes);
    constexpr int kPortable = 8;  // blocks of a cluster that every device with clusters takes
    if (cluster > kPortable) cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    config.gridDim = dim3(blocks < int64_t{1} << 31 ? static_cast<unsigned>(blocks) : 0);  // 0 is refused
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.attrs = &attribute;
    config.numAttrs = cluster > 0 ? 1 : 0;
  }
  ClusterConfig(const ClusterConfig&) = delete;
  ClusterConfig& operator=(const ClusterConfig&) = delete;
};

// kernel<<<blocks, threads, shared_bytes, launch.stream>>>(params), in clusters of so many blocks; 0: in none.
template <class Params>
void start_in_clusters(void (*kernel)(Params), const Params& params, int64_t blocks, int threads, int64_t shared_bytes,
                       int cluster, const Launch& launch) {
  if (blocks == 0) return;
  ClusterConfig how(kernel, blocks, threads, shared_bytes, cluster, launch.device);
  how.config.stream = static_cast<cudaStream_t>(launch.stream);
  cudaLaunchKernelEx(&how.config, kernel, params);
}

// Whether the current device has room for a cluster of so many blocks.
template <class Params>
bool has_room_for_cluster(void (*kernel)(Params), int threads, int64_t shared_bytes, int blocks, const Device& device) {
  const ClusterConfig how(kernel, blocks, threads, shared_bytes, blocks, device);
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &how.config) == cudaSuccess) return clusters > 0;
  cudaGetLastError();
  return false;
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
