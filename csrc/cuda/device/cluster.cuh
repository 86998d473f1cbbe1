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

// Where block `rank` of the cluster has what this block has at `shared`, and what arrives there is counted at what this
// block has at `arrival` (async.cuh). What is sent there nobody need wait for otherwise. Without clusters there is only
// the block itself, whose threads must meet.
struct There {
#if __CUDA_ARCH__ >= 900
  static constexpr bool kCounts = true;
  uint32_t place, bell;
#else
  static constexpr bool kCounts = false;
  float* place;
#endif

  __device__ __forceinline__ There(float* shared, int rank, uint64_t* arrival) {
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(place)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(bell)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(arrival))), "r"(rank));
#else
    place = shared;
#endif
  }

  // Sends a number, or two, to `offset` numbers from there.
  __device__ __forceinline__ void send(int offset, float value) const {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(place + 4 * offset),
        "f"(value), "r"(bell));
#else
    place[offset] = value;
#endif
  }
  __device__ __forceinline__ void send(int offset, float first, float second) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
                     place + 4 * offset),
                 "f"(first), "f"(second), "r"(bell));
#else
    place[offset] = first, place[offset + 1] = second;
#endif
  }
};

// The block's first kThreads threads wait for each other.
template <int kThreads>
__device__ __forceinline__ void some_threads_barrier() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

}  // namespace twolayer::cuda
