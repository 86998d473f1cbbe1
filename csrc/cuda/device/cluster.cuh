// Blocks of a cluster: they run at the same time and read each other's shared memory. Before compute capability 9.0 a
// cluster is one block.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace twolayer::cuda {

// This block's number in its cluster.
__device__ __forceinline__ int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
#else
  return 0;
#endif
}

// All threads of all blocks of the cluster wait for each other, and see what was written before: in two halves, between
// which a thread may do other things.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}
__device__ __forceinline__ void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

// Where block `rank` of the cluster has what this block has at `shared`.
template <class T>
__device__ __forceinline__ T* cluster_shared(T* shared, int rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t address;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(shared), "r"(rank));
  return reinterpret_cast<T*>(address);
#else
  return shared;
#endif
}

// Puts a number, or two, where block `rank` of the cluster has what this block has at `shared`.
__device__ __forceinline__ void put(float* shared, int rank, float value) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .u32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nst.shared::cluster.f32 [there], %2;\n}" ::"r"(
          static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "r"(rank), "f"(value)
      : "memory");
#else
  *shared = value;
#endif
}
__device__ __forceinline__ void put(float* shared, int rank, float first, float second) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .u32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nst.shared::cluster.v2.f32 [there], {%2, %3};\n}" ::
          "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "r"(rank), "f"(first), "f"(second)
      : "memory");
#else
  shared[0] = first, shared[1] = second;
#endif
}

}  // namespace twolayer::cuda
