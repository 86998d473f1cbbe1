// Engines with the interface of engine.cpp's and two differences. The dict has "device" too, the index of the device
// where parameters, states and rows must be (order, lr and losses are NumPy arrays), and may have "path": "auto", or
// "graph" for runs in several launches a step even where one cluster could do it all. Classes in y are in range or
// ignore_index, which the caller has checked.
#include "bindings/cuda_engine.h"

#include <optional>

#include "bindings/cuda_device.h"
#include "bindings/python_engine.h"
#include "cuda/engine.h"

namespace twolayer {
namespace {

template <class T>
class CudaBackend;

// The rows to train or evaluate on, checked.
template <class T>
class CudaRows {
 public:
  CudaRows(py::handle x, py::handle y, py::handle row_weight, py::handle class_weight, double scale, double shift,
           const EngineConfig& config, const CudaBackend<T>& backend)
      : x_(dense(x), "x", kCudaDevice), y_(y, "y", kCudaDevice) {
    const DenseInputs inputs = dense_inputs(x_, config.in);
    const Targets<T> targets(y_, inputs.rows, config.out, cuda::loss_takes_classes(config.loss));
    count_ = inputs.rows;
    data.x = inputs.data, data.x_stride = inputs.stride, data.storage = inputs.storage;
    data.scale = scale, data.shift = shift;
    data.classes = targets.classes, data.values = targets.values, data.value_stride = targets.value_stride;
    if (!row_weight.is_none())
      data.row_weight =
          row_weight_.emplace(row_weight, "sample_weight", kCudaDevice).template read_contiguous<T>({count_});
    if (!class_weight.is_none())
      data.class_weight =
          class_weight_.emplace(class_weight, "class_weight", kCudaDevice).template read_contiguous<T>({config.out});
    backend.check_place(x_);
    backend.check_place(y_);
    if (row_weight_) backend.check_place(*row_weight_);
    if (class_weight_) backend.check_place(*class_weight_);
  }
  int64_t count() const { return count_; }

  cuda::Examples<T> data{};

 private:
  static py::handle dense(py::handle x) {
    if (py::isinstance<py::tuple>(x))
      throw py::type_error("x must be a dense tensor on a CUDA device; got a CSR matrix, which trains on the CPU only");
    return x;
  }

  TensorView x_, y_;
  std::optional<TensorView> row_weight_, class_weight_;
  int64_t count_;
};

template <class T>
class CudaBackend {
 public:
  using Rows = CudaRows<T>;
  static constexpr int32_t kDeviceType = kCudaDevice;

  CudaBackend(const EngineConfig& config, const py::dict& dict)
      : device_(dict["device"].cast<int>()), engine_(config, device_, may_cluster(dict)) {}

  void check_place(const TensorView& view) const {
    if (kDeviceType != dlpack::kCpu && view.device_index() != device_)
      throw py::value_error(view.name() + " must be on CUDA device " + std::to_string(device_) + "; got " +
                            std::to_string(view.device_index()));
  }
  void enter() { after_ = current_stream(device_); }

  void load(const LinearLayout<const T>& parameters) {
    without_gil([&] { engine_.load(parameters, after_); });
  }
  void store(const LinearLayout<T>& parameters) {
    without_gil([&] { engine_.store(parameters, after_); });
  }
  bool keeps_state(int state) const { return engine_.keeps_state(state); }
  void load_state(int state, const LinearLayout<const T>& values) {
    without_gil([&] { engine_.load_state(state, values, after_); });
  }
  void store_state(int state, const LinearLayout<T>& values) {
    without_gil([&] { engine_.store_state(state, values, after_); });
  }
  int64_t steps() const { return engine_.steps(); }
  void set_steps(int64_t steps) { engine_.set_steps(steps); }
  RunResult run(const Rows& rows, const Stretch& stretch, Poll poll) {
    return engine_.run(rows.data, stretch, poll, after_);
  }
  Evaluation evaluate(const Rows& rows, const Order& order, Poll poll) {
    return engine_.evaluate(rows.data, order, poll, after_);
  }
  const std::string& path() const { return engine_.path(); }

 private:
  // A call that waits for the device.
  template <class F>
  void without_gil(F&& f) {
    enter();
    py::gil_scoped_release unlocked;
    f();
  }

  static bool may_cluster(const py::dict& dict) {
    const std::string path = dict.contains("path") ? dict["path"].cast<std::string>() : "auto";
    if (path != "auto" && path != "graph") throw py::value_error("path must be 'auto' or 'graph'; got '" + path + "'");
    return path == "auto";
  }

  int device_;
  cuda::Engine<T> engine_;
  void* after_ = nullptr;  // torch's current stream
};

template <class T>
void bind(py::module_& m, const char* name, const KnownNames& known) {
  using E = PyEngine<T, CudaBackend>;
  bind_engine_class<T, CudaBackend>(m, name, known)
      .def_property_readonly(
          "path", [](const E& engine) { return engine.backend().path(); },
          "How the last run was done: 'cluster', all steps in few launches, or 'graph'; '' before the first.");
}

}  // namespace

void bind_cuda_engine(py::module_& m) {
  const KnownNames known{cuda::activation_names(), cuda::loss_names(), cuda::optimizer_names()};
  bind<float>(m, "EngineFloat32", known);
  bind<double>(m, "EngineFloat64", known);
}

}  // namespace twolayer
