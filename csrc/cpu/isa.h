// What one instruction set's translation unit hands to dispatch.cpp, and the pieces it is made of (see isa_*.cpp).
#pragma once
#include <cstddef>

#include "cpu/pairs.h"
#include "params.h"

namespace twolayer::cpu {

// Products take the summed dimension this many at a time, so that the slice of a factor that a tile sweeps stays in
// cache.
constexpr int64_t kDepth = 128;

// Batches of up to so many rows have each weight's gradient summed in registers, and no longer.
constexpr int64_t kShortBatch = 256;

// How many of `threads` to use: one more per so much work that waking it costs less than it saves.
inline int worthwhile_threads(int64_t multiply_adds, int64_t threads) {
  constexpr int64_t kWorkPerThread = 400000;
  const int64_t worthwhile = multiply_adds / kWorkPerThread;
  return static_cast<int>(worthwhile < 1 ? 1 : worthwhile < threads ? worthwhile : threads);
}

template <class T>
struct NetKernels {
  void (*forward)(const ForwardParams<T>&);
  void (*backward)(const BackwardParams<T>&);
  void (*activate)(const ActivateParams<T>&);
  void (*derive)(const DerivativeParams<T>&);
};

template <class T>
struct TrainKernels {
  void (*gather)(const TrainParams<T>&, int64_t row0, int64_t row1);
  int64_t (*scan)(const TrainParams<T>&, int64_t column0, int64_t column1);
  void (*forward)(const TrainParams<T>&, int chunk, int chunks);
  void (*loss)(const TrainParams<T>&, int64_t row0, int64_t row1);
  void (*backward)(const TrainParams<T>&, int chunk, int chunks);
  void (*update)(const TrainParams<T>&, int chunk, int chunks);
  bool (*take_weights)(const TrainParams<T>&);
};

// Loops that measure the processor (kernels/limits.h).
struct LimitKernels {
  int64_t (*multiply_adds_f32)(int64_t rounds, float* result);
  int64_t (*multiply_adds_f64)(int64_t rounds, double* result);
  int64_t (*read)(int64_t n, const float* from, float* result);
};

template <class T>
struct PredictKernels {
  void (*predict)(const PredictParams<T>&);
  void (*hidden)(const PredictParams<T>&, int64_t unit, T* hidden);
  void (*outputs)(const PredictParams<T>&, int64_t unit, const T* hidden, int64_t out0, int64_t out1);
};

struct Isa {
  const char* name;
  bool (*supported)();  // by this processor and operating system
  NetKernels<float> f32;
  NetKernels<double> f64;
  NetKernels<bfloat16> bf16;
  TrainKernels<float> train_f32;
  TrainKernels<double> train_f64;
  PredictKernels<float> predict_f32;
  PredictKernels<double> predict_f64;
  LimitKernels limits;
  const PairKernels* pairs = nullptr;  // where the processor multiplies bfloat16
};

// The kernels of `base`, and products of bfloat16 beside them.
inline Isa with_pairs(const Isa& base, const char* name, bool (*supported)(), const PairKernels* pairs) {
  Isa isa = base;
  isa.name = name, isa.supported = supported, isa.pairs = pairs;
  return isa;
}

// The kernels of namespace `isa` as an Isa. A macro, since a function beside them would be compiled for their target
// and could not run elsewhere.
#define TWOLAYER_ISA(isa, supported)                                                                   \
  twolayer::cpu::Isa {                                                                                 \
    #isa, supported, TWOLAYER_NET(isa, float), TWOLAYER_NET(isa, double), TWOLAYER_NET(isa, bfloat16), \
        TWOLAYER_TRAIN(isa, float), TWOLAYER_TRAIN(isa, double), TWOLAYER_PREDICT(isa, float),         \
        TWOLAYER_PREDICT(isa, double), TWOLAYER_LIMITS(isa), nullptr                                   \
  }
#define TWOLAYER_NET(isa, T) {isa::forward<T>, isa::backward<T>, isa::activate_all<T>, isa::derive_all<T>}
#define TWOLAYER_PREDICT(isa, T) {isa::predict<T>, isa::predict_hidden<T>, isa::predict_outputs<T>}
#define TWOLAYER_TRAIN(isa, T)                                                                  \
  {isa::train_gather<T>,   isa::train_scan<T>,   isa::train_forward<T>,     isa::train_loss<T>, \
   isa::train_backward<T>, isa::train_update<T>, isa::train_take_weights<T>}
#define TWOLAYER_LIMITS(isa) {isa::limit_multiply_adds<float>, isa::limit_multiply_adds<double>, isa::limit_read}

template <class T>
const NetKernels<T>& net_kernels(const Isa& isa) {
  if constexpr (__is_same(T, float))
    return isa.f32;
  else if constexpr (__is_same(T, double))
    return isa.f64;
  else
    return isa.bf16;
}

template <class T>
const TrainKernels<T>& train_kernels(const Isa& isa) {
  if constexpr (__is_same(T, float))
    return isa.train_f32;
  else
    return isa.train_f64;
}

template <class T>
const PredictKernels<T>& predict_kernels(const Isa& isa) {
  if constexpr (__is_same(T, float))
    return isa.predict_f32;
  else
    return isa.predict_f64;
}

// Uninitialised memory, aligned to a cache line.
void* allocate(size_t bytes);
void release(void* memory);

template <class T>
struct Scratch {
  T* data;
  explicit Scratch(int64_t count) : data(count ? static_cast<T*>(allocate(count * sizeof(T))) : nullptr) {}
  ~Scratch() { release(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

}  // namespace twolayer::cpu
