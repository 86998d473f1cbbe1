// Stands in for csrc/cuda/device/cluster.cuh.
#pragma once
#include <cuda_runtime.h>

namespace twolayer::cuda {

inline int cluster_rank() { return emulation::current().rank; }
inline void cluster_barrier() { emulation::cluster_barrier(); }

template <class T>
T* cluster_shared(T* shared, int rank) {
  const auto offset = reinterpret_cast<char*>(shared) - emulation::shared_memory(emulation::current().rank);
  return reinterpret_cast<T*>(emulation::shared_memory(rank) + offset);
}

inline void send(float* shared, int rank, float value, uint64_t* arrival) {
  emulation::send(shared, rank, &value, sizeof value, arrival);
}
inline void send(float* shared, int rank, float first, float second, uint64_t* arrival) {
  const float both[] = {first, second};
  emulation::send(shared, rank, both, sizeof both, arrival);
}

template <int kThreads>
void some_threads_barrier() {
  emulation::some_threads_barrier(kThreads);
}

}  // namespace twolayer::cuda
