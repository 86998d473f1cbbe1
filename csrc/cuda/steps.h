// Training steps in several launches each, for whatever one launch cannot hold (train.h). No torch, no Python, no CUDA
// header. Every function only launches, on the given stream and the current device; all of it can be captured in a
// graph, which then serves every run that differs in first_step, steps_before and steps alone.
#pragma once
#include "cuda/train.h"

namespace twolayer::cuda {

// Bytes of device memory, aligned to 256, that the functions below need: for training, or for evaluating alone.
template <class T>
int64_t steps_scratch(const Steps<T>&, bool training, const Launch&);

// Before the first step, or batch: the only one that looks at first_step and steps_before. progress is all zero then.
template <class T>
void begin_steps(const Steps<T>&, void* scratch, const Launch&);

// The step after progress->steps of the run; ++progress->steps.
template <class T>
void take_step(const Steps<T>&, void* scratch, const Launch&);

// What evaluate_batch adds up, in device memory; all zero at first.
struct Totals {
  double loss_sum, divisor;
  int64_t hits;  // rows whose largest output is their class
};

// The same for a batch that is only evaluated. rules, losses and stop_if_not_finite are not read.
template <class T>
void evaluate_batch(const Steps<T>&, void* scratch, Totals* totals, const Launch&);

}  // namespace twolayer::cuda
