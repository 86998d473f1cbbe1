// Whole-epoch training on a CUDA device: the twin of cpu/engine.h. Knows nothing of torch or Python.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/train.h"
#include "training.h"

namespace twolayer::cuda {

std::vector<std::string> loss_names();  // by id
std::vector<std::string> optimizer_names();
bool loss_takes_classes(int loss);

// Parameters, states and rows are in the device's memory; order, learning rates and losses on the host. Every call
// first waits for what `after`, a cudaStream_t, has been given to do, and returns when its own work is done. Several
// engines may run at once on one device, each in a thread of its own. Errors of CUDA are std::runtime_errors.
template <class T>
class Engine {
 public:
  // Without `may_cluster` runs never go through take_steps_in_cluster.
  Engine(const EngineConfig& config, int device, bool may_cluster);
  ~Engine();

  void load(const LinearLayout<const T>& parameters, void* after);
  void store(const LinearLayout<T>& parameters, void* after) const;

  bool keeps_state(int state) const;
  void load_state(int state, const LinearLayout<const T>& values, void* after);
  void store_state(int state, const LinearLayout<T>& values, void* after) const;
  int64_t steps() const;
  void set_steps(int64_t steps);

  // What a CUDA graph was captured from is compared by address: rows may be others in the same place.
  RunResult run(const Examples<T>& rows, const Stretch& stretch, Poll poll, void* after);
  Evaluation evaluate(const Examples<T>& rows, const Order& order, Poll poll, void* after);

  // How the last run was done: "cluster", all steps in few launches, or "graph"; empty before the first.
  const std::string& path() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

extern template class Engine<float>;
extern template class Engine<double>;

}  // namespace twolayer::cuda
