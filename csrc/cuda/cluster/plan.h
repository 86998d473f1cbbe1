// How one cluster of blocks holds a net and its batch in shared memory.
//
// Blocks stand in a grid: those of a unit group have the same hidden units, those of a column group the same inputs. A
// block keeps W1's numbers of its units and inputs, W2's columns of its units, and reads its inputs of every row. The
// rows of the batch are shared out over a unit group's blocks for what lies between the two big products.
#pragma once
#include <cstdint>

#include "cuda/kernels.h"
#include "cuda/train.h"

namespace twolayer::cuda {

constexpr int kPieceColumns = 16;  // of a weight's gradient that a warp computes at a time
constexpr int kClusterWarps = 16, kClusterThreads = 32 * kClusterWarps;  // of a block, that compute
constexpr int kBlockThreads = kClusterThreads + 32;                      // and one more warp that serves them

// Arrays in a block's shared memory, of float where nothing is said. Two of something are for even and odd steps.
enum Array {
  kX,             // (1 or 2, batch, column_stride)
  kWeight1,       // (1 + states, units in eights, column_stride)
  kWeight2,       // (1 + states, out in eights, unit_stride)
  kBias1,         // (1 + states, units)
  kBias2,         // (1 + states, out)
  kZ,             // (column_groups · parts, own_rows, unit_stride) what others found of the hidden layer's inputs
  kSaved,         // (own_rows, unit_stride)
  kY,             // (2, unit_groups, own_rows, out_stride) what others found of the outputs
  kH,             // (batch, unit_stride)
  kGradZ,         // (batch, unit_stride)
  kGradY,         // (batch, out_stride)
  kNothing,       // zeros: a piece of a gradient has 32 rows and 16 columns, and its factors are read as if they had
  kTarget,        // (2, own_rows, out_stride), where targets are values
  kRowLoss,       // (batch)
  kRowWeight,     // (2, batch)
  kFloatDivisor,  // (2) the divisor of the loss
  kLabel,         // (2, batch) int32; −1: there is none, −2: the row counts for nothing
  kRow,           // (2, batch) int64: which of the examples; −1: the batch has ended
  kDivisor,       // (2) double
  kArrivals,      // (kinds, 2) Arrival: where the rows of a batch, and what other blocks send, arrive
  kForward,       // (forward_tasks) ForwardTask
  kPieces,        // (pieces) PieceTask
  kPenalty,       // (2, warps, 2) double: sums of |w| and w² as they were before the update
  kRule,          // (2, rule bytes)
  kRaw,           // (2, batch, raw_stride) bytes: rows as they are stored, where they are not copied into x itself
  kArrays
};

// What arrives at a block in a step.
enum Kind { kRows, kSums, kOutputs, kGradients, kKinds };

// What a warp does, worked out once. Places are counted in numbers from the start of an array, or of shared memory.
struct alignas(16) ForwardTask {  // a tile of 16 rows and up to 32 units of x W1ᵀ, over [k0, k1) of the block's inputs
  int x, weight, z, units;        // z: in the memory of the block of column group `owner`
  int owner, k0, k1, reserved;
};
struct alignas(16) PieceTask {                 // 32 rows and 16 columns of a weight's gradient aᵀ b
  int left, left_stride, right, right_stride;  // right: from the start of x, for W1
  int weight, stride, size, rows;
  int columns, of_w1, is_idle, is_mine;  // the last: to account for in the penalty; others hold the same
};

struct ClusterPlan {
  int blocks = 0;  // of the cluster; 0: the net does not fit
  int unit_groups = 0, column_groups = 0;
  int units = 0, columns = 0;         // of a block, at most; columns are a multiple of 8
  int batch = 0, own_rows = 0;        // rows, multiples of 16
  int parts = 0;                      // in how many the first product's sums are split between warps
  int forward_tasks = 0, pieces = 0;  // at most
  int states = 0;                     // one more than the last that the optimiser keeps
  int column_stride = 0, unit_stride = 0, out_stride = 0;
  int raw_stride = 0;       // 0: rows are copied into x itself
  int number_bytes = 0;     // of a number as it is stored
  int access = 0;           // bytes that copies of rows can take at a time: 16, 8, 4, or less
  bool x_is_exact = false;  // x holds numbers of few bits, as they are stored; the products take their scale
  float x_scale = 1;        // what products of x are multiplied by
  bool in_bulk = false;     // the copy engine can take whole rows
  int copy_lanes = 0;       // log2 of the threads that copy a row together,
  int convert_lanes = 0;    // that convert one
  int rule_bytes = 0;
  float l1 = 0, l2 = 0, clip_value = 0;
  bool penalised = false, drops = false, has_b1 = false, has_b2 = false;
  bool saves_input = false;  // what the activation's derivative is computed from: its input, not its output
  double loss_per_row = 0;   // how much a row of weight 1 adds to what the loss is divided by; 0: it is a sum
  int at[kArrays] = {};      // bytes
  int shared_bytes = 0;
};

}  // namespace twolayer::cuda
