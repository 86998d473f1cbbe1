// Which products are left to cuBLAS.
#include "cuda/device/activation.cuh"
#include "cuda/kernels.h"

namespace twolayer::cuda {
namespace {

// Our kernels take a pass of at most so many multiply-adds, by bytes per number, and so many outputs: a hidden layer is
// computed again for every 128 of these, and grad_z for every tile of a gradient. Estimates from the arithmetic; to be
// measured with benchmarks/gpu_check.sh.
struct Limits {
  int64_t out;
  int64_t forward[3], backward[3];  // of 2, 4 and 8 bytes
};
constexpr Limits kOurs = {
    64,
    {400'000'000, 200'000'000, 200'000'000},
    {300'000'000, 200'000'000, 200'000'000},
};

bool by_blas(const int64_t (&limits)[3], int64_t batch, int64_t in, int64_t hidden, int64_t out, int64_t bytes) {
  return out > kOurs.out || batch * hidden * (in + out) > limits[bytes == 2 ? 0 : bytes == 4 ? 1 : 2];
}

}  // namespace

bool forward_by_blas(int64_t batch, int64_t in, int64_t hidden, int64_t out, int64_t bytes_per_number) {
  return by_blas(kOurs.forward, batch, in, hidden, out, bytes_per_number);
}

bool backward_by_blas(int64_t batch, int64_t in, int64_t hidden, int64_t out, int64_t bytes_per_number) {
  return by_blas(kOurs.backward, batch, in, hidden, out, bytes_per_number);
}

bool saves_input(int activation) {
  switch (activation) {
#define TWOLAYER_CASE(number, Name) \
  case number:                      \
    return Name::saves_input;
    TWOLAYER_ACTIVATIONS(TWOLAYER_CASE)
#undef TWOLAYER_CASE
  }
  return false;
}

#define TWOLAYER_NAME(number, Name) Name::name,
std::vector<std::string> activation_names() { return {TWOLAYER_ACTIVATIONS(TWOLAYER_NAME)}; }
#undef TWOLAYER_NAME

}  // namespace twolayer::cuda
