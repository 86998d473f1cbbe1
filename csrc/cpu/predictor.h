// A net made ready to predict: its weights packed once, its rows divided among threads. Knows no torch and no Python.
#pragma once
#include "cpu/buffer.h"
#include "params.h"

namespace twolayer::cpu {

// As torch.nn.Linear holds them, each array contiguous; a bias may be null.
template <class T>
struct NetWeights {
  int64_t in, hidden, out;
  const T* w1;  // (hidden, in)
  const T* b1;  // (hidden)
  const T* w2;  // (out, hidden)
  const T* b2;  // (out)
  int activation;
};

// Never changes once it is made, so any number of threads may call it side by side.
template <class T>
class Predictor {
 public:
  Predictor(const NetWeights<T>& weights, int threads);

  int64_t in() const { return p_.in; }
  int64_t out() const { return p_.out; }

  // y (rows, out) of x (rows, in), whose rows are x_stride numbers apart. y must not overlap x.
  void run(int64_t rows, const T* x, int64_t x_stride, T* y) const;

  // Whether so many rows take long enough for others to be let work meanwhile.
  bool takes_long(int64_t rows) const;

 private:
  int64_t multiply_adds(int64_t rows) const { return rows * p_.hidden * (p_.in + p_.out); }
  void divide_rows(int threads, const PredictParams<T>& p) const;
  void divide_units(int threads, const PredictParams<T>& p) const;

  Buffer<T> w1_, b1_, w2_, b2_;
  PredictParams<T> p_{};
  PredictKernels<T> kernels_;
  int threads_;
};

}  // namespace twolayer::cpu
