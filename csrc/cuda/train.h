// Training on a device: what the engine (cuda/engine.h) asks of the kernels. No torch, no Python, no CUDA header. Every
// function only launches, on the given stream and the current device; all of it can be captured in a graph.
#pragma once
#include <cstdint>

#include "cuda/kernels.h"
#include "params.h"

namespace twolayer::cuda {

// A parameter and what its optimiser remembers of it, as nn.Linear holds it, in device memory. A null value: the net
// has no such parameter.
template <class T>
struct Learned {
  static constexpr int kStates = 3;
  T* value;
  T* state[kStates];  // null where the optimiser keeps none, or where it is frozen
  bool frozen;
};

// A net and how it is trained.
template <class T>
struct Training {
  int64_t in, hidden, out;
  int activation, loss, optimizer;
  LossOptions loss_options;
  GradientOptions gradient;
  bool penalty_per_row;   // l1 and l2 are divided by what the rows of a batch count for
  double dropout;         // the share of hidden values set to zero
  uint64_t dropout_key;   // of the run; with the step, the row and the unit it decides who is dropped
  bool bfloat16_compute;  // factors of products are rounded to bfloat16
  Learned<T> parameters[kParameters];
};

// The rows to train or evaluate on, in device memory.
template <class T>
struct Examples {
  const void* x;     // (rows, in) of `storage`
  int64_t x_stride;  // bytes from one row to the next
  Storage storage;
  double scale, shift;     // x is read as x · scale + shift
  const int64_t* classes;  // (rows), or null
  const T* values;         // (rows, out), or null
  int64_t value_stride;    // numbers from one row of values to the next; 0: one row for all
  const T* row_weight;     // (rows), or null
  const T* class_weight;   // (out), or null
};

// How far a run has come; in device memory, written by the kernels. Once `ended` is set, what is launched after it
// does nothing.
struct Progress {
  int64_t steps;  // taken since the run began
  int32_t ended;  // a batch's loss was not finite, and must be
  int32_t reserved;
};

// Steps `first_step`, first_step + 1, … of an epoch. Entry i of lists is that of step first_step + i.
template <class T>
struct Steps {
  Training<T> training;
  Examples<T> examples;
  const int64_t* order;  // (rows) which rows the epoch takes, or null for 0, 1, 2 …
  int64_t rows;          // of the epoch
  int64_t batch_size;
  int64_t first_step;  // batches of the epoch before these
  int64_t steps;
  int64_t steps_before;  // updates before the first of these, for dropout
  const void* rules;     // (steps, rule_bytes) each step's update rule, as make_rule leaves it
  double* losses;        // (steps) out
  bool stop_if_not_finite;
  Progress* progress;
};

// ---- Update rules: what an optimiser computes once a step, made on the host.

template <class T>
int64_t rule_bytes(int optimizer);  // a multiple of 4

// With options.lr set, after `steps` updates.
template <class T>
void make_rule(int optimizer, const OptimizerOptions& options, int64_t steps, void* rule);

// How much a row of weight 1 adds to what the loss is divided by; 0 for a loss that is a sum.
int64_t loss_per_row(int loss, int64_t out);

// Whether the optimiser keeps that state.
bool uses_state(int optimizer, const OptimizerOptions& options, int state);

// ---- All steps in one launch: one cluster of blocks that holds the net in shared memory.

// The most blocks of a cluster of ours that the current device, which is this one, can run.
int largest_cluster(const Device&);

// The blocks of the cluster that would hold it; 0: one launch cannot hold this net at this batch size.
template <class T>
int cluster_blocks(const Steps<T>&, const Device&);

// progress->steps += the steps taken.
template <class T>
void take_steps_in_cluster(const Steps<T>&, const Launch&);

}  // namespace twolayer::cuda
