// The optimisers of csrc/math on one number. Their rules are made on the host (train.h: make_rule).
#pragma once
#include "cuda/device/elementary.cuh"
#include "params.h"

namespace twolayer::cuda {

#include "math/optimizers.h"

// The gradient g of a weight w with that of the penalty l1 |w| + l2 / 2 w².
template <class T>
__device__ __forceinline__ T penalised(T g, T w, T l1, T l2) {
  const T sign = select(w > 0, constant<T>(1), select(w < 0, constant<T>(-1), w));
  return fma(l2, w, fma(l1, sign, g));
}

// Calls f(type) with a null pointer to the optimiser's Rule<T>.
template <class T, class F>
__host__ __device__ __forceinline__ void with_rule(int id, F&& f) {
  switch (id) {
#define TWOLAYER_CASE(number, Name)                                  \
  case number:                                                       \
    f(static_cast<const typename Name::template Rule<T>*>(nullptr)); \
    break;
    TWOLAYER_OPTIMIZERS(TWOLAYER_CASE)
#undef TWOLAYER_CASE
  }
}

}  // namespace twolayer::cuda
