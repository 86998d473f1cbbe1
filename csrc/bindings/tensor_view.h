// The one place that turns a torch tensor or a NumPy array into pointer, shape, strides, dtype and device.
#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <initializer_list>
#include <string>
#include <utility>

#include "bindings/dlpack.h"
#include "params.h"

namespace twolayer {

namespace py = pybind11;

enum class DType { kFloat32, kFloat64, kBFloat16, kFloat16, kUInt8, kInt32, kInt64, kOther };

template <class T>
constexpr DType dtype_of = __is_same(T, float)      ? DType::kFloat32
                           : __is_same(T, double)   ? DType::kFloat64
                           : __is_same(T, bfloat16) ? DType::kBFloat16
                           : __is_same(T, float16)  ? DType::kFloat16
                           : __is_same(T, uint8_t)  ? DType::kUInt8
                           : __is_same(T, int32_t)  ? DType::kInt32
                                                    : DType::kInt64;

inline const char* name_of(DType dtype) {
  static constexpr const char* names[] = {"float32", "float64", "bfloat16", "float16",
                                          "uint8",   "int32",   "int64",    "another dtype"};
  return names[static_cast<int>(dtype)];
}

inline std::string shape_text(const int64_t* shape, int ndim) {
  std::string text = "(";
  for (int i = 0; i < ndim; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (ndim == 1 ? ",)" : ")");
}

// The DLPack exchange API of torch's own two tensor classes, null for any other: a subclass may hold no data at all.
inline const dlpack::ExchangeApi* torch_exchange_api(PyTypeObject* type) {
  static std::array<std::pair<PyTypeObject*, const dlpack::ExchangeApi*>, 2> known{};  // Tensor and Parameter
  for (auto [known_type, api] : known)
    if (known_type == type) return api;
  const std::string name = type->tp_name;
  if (name != "Tensor" && name != "torch.Tensor" && name != "Parameter") return nullptr;
  const py::handle handle(reinterpret_cast<PyObject*>(type));
  const auto module = handle.attr("__module__").cast<std::string>();
  if (module != "torch" && module != "torch.nn.parameter") return nullptr;
  if (!py::hasattr(handle, "__dlpack_c_exchange_api__"))
    throw py::type_error("twolayer needs torch 2.10 or newer: this torch.Tensor has no __dlpack_c_exchange_api__");
  const py::object capsule = handle.attr("__dlpack_c_exchange_api__");
  const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!api) throw py::error_already_set();
  while (api && api->major != 1) api = api->previous;
  if (!api || !api->borrow) throw py::type_error("this torch offers no DLPack 1.x exchange API");
  for (auto& slot : known)
    if (!slot.first) {
      slot = {type, api};
      Py_INCREF(type);
      break;
    }
  return api;
}

inline DType dtype_of_dlpack(dlpack::DataType type) {
  const auto [code, bits, lanes] = type;
  if (lanes != 1) return DType::kOther;
  if (code == 2 && bits == 32) return DType::kFloat32;
  if (code == 2 && bits == 64) return DType::kFloat64;
  if (code == 4 && bits == 16) return DType::kBFloat16;
  if (code == 2 && bits == 16) return DType::kFloat16;
  if (code == 1 && bits == 8) return DType::kUInt8;
  if (code == 0 && bits == 32) return DType::kInt32;
  if (code == 0 && bits == 64) return DType::kInt64;
  return DType::kOther;
}

class TensorView {
 public:
  // `device_type` is where its data must be.
  TensorView(py::handle object, const char* name, int32_t device_type = dlpack::kCpu)
      : name_(name), wanted_device_(device_type) {
    if (const auto* api = torch_exchange_api(Py_TYPE(object.ptr())))
      borrow_torch(*api, object);
    else if (PyObject_CheckBuffer(object.ptr()))
      borrow_buffer(object);
    else
      throw py::type_error(name_ + " must be a torch.Tensor or a NumPy array; got " + Py_TYPE(object.ptr())->tp_name);
  }
  ~TensorView() {
    if (buffer_.obj) PyBuffer_Release(&buffer_);
  }
  TensorView(const TensorView&) = delete;
  TensorView& operator=(const TensorView&) = delete;

  DType dtype() const { return dtype_; }
  int ndim() const { return ndim_; }
  int64_t size(int axis) const { return shape_[axis]; }
  int64_t stride(int axis) const { return strides_[axis]; }
  const std::string& name() const { return name_; }
  int32_t device_index() const { return device_.index; }

  // The data, after checking that it is on the device and has this shape (−1: any size) and element type.
  template <class T>
  const T* read(std::initializer_list<int64_t> shape) const {
    check(dtype_of<T>, shape);
    return static_cast<const T*>(data_);
  }

  template <class T>
  const T* read_contiguous(std::initializer_list<int64_t> shape) const {
    check(dtype_of<T>, shape);
    check_contiguous();
    return static_cast<const T*>(data_);
  }

  template <class T>
  T* write(std::initializer_list<int64_t> shape) const {
    check(dtype_of<T>, shape);
    check_contiguous();
    if (read_only_) throw py::value_error(name_ + " must be writable; it is read-only");
    return static_cast<T*>(data_);
  }

 private:
  static constexpr int kMaxDims = 4;

  void borrow_torch(const dlpack::ExchangeApi& api, py::handle object) {
    dlpack::Tensor tensor;
    if (api.borrow(object.ptr(), &tensor) != 0) {  // it is sparse, or on a device that DLPack does not know
      py::error_already_set cause;
      py::raise_from(cause, PyExc_ValueError, where_it_must_be().c_str());
      throw py::error_already_set();
    }
    data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
    device_ = tensor.device;
    set_ndim(tensor.ndim);
    for (int i = 0; i < ndim_; ++i) shape_[i] = tensor.shape[i], strides_[i] = tensor.strides[i];
    dtype_ = dtype_of_dlpack(tensor.dtype);
  }

  void borrow_buffer(py::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_STRIDES | PyBUF_FORMAT) != 0) throw py::error_already_set();
    data_ = buffer_.buf;
    read_only_ = buffer_.readonly;
    set_ndim(buffer_.ndim);
    const std::string format = buffer_.format ? buffer_.format : "B";
    if (format == "f") dtype_ = DType::kFloat32;
    if (format == "d") dtype_ = DType::kFloat64;
    if (format == "B") dtype_ = DType::kUInt8;
    if (format == "i") dtype_ = DType::kInt32;
    if ((format == "l" || format == "q") && buffer_.itemsize == 8) dtype_ = DType::kInt64;
    for (int i = 0; i < ndim_; ++i) {
      shape_[i] = buffer_.shape[i];
      if (buffer_.strides[i] % buffer_.itemsize) dtype_ = DType::kOther;  // elements not aligned to their size
      strides_[i] = buffer_.strides[i] / buffer_.itemsize;
    }
  }

  void set_ndim(int ndim) {
    if (ndim > kMaxDims) throw py::value_error(name_ + " must have at most 4 dimensions; got " + std::to_string(ndim));
    ndim_ = ndim;
  }

  void check(DType dtype, std::initializer_list<int64_t> shape) const {
    if (device_.type != wanted_device_) throw py::value_error(where_it_must_be());
    if (dtype_ != dtype) throw py::type_error(name_ + " must be " + name_of(dtype) + "; got " + name_of(dtype_));
    bool same = ndim_ == static_cast<int>(shape.size());
    int axis = 0;
    for (int64_t size : shape) same = same && (size < 0 || shape_[axis] == size), ++axis;
    if (!same)
      throw py::value_error(name_ + " must have shape " + shape_text(shape.begin(), static_cast<int>(shape.size())) +
                            "; got " + shape_text(shape_.data(), ndim_));
  }

  std::string where_it_must_be() const {
    return name_ + " must be a dense tensor on " + (wanted_device_ == dlpack::kCpu ? "the CPU" : "a CUDA device");
  }

  void check_contiguous() const {
    int64_t expected = 1;
    for (int axis = ndim_ - 1; axis >= 0; --axis) {
      if (shape_[axis] == 0) return;
      if (shape_[axis] != 1 && strides_[axis] != expected) throw py::value_error(name_ + " must be contiguous");
      expected *= shape_[axis];
    }
  }

  std::string name_;
  void* data_ = nullptr;
  int32_t wanted_device_;
  dlpack::Device device_{dlpack::kCpu, 0};
  DType dtype_ = DType::kOther;
  int ndim_ = 0;
  bool read_only_ = false;
  std::array<int64_t, kMaxDims> shape_{}, strides_{};
  Py_buffer buffer_{};
};

}  // namespace twolayer
