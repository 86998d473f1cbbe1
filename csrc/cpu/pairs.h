// Products of bfloat16 numbers in pairs, as processors multiply them: two neighbours along the summed dimension share
// 32 bits, the earlier in the lower half.
#pragma once
#include <cstdint>

namespace twolayer::cpu {

constexpr int64_t kPairStep = 16;  // pairs that the widest instruction sums at once

// How many pairs n numbers make, zeros added up to a whole step.
constexpr int64_t padded_pairs(int64_t n) { return (n + 2 * kPairStep - 1) / (2 * kPairStep) * kPairStep; }

// c = bias + a b. c and b stand in panels of kPanel columns (params.h).
struct PairProduct {
  int64_t rows, panels, pairs;  // pairs is a multiple of kPairStep
  const uint32_t* a;            // (rows, pairs), a_stride apart
  int64_t a_stride;
  const uint32_t* b;  // panels of (pairs, kPanel), b_panel apart
  int64_t b_panel;
  const float* bias;  // (panels * kPanel), or null: zeros
  float* c;           // panels of (rows, kPanel), c_panel apart
  int64_t c_panel;
};

// What an instruction set that multiplies bfloat16 brings beside its other kernels.
struct PairKernels {
  void (*multiply)(const PairProduct&);
  // Rows [row0, row0 + 2 kPairStep) of the batch x (batch) × (in), as pairs along the inputs (batch, padded_pairs(in))
  // and along the rows (in, padded_pairs(batch)).
  void (*pack_rows)(const float* const* x, int64_t row0, int64_t batch, int64_t in, uint32_t* pairs,
                    uint32_t* transposed);
  // `count` pairs along the rows of a panel (rows, kPanel), zeros beyond them.
  void (*pack_panel)(const float* panel, int64_t rows, int64_t count, uint32_t* pairs);
};

}  // namespace twolayer::cpu
