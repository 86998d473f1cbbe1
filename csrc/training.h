// What the training engines of both devices are told, and what they tell: cpu/engine.h, cuda/engine.h. Knows nothing of
// torch or Python.
#pragma once
#include <array>
#include <cstdint>

#include "params.h"

namespace twolayer {

// Whether products go through the nonzero inputs only: as each batch's density suggests, or as told. The CPU's alone.
enum class SkipZeros { kByDensity, kAlways, kNever };

struct EngineConfig {
  int64_t in, hidden, out;
  int activation, loss, optimizer;
  OptimizerOptions options;
  LossOptions loss_options;
  GradientOptions gradient;
  bool penalty_per_row;  // l1 and l2 are divided by what the rows of a batch count for
  double dropout;
  uint64_t dropout_key;
  bool bfloat16_compute;
  SkipZeros skip_zeros;
  std::array<bool, kParameters> present, frozen;  // w1, b1, w2, b2
  int threads;                                    // the CPU's
};

// Parameters (or their optimiser state) as torch.nn.Linear holds them, each array contiguous: w1 (hidden, in), b1
// (hidden), w2 (out, hidden), b2 (out); null where there is none.
template <class T>
using LinearLayout = std::array<T*, kParameters>;

// Which rows to take, one after the other: all, or those that are named.
struct Order {
  int64_t rows;
  const int64_t* row;  // (rows), or null for 0, 1, 2 …
};

// A stretch of an epoch: `steps` batches from batch `first_step` on.
struct Stretch {
  int64_t batch_size;
  Order order;
  int64_t first_step, steps;
  const double* lr;  // (steps) each step's learning rate
  double* losses;    // (steps) out: each batch's loss
  bool stop_if_not_finite;
};

struct RunResult {
  int64_t steps;    // done; the parameters are those after the last of them
  bool not_finite;  // ended by a batch whose loss is not finite, before its update
};

struct Evaluation {
  double loss_sum, divisor;  // over all rows; the mean loss is their quotient
  int64_t hits;              // rows whose largest output is their class
};

// Asked now and then by the thread that called run(), with the number of steps done; returns true to stop.
struct Poll {
  bool (*stop)(void* context, int64_t steps_done);
  void* context;
};

}  // namespace twolayer
