// Stands in for csrc/cuda/device/async.cuh.
#pragma once
#include <cuda_runtime.h>

namespace twolayer::cuda {

inline char* shared_memory() { return emulation::shared_memory(emulation::current().rank); }

template <int kBytes>
void copy_async(void* shared, const void* global, int valid) {
  emulation::copy_later(shared, global, kBytes, static_cast<size_t>(valid));
}

inline void commit_copies() { emulation::commit_copies(); }

template <int kGroups>
void wait_for_copies() {
  emulation::wait_for_copies(kGroups);
}

}  // namespace twolayer::cuda
