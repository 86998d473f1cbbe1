// What csrc/math stands on, for one float or double. CUDA's own functions, which the compiler must not
// replace by fast ones; NaN comes out of all of them as NaN.
#pragma once
#include <cuda_runtime.h>

namespace twolayer::cuda {

#define TWOLAYER_SCALAR __device__ __forceinline__
#define TWOLAYER_HD __device__ __forceinline__  // what csrc/math declares its functions as

template <class V>
TWOLAYER_SCALAR V constant(double value) {
  return static_cast<V>(value);
}

template <class V>
TWOLAYER_SCALAR V select(bool condition, V a, V b) {
  return condition ? a : b;
}

// Of the first argument, a NaN is kept.
template <class V>
TWOLAYER_SCALAR V min(V a, V b) {
  return b < a ? b : a;
}
template <class V>
TWOLAYER_SCALAR V max(V a, V b) {
  return a < b ? b : a;
}

TWOLAYER_SCALAR float abs(float x) { return ::fabsf(x); }
TWOLAYER_SCALAR double abs(double x) { return ::fabs(x); }
TWOLAYER_SCALAR float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
TWOLAYER_SCALAR double fma(double a, double b, double c) { return ::fma(a, b, c); }
TWOLAYER_SCALAR float sqrt(float x) { return ::sqrtf(x); }
TWOLAYER_SCALAR double sqrt(double x) { return ::sqrt(x); }
TWOLAYER_SCALAR float exp(float x) { return ::expf(x); }
TWOLAYER_SCALAR double exp(double x) { return ::exp(x); }
TWOLAYER_SCALAR float log1p(float x) { return ::log1pf(x); }
TWOLAYER_SCALAR double log1p(double x) { return ::log1p(x); }
TWOLAYER_SCALAR float tanh(float x) { return ::tanhf(x); }
TWOLAYER_SCALAR double tanh(double x) { return ::tanh(x); }
TWOLAYER_SCALAR float sin(float x) { return ::sinf(x); }
TWOLAYER_SCALAR double sin(double x) { return ::sin(x); }
TWOLAYER_SCALAR float cos(float x) { return ::cosf(x); }
TWOLAYER_SCALAR double cos(double x) { return ::cos(x); }
TWOLAYER_SCALAR float normal_cdf(float x) { return ::normcdff(x); }
TWOLAYER_SCALAR double normal_cdf(double x) { return ::normcdf(x); }

// From an exponential of a non-positive argument, so that nothing overflows.
template <class V>
TWOLAYER_SCALAR V sigmoid(V x) {
  const V e = exp(-abs(x));
  return select(x < 0, e, V(1)) / (1 + e);
}

// exp(-z²/2). The square is carried in two parts: rounded to one, its error would grow to z²/2 ULP of the result.
template <class V>
TWOLAYER_SCALAR V gaussian(V z) {
  const V a = min(abs(z), V(40));  // 0 from there on
  const V square = a * a;
  const V rest = fma(a, a, -square);
  const V e = exp(V(-0.5) * square);
  return fma(e * rest, V(-0.5), e);
}

#undef TWOLAYER_SCALAR

}  // namespace twolayer::cuda
