// What there is to run on.
#include <cuda_runtime.h>

#include "cuda/kernels.h"

namespace twolayer::cuda {
namespace {

// Does nothing; the attributes of its code are those of all of it.
__global__ void probe() {}

}  // namespace

int device_count(std::string* why) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return count;
  cudaGetLastError();
  if (why) *why = cudaGetErrorString(error);
  return 0;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

Device read_device(int index) {
  const OnDevice current(index);
  const auto read = [index](cudaDeviceAttr attribute) {
    int value = 0;
    cudaDeviceGetAttribute(&value, attribute, index);
    return value;
  };
  const int capability = 10 * read(cudaDevAttrComputeCapabilityMajor) + read(cudaDevAttrComputeCapabilityMinor);
  cudaFuncAttributes code{};
  cudaFuncGetAttributes(&code, probe);
  return {read(cudaDevAttrMultiProcessorCount), read(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          code.ptxVersion < capability ? code.ptxVersion : capability};
}

OnDevice::OnDevice(int index) : before_(-1) {
  int current = 0;
  if (cudaGetDevice(&current) != cudaSuccess || current == index) return;
  if (cudaSetDevice(index) == cudaSuccess) before_ = current;
}

OnDevice::~OnDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

std::string last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? std::string() : std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

}  // namespace twolayer::cuda
