// AVX-512 F, BW, DQ and VL: 64-byte vectors.
constexpr int vector_bytes = 64;
constexpr bool has_fused_multiply_add = true;
#include "cpu/simd/vector.h"

// maskz_ under a full mask is the plain instruction; the plain intrinsics make GCC 12 warn of an uninitialized operand.
constexpr __mmask16 all_32 = 0xffff;
constexpr __mmask8 all_64 = 0xff;

TWOLAYER_INLINE f32 fma(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }
TWOLAYER_INLINE f64 fma(f64 a, f64 b, f64 c) { return _mm512_fmadd_pd(a, b, c); }

TWOLAYER_INLINE f32 sqrt(f32 v) { return _mm512_maskz_sqrt_ps(all_32, v); }
TWOLAYER_INLINE f64 sqrt(f64 v) { return _mm512_maskz_sqrt_pd(all_64, v); }

// The instruction returns its second operand when one is NaN.
TWOLAYER_INLINE f32 min(f32 a, f32 b) { return _mm512_maskz_min_ps(all_32, b, a); }
TWOLAYER_INLINE f64 min(f64 a, f64 b) { return _mm512_maskz_min_pd(all_64, b, a); }
TWOLAYER_INLINE f32 max(f32 a, f32 b) { return _mm512_maskz_max_ps(all_32, b, a); }
TWOLAYER_INLINE f64 max(f64 a, f64 b) { return _mm512_maskz_max_pd(all_64, b, a); }

TWOLAYER_INLINE f32 round_nearest(f32 v) {
  return _mm512_maskz_roundscale_ps(all_32, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
TWOLAYER_INLINE f64 round_nearest(f64 v) {
  return _mm512_maskz_roundscale_pd(all_64, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

TWOLAYER_INLINE f32 scale_by_power_of_two(f32 v, f32 n) { return _mm512_maskz_scalef_ps(all_32, v, n); }
TWOLAYER_INLINE f64 scale_by_power_of_two(f64 v, f64 n) { return _mm512_maskz_scalef_pd(all_64, v, n); }

TWOLAYER_INLINE uint32_t first_lanes(int64_t n) { return _bzhi_u32(~0u, static_cast<uint32_t>(n)); }

TWOLAYER_INLINE f32 load_partial(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(first_lanes(n)), p);
}
TWOLAYER_INLINE f64 load_partial(const double* p, int64_t n) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(n)), p);
}
TWOLAYER_INLINE void store_partial(float* p, f32 v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(first_lanes(n)), v);
}
TWOLAYER_INLINE void store_partial(double* p, f64 v, int64_t n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(n)), v);
}

TWOLAYER_INLINE f32 load_partial(const bfloat16* p, int64_t n) {
  return widen((u16_half)_mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_lanes(n)), p));
}
TWOLAYER_INLINE void store_partial(bfloat16* p, f32 v, int64_t n) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(first_lanes(n)), (__m256i)narrow(v));
}

TWOLAYER_INLINE void mark_nonzero(int64_t rows, const float* const* x_rows, int64_t column, uint64_t* marks) {
  __m512i low = _mm512_setzero_si512(), high = low;
  for (int64_t r = 0; r < rows; ++r) {
    const __m512i bit = _mm512_set1_epi64(static_cast<int64_t>(uint64_t{1} << r));
    const __mmask16 nonzero = _mm512_cmp_ps_mask(_mm512_loadu_ps(x_rows[r] + column), _mm512_setzero_ps(), _CMP_NEQ_UQ);
    low = _mm512_mask_or_epi64(low, static_cast<__mmask8>(nonzero), low, bit);
    high = _mm512_mask_or_epi64(high, static_cast<__mmask8>(nonzero >> 8), high, bit);
  }
  _mm512_storeu_si512(marks, low);
  _mm512_storeu_si512(marks + 8, high);
}
