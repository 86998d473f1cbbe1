// Which hidden values dropout sets to zero: csrc/math/dropout.h on one number.
#pragma once
#include "cuda/device/elementary.cuh"

namespace twolayer::cuda {

__device__ __forceinline__ uint32_t low_32_bits(uint32_t u) { return u; }

#include "math/dropout.h"

// Which hidden values of a step are dropped, and what the others are multiplied by.
template <class T>
class Dropout {
 public:
  __device__ __forceinline__ Dropout(double dropout, uint64_t key, int64_t step)
      : key_(key), step_(step), threshold_(dropout_threshold(dropout)), kept_(static_cast<T>(1 / (1 - dropout))) {}

  __device__ __forceinline__ T apply(T value, int64_t row, int64_t unit) const {
    const uint32_t bits = dropout_bits(dropout_row_key(key_, step_, row), static_cast<uint32_t>(unit));
    return bits < threshold_ ? T(0) : value * kept_;
  }

 private:
  uint64_t key_;
  int64_t step_;
  uint32_t threshold_;
  T kept_;
};

}  // namespace twolayer::cuda
