// Which devices the module _cuda takes tensors on, and torch's streams there.
#pragma once
#include "bindings/tensor_view.h"

namespace twolayer {

// With TWOLAYER_EMULATED it takes tensors on the CPU, for the kernels compiled as C++ that tests run.
#ifdef TWOLAYER_EMULATED
constexpr int32_t kCudaDevice = dlpack::kCpu;
#else
constexpr int32_t kCudaDevice = dlpack::kCuda;
#endif

// torch's current stream on that device, for tensors of this class.
inline void* current_stream(PyTypeObject* tensor_class, int32_t index) {
  if (kCudaDevice == dlpack::kCpu) return nullptr;
  const dlpack::ExchangeApi* api = torch_exchange_api(tensor_class);
  if (!api || !api->current_stream) throw py::type_error("this torch tells no current stream through DLPack");
  void* stream = nullptr;
  if (api->current_stream(kCudaDevice, index, &stream) != 0) throw py::error_already_set();
  return stream;
}

inline void* current_stream(int32_t index) {
  if (kCudaDevice == dlpack::kCpu) return nullptr;
  const py::object tensor_class = py::module_::import("torch").attr("Tensor");
  return current_stream(reinterpret_cast<PyTypeObject*>(tensor_class.ptr()), index);
}

}  // namespace twolayer
