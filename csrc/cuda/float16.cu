#include "cuda/net.cuh"

namespace twolayer::cuda {
TWOLAYER_CUDA_KERNELS(float16)
}  // namespace twolayer::cuda
