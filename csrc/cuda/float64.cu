#include "cuda/net.cuh"

namespace twolayer::cuda {
TWOLAYER_CUDA_KERNELS(double)
}  // namespace twolayer::cuda
