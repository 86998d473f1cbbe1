// Stands in for csrc/cuda/device/mma.cuh: the same products, from the same lanes' registers.
#pragma once
#include <cuda_runtime.h>

#include "cuda/device/convert.cuh"

namespace twolayer::cuda {

struct MmaRegisters {
  uint32_t a[4], b[2];
  float d[4];
};

// d += a b, of factors whose row i, or column i, has its numbers of k at a(i, k) and b(i, k).
template <int kDepth, class A, class B>
void multiply_lanes(const MmaRegisters* in, MmaRegisters* out, A&& a, B&& b) {
  float left[16][kDepth], right[8][kDepth];
  for (int k = 0; k < kDepth; ++k) {
    for (int i = 0; i < 16; ++i) left[i][k] = a(i, k);
    for (int i = 0; i < 8; ++i) right[i][k] = b(i, k);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
      double sum = in[lane].d[e];
      for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(left[row][k]) * right[column][k];
      out[lane].d[e] = static_cast<float>(sum);
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
