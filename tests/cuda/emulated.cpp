// The emulated CUDA kernels as a C library for tests/cuda/emulation.py.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

#include "cuda/kernels.h"
#include "emulation.h"

using namespace twolayer;

namespace {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

template <class F>
void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f.template operator()<float>();
    case DType::kFloat64:
      return f.template operator()<double>();
    case DType::kBFloat16:
      return f.template operator()<bfloat16>();
    case DType::kFloat16:
      return f.template operator()<float16>();
  }
}

cuda::Launch launch(bool tf32) { return {nullptr, tf32, cuda::read_device(0)}; }

struct Sizes {
  int64_t batch, in, hidden, out;
};

}  // namespace

extern "C" {

// Arrays in the order of the structs in params.h and cuda/kernels.h.
int64_t forward(DType dtype, bool tf32, Sizes s, int activation, void** arrays, void* scratch, bool run) {
  int64_t bytes = 0;
  with_type(dtype, [&]<class T>() {
    T** a = reinterpret_cast<T**>(arrays);
    const ForwardParams<T> p{s.batch, s.in, s.hidden, s.out, a[0], a[1],       a[2], a[3],
                             a[4],    a[5], a[6],     a[7],  a[8], activation, 0};
    bytes = cuda::forward_scratch(p, launch(tf32));
    if (run) cuda::forward(p, scratch, launch(tf32));
  });
  return bytes;
}

int64_t backward(DType dtype, bool tf32, Sizes s, int activation, void** arrays, void* scratch, bool run) {
  int64_t bytes = 0;
  with_type(dtype, [&]<class T>() {
    T** a = reinterpret_cast<T**>(arrays);
    const BackwardParams<T> p{s.batch, s.in, s.hidden, s.out, a[0], a[1],  a[2],  a[3],       a[4],
                              a[5],    a[6], a[7],     a[8],  a[9], a[10], a[11], activation, 0};
    bytes = cuda::backward_scratch(p, launch(tf32));
    if (run) cuda::backward(p, scratch, launch(tf32));
  });
  return bytes;
}

void activate(DType dtype, int64_t count, int activation, void** arrays) {
  with_type(dtype, [&]<class T>() {
    T** a = reinterpret_cast<T**>(arrays);
    cuda::activate(ActivateParams<T>{count, a[0], a[1], activation, 0}, launch(false));
  });
}

void derive(DType dtype, int64_t count, int activation, void** arrays) {
  with_type(dtype, [&]<class T>() {
    T** a = reinterpret_cast<T**>(arrays);
    cuda::derive(DerivativeParams<T>{count, a[0], a[1], activation, 0}, launch(false));
  });
}

void bias_activate(DType dtype, int64_t batch, int64_t hidden, int activation, void** arrays) {
  with_type(dtype, [&]<class T>() {
    T** a = reinterpret_cast<T**>(arrays);
    cuda::bias_activate(cuda::BiasActivateParams<T>{batch, hidden, a[0], a[1], a[2], a[3], activation}, launch(false));
  });
}

int64_t derive_sum(DType dtype, int64_t batch, int64_t hidden, int activation, void** arrays, void* scratch, bool run) {
  int64_t bytes = 0;
  with_type(dtype, [&]<class T>() {
    T** a = reinterpret_cast<T**>(arrays);
    const cuda::DeriveSumParams<T> p{batch, hidden, a[0], a[1], a[2], activation};
    bytes = cuda::derive_sum_scratch(p, launch(false));
    if (run) cuda::derive_sum(p, scratch, launch(false));
  });
  return bytes;
}

// The text of the last launch's error, cut to `size`.
void last_error(char* text, int size) { std::snprintf(text, size, "%s", cuda::last_error().c_str()); }

void set_emulation(uint64_t seed, int multiprocessors, int shared_bytes, int capability, int64_t last_clusters,
                   int skipped_barrier) {
  const size_t memory = emulation::settings.memory;
  emulation::settings = {seed, multiprocessors, shared_bytes, capability, last_clusters, skipped_barrier, memory};
}

// The most that an allocation can have.
void set_memory(int64_t bytes) { emulation::settings.memory = static_cast<size_t>(bytes); }

// Launches, blocks, clusters, the most barriers of a thread, and graphs, since the last call.
void take_counts(int64_t* counts) {
  const emulation::Counts c = std::exchange(emulation::counts, {});
  counts[0] = c.launches, counts[1] = c.blocks, counts[2] = c.clusters, counts[3] = c.barriers, counts[4] = c.graphs;
}

}  // extern "C"
