// Which hidden values dropout sets to zero: csrc/math/dropout.h on one number.
#pragma once
#include "cuda/device/elementary.cuh"

namespace twolayer::cuda {

__device__ __forceinline__ uint32_t low_32_bits(uint32_t u) { return u; }

#include "math/dropout.h"

}  // namespace twolayer::cuda
