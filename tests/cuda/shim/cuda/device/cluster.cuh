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

struct There {
  static constexpr bool kCounts = true;
  float* shared;
  int rank;
  uint64_t* arrival;

  There(float* mine, int other, uint64_t* there) : shared(mine), rank(other), arrival(there) {}
  void send(int offset, float value) const { emulation::send(shared + offset, rank, &value, sizeof value, arrival); }
  void send(int offset, float first, float second) const {
    const float both[] = {first, second};
    emulation::send(shared + offset, rank, both, sizeof both, arrival);
  }
};

template <int kThreads>
void some_threads_barrier() {
  emulation::some_threads_barrier(kThreads);
}

}  // namespace twolayer::cuda
