// What the CUDA sources use of CUDA's own header, for g++ and the emulation. There is no __shared__: kernels ask
// cuda/device/async.cuh for their memory.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

#define threadIdx (::emulation::current().thread)
#define blockIdx (::emulation::current().block)
#define blockDim (::emulation::current().block_size)
#define gridDim (::emulation::current().grid_size)

inline void __syncthreads() { emulation::block_barrier(); }
inline void __syncwarp() { emulation::warp_barrier(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  T result;
  emulation::exchange(&value, sizeof(T), &result, sizeof(T), [mask](const char* in, char* out) {
    for (int lane = 0; lane < 32; ++lane)
      std::memcpy(out + lane * sizeof(T), in + (lane ^ mask) * sizeof(T), sizeof(T));
  });
  return result;
}

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  const std::pair<T, int> given{value, source};
  T result;
  emulation::exchange(&given, sizeof given, &result, sizeof(T), [](const char* in, char* out) {
    const auto* all = reinterpret_cast<const std::pair<T, int>*>(in);
    for (int lane = 0; lane < 32; ++lane) std::memcpy(out + lane * sizeof(T), &all[all[lane].second].first, sizeof(T));
  });
  return result;
}

inline int __any_sync(unsigned, int predicate) {
  int result;
  emulation::exchange(&predicate, sizeof predicate, &result, sizeof result, [](const char* in, char* out) {
    int any = 0;
    for (int lane = 0; lane < 32; ++lane) any |= reinterpret_cast<const int*>(in)[lane];
    for (int lane = 0; lane < 32; ++lane) reinterpret_cast<int*>(out)[lane] = any != 0;
  });
  return result;
}

inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline float __uint_as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t __float_as_uint(float x) { return __builtin_bit_cast(uint32_t, x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double normcdf(double x) { return std::erfc(-x * 0.70710678118654752440) / 2; }
inline float normcdff(float x) { return static_cast<float>(normcdf(static_cast<double>(x))); }
using std::isinf;

#include "runtime.h"
