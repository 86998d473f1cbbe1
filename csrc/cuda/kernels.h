// What the CUDA kernels offer to host code: no torch, no Python, no CUDA header. Every function only launches, on the
// given stream and the current device: nothing waits, nothing is allocated, and all of it can be captured in a graph.
// Results are the same bits on every run on one kind of device.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "params.h"

namespace twolayer::cuda {

// What the choice of tiles depends on, of one device.
struct Device {
  int multiprocessors = 0;
  int shared_bytes = 0;  // the most that a block can ask for
  int capability = 0;    // 10 major + minor; of the code that runs on it, where that was compiled for less
  int cluster = 1;       // the most blocks of a cluster that trains a net
};

struct Launch {
  void* stream = nullptr;  // a cudaStream_t
  bool tf32 = false;       // products of float32 may round their factors to TF32
  Device device;
};

// ---- The net. T is float, double, bfloat16 or float16. `scratch` is as many bytes of device memory as the function
// before it says for the same parameters (0: null will do), aligned to 256, in use until the stream has got past.

template <class T>
int64_t forward_scratch(const ForwardParams<T>&, const Launch&);
template <class T>
void forward(const ForwardParams<T>&, void* scratch, const Launch&);

template <class T>
int64_t backward_scratch(const BackwardParams<T>&, const Launch&);
template <class T>
void backward(const BackwardParams<T>&, void* scratch, const Launch&);

// ---- Passes over a hidden layer, for nets whose products are left to cuBLAS.

template <class T>
void activate(const ActivateParams<T>&, const Launch&);

template <class T>
void derive(const DerivativeParams<T>&, const Launch&);

// h = act(z + b1); `saved` keeps what backward needs of it. Any of the three may coincide.
template <class T>
struct BiasActivateParams {
  int64_t batch, hidden;
  const T* z;   // (batch, hidden)
  const T* b1;  // (hidden) or null
  T* saved;     // (batch, hidden) or null
  T* h;         // (batch, hidden)
  int activation;
};
template <class T>
void bias_activate(const BiasActivateParams<T>&, const Launch&);

// grad *= act'(·), from what forward saved, and its sum over the rows. Without `saved`, the sum alone.
template <class T>
struct DeriveSumParams {
  int64_t batch, hidden;
  const T* saved;  // (batch, hidden) or null
  T* grad;         // (batch, hidden), not written where `saved` is null
  T* sum;          // (hidden) or null
  int activation;
};
template <class T>
int64_t derive_sum_scratch(const DeriveSumParams<T>&, const Launch&);
template <class T>
void derive_sum(const DeriveSumParams<T>&, void* scratch, const Launch&);

// ---- Which way to take: whether the products of this pass of a net of this size are left to cuBLAS.

int64_t work_of(int64_t batch, int64_t in, int64_t hidden, int64_t out);  // what the choice goes by, of a pass
bool forward_by_blas(int64_t batch, int64_t in, int64_t hidden, int64_t out);
bool backward_by_blas(int64_t batch, int64_t in, int64_t hidden, int64_t out);

// Whether backward needs the activation's input, not its output.
bool saves_input(int activation);

std::vector<std::string> activation_names();  // by id

// ---- The runtime.

// The number of devices; 0 with the reason in `why` where there is none, or no driver that can run this library.
int device_count(std::string* why);
int driver_version();   // of CUDA as the driver knows it: 1000 major + 10 minor; 0 without a driver
int runtime_version();  // of CUDA as this library was built with
Device read_device(int index);

// Makes a device the current one, or throws a std::runtime_error; and the one before it at the end.
class OnDevice {
 public:
  explicit OnDevice(int index);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_;  // −1: it was the current one
};

// What the last launch on this thread reported, as text, and clears it; empty: no error.
std::string last_error();

}  // namespace twolayer::cuda
