// Whole-epoch training: the loop around the kernels of a step. Knows nothing of torch or Python.
#pragma once
#include <cstdint>
#include <memory>

#include "params.h"

namespace twolayer::cpu {

struct EngineConfig {
  int64_t in, hidden, out;
  int activation, loss, optimizer;
  OptimizerOptions options;
  bool has_b1, has_b2;
  int threads;
};

// Parameters (or their optimiser state) as torch.nn.Linear holds them, each array contiguous; null where there is none.
template <class T>
struct LinearLayout {
  T* w1;  // (hidden, in)
  T* b1;  // (hidden)
  T* w2;  // (out, hidden)
  T* b2;  // (out)
};

template <class T>
struct Dataset {
  int64_t rows;
  const T* x;              // (rows, in)
  int64_t x_stride;        // numbers from one row to the next
  const int64_t* classes;  // (rows), or null
  const T* values;         // (rows, out), or null
  int64_t value_stride;    // 0: one row of targets for all
};

struct Epoch {
  int64_t batch_size;
  const int64_t* order;  // (rows) the order in which rows are taken, or null for 0, 1, 2 …
  int64_t steps;         // batches to take; the last may be short
  double* losses;        // (steps) out: each batch's loss
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
  void load_state(int state, const LinearLayout<const T>& values, int64_t steps_taken);
  void store_state(int state, const LinearLayout<T>& values) const;

  // Trains for the epoch's steps. Returns how many were done: fewer than asked when poll said stop, and then the
  // parameters are those after the last finished step.
  int64_t run(const Dataset<T>& data, const Epoch& epoch, Poll poll);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

extern template class Engine<float>;
extern template class Engine<double>;

// The documented order of an epoch's rows: SplitMix64 keyed by seed and epoch, Fisher–Yates from the end (the same as
// twolayer.reference.numpy.permutation).
void permutation(int64_t n, uint64_t seed, uint64_t epoch, int64_t* order);

}  // namespace twolayer::cpu
