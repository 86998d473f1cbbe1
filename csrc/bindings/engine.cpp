#include "bindings/engine.h"

#include <optional>

#include "bindings/checks.h"
#include "bindings/tensor_view.h"
#include "cpu/dispatch.h"
#include "cpu/engine.h"

namespace twolayer {
namespace {

cpu::EngineConfig checked(const cpu::EngineConfig& config) {
  check_at_least_1("in_features", config.in);
  check_at_least_1("hidden_features", config.hidden);
  check_at_least_1("out_features", config.out);
  check_at_least_1("threads", config.threads);
  check_id("activation", config.activation, cpu::activation_names());
  check_id("loss", config.loss, cpu::loss_names());
  check_id("optimizer", config.optimizer, cpu::optimizer_names());
  return config;
}

// The four parameters as Python passes them: (w1, b1, w2, b2), biases None where the net has none.
class Parameters {
 public:
  Parameters(const py::tuple& arrays, const cpu::EngineConfig& config) : config_(config) {
    static constexpr const char* names[] = {"w1", "b1", "w2", "b2"};
    if (arrays.size() != 4) throw py::value_error("parameters must be a tuple (w1, b1, w2, b2)");
    for (int i = 0; i < 4; ++i) {
      const bool wanted = i == 1 ? config.has_b1 : i == 3 ? config.has_b2 : true;
      if (wanted == arrays[i].is_none())
        throw py::value_error(std::string(names[i]) +
                              (wanted ? " is missing" : " must be None: the net has no such bias"));
      if (wanted) views_[i].emplace(arrays[i], names[i]);
    }
  }

  template <class T>
  cpu::LinearLayout<const T> read() const {
    const auto [in, hidden, out] = sizes();
    return {views_[0]->read_contiguous<T>({hidden, in}), views_[1] ? views_[1]->read_contiguous<T>({hidden}) : nullptr,
            views_[2]->read_contiguous<T>({out, hidden}), views_[3] ? views_[3]->read_contiguous<T>({out}) : nullptr};
  }

  template <class T>
  cpu::LinearLayout<T> write() const {
    const auto [in, hidden, out] = sizes();
    return {views_[0]->write<T>({hidden, in}), views_[1] ? views_[1]->write<T>({hidden}) : nullptr,
            views_[2]->write<T>({out, hidden}), views_[3] ? views_[3]->write<T>({out}) : nullptr};
  }

 private:
  std::array<int64_t, 3> sizes() const { return {config_.in, config_.hidden, config_.out}; }

  const cpu::EngineConfig& config_;
  std::optional<TensorView> views_[4];
};

template <class T>
class PyEngine {
 public:
  explicit PyEngine(const cpu::EngineConfig& config) : config_(checked(config)), engine_(config) {}

  void load(const py::tuple& parameters) { engine_.load(Parameters(parameters, config_).read<T>()); }
  void store(const py::tuple& parameters) const { engine_.store(Parameters(parameters, config_).write<T>()); }
  bool keeps_state(int state) const { return engine_.keeps_state(check_state(state)); }
  void load_state(int state, const py::tuple& values, int64_t steps_taken) {
    engine_.load_state(check_kept(state), Parameters(values, config_).read<T>(), steps_taken);
  }
  void store_state(int state, const py::tuple& values) const {
    engine_.store_state(check_kept(state), Parameters(values, config_).write<T>());
  }

  // Trains one epoch on rows of x (rows, in) in the order given; y holds int64 classes (rows,) or values (rows, out),
  // as the loss takes them; the first stride of values may be 0. losses (steps,) receives each batch's loss. Returns
  // the steps done; raises what a signal handler (KeyboardInterrupt) or on_progress(steps_done) raised, after finishing
  // the step under way.
  int64_t run(py::handle x_, py::handle y_, py::handle order_, py::handle losses_, int64_t batch_size,
              const py::object& on_progress) {
    last_steps_ = 0;
    const TensorView x(x_, "x"), y(y_, "y"), losses(losses_, "losses");
    cpu::Dataset<T> data{};
    data.x = x.read<T>({-1, config_.in});
    data.rows = x.size(0);
    data.x_stride = x.stride(0);
    if (config_.in > 1 && x.stride(1) != 1) throw py::value_error("x must have contiguous rows");
    if (cpu::loss_takes_classes(config_.loss)) {
      data.classes = y.read_contiguous<int64_t>({data.rows});
      for (int64_t i = 0; i < data.rows; ++i)
        if (data.classes[i] < 0 || data.classes[i] >= config_.out)
          throw py::value_error("y must hold classes in [0, " + std::to_string(config_.out) + "); row " +
                                std::to_string(i) + " holds " + std::to_string(data.classes[i]));
    } else {
      data.values = y.read<T>({data.rows, config_.out});
      data.value_stride = y.stride(0);
      if (config_.out > 1 && y.stride(1) != 1) throw py::value_error("y must have contiguous rows");
    }
    std::optional<TensorView> order;
    cpu::Epoch epoch{batch_size, nullptr, losses.size(0), losses.write<double>({-1})};
    if (!order_.is_none()) {
      order.emplace(order_, "order");
      epoch.order = order->read_contiguous<int64_t>({data.rows});
      for (int64_t i = 0; i < data.rows; ++i)
        if (epoch.order[i] < 0 || epoch.order[i] >= data.rows)
          throw py::value_error("order must hold rows in [0, " + std::to_string(data.rows) + "); entry " +
                                std::to_string(i) + " is " + std::to_string(epoch.order[i]));
    }
    if (batch_size < 1 || (epoch.steps - 1) * batch_size >= data.rows)
      throw py::value_error("batch_size must be at least 1 and losses no longer than the batches there are");

    struct Watch {
      const py::object& on_progress;
      std::optional<py::error_already_set> error;
    } watch{on_progress, {}};
    const cpu::Poll poll{[](void* context, int64_t steps_done) {
                           auto& watch = *static_cast<Watch*>(context);
                           if (watch.error) return true;  // the step under way is long; what was raised stands
                           py::gil_scoped_acquire locked;
                           try {
                             if (PyErr_CheckSignals() != 0) throw py::error_already_set();
                             if (!watch.on_progress.is_none()) watch.on_progress(steps_done);
                           } catch (py::error_already_set& error) {
                             watch.error.emplace(error);
                           }
                           return watch.error.has_value();
                         },
                         &watch};
    {
      py::gil_scoped_release unlocked;
      last_steps_ = engine_.run(data, epoch, poll);
    }
    if (watch.error) throw *watch.error;
    return last_steps_;
  }

  int64_t last_steps() const { return last_steps_; }

 private:
  static int check_state(int state) {
    if (state < 0 || state >= Trained<T>::kStates)
      throw py::value_error("state out of range: " + std::to_string(state));
    return state;
  }
  int check_kept(int state) const {
    if (!keeps_state(state)) throw py::value_error("this optimiser keeps no state " + std::to_string(state));
    return state;
  }

  const cpu::EngineConfig config_;
  cpu::Engine<T> engine_;
  int64_t last_steps_ = 0;
};

template <class T>
void bind(py::module_& m, const char* name) {
  using E = PyEngine<T>;
  py::class_<E>(m, name)
      .def(py::init([](int64_t in, int64_t hidden, int64_t out, int activation, int loss, int optimizer, double lr,
                       double momentum, double dampening, double weight_decay, bool nesterov, bool has_b1, bool has_b2,
                       int threads) {
             return std::make_unique<E>(cpu::EngineConfig{in,
                                                          hidden,
                                                          out,
                                                          activation,
                                                          loss,
                                                          optimizer,
                                                          {lr, momentum, dampening, weight_decay, nesterov},
                                                          has_b1,
                                                          has_b2,
                                                          threads});
           }),
           py::kw_only(), py::arg("in_features"), py::arg("hidden_features"), py::arg("out_features"),
           py::arg("activation"), py::arg("loss"), py::arg("optimizer"), py::arg("lr"), py::arg("momentum"),
           py::arg("dampening"), py::arg("weight_decay"), py::arg("nesterov"), py::arg("has_b1"), py::arg("has_b2"),
           py::arg("threads"))
      .def("load", &E::load)
      .def("store", &E::store)
      .def("keeps_state", &E::keeps_state)
      .def("load_state", &E::load_state)
      .def("store_state", &E::store_state)
      .def("run", &E::run, py::arg("x"), py::arg("y"), py::arg("order"), py::arg("losses"), py::arg("batch_size"),
           py::arg("on_progress"))
      .def_property_readonly("last_steps", &E::last_steps);
}

}  // namespace

void bind_engine(py::module_& m) {
  bind<float>(m, "EngineFloat32");
  bind<double>(m, "EngineFloat64");
  m.def(
      "permutation",
      [](py::handle order, uint64_t seed, uint64_t epoch) {
        const TensorView view(order, "order");
        cpu::permutation(view.size(0), seed, epoch, view.write<int64_t>({-1}));
      },
      py::arg("order"), py::arg("seed"), py::arg("epoch"));
}

}  // namespace twolayer
