// Stands in for csrc/cuda/device/mma.cuh: the same products, from the same lanes' registers.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "cuda/device/convert.cuh"

namespace twolayer::cuda {

struct MmaRegisters {
  uint32_t a[4], b[2];
  float d[4];
};

// The sum of a few numbers as tensor cores make it: of each, what is below the last bits of the largest is lost, and so
// it is of the sum.
template <int kCount>
float sum_of_products(const double (&numbers)[kCount]) {
  constexpr int kBits = 24;  // of the largest, after its first
  int top = -1000;
  for (const double number : numbers)
    if (number != 0 && std::isfinite(number)) top = std::max(top, std::ilogb(number));
  double sum = 0;
  for (const double number : numbers)
    sum += std::isfinite(number) ? std::ldexp(std::trunc(std::ldexp(number, kBits - top)), top - kBits) : number;
  const float nearest = static_cast<float>(sum);
  const bool is_beyond = std::fabs(static_cast<double>(nearest)) > std::fabs(sum);
  return is_beyond && !std::isinf(nearest) ? std::nextafter(nearest, 0.0f) : nearest;
}

// d += a b, of factors whose row i, or column i, has its numbers of k at a(i, k) and b(i, k).
template <int kDepth, class A, class B>
void multiply_lanes(const MmaRegisters* in, MmaRegisters* out, A&& a, B&& b) {
  constexpr int kAtOnce = 4;  // products that are added to a sum
  float left[16][kDepth], right[8][kDepth];
  for (int k = 0; k < kDepth; ++k) {
    for (int i = 0; i < 16; ++i) left[i][k] = a(i, k);
    for (int i = 0; i < 8; ++i) right[i][k] = b(i, k);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
      float sum = in[lane].d[e];
      for (int k = 0; k < kDepth; k += kAtOnce) {
        double numbers[kAtOnce + 1] = {static_cast<double>(sum)};
        for (int i = 0; i < kAtOnce; ++i) numbers[1 + i] = static_cast<double>(left[row][k + i]) * right[column][k + i];
        sum = sum_of_products(numbers);
      }
      out[lane].d[e] = sum;
    }
}

template <class Multiply>
void mma_by_warp(float* d, const uint32_t* a, const uint32_t* b, Multiply&& multiply) {
  const MmaRegisters mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
  MmaRegisters result;
  emulation::exchange(&mine, sizeof mine, &result, sizeof result, [&](const char* in, char* out) {
    multiply(reinterpret_cast<const MmaRegisters*>(in), reinterpret_cast<MmaRegisters*>(out));
  });
  for (int e = 0; e < 4; ++e) d[e] = result.d[e];
}

template <class T>
void mma(float* d, const uint32_t* a, const uint32_t* b, T) {
  mma_by_warp(d, a, b, [](const MmaRegisters* in, MmaRegisters* out) {
    const auto half = [](uint32_t pair, int k) {
      return widen(T{static_cast<uint16_t>(k % 2 ? pair >> 16 : pair & 0xffff)});
    };
    multiply_lanes<16>(
        in, out, [&](int i, int k) { return half(in[i % 8 * 4 + k % 8 / 2].a[i / 8 + k / 8 * 2], k); },
        [&](int i, int k) { return half(in[i * 4 + k % 8 / 2].b[k / 8], k); });
  });
}

// The device looks at the upper 19 bits of each number.
inline void mma_tf32(float* d, const uint32_t* a, const uint32_t* b) {
  mma_by_warp(d, a, b, [](const MmaRegisters* in, MmaRegisters* out) {
    const auto number = [](uint32_t bits) { return __uint_as_float(bits & 0xffffe000u); };
    multiply_lanes<8>(
        in, out, [&](int i, int k) { return number(in[i % 8 * 4 + k % 4].a[i / 8 + k / 4 * 2]); },
        [&](int i, int k) { return number(in[i * 4 + k % 4].b[k / 4]); });
  });
}

inline uint32_t to_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;  // ties away from zero
}

}  // namespace twolayer::cuda
