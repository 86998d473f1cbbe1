// What the training engines' Python faces share: engine.cpp's for the CPU, cuda_engine.cpp's for a CUDA device.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/checks.h"
#include "bindings/tensor_view.h"
#include "training.h"

namespace twolayer {

constexpr const char* kNames[] = {"w1", "b1", "w2", "b2"};

// The four parameters as Python passes them: (w1, b1, w2, b2), None where the net has none or where it is not wanted.
template <class T>
class Parameters {
 public:
  // Where `backend` has its own.
  template <class Backend>
  Parameters(const py::tuple& arrays, const EngineConfig& config, const Backend& backend) : config_(config) {
    if (arrays.size() != kParameters) throw py::value_error("parameters must be a tuple (w1, b1, w2, b2)");
    for (int i = 0; i < kParameters; ++i) {
      if (arrays[i].is_none()) continue;
      if (!config.present[i]) throw py::value_error(std::string(kNames[i]) + " must be None: the net has no such bias");
      backend.check_place(views_[i].emplace(arrays[i], kNames[i], Backend::kDeviceType));
    }
  }

  // Of all parameters that the net has, but those left out.
  LinearLayout<const T> read_all(const std::array<bool, kParameters>& left_out) const {
    for (int i = 0; i < kParameters; ++i)
      if (config_.present[i] && !left_out[i] && !views_[i])
        throw py::value_error(std::string(kNames[i]) + " is missing");
    return map<const T>([](const TensorView& view, auto shape) { return view.read_contiguous<T>(shape); });
  }
  LinearLayout<T> write() const {
    return map<T>([](const TensorView& view, auto shape) { return view.write<T>(shape); });
  }

 private:
  template <class U, class F>
  LinearLayout<U> map(F&& pointer) const {
    using Shape = std::initializer_list<int64_t>;
    const auto at = [&](int i, Shape shape) -> U* { return views_[i] ? pointer(*views_[i], shape) : nullptr; };
    return {at(kW1, {config_.hidden, config_.in}), at(kB1, {config_.hidden}), at(kW2, {config_.out, config_.hidden}),
            at(kB2, {config_.out})};
  }

  const EngineConfig& config_;
  std::optional<TensorView> views_[kParameters];
};

// Lets signal handlers and a progress callback run while the engine works without the GIL; keeps what they raise.
class Watch {
 public:
  explicit Watch(const py::object& on_progress) : on_progress_(on_progress) {}

  Poll poll() {
    return {[](void* context, int64_t steps_done) { return static_cast<Watch*>(context)->stop(steps_done); }, this};
  }
  void raise() {
    if (error_) throw *error_;
  }

 private:
  bool stop(int64_t steps_done) {
    if (error_) return true;  // the step under way is long; what was raised stands
    py::gil_scoped_acquire locked;
    try {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (!on_progress_.is_none()) on_progress_(steps_done);
    } catch (py::error_already_set& error) {
      error_.emplace(error);
    }
    return error_.has_value();
  }

  const py::object& on_progress_;
  std::optional<py::error_already_set> error_;
};

template <class V>
V get(const py::dict& config, const char* name) {
  return config[name].cast<V>();
}

inline SkipZeros skip_zeros(const std::string& name) {
  if (name == "auto") return SkipZeros::kByDensity;
  if (name == "always") return SkipZeros::kAlways;
  if (name == "never") return SkipZeros::kNever;
  throw py::value_error("skip_zeros must be 'auto', 'always' or 'never'; got '" + name + "'");
}

// The ids that a library knows are positions in these.
struct KnownNames {
  std::vector<std::string> activations, losses, optimizers;
};

inline EngineConfig engine_config(const py::dict& c, const KnownNames& known) {
  EngineConfig config{};
  config.in = get<int64_t>(c, "in_features");
  config.hidden = get<int64_t>(c, "hidden_features");
  config.out = get<int64_t>(c, "out_features");
  config.activation = get<int>(c, "activation");
  config.loss = get<int>(c, "loss");
  config.optimizer = get<int>(c, "optimizer");
  OptimizerOptions& o = config.options;
  o.momentum = get<double>(c, "momentum");
  o.dampening = get<double>(c, "dampening");
  o.weight_decay = get<double>(c, "weight_decay");
  o.nesterov = get<bool>(c, "nesterov");
  std::tie(o.beta1, o.beta2) = get<std::pair<double, double>>(c, "betas");
  o.eps = get<double>(c, "eps");
  o.amsgrad = get<bool>(c, "amsgrad");
  o.eps_hat = get<bool>(c, "eps_hat");
  o.alpha = get<double>(c, "alpha");
  o.centered = get<bool>(c, "centered");
  o.lr_decay = get<double>(c, "lr_decay");
  o.initial_accumulator = get<double>(c, "initial_accumulator_value");
  config.loss_options = {get<double>(c, "label_smoothing"), get<double>(c, "loss_beta"),
                         get<int64_t>(c, "ignore_index")};
  config.gradient = {get<double>(c, "l1"), get<double>(c, "l2"), get<double>(c, "clip_norm"),
                     get<double>(c, "clip_value")};
  config.penalty_per_row = get<bool>(c, "penalty_per_row");
  config.dropout = get<double>(c, "dropout");
  config.dropout_key = get<uint64_t>(c, "seed");
  config.bfloat16_compute = get<bool>(c, "bfloat16_compute");
  config.skip_zeros = skip_zeros(get<std::string>(c, "skip_zeros"));
  config.present = get<std::array<bool, kParameters>>(c, "present");
  config.frozen = get<std::array<bool, kParameters>>(c, "frozen");
  config.threads = get<int>(c, "threads");
  check_at_least_1("in_features", config.in);
  check_at_least_1("hidden_features", config.hidden);
  check_at_least_1("out_features", config.out);
  check_at_least_1("threads", config.threads);
  check_id("activation", config.activation, known.activations);
  check_id("loss", config.loss, known.losses);
  check_id("optimizer", config.optimizer, known.optimizers);
  return config;
}

// Dense inputs (rows, in), whatever they hold.
struct DenseInputs {
  const void* data;
  int64_t rows, stride;  // the latter in bytes
  Storage storage;
};

inline DenseInputs dense_inputs(const TensorView& x, int64_t in) {
  const auto of = [&]<class TIn>(const TIn*, Storage storage) -> DenseInputs {
    const void* const data = x.read<TIn>({-1, in});
    if (in > 1 && x.stride(1) != 1) throw py::value_error("x must have contiguous rows");
    return {data, x.size(0), x.stride(0) * static_cast<int64_t>(sizeof(TIn)), storage};
  };
  switch (x.dtype()) {
    case DType::kFloat32:
      return of(static_cast<const float*>(nullptr), Storage::kFloat32);
    case DType::kFloat64:
      return of(static_cast<const double*>(nullptr), Storage::kFloat64);
    case DType::kBFloat16:
      return of(static_cast<const bfloat16*>(nullptr), Storage::kBFloat16);
    case DType::kUInt8:
      return of(static_cast<const uint8_t*>(nullptr), Storage::kUInt8);
    default:
      throw py::type_error("x must be float32, float64, bfloat16 or uint8; got another dtype");
  }
}

// The targets of rows: int64 classes (rows,), or values (rows, out), whose first stride may be 0, in numbers.
template <class T>
struct Targets {
  const int64_t* classes = nullptr;
  const T* values = nullptr;
  int64_t value_stride = 0;

  Targets(const TensorView& y, int64_t rows, int64_t out, bool loss_takes_classes) {
    if (y.dtype() == DType::kInt64) {
      if (!loss_takes_classes) throw py::type_error("y must hold values for this loss; got int64 classes");
      classes = y.read_contiguous<int64_t>({rows});
      return;
    }
    values = y.read<T>({rows, out});
    value_stride = y.stride(0);
    if (out > 1 && y.stride(1) != 1) throw py::value_error("y must have contiguous rows");
  }
};

// An engine as Python sees it. Backend<T> is a device's:
//   kDeviceType, check_place(view)   where parameters must be
//   Rows(x, y, …), with count()      checked rows to train or evaluate on
//   load, store, …                   the engine's
//   enter()                          called under the GIL before run and evaluate, which are called without it
template <class T, template <class> class Backend>
class PyEngine {
 public:
  using Rows = typename Backend<T>::Rows;

  PyEngine(const py::dict& dict, const KnownNames& known)
      : config_(engine_config(dict, known)), backend_(config_, dict) {}

  void load(const py::tuple& parameters) {
    const Parameters<T> checked(parameters, config_, backend_);
    backend_.load(checked.read_all({}));
  }
  void store(const py::tuple& parameters) {
    const Parameters<T> checked(parameters, config_, backend_);
    backend_.store(checked.write());
  }
  bool keeps_state(int state) const { return backend_.keeps_state(checked(state)); }
  void load_state(int state, const py::tuple& values) {
    kept(state);
    const Parameters<T> checked(of_trained(values), config_, backend_);
    backend_.load_state(state, checked.read_all(config_.frozen));
  }
  void store_state(int state, const py::tuple& values) {
    kept(state);
    const Parameters<T> checked(of_trained(values), config_, backend_);
    backend_.store_state(state, checked.write());
  }
  int64_t steps() const { return backend_.steps(); }
  void set_steps(int64_t steps) { backend_.set_steps(steps); }
  const Backend<T>& backend() const { return backend_; }

  // Trains on batches first_step, first_step + 1 … of an epoch, one for each entry of lr (steps,); losses (steps,)
  // receives each one's loss. Returns whether it ended before a batch whose loss is not finite. What a signal handler
  // or on_progress(steps_done) raises is raised here, after the step under way is finished; steps() tells how far it
  // came.
  bool run(py::handle x, py::handle y, py::handle row_weight, py::handle class_weight, double scale, double shift,
           py::handle order_, int64_t batch_size, int64_t first_step, py::handle lr_, py::handle losses_,
           bool stop_if_not_finite, const py::object& on_progress) {
    const Rows rows(x, y, row_weight, class_weight, scale, shift, config_, backend_);
    const TensorView lr(lr_, "lr"), losses(losses_, "losses");
    std::optional<TensorView> order;
    Stretch stretch{batch_size,        checked_order(order_, order, rows.count()), first_step,
                    lr.size(0),        lr.read_contiguous<double>({-1}),           losses.write<double>({lr.size(0)}),
                    stop_if_not_finite};
    check_at_least_1("batch_size", batch_size);
    const int64_t batches = stretch.order.rows / batch_size + (stretch.order.rows % batch_size != 0);
    if (first_step < 0 || first_step > batches - stretch.steps)
      throw py::value_error("lr must have no more entries than there are batches from first_step on");
    Watch watch(on_progress);
    bool not_finite;
    without_gil([&] { not_finite = backend_.run(rows, stretch, watch.poll()).not_finite; });
    watch.raise();
    return not_finite;
  }

  // Returns (sum of the row losses, what it is to be divided by, rows whose largest output is their class).
  py::tuple evaluate(py::handle x, py::handle y, py::handle row_weight, py::handle class_weight, double scale,
                     double shift, py::handle order_, const py::object& on_progress) {
    const Rows rows(x, y, row_weight, class_weight, scale, shift, config_, backend_);
    std::optional<TensorView> order_view;
    const Order order = checked_order(order_, order_view, rows.count());
    if (order.rows == 0) throw py::value_error("x must have at least one row; got none");
    Watch watch(on_progress);
    Evaluation found;
    without_gil([&] { found = backend_.evaluate(rows, order, watch.poll()); });
    watch.raise();
    return py::make_tuple(found.loss_sum, found.divisor, found.hits);
  }

 private:
  template <class F>
  void without_gil(F&& f) {
    backend_.enter();
    py::gil_scoped_release unlocked;
    f();
  }
  static int checked(int state) {
    if (state < 0 || state >= Trained<T>::kStates)
      throw py::value_error("state out of range: " + std::to_string(state));
    return state;
  }
  void kept(int state) const {
    if (!keeps_state(state)) throw py::value_error("this optimiser keeps no state " + std::to_string(state));
  }
  const py::tuple& of_trained(const py::tuple& states) const {
    for (size_t i = 0; i < states.size() && i < kParameters; ++i)
      if (config_.frozen[i] && !states[i].is_none())
        throw py::value_error(std::string("the state of ") + kNames[i] + " must be None: it is frozen and has none");
    return states;
  }
  static Order checked_order(py::handle order, std::optional<TensorView>& view, int64_t rows) {
    if (order.is_none()) return {rows, nullptr};
    view.emplace(order, "order");
    const int64_t* row = view->read_contiguous<int64_t>({-1});
    for (int64_t i = 0; i < view->size(0); ++i)
      if (row[i] < 0 || row[i] >= rows)
        throw py::value_error("order must hold rows in [0, " + std::to_string(rows) + "); entry " + std::to_string(i) +
                              " is " + std::to_string(row[i]));
    return {view->size(0), row};
  }

  const EngineConfig config_;
  Backend<T> backend_;
};

template <class T, template <class> class Backend>
py::class_<PyEngine<T, Backend>> bind_engine_class(py::module_& m, const char* name, const KnownNames& known) {
  using E = PyEngine<T, Backend>;
  return py::class_<E>(m, name, py::module_local())  // an emulated module may stand beside the real one

      .def(py::init([known](const py::dict& config) { return std::make_unique<E>(config, known); }))
      .def("load", &E::load)
      .def("store", &E::store)
      .def("keeps_state", &E::keeps_state)
      .def("load_state", &E::load_state)
      .def("store_state", &E::store_state)
      .def_property("steps", &E::steps, &E::set_steps)
      .def("run", &E::run, py::arg("x"), py::arg("y"), py::arg("row_weight"), py::arg("class_weight"), py::arg("scale"),
           py::arg("shift"), py::arg("order"), py::arg("batch_size"), py::arg("first_step"), py::arg("lr"),
           py::arg("losses"), py::arg("stop_if_not_finite"), py::arg("on_progress"))
      .def("evaluate", &E::evaluate, py::arg("x"), py::arg("y"), py::arg("row_weight"), py::arg("class_weight"),
           py::arg("scale"), py::arg("shift"), py::arg("order"), py::arg("on_progress") = py::none());
}

}  // namespace twolayer
