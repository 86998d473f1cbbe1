// The activations of csrc/math on one number, out of line: in a long kernel whose steps run through all of it,
// instructions that are not at hand cost more than a call.
#pragma once
#include "cuda/device/activation.cuh"

namespace twolayer::cuda {

static __device__ __attribute__((noinline)) float activation_value(int id, float z) {
  with_activation(id, [&](auto act) { z = decltype(act)::value(z); });
  return z;
}

static __device__ __attribute__((noinline)) float gradient_through_activation(int id, float grad, float saved) {
  with_activation(id, [&](auto act) { grad = through(act, grad, saved); });
  return grad;
}

}  // namespace twolayer::cuda
