#include "cpu/predictor.h"

#include <utility>

#include "cpu/dispatch.h"
#include "cpu/isa.h"
#include "cpu/subnormals.h"
#include "cpu/threads.h"

namespace twolayer::cpu {
namespace {

constexpr int64_t kTileRows = 8;         // a chunk is a multiple of the tallest tile
constexpr int64_t kChunksPerThread = 4;  // so that a thread that wakes late, or loses its core, costs little

// Panels of (columns), of the rows of `from` (rows, columns).
template <class T>
const T* pack_rows(Buffer<T>& to, int64_t rows, int64_t columns, const T* from) {
  T* panels = to.resize(round_up(rows, kPanel) * columns);
  for (int64_t row = 0; row < rows; row += kPanel)
    transpose(std::min(kPanel, rows - row), columns, from + row * columns, columns, panels + row * columns, kPanel);
  return panels;
}

template <class T>
const T* pack_bias(Buffer<T>& to, int64_t count, const T* from) {
  T* bias = to.resize(round_up(count, kPanel));
  if (from) std::copy_n(from, count, bias);
  return bias;
}

// Few rows, divided among threads by hidden units and then by outputs. Each thread has the same ones every time, whose
// weights its core may still hold.
template <class T>
class UnitsJob : public PhasedJob {
 public:
  UnitsJob(int chunks, const PredictParams<T>& p, const PredictKernels<T>& kernels)
      : chunks_(chunks), p_(p), kernels_(kernels), hidden_(blocks() * kBlock) {}

  void run_chunk(int chunk) override {
    const FlushSubnormals flush;
    if (!hidden_done_) {
      for (int64_t b = chunk * blocks() / chunks_; b < (chunk + 1) * blocks() / chunks_; ++b)
        kernels_.hidden(p_, b * p_.kUnits, hidden_.data + b * kBlock);
    } else {
      const int64_t panels = round_up(p_.out, kPanel) / kPanel;
      const int64_t out0 = chunk * panels / chunks_ * kPanel, out1 = (chunk + 1) * panels / chunks_ * kPanel;
      for (int64_t b = 0; b < blocks() && out0 < out1; ++b)
        kernels_.outputs(p_, b * p_.kUnits, hidden_.data + b * kBlock, out0, std::min(out1, p_.out));
    }
  }
  bool advance() override { return std::exchange(hidden_done_, true) == false; }
  void poll() override {}

 private:
  static constexpr int64_t kBlock = PredictParams<T>::kRows * PredictParams<T>::kUnits;
  int64_t blocks() const { return (p_.hidden + p_.kUnits - 1) / p_.kUnits; }

  const int chunks_;
  const PredictParams<T>& p_;
  const PredictKernels<T>& kernels_;
  const Scratch<T> hidden_;  // (blocks, rows, kUnits)
  bool hidden_done_ = false;
};

}  // namespace

template <class T>
Predictor<T>::Predictor(const NetWeights<T>& w, int threads)
    : kernels_(predict_kernels<T>(current_isa())), threads_(threads) {
  p_.in = w.in, p_.hidden = w.hidden, p_.out = w.out;
  p_.activation = w.activation;
  p_.w1 = pack_rows(w1_, w.hidden, w.in, w.w1);
  p_.b1 = pack_bias(b1_, w.hidden, w.b1);
  p_.w2 = pack_rows(w2_, w.out, w.hidden, w.w2);
  p_.b2 = pack_bias(b2_, w.out, w.b2);
}

template <class T>
void Predictor<T>::run(int64_t rows, const T* x, int64_t x_stride, T* y) const {
  const int threads = worthwhile_threads(multiply_adds(rows), threads_);
  PredictParams<T> p = p_;
  p.rows = rows, p.x = x, p.x_stride = x_stride, p.y = y;
  if (threads > 1 && rows < std::min(threads * kTileRows, p.kRows))
    divide_units(threads, p);
  else
    divide_rows(threads, p);
}

template <class T>
void Predictor<T>::divide_rows(int threads, const PredictParams<T>& all) const {
  const int64_t wanted = threads == 1 ? all.rows : round_up(all.rows / (threads * kChunksPerThread), kTileRows);
  const int64_t chunk = std::clamp(wanted, kTileRows, PredictParams<T>::kRows);
  parallel_for(threads, (all.rows + chunk - 1) / chunk, [&](int64_t i) {
    const FlushSubnormals flush;
    PredictParams<T> p = all;
    p.rows = std::min(chunk, all.rows - i * chunk);
    p.x += i * chunk * p.x_stride, p.y += i * chunk * p.out;
    kernels_.predict(p);
  });
}

template <class T>
void Predictor<T>::divide_units(int threads, const PredictParams<T>& p) const {
  UnitsJob<T> job(threads, p, kernels_);
  run_phases(threads, job);
}

template <class T>
bool Predictor<T>::takes_long(int64_t rows) const {
  return worthwhile_threads(multiply_adds(rows), 2) > 1;
}

template class Predictor<float>;
template class Predictor<double>;

}  // namespace twolayer::cpu
