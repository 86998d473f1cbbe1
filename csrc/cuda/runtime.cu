// What there is to run on.
#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda/train.h"

namespace twolayer::cuda {
namespace {

// Does nothing; the attributes of its code are those of all of it.
__global__ void probe() {}

std::string text_of(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

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
  if (cudaFuncGetAttributes(&code, probe) != cudaSuccess) cudaGetLastError();  // there is no code for it
  Device device{read(cudaDevAttrMultiProcessorCount), read(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                code.ptxVersion < capability ? code.ptxVersion : capability};
  device.cluster = largest_cluster(device);
  return device;
}

OnDevice::OnDevice(int index) : before_(-1) {
  int current = 0;
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess && current == index) return;
  if (error == cudaSuccess) error = cudaSetDevice(index);
  if (error != cudaSuccess) {
    cudaGetLastError();
    throw std::runtime_error("twolayer could not make CUDA device " + std::to_string(index) +
                             " the current one: " + text_of(error));
  }
  before_ = current;
}

OnDevice::~OnDevice() {
  if (before_ >= 0 && cudaSetDevice(before_) != cudaSuccess) cudaGetLastError();
}

std::string last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? std::string() : text_of(error);
}

}  // namespace twolayer::cuda
