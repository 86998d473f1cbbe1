// The types that numbers of a storage type are computed in.
#pragma once
#include "params.h"

namespace twolayer::cuda {

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

template <class T, class U>
constexpr bool same = false;
template <class T>
constexpr bool same<T, T> = true;

}  // namespace twolayer::cuda
