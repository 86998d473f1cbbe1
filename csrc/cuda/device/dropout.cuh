// Dropout's hash of csrc/math on one number.
#pragma once
#include "cuda/device/elementary.cuh"

namespace twolayer::cuda {

TWOLAYER_HD uint32_t low_32_bits(uint32_t u) { return u; }

#include "math/dropout.h"

}  // namespace twolayer::cuda
