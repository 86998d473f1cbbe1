#include "cuda/net.cuh"

namespace twolayer::cuda {
TWOLAYER_CUDA_KERNELS(bfloat16)
}  // namespace twolayer::cuda
