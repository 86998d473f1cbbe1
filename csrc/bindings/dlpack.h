// The part of the DLPack ABI (v1) that tensor_view.h reads: https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once
#include <cstdint>

namespace twolayer::dlpack {

constexpr int32_t kCpu = 1, kCuda = 2;

struct Device {
  int32_t type;
  int32_t index;
};

struct DataType {
  uint8_t code;  // 0: signed, 1: unsigned, 2: IEEE float, 4: bfloat16
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

// What `type(tensor).__dlpack_c_exchange_api__` holds.
struct ExchangeApi {
  uint32_t major, minor;
  ExchangeApi* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*borrow)(void* object,
                Tensor* out);  // fills a view that lives as long as the object; 0, or −1 with an exception
  int (*current_stream)(int32_t device_type, int32_t device_index, void** stream);
};

}  // namespace twolayer::dlpack
