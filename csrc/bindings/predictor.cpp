#include "bindings/predictor.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <array>
#include <functional>
#include <optional>

#include "bindings/checks.h"
#include "bindings/tensor_view.h"
#include "cpu/dispatch.h"
#include "cpu/predictor.h"

namespace twolayer {
namespace {

template <class T>
cpu::Predictor<T> make(py::handle w1_, py::handle b1_, py::handle w2_, py::handle b2_, int activation, int threads) {
  check_id("activation", activation, cpu::activation_names());
  check_at_least_1("threads", threads);
  const TensorView w1(w1_, "w1"), w2(w2_, "w2");
  std::optional<TensorView> b1, b2;
  cpu::NetWeights<T> weights{};
  weights.activation = activation;
  weights.w1 = w1.read_contiguous<T>({-1, -1});
  weights.hidden = w1.size(0), weights.in = w1.size(1);
  weights.w2 = w2.read_contiguous<T>({-1, weights.hidden});
  weights.out = w2.size(0);
  if (!b1_.is_none()) weights.b1 = b1.emplace(b1_, "b1").read_contiguous<T>({weights.hidden});
  if (!b2_.is_none()) weights.b2 = b2.emplace(b2_, "b2").read_contiguous<T>({weights.out});
  return cpu::Predictor<T>(weights, threads);
}

// The rows of an array of T, (in,) or (rows, in), where they can be read as they lie. Straight from the array: through
// the buffer protocol a single row would take a tenth longer.
template <class T>
struct Rows {
  bool readable = false, is_one = false;
  int64_t count = 1, stride = 0;
  const T* data = nullptr;

  Rows(py::handle x, int64_t in) {
    if (!py::isinstance<py::array_t<T>>(x)) return;
    const auto array = py::reinterpret_borrow<py::array>(x);
    constexpr auto size = static_cast<py::ssize_t>(sizeof(T));
    const py::ssize_t ndim = array.ndim();
    if (ndim < 1 || ndim > 2 || array.shape(ndim - 1) != in) return;
    is_one = ndim == 1;
    if (!is_one) count = array.shape(0);
    data = static_cast<const T*>(array.data());
    const py::ssize_t bytes = is_one ? 0 : array.strides(0);
    stride = bytes / size;
    const bool contiguous = in <= 1 || array.strides(ndim - 1) == size;
    const bool aligned = reinterpret_cast<uintptr_t>(data) % size == 0 && bytes % size == 0;
    readable = count == 0 || in == 0 || (contiguous && aligned);
  }

  bool overlaps(const T* y, int64_t numbers, int64_t in) const {
    const int64_t last = (count - 1) * stride;
    const T *begin = data + std::min<int64_t>(last, 0), *end = data + std::max<int64_t>(last, 0) + in;
    return count > 0 && std::less<>()(begin, y + numbers) && std::less<>()(y, end);
  }
};

// Returns the outputs, in `out` unless that is None; or None where x must first be made an array that can be read.
template <class T>
py::object call(const cpu::Predictor<T>& predictor, py::handle x, py::object out) {
  const Rows<T> rows(x, predictor.in());
  if (!rows.readable) return py::none();
  std::optional<TensorView> view;
  T* y;
  if (out.is_none()) {
    py::array_t<T> made = rows.is_one ? py::array_t<T>(predictor.out())
                                      : py::array_t<T>(std::array<py::ssize_t, 2>{rows.count, predictor.out()});
    y = made.mutable_data();
    out = std::move(made);
  } else {
    view.emplace(out, "out");
    y = rows.is_one ? view->write<T>({predictor.out()}) : view->write<T>({rows.count, predictor.out()});
    if (rows.overlaps(y, rows.count * predictor.out(), predictor.in()))
      throw py::value_error("out must not share memory with x");
  }
  if (predictor.takes_long(rows.count)) {
    py::gil_scoped_release unlocked;
    predictor.run(rows.count, rows.data, rows.stride, y);
  } else {
    predictor.run(rows.count, rows.data, rows.stride, y);
  }
  return out;
}

template <class T>
void bind(py::module_& m, const char* name) {
  py::class_<cpu::Predictor<T>>(m, name)
      .def(py::init(&make<T>), py::arg("w1"), py::arg("b1"), py::arg("w2"), py::arg("b2"), py::arg("activation"),
           py::arg("threads"))
      .def("__call__", &call<T>, py::arg("x"), py::arg("out"));
}

}  // namespace

void bind_predictor(py::module_& m) {
  bind<float>(m, "PredictorFloat32");
  bind<double>(m, "PredictorFloat64");
}

}  // namespace twolayer
