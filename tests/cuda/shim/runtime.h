// The part of CUDA's runtime that host code uses: two devices whose streams do everything at once, and graphs that keep
// launches. New memory is NaN.
#pragma once
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "emulation.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorStreamCaptureUnsupported = 900
};

namespace emulation {

constexpr int kDevices = 2;
inline thread_local cudaError_t error = cudaSuccess;
inline thread_local int device = 0;

using Launches = std::vector<std::function<bool()>>;  // false: the device refuses it
struct Stream {
  int device;
  bool captures = false;
  Launches captured;
};
struct Event {
  uint64_t time = 0;  // in turns
  bool asked = true;  // since it was recorded: the first answer is that it is not ready
};

// Runs the launch, or keeps it for a graph. A null stream is the current device's own.
inline void launch(Stream* stream, std::function<bool()> body) {
  if (stream && stream->device != device)
    error = cudaErrorInvalidResourceHandle;
  else if (stream && stream->captures)
    stream->captured.push_back(std::move(body));
  else if (!body())
    error = cudaErrorInvalidConfiguration;
}

// Of a call that a graph cannot keep.
inline cudaError_t at_once(const Stream* stream) {
  return stream && stream->captures ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

}  // namespace emulation

inline cudaError_t cudaGetLastError() { return std::exchange(emulation::error, cudaSuccess); }
inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
  }
  return "another error";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    default:
      return cudaGetErrorName(error);
  }
}

// ---- Devices

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};
struct cudaFuncAttributes {
  int ptxVersion;
};

inline cudaError_t cudaGetDeviceCount(int* count) { return *count = emulation::kDevices, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = emulation::device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulation::kDevices) return emulation::error = cudaErrorInvalidDevice;
  return emulation::device = device, cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)()) {
  return attributes->ptxVersion = emulation::settings.capability, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emulation::Settings& device = emulation::settings;
  const int values[] = {device.multiprocessors, device.shared_bytes, device.capability / 10, device.capability % 10};
  *value = values[attribute];
  return cudaSuccess;
}

// ---- Memory

using cudaStream_t = emulation::Stream*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };

inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  constexpr size_t kAlign = 256;
  *memory = bytes <= emulation::settings.memory ? std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign)
                                                : nullptr;
  if (!*memory) return emulation::error = cudaErrorMemoryAllocation;
  std::memset(*memory, 0xff, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  return (*memory = std::malloc(bytes)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (bytes) std::memcpy(to, from, bytes);
  return emulation::at_once(stream);
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  std::memset(memory, value, bytes);
  return emulation::at_once(stream);
}

// ---- Streams and events

using cudaEvent_t = emulation::Event*;
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDefault = 0;

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = new emulation::Stream{emulation::device, false, {}}, cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return emulation::at_once(stream); }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) {
  return emulation::at_once(stream);
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = new emulation::Event, cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (stream && stream->device != emulation::device) return emulation::error = cudaErrorInvalidResourceHandle;
  event->time = emulation::turns;
  event->asked = false;
  return emulation::at_once(stream);
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  return std::exchange(event->asked, true) ? cudaSuccess : emulation::error = cudaErrorNotReady;
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  *milliseconds = static_cast<float>(static_cast<double>(to->time - from->time) * emulation::kSecondsPerTurn * 1e3);
  return cudaSuccess;
}

// ---- Graphs

using cudaGraph_t = emulation::Launches*;
using cudaGraphExec_t = const emulation::Launches*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return stream->captures = true, cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  stream->captures = false;
  *graph = new emulation::Launches(std::exchange(stream->captured, {}));
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return *executable = new emulation::Launches(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  ++emulation::counts.graphs;
  for (const auto& body : *graph) emulation::launch(stream, body);
  return std::exchange(emulation::error, cudaSuccess);
}
