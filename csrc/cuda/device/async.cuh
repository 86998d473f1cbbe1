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

}  // namespace twolayer::cuda
