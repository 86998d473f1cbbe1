// Baseline of the target (SSE2 on x86-64): 16-byte vectors, no fused multiply-add.
constexpr int vector_bytes = 16;
constexpr bool has_fused_multiply_add = false;
#include "cpu/simd/vector.h"

template <class V>
TWOLAYER_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}

TWOLAYER_INLINE f32 sqrt(f32 v) {
  for (int i = 0; i < lanes<float>; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}

TWOLAYER_INLINE f64 sqrt(f64 v) {
  for (int i = 0; i < lanes<double>; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
}
