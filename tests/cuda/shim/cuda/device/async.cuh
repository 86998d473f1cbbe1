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

using Arrival = uint64_t;

inline void prepare_arrival(Arrival* arrival) { emulation::prepare_arrival(arrival); }
inline void hand_over_to_copies() {}
inline void announce(Arrival* arrival, int bytes) { emulation::announce(arrival, static_cast<size_t>(bytes)); }
inline void copy_bulk(void* shared, const void* global, int bytes, Arrival* arrival) {
  emulation::copy_bulk(shared, global, static_cast<size_t>(bytes), arrival);
}
inline void wait_for_arrival(Arrival* arrival, int parity) { emulation::wait_for_arrival(arrival, parity); }

}  // namespace twolayer::cuda
