// What a row of the data holds and counts for.
#pragma once
#include "cuda/device/convert.cuh"
#include "cuda/device/types.cuh"
#include "cuda/train.h"

namespace twolayer::cuda {

// Calls f with a null pointer of the type that `storage` names.
template <class F>
__device__ __forceinline__ void with_storage(Storage storage, F&& f) {
  switch (storage) {
    case Storage::kFloat32:
      return f(static_cast<const float*>(nullptr));
    case Storage::kFloat64:
      return f(static_cast<const double*>(nullptr));
    case Storage::kBFloat16:
      return f(static_cast<const bfloat16*>(nullptr));
    case Storage::kUInt8:
      return f(static_cast<const uint8_t*>(nullptr));
  }
}

template <class T, class S>
__device__ __forceinline__ T as_number(S value) {
  if constexpr (same<S, bfloat16>)
    return static_cast<T>(widen(value));
  else
    return static_cast<T>(value);
}

template <class T>
__device__ __forceinline__ bool is_ignored(const Steps<T>& s, int64_t row) {
  return s.examples.classes && s.examples.classes[row] == s.training.loss_options.ignore_index;
}

// What a row counts for in the mean: its own weight, times its class's.
template <class T>
__device__ __forceinline__ double loss_weight(const Steps<T>& s, int64_t row) {
  const Examples<T>& e = s.examples;
  const double own = e.row_weight ? static_cast<double>(e.row_weight[row]) : 1;
  if (!e.classes) return own;
  if (is_ignored(s, row)) return 0;
  return e.class_weight ? own * static_cast<double>(e.class_weight[e.classes[row]]) : own;
}

}  // namespace twolayer::cuda
