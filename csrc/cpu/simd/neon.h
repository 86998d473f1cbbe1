// AArch64 NEON: 16-byte vectors.
constexpr int vector_bytes = 16;
constexpr bool has_fused_multiply_add = true;
#include "cpu/simd/vector.h"

TWOLAYER_INLINE f32 fma(f32 a, f32 b, f32 c) { return vfmaq_f32(c, a, b); }
TWOLAYER_INLINE f64 fma(f64 a, f64 b, f64 c) { return vfmaq_f64(c, a, b); }

TWOLAYER_INLINE f32 sqrt(f32 v) { return vsqrtq_f32(v); }
TWOLAYER_INLINE f64 sqrt(f64 v) { return vsqrtq_f64(v); }

TWOLAYER_INLINE f32 round_nearest(f32 v) { return vrndnq_f32(v); }
TWOLAYER_INLINE f64 round_nearest(f64 v) { return vrndnq_f64(v); }
