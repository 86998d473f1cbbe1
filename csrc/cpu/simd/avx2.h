// AVX2 and FMA: 32-byte vectors.
constexpr int vector_bytes = 32;
constexpr bool has_fused_multiply_add = true;
#include "cpu/simd/vector.h"

TWOLAYER_INLINE f32 fma(f32 a, f32 b, f32 c) { return _mm256_fmadd_ps(a, b, c); }
TWOLAYER_INLINE f64 fma(f64 a, f64 b, f64 c) { return _mm256_fmadd_pd(a, b, c); }

TWOLAYER_INLINE f32 sqrt(f32 v) { return _mm256_sqrt_ps(v); }
TWOLAYER_INLINE f64 sqrt(f64 v) { return _mm256_sqrt_pd(v); }

// The instruction returns its second operand when one is NaN.
TWOLAYER_INLINE f32 min(f32 a, f32 b) { return _mm256_min_ps(b, a); }
TWOLAYER_INLINE f64 min(f64 a, f64 b) { return _mm256_min_pd(b, a); }
TWOLAYER_INLINE f32 max(f32 a, f32 b) { return _mm256_max_ps(b, a); }
TWOLAYER_INLINE f64 max(f64 a, f64 b) { return _mm256_max_pd(b, a); }

TWOLAYER_INLINE f32 round_nearest(f32 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
TWOLAYER_INLINE f64 round_nearest(f64 v) { return _mm256_round_pd(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

TWOLAYER_INLINE __m256i first_lanes_32(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
TWOLAYER_INLINE __m256i first_lanes_64(int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

TWOLAYER_INLINE f32 load_partial(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes_32(n)); }
TWOLAYER_INLINE f64 load_partial(const double* p, int64_t n) { return _mm256_maskload_pd(p, first_lanes_64(n)); }
TWOLAYER_INLINE void store_partial(float* p, f32 v, int64_t n) { _mm256_maskstore_ps(p, first_lanes_32(n), v); }
TWOLAYER_INLINE void store_partial(double* p, f64 v, int64_t n) { _mm256_maskstore_pd(p, first_lanes_64(n), v); }
