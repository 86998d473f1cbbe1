// The activations of csrc/math on one number.
#pragma once
#include "cuda/device/elementary.cuh"

namespace twolayer::cuda {

#include "math/activations.h"

// Calls f(Activation{}) with the struct of that id.
template <class F>
__device__ __forceinline__ void with_activation(int id, F&& f) {
  switch (id) {
#define TWOLAYER_CASE(number, Name) \
  case number:                      \
    f(Name{});                      \
    break;
    TWOLAYER_ACTIVATIONS(TWOLAYER_CASE)
#undef TWOLAYER_CASE
  }
}

// grad times the derivative at what forward saved.
template <class Act, class V>
__device__ __forceinline__ V through(Act, V grad, V saved) {
  if constexpr (requires { Act::gradient(grad, saved); })
    return Act::gradient(grad, saved);
  else
    return grad * Act::derivative(saved);
}

}  // namespace twolayer::cuda
