// Copies from global to shared memory that go on while the thread does something else.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace twolayer::cuda {

// The block's shared memory, as much as the launch asked for.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(16) char twolayer_shared[];
  return twolayer_shared;
}

// Starts to copy `valid` of kBytes (4, 8 or 16) bytes; the others become 0. Both addresses are multiples of kBytes.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int valid) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(kBytes), "r"(valid)
                 : "memory");
}

// Makes this thread's copies since the last call a group.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies but those of its last kGroups groups.
template <int kGroups>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// ---- Copies by the copy engine (from compute capability 9.0 on), of multiples of 16 bytes between multiples of 16.
// They arrive at a barrier in shared memory, whose phases are told apart by their parity: 0, 1, 0, …

using Arrival = uint64_t;

// By one thread, before all others see it.
__device__ __forceinline__ void prepare_arrival(Arrival* arrival) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(arrival)))
               : "memory");
#endif
}

// By every thread that has written to what the engine will write to.
__device__ __forceinline__ void hand_over_to_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Tells, once a phase, how many bytes will arrive.
__device__ __forceinline__ void announce(Arrival* arrival, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(arrival))),
               "r"(bytes)
               : "memory");
#endif
}

__device__ __forceinline__ void copy_bulk(void* shared, const void* global, int bytes, Arrival* arrival) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(bytes), "r"(static_cast<uint32_t>(__cvta_generic_to_shared(arrival)))
               : "memory");
#endif
}

__device__ __forceinline__ void wait_for_arrival(Arrival* arrival, int parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred there;\nagain_%=:\nmbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n@!there bra "
      "again_%=;\n}" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(arrival))),
      "r"(parity)
      : "memory");
#endif
}

}  // namespace twolayer::cuda
