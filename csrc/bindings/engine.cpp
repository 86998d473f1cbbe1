#include "bindings/engine.h"

#include <optional>
#include <vector>

#include "bindings/checks.h"
#include "bindings/tensor_view.h"
#include "cpu/dispatch.h"
#include "cpu/engine.h"
#include "cpu/permutation.h"

namespace twolayer {
namespace {

constexpr const char* kNames[] = {"w1", "b1", "w2", "b2"};

// The four parameters as Python passes them: (w1, b1, w2, b2), None where the net has none or where it is not wanted.
template <class T>
class Parameters {
 public:
  Parameters(const py::tuple& arrays, const cpu::EngineConfig& config) : config_(config) {
    if (arrays.size() != cpu::kParameters) throw py::value_error("parameters must be a tuple (w1, b1, w2, b2)");
    for (int i = 0; i < cpu::kParameters; ++i) {
      if (arrays[i].is_none()) continue;
      if (!config.present[i]) throw py::value_error(std::string(kNames[i]) + " must be None: the net has no such bias");
      views_[i].emplace(arrays[i], kNames[i]);
    }
  }

  // Of all parameters that the net has, but those left out.
  cpu::LinearLayout<const T> read_all(const std::array<bool, cpu::kParameters>& left_out) const {
    for (int i = 0; i < cpu::kParameters; ++i)
      if (config_.present[i] && !left_out[i] && !views_[i])
        throw py::value_error(std::string(kNames[i]) + " is missing");
    return map<const T>([](const TensorView& view, auto shape) { return view.read_contiguous<T>(shape); });
  }
  cpu::LinearLayout<T> write() const {
    return map<T>([](const TensorView& view, auto shape) { return view.write<T>(shape); });
  }

 private:
  template <class U, class F>
  cpu::LinearLayout<U> map(F&& pointer) const {
    using Shape = std::initializer_list<int64_t>;
    const auto at = [&](int i, Shape shape) -> U* { return views_[i] ? pointer(*views_[i], shape) : nullptr; };
    return {at(cpu::kW1, {config_.hidden, config_.in}), at(cpu::kB1, {config_.hidden}),
            at(cpu::kW2, {config_.out, config_.hidden}), at(cpu::kB2, {config_.out})};
  }

  const cpu::EngineConfig& config_;
  std::optional<TensorView> views_[cpu::kParameters];
};

// The rows to train or evaluate on, checked. x is an array (rows, in), or (values, columns, offsets) of a CSR matrix; y
// holds int64 classes (rows,) or values (rows, out), whose first stride may be 0; both weights may be None.
template <class T>
class Rows {
 public:
  Rows(py::handle x, py::handle y, py::handle row_weight, py::handle class_weight, double scale, double shift,
       const cpu::EngineConfig& config)
      : y_(y, "y") {
    data.gather.scale = scale, data.gather.shift = shift;
    if (py::isinstance<py::tuple>(x))
      take_sparse(py::reinterpret_borrow<py::tuple>(x), config);
    else
      take_dense(x, config);
    take_targets(config);
    if (!row_weight.is_none())
      data.row_weight = row_weight_.emplace(row_weight, "sample_weight").template read_contiguous<T>({data.rows});
    if (!class_weight.is_none())
      data.class_weight = class_weight_.emplace(class_weight, "class_weight").template read_contiguous<T>({config.out});
  }

  cpu::Dataset<T> data{};

 private:
  void take_dense(py::handle x, const cpu::EngineConfig& config) {
    const TensorView& view = views_[0].emplace(x, "x");
    switch (view.dtype()) {
      case DType::kFloat32:
        return take_dense<float>(view, Storage::kFloat32, config);
      case DType::kFloat64:
        return take_dense<double>(view, Storage::kFloat64, config);
      case DType::kBFloat16:
        return take_dense<bfloat16>(view, Storage::kBFloat16, config);
      case DType::kUInt8:
        return take_dense<uint8_t>(view, Storage::kUInt8, config);
      default:
        throw py::type_error("x must be float32, float64, bfloat16 or uint8; got another dtype");
    }
  }

  template <class TIn>
  void take_dense(const TensorView& view, Storage storage, const cpu::EngineConfig& config) {
    data.x = view.read<TIn>({-1, config.in});
    data.rows = view.size(0);
    data.x_stride = view.stride(0) * static_cast<int64_t>(sizeof(TIn));
    data.gather.storage = storage;
    data.gather.needed = !__is_same(TIn, T) || data.gather.scale != 1 || data.gather.shift != 0;
    if (config.in > 1 && view.stride(1) != 1) throw py::value_error("x must have contiguous rows");
  }

  void take_sparse(const py::tuple& csr, const cpu::EngineConfig& config) {
    if (csr.size() != 3) throw py::value_error("a sparse x must be a tuple (values, columns, offsets)");
    const TensorView &values = views_[0].emplace(csr[0], "x.data"), &columns = views_[1].emplace(csr[1], "x.indices"),
                     &offsets = views_[2].emplace(csr[2], "x.indptr");
    data.x = values.read_contiguous<T>({-1});
    data.offsets = offsets.read_contiguous<int64_t>({-1});
    data.rows = offsets.size(0) - 1;
    const int64_t count = values.size(0);
    data.gather.needed = data.gather.sparse = true;
    data.gather.storage = __is_same(T, float) ? Storage::kFloat32 : Storage::kFloat64;
    data.gather.wide_columns = columns.dtype() == DType::kInt64;
    if (data.rows < 0 || data.offsets[0] != 0 || data.offsets[data.rows] != count)
      throw py::value_error("x.indptr must run from 0 to the number of values");
    for (int64_t row = 0; row < data.rows; ++row)
      if (data.offsets[row] > data.offsets[row + 1]) throw py::value_error("x.indptr must not descend");
    if (data.gather.wide_columns)
      data.columns = checked_columns(columns.read_contiguous<int64_t>({count}), count, config.in);
    else
      data.columns = checked_columns(columns.read_contiguous<int32_t>({count}), count, config.in);
  }

  template <class Column>
  static const Column* checked_columns(const Column* columns, int64_t count, int64_t in) {
    for (int64_t i = 0; i < count; ++i)
      if (columns[i] < 0 || columns[i] >= in)
        throw py::value_error("x.indices must hold columns in [0, " + std::to_string(in) + "); got " +
                              std::to_string(columns[i]));
    return columns;
  }

  void take_targets(const cpu::EngineConfig& config) {
    if (y_.dtype() == DType::kInt64) {
      if (!cpu::loss_takes_classes(config.loss))
        throw py::type_error("y must hold values for this loss; got int64 classes");
      data.classes = y_.read_contiguous<int64_t>({data.rows});
      for (int64_t i = 0; i < data.rows; ++i)
        if ((data.classes[i] < 0 || data.classes[i] >= config.out) &&
            data.classes[i] != config.loss_options.ignore_index)
          throw py::value_error("y must hold classes in [0, " + std::to_string(config.out) + "); row " +
                                std::to_string(i) + " holds " + std::to_string(data.classes[i]));
    } else {
      data.values = y_.read<T>({data.rows, config.out});
      data.value_stride = y_.stride(0);
      if (config.out > 1 && y_.stride(1) != 1) throw py::value_error("y must have contiguous rows");
    }
  }

  TensorView y_;
  std::optional<TensorView> views_[3], row_weight_, class_weight_;
};

// Lets signal handlers and a progress callback run while the engine works without the GIL; keeps what they raise.
class Watch {
 public:
  explicit Watch(const py::object& on_progress) : on_progress_(on_progress) {}

  cpu::Poll poll() {
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

template <class T>
class PyEngine {
 public:
  explicit PyEngine(const cpu::EngineConfig& config) : config_(config), engine_(config) {}

  void load(const py::tuple& parameters) { engine_.load(Parameters<T>(parameters, config_).read_all({})); }
  void store(const py::tuple& parameters) const { engine_.store(Parameters<T>(parameters, config_).write()); }
  bool keeps_state(int state) const { return engine_.keeps_state(checked(state)); }
  void load_state(int state, const py::tuple& values) {
    engine_.load_state(kept(state), Parameters<T>(of_trained(values), config_).read_all(config_.frozen));
  }
  void store_state(int state, const py::tuple& values) const {
    engine_.store_state(kept(state), Parameters<T>(of_trained(values), config_).write());
  }
  int64_t steps() const { return engine_.steps(); }
  void set_steps(int64_t steps) { engine_.set_steps(steps); }

  // Trains on batches first_step, first_step + 1 … of an epoch, one for each entry of lr (steps,); losses (steps,)
  // receives each one's loss. Returns whether it ended before a batch whose loss is not finite. What a signal handler
  // or on_progress(steps_done) raises is raised here, after the step under way is finished; steps() tells how far it
  // came.
  bool run(py::handle x, py::handle y, py::handle row_weight, py::handle class_weight, double scale, double shift,
           py::handle order_, int64_t batch_size, int64_t first_step, py::handle lr_, py::handle losses_,
           bool stop_if_not_finite, const py::object& on_progress) {
    const Rows<T> rows(x, y, row_weight, class_weight, scale, shift, config_);
    const TensorView lr(lr_, "lr"), losses(losses_, "losses");
    std::optional<TensorView> order;
    cpu::Stretch stretch{batch_size,
                         checked_order(order_, order, rows.data.rows),
                         first_step,
                         lr.size(0),
                         lr.read_contiguous<double>({-1}),
                         losses.write<double>({lr.size(0)}),
                         stop_if_not_finite};
    check_at_least_1("batch_size", batch_size);
    const int64_t batches = stretch.order.rows / batch_size + (stretch.order.rows % batch_size != 0);
    if (first_step < 0 || first_step > batches - stretch.steps)
      throw py::value_error("lr must have no more entries than there are batches from first_step on");
    Watch watch(on_progress);
    bool not_finite;
    {
      py::gil_scoped_release unlocked;
      not_finite = engine_.run(rows.data, stretch, watch.poll()).not_finite;
    }
    watch.raise();
    return not_finite;
  }

  // Returns (sum of the row losses, what it is to be divided by, rows whose largest output is their class).
  py::tuple evaluate(py::handle x, py::handle y, py::handle row_weight, py::handle class_weight, double scale,
                     double shift, py::handle order_, const py::object& on_progress) {
    const Rows<T> rows(x, y, row_weight, class_weight, scale, shift, config_);
    std::optional<TensorView> order_view;
    const cpu::Order order = checked_order(order_, order_view, rows.data.rows);
    if (order.rows == 0) throw py::value_error("x must have at least one row; got none");
    Watch watch(on_progress);
    cpu::Evaluation found;
    {
      py::gil_scoped_release unlocked;
      found = engine_.evaluate(rows.data, order, watch.poll());
    }
    watch.raise();
    return py::make_tuple(found.loss_sum, found.divisor, found.hits);
  }

 private:
  static int checked(int state) {
    if (state < 0 || state >= Trained<T>::kStates)
      throw py::value_error("state out of range: " + std::to_string(state));
    return state;
  }
  int kept(int state) const {
    if (!keeps_state(state)) throw py::value_error("this optimiser keeps no state " + std::to_string(state));
    return state;
  }
  const py::tuple& of_trained(const py::tuple& states) const {
    for (size_t i = 0; i < states.size() && i < cpu::kParameters; ++i)
      if (config_.frozen[i] && !states[i].is_none())
        throw py::value_error(std::string("the state of ") + kNames[i] + " must be None: it is frozen and has none");
    return states;
  }
  static cpu::Order checked_order(py::handle order, std::optional<TensorView>& view, int64_t rows) {
    if (order.is_none()) return {rows, nullptr};
    view.emplace(order, "order");
    const int64_t* row = view->read_contiguous<int64_t>({-1});
    for (int64_t i = 0; i < view->size(0); ++i)
      if (row[i] < 0 || row[i] >= rows)
        throw py::value_error("order must hold rows in [0, " + std::to_string(rows) + "); entry " + std::to_string(i) +
                              " is " + std::to_string(row[i]));
    return {view->size(0), row};
  }

  const cpu::EngineConfig config_;
  cpu::Engine<T> engine_;
};

template <class V>
V get(const py::dict& config, const char* name) {
  return config[name].cast<V>();
}

cpu::SkipZeros skip_zeros(const std::string& name) {
  if (name == "auto") return cpu::SkipZeros::kByDensity;
  if (name == "always") return cpu::SkipZeros::kAlways;
  if (name == "never") return cpu::SkipZeros::kNever;
  throw py::value_error("skip_zeros must be 'auto', 'always' or 'never'; got '" + name + "'");
}

cpu::EngineConfig engine_config(const py::dict& c) {
  cpu::EngineConfig config{};
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
  config.present = get<std::array<bool, cpu::kParameters>>(c, "present");
  config.frozen = get<std::array<bool, cpu::kParameters>>(c, "frozen");
  config.threads = get<int>(c, "threads");
  check_at_least_1("in_features", config.in);
  check_at_least_1("hidden_features", config.hidden);
  check_at_least_1("out_features", config.out);
  check_at_least_1("threads", config.threads);
  check_id("activation", config.activation, cpu::activation_names());
  check_id("loss", config.loss, cpu::loss_names());
  check_id("optimizer", config.optimizer, cpu::optimizer_names());
  return config;
}

template <class T>
void bind(py::module_& m, const char* name) {
  using E = PyEngine<T>;
  py::class_<E>(m, name)
      .def(py::init([](const py::dict& config) { return std::make_unique<E>(engine_config(config)); }))
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

}  // namespace

void bind_engine(py::module_& m) {
  bind<float>(m, "EngineFloat32");
  bind<double>(m, "EngineFloat64");
  m.def(
      "permutation",
      [](py::handle order, uint64_t seed, uint64_t epoch) {
        const TensorView view(order, "order");
        int64_t* rows = view.write<int64_t>({-1});
        py::gil_scoped_release unlocked;
        cpu::permutation(view.size(0), seed, epoch, rows);
      },
      py::arg("order"), py::arg("seed"), py::arg("epoch"));
}

}  // namespace twolayer
