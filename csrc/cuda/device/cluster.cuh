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

// All threads of all blocks of the cluster wait for each other, and see what was written before. Not for every step:
// the whole device's memory takes part in it.
__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
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

// Sends a number, or two, to where block `rank` of the cluster has what this block has at `shared`; there they arrive
// at what this block has at `arrival` (async.cuh), and nobody need wait for anything else.
__device__ __forceinline__ void send(float* shared, int rank, float value, uint64_t* arrival) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .u32 there, bell;\nmapa.shared::cluster.u32 there, %0, %1;\nmapa.shared::cluster.u32 bell, %3, %1;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [there], %2, [bell];\n}" ::"r"(
          static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "r"(rank), "f"(value), "r"(static_cast<uint32_t>(__cvta_generic_to_shared(arrival))));
#endif
}
__device__ __forceinline__ void send(float* shared, int rank, float first, float second, uint64_t* arrival) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .u32 there, bell;\nmapa.shared::cluster.u32 there, %0, %1;\nmapa.shared::cluster.u32 bell, %4, %1;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [there], {%2, %3}, [bell];\n}" ::"r"(
          static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "r"(rank), "f"(first), "f"(second), "r"(static_cast<uint32_t>(__cvta_generic_to_shared(arrival))));
#endif
}

// The block's first kThreads threads wait for each other.
template <int kThreads>
__device__ __forceinline__ void some_threads_barrier() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

}  // namespace twolayer::cuda
