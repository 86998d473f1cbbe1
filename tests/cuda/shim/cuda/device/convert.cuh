// Stands in for csrc/cuda/device/convert.cuh.
#pragma once
#include <cuda_runtime.h>

#include "params.h"

namespace twolayer::cuda {

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | magnitude << 13);
  const float scaled = __uint_as_float(magnitude << 13) * 0x1p112f;  // exact, subnormal numbers too
  return __uint_as_float(sign | __float_as_uint(scaled));
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, bfloat16& out) {
  const uint32_t bits = __float_as_uint(x);
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);  // to the nearest, ties to even
  out.bits = static_cast<uint16_t>(x != x ? 0x7fff : rounded >> 16);
}
inline void narrow(float x, float16& out) {
  const uint32_t sign = __float_as_uint(x) >> 16 & 0x8000;
  const float magnitude = std::fabs(x);
  if (x != x)
    out.bits = 0x7fff;
  else if (magnitude >= 65520.0f)
    out.bits = static_cast<uint16_t>(sign | 0x7c00);
  else if (magnitude < 0x1p-14f)  // subnormal: a multiple of 2^-24
    out.bits = static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f)));
  else {
    const uint32_t bits = __float_as_uint(magnitude) - (112u << 23);
    out.bits = static_cast<uint16_t>(sign | ((bits + 0xfff + (bits >> 13 & 1)) >> 13));
  }
}

}  // namespace twolayer::cuda
