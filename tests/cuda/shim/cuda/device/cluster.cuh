// Stands in for csrc/cuda/device/cluster.cuh.
#pragma once
#include <cuda_runtime.h>

namespace twolayer::cuda {

inline int cluster_rank() { return emulation::current().rank; }
inline void cluster_arrive() {}
inline void cluster_wait() { emulation::cluster_barrier(); }
inline void cluster_barrier() { emulation::cluster_barrier(); }

template <class T>
T* cluster_shared(T* shared, int rank) {
  const auto offset = reinterpret_cast<char*>(shared) - emulation::shared_memory(emulation::current().rank);
  return reinterpret_cast<T*>(emulation::shared_memory(rank) + offset);
}

inline void put(float* shared, int rank, float value) { *cluster_shared(shared, rank) = value; }
inline void put(float* shared, int rank, float first, float second) {
  float* const there = cluster_shared(shared, rank);
  there[0] = first, there[1] = second;
}

}  // namespace twolayer::cuda
