// Memory, streams, events and graphs of the current device, each freed with its owner. An error of CUDA is a
// std::runtime_error.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace twolayer::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string("twolayer could not ") + what +
                           " on the CUDA device: " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

// What is freed by one function, and can be given on.
template <class Handle, cudaError_t (*kFree)(Handle)>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, Handle{})) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ && kFree(handle_) != cudaSuccess) cudaGetLastError();
  }
  Handle get() const { return handle_; }

 private:
  Handle handle_{};
};

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;
using Graph = Owned<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;

inline Stream make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
  return Stream(stream);
}

inline Event make_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDefault), "make an event");
  return Event(event);
}

inline void* allocate_device(size_t bytes) {
  void* memory = nullptr;
  if (const cudaError_t error = cudaMalloc(&memory, bytes); error != cudaSuccess) {
    cudaGetLastError();
    throw std::runtime_error("twolayer could not get " + std::to_string(bytes) + " bytes of CUDA memory (" +
                             cudaGetErrorString(error) +
                             "); train with a smaller batch_size, or free what torch keeps: torch.cuda.empty_cache()");
  }
  return memory;
}
inline void* allocate_pinned(size_t bytes) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes), "get pinned host memory for copies");
  return memory;
}

// Memory for numbers, from one function and back by another.
template <class N, void* (*kAllocate)(size_t), cudaError_t (*kFree)(void*)>
class GrowingArray {
 public:
  // Room for `count`; what was there is lost where it had to grow.
  N* grow(int64_t count) {
    if (count <= capacity_) return data();
    memory_ = {};
    capacity_ = 0;
    memory_ = Memory(kAllocate(static_cast<size_t>(count) * sizeof(N)));
    capacity_ = count;
    return data();
  }
  N* data() const { return static_cast<N*>(memory_.get()); }

 private:
  using Memory = Owned<void*, kFree>;
  Memory memory_;
  int64_t capacity_ = 0;
};

template <class N>
using DeviceArray = GrowingArray<N, allocate_device, cudaFree>;
template <class N>
using PinnedArray = GrowingArray<N, allocate_pinned, cudaFreeHost>;  // that the device copies to and from by itself

// Numbers on the host and the same on the device.
template <class N>
class Mirrored {
 public:
  void grow(int64_t count) {
    host_.grow(count);
    device_.grow(count);
  }
  N* host() const { return host_.data(); }
  N* device() const { return device_.data(); }
  void send(int64_t count, const Stream& stream) const {
    copy(device(), host(), count, cudaMemcpyHostToDevice, stream);
  }
  void fetch(int64_t count, const Stream& stream) const {
    copy(host(), device(), count, cudaMemcpyDeviceToHost, stream);
  }

 private:
  static void copy(N* to, const N* from, int64_t count, cudaMemcpyKind kind, const Stream& stream) {
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(N), kind, stream.get()), "copy numbers");
  }

  PinnedArray<N> host_;
  DeviceArray<N> device_;
};

}  // namespace twolayer::cuda
