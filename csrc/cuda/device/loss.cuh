// The losses of csrc/math on the rows of a batch, each by some lanes of a warp.
#pragma once
#include "cuda/device/elementary.cuh"
#include "params.h"

namespace twolayer::cuda {

#include "math/losses.h"

// Calls f(Loss{}) with the struct of that id.
template <class F>
__device__ __forceinline__ void with_loss(int id, F&& f) {
  switch (id) {
#define TWOLAYER_CASE(number, Name) \
  case number:                      \
    f(Name{});                      \
    break;
    TWOLAYER_LOSSES(TWOLAYER_CASE)
#undef TWOLAYER_CASE
  }
}

// The sum, or the largest, of `kLanes` neighbouring lanes' numbers, the same for all of them.
template <int kLanes, class V>
__device__ __forceinline__ V sum_of_lanes(V v) {
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) v += __shfl_xor_sync(0xffffffffu, v, other);
  return v;
}
template <int kLanes, class V>
__device__ __forceinline__ V largest_of_lanes(V v) {
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) v = max(v, __shfl_xor_sync(0xffffffffu, v, other));
  return v;
}

// What a row's loss is computed from. A row that is not there, or whose class is ignored, has no target at all.
template <class T>
struct RowTarget {
  int64_t label;          // its class, where `values` is null
  const T* values;        // (out), or null
  const T* class_weight;  // (out), or null
  T weight;               // what it counts for
  bool counts;
};

// All lanes of a warp call it, kLanes (a power of two, at most 32) for each row. z (out) becomes its gradient times
// weight / divisor; returns the row's loss times its weight, to all of its lanes. All rows of a warp have targets of
// one kind. Lane i has written z[i + n · kLanes].
template <int kLanes, class Loss, class T>
__device__ __forceinline__ T loss_of_row(Loss, const LossOptions& options, int out, const RowTarget<T>& target,
                                         T divisor, T* z) {
  const int lane = threadIdx.x & (kLanes - 1);
  const T scale = target.weight / divisor;
  if constexpr (Loss::kind == LossKind::kSoftmax) {
    const T smoothing = static_cast<T>(options.label_smoothing), even = smoothing / static_cast<T>(out);
    const auto wanted = [&](int j) {  // the target distribution, weighted and smoothed
      const T given = target.values ? target.values[j] : static_cast<T>(j == target.label);
      return (given * (1 - smoothing) + even) * (target.class_weight ? target.class_weight[j] : T(1));
    };
    T highest = -static_cast<T>(INFINITY);
#pragma unroll 1
    for (int j = lane; target.counts && j < out; j += kLanes) highest = max(highest, z[j]);
    highest = largest_of_lanes<kLanes>(highest);
    const bool is_one_class = !target.values && !target.class_weight && smoothing == 0;
    T total = 0, target_total = 1, target_dot_z = is_one_class && target.counts ? z[target.label] - highest : T(0);
    if (!is_one_class) {
      target_total = 0;
#pragma unroll 1
      for (int j = lane; target.counts && j < out; j += kLanes) {
        const T t = wanted(j);
        target_total += t;
        target_dot_z += t * (z[j] - highest);
      }
      target_total = sum_of_lanes<kLanes>(target_total);
      target_dot_z = sum_of_lanes<kLanes>(target_dot_z);
    }
    __syncwarp();  // z is read by a lane that may not have written it, and is now written
#pragma unroll 1
    for (int j = lane; target.counts && j < out; j += kLanes) total += z[j] = exp(z[j] - highest);
    total = sum_of_lanes<kLanes>(total);
    const T factor = scale * target_total / total;
#pragma unroll 1
    for (int j = lane; j < out; j += kLanes) z[j] = target.counts ? z[j] * factor - scale * wanted(j) : T(0);
    return target.counts ? target.weight * (target_total * log1p(total - 1) - target_dot_z) : T(0);
  } else {
    const T beta = static_cast<T>(options.beta);
    T total = 0;
#pragma unroll 1
    for (int j = lane; j < out; j += kLanes) {
      const T value = z[j];
      z[j] = 0;
      if (!target.counts) continue;
      total += Loss::value(value, target.values[j], beta);
      z[j] = Loss::gradient(value, target.values[j], beta) * scale;
    }
    return target.weight * sum_of_lanes<kLanes>(total);
  }
}

// The same for rows of at most kLanes outputs, of which each lane holds its own: z becomes its gradient. All rows of a
// warp have targets of one kind.
template <int kLanes, class Loss, class T>
__device__ __forceinline__ T loss_of_short_row(Loss, const LossOptions& options, int out, const RowTarget<T>& target,
                                               T divisor, T& z) {
  const int lane = threadIdx.x & (kLanes - 1);
  const bool is_there = target.counts && lane < out;
  const T scale = target.weight / divisor;
  if constexpr (Loss::kind == LossKind::kSoftmax) {
    const T above = (is_there ? z : -static_cast<T>(INFINITY));
    const T highest = largest_of_lanes<kLanes>(above), distance = is_there ? z - highest : T(0);
    const T e = is_there ? exp(distance) : T(0), total = sum_of_lanes<kLanes>(e);
    T wanted = static_cast<T>(lane == target.label), target_total = 1, target_dot_z;
    if (target.values || target.class_weight || options.label_smoothing != 0) {
      const T smoothing = static_cast<T>(options.label_smoothing), even = smoothing / static_cast<T>(out);
      const T given = is_there && target.values ? target.values[lane] : wanted;
      wanted = given * (1 - smoothing) + even;
      if (target.class_weight && is_there) wanted *= target.class_weight[lane];
      target_total = sum_of_lanes<kLanes>(is_there ? wanted : T(0));
      target_dot_z = sum_of_lanes<kLanes>(is_there ? wanted * distance : T(0));
    } else {  // a class; its distance stands in one lane
      const int first = threadIdx.x % 32 & ~(kLanes - 1), label = static_cast<int>(target.label);
      target_dot_z = __shfl_sync(0xffffffffu, distance, target.counts ? first + label : first);
    }
    z = is_there ? e * (scale * target_total / total) - scale * wanted : T(0);
    return target.counts ? target.weight * (target_total * log1p(total - 1) - target_dot_z) : T(0);
  } else {
    const T beta = static_cast<T>(options.beta), y = is_there ? target.values[lane] : T(0);
    const T value = is_there ? Loss::value(z, y, beta) : T(0);
    z = is_there ? Loss::gradient(z, y, beta) * scale : T(0);
    return target.weight * sum_of_lanes<kLanes>(value);
  }
}

}  // namespace twolayer::cuda
