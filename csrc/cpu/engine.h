// Whole-epoch training: the loop around the kernels of a step. Knows nothing of torch or Python.
#pragma once
#include <cstdint>
#include <memory>

#include "training.h"

namespace twolayer::cpu {

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
