// Tensors as the short way of calls takes and makes them: whatever is unusual about one is found in one look.
#pragma once
#include <optional>

#include "bindings/tensor_view.h"
#include "params.h"

namespace twolayer {

// A tensor whose memory holds its values, one after the other: of torch's own classes, dense, contiguous, on such a
// device and not a negated view. `is_plain` is false of any other, and of what is no tensor.
struct PlainTensor {
  dlpack::Tensor view{};
  bool is_plain = false;

  explicit PlainTensor(PyObject* object, int32_t device_type = dlpack::kCpu) {
    const dlpack::ExchangeApi* api = torch_exchange_api(Py_TYPE(object));
    if (!api) return;
    if (api->borrow(object, &view) != 0) {  // no memory of its own, such as a sparse tensor or a wrapper of functorch's
      PyErr_Clear();
      return;
    }
    if (view.device.type != device_type) return;
    int64_t expected = 1;
    for (int axis = view.ndim - 1; axis >= 0; --axis) {
      if (view.shape[axis] != 1 && view.strides[axis] != expected) return;
      expected *= view.shape[axis];
    }
    if (expected == 0 || !view.data) return;  // empty, or zeros that are stored nowhere
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    PyObject* negated = PyObject_CallMethodNoArgs(object, is_neg);
    if (!negated) throw py::error_already_set();
    is_plain = negated == Py_False;
    Py_DECREF(negated);
  }

  bool has_shape(std::initializer_list<int64_t> shape) const {
    if (view.ndim != static_cast<int>(shape.size())) return false;
    int axis = 0;
    for (int64_t size : shape)
      if (view.shape[axis++] != size) return false;
    return true;
  }

  DType dtype() const { return dtype_of_dlpack(view.dtype); }

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(view.data) + view.byte_offset);
  }
};

// One that may be None.
struct OptionalPlain {
  std::optional<PlainTensor> tensor;
  explicit OptionalPlain(PyObject* object, int32_t device_type = dlpack::kCpu) {
    if (object != Py_None) tensor.emplace(object, device_type);
  }
  bool fits(DType dtype, std::initializer_list<int64_t> shape) const {
    return !tensor || (tensor->is_plain && tensor->dtype() == dtype && tensor->has_shape(shape));
  }
  template <class T>
  T* data() const {
    return tensor ? tensor->data<T>() : nullptr;
  }
};

// A new tensor (sizes...) with the dtype of `like`, and its memory. Sizes go as arguments of their own, since torch
// takes half as long to read them as to read a tuple.
template <class T>
struct NewTensor {
  py::object object;
  T* data;

  template <class... Sizes>
  explicit NewTensor(PyObject* like, Sizes... sizes) {
    static PyObject* const name = PyUnicode_InternFromString("new_empty");
    PyObject* arguments[] = {like, PyLong_FromLongLong(sizes)...};
    object =
        py::reinterpret_steal<py::object>(PyObject_VectorcallMethod(name, arguments, 1 + sizeof...(sizes), nullptr));
    for (size_t i = 1; i <= sizeof...(sizes); ++i) Py_DECREF(arguments[i]);
    dlpack::Tensor view;
    if (!object || torch_exchange_api(Py_TYPE(object.ptr()))->borrow(object.ptr(), &view) != 0)
      throw py::error_already_set();
    data = reinterpret_cast<T*>(static_cast<char*>(view.data) + view.byte_offset);
  }
};

// What autograd.Function.backward returns: new gradients of (x, w1, b1, w2, b2, and two arguments more), None where
// `needs` is off. p, whose sizes are set, is given their memory.
template <class T>
py::tuple new_gradients(PyObject* x, const py::tuple& needs, BackwardParams<T>& p) {
  py::tuple gradients(7);
  for (int argument = 0; argument < 7; ++argument)
    PyTuple_SET_ITEM(gradients.ptr(), argument, py::none().release().ptr());
  const auto make = [&](int argument, auto... sizes) -> T* {
    if (PyTuple_GET_ITEM(needs.ptr(), argument) != Py_True) return nullptr;
    NewTensor<T> gradient(x, sizes...);
    Py_DECREF(PyTuple_GET_ITEM(gradients.ptr(), argument));
    PyTuple_SET_ITEM(gradients.ptr(), argument, gradient.object.release().ptr());
    return gradient.data;
  };
  p.grad_x = make(0, p.batch, p.in);
  p.grad_w1 = make(1, p.hidden, p.in);
  p.grad_b1 = make(2, p.hidden);
  p.grad_w2 = make(3, p.out, p.hidden);
  p.grad_b2 = make(4, p.out);
  return gradients;
}

inline bool requires_grad(py::handle object) {
  static PyObject* const name = PyUnicode_InternFromString("requires_grad");
  if (object.is_none()) return false;
  const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), name));
  if (!value) throw py::error_already_set();
  return value.ptr() == Py_True;
}

}  // namespace twolayer
