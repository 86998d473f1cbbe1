// The activations of csrc/math on two numbers, out of line: in a long kernel whose steps run through all of it,
// instructions that are not at hand cost more than a call.
#pragma once
#include "cuda/device/activation.cuh"
#include "cuda/device/warp_product.cuh"

namespace twolayer::cuda {

static __device__ __attribute__((noinline)) Pair activation_values(int id, Pair z) {
  with_activation(id, [&](auto act) {
#pragma unroll
    for (float& number : z.numbers) number = decltype(act)::value(number);
  });
  return z;
}

static __device__ __attribute__((noinline)) Pair gradients_through_activation(int id, Pair grad, Pair saved) {
  with_activation(id, [&](auto act) {
#pragma unroll
    for (int i = 0; i < 2; ++i) grad.numbers[i] = through(act, grad.numbers[i], saved.numbers[i]);
  });
  return grad;
}

}  // namespace twolayer::cuda
