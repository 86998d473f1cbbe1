// Which products are left to cuBLAS.
#include "cuda/device/activation.cuh"
#include "cuda/kernels.h"

namespace twolayer::cuda {
namespace {

// Our kernels take a pass of at most so much work, and so many outputs: beyond these a hidden layer would be computed
// more than once. As measured on an H200 by the sweep of python -m twolayer.bench.gpu, over all dtypes.
constexpr int64_t kForward = 150'000'000, kBackward = 100'000'000, kOutputs = 128;

// A multiply-add of an output weighs more than one of the hidden layer: it is done outside the tiles, and grad_z is
// computed again for every tile of a gradient.
constexpr int64_t kWeightOfOutput = 12;

}  // namespace

int64_t work_of(int64_t batch, int64_t in, int64_t hidden, int64_t out) {
  return batch * hidden * (in + kWeightOfOutput * out);
}

bool forward_by_blas(int64_t batch, int64_t in, int64_t hidden, int64_t out) {
  return out > kOutputs || work_of(batch, in, hidden, out) > kForward;
}

bool backward_by_blas(int64_t batch, int64_t in, int64_t hidden, int64_t out) {
  return out > kOutputs || work_of(batch, in, hidden, out) > kBackward;
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
