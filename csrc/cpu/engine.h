// Whole-epoch training: the loop around the kernels of a step. Knows nothing of torch or Python.
#pragma once
#include <array>
#include <cstdint>
#include <memory>

#include "params.h"

namespace twolayer::cpu {

enum Parameter { kW1, kB1, kW2, kB2, kParameters };

// Whether products go through the nonzero inputs only: as each batch's density suggests, or as told.
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
  int threads;
};

// Parameters (or their optimiser state) as torch.nn.Linear holds them, each array contiguous: w1 (hidden, in), b1
// (hidden), w2 (out, hidden), b2 (out); null where there is none.
template <class T>
using LinearLayout = std::array<T*, kParameters>;

// Rows of inputs and their targets. Inputs are dense in some storage type, or sparse (CSR, values of T).
template <class T>
struct Dataset {
  int64_t rows;
  GatherOptions gather;
  const void* x;           // dense: (rows, in); sparse: the values
  int64_t x_stride;        // dense: bytes from one row to the next
  const void* columns;     // sparse: the column of each value, int32 or int64
  const int64_t* offsets;  // sparse: (rows + 1) where each row's values begin
  const int64_t* classes;  // (rows), or null
  const T* values;         // (rows, out), or null
  int64_t value_stride;    // numbers from one row of values to the next; 0: one row for all
  const T* row_weight;     // (rows), or null
  const T* class_weight;   // (out), or null
};

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

template <class T>
class Engine {
 public:
  explicit Engine(const EngineConfig& config);
  ~Engine();

  void load(const LinearLayout<const T>& parameters);
  void store(const LinearLayout<T>& parameters) const;

  bool keeps_state(int state) const;
  void load_state(int state, const LinearLayout<const T>& values);
  void store_state(int state, const LinearLayout<T>& values) const;
  int64_t steps() const;
  void set_steps(int64_t steps);

  RunResult run(const Dataset<T>& data, const Stretch& stretch, Poll poll);
  Evaluation evaluate(const Dataset<T>& data, const Order& order, Poll poll);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

extern template class Engine<float>;
extern template class Engine<double>;

}  // namespace twolayer::cpu
