#include "bindings/engine.h"

#include <optional>

#include "bindings/python_engine.h"
#include "cpu/dispatch.h"
#include "cpu/engine.h"
#include "cpu/permutation.h"

namespace twolayer {
namespace {

template <class T>
class CpuBackend;

// The rows to train or evaluate on, checked. x is an array (rows, in), or (values, columns, offsets) of a CSR matrix; y
// holds int64 classes (rows,) or values (rows, out), whose first stride may be 0; both weights may be None.
template <class T>
class CpuRows {
 public:
  CpuRows(py::handle x, py::handle y, py::handle row_weight, py::handle class_weight, double scale, double shift,
          const EngineConfig& config, const CpuBackend<T>&)
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

  int64_t count() const { return data.rows; }

  cpu::Dataset<T> data{};

 private:
  void take_dense(py::handle x, const EngineConfig& config) {
    const DenseInputs dense = dense_inputs(views_[0].emplace(x, "x"), config.in);
    constexpr Storage kOwn = __is_same(T, float) ? Storage::kFloat32 : Storage::kFloat64;
    data.x = dense.data, data.rows = dense.rows, data.x_stride = dense.stride;
    data.gather.storage = dense.storage;
    data.gather.needed = dense.storage != kOwn || data.gather.scale != 1 || data.gather.shift != 0;
  }

  void take_sparse(const py::tuple& csr, const EngineConfig& config) {
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

  void take_targets(const EngineConfig& config) {
    const Targets<T> targets(y_, data.rows, config.out, cpu::loss_takes_classes(config.loss));
    data.values = targets.values, data.value_stride = targets.value_stride;
    data.classes = targets.classes;
    for (int64_t i = 0; data.classes && i < data.rows; ++i)
      if ((data.classes[i] < 0 || data.classes[i] >= config.out) && data.classes[i] != config.loss_options.ignore_index)
        throw py::value_error("y must hold classes in [0, " + std::to_string(config.out) + "); row " +
                              std::to_string(i) + " holds " + std::to_string(data.classes[i]));
  }

  TensorView y_;
  std::optional<TensorView> views_[3], row_weight_, class_weight_;
};

template <class T>
class CpuBackend {
 public:
  using Rows = CpuRows<T>;
  static constexpr int32_t kDeviceType = dlpack::kCpu;

  CpuBackend(const EngineConfig& config, const py::dict&) : engine_(config) {}

  void check_place(const TensorView&) const {}
  void enter() const {}

  void load(const LinearLayout<const T>& parameters) { engine_.load(parameters); }
  void store(const LinearLayout<T>& parameters) const { engine_.store(parameters); }
  bool keeps_state(int state) const { return engine_.keeps_state(state); }
  void load_state(int state, const LinearLayout<const T>& values) { engine_.load_state(state, values); }
  void store_state(int state, const LinearLayout<T>& values) const { engine_.store_state(state, values); }
  int64_t steps() const { return engine_.steps(); }
  void set_steps(int64_t steps) { engine_.set_steps(steps); }
  RunResult run(const Rows& rows, const Stretch& stretch, Poll poll) { return engine_.run(rows.data, stretch, poll); }
  Evaluation evaluate(const Rows& rows, const Order& order, Poll poll) {
    return engine_.evaluate(rows.data, order, poll);
  }

 private:
  cpu::Engine<T> engine_;
};

}  // namespace

void bind_engine(py::module_& m) {
  const KnownNames known{cpu::activation_names(), cpu::loss_names(), cpu::optimizer_names()};
  bind_engine_class<float, CpuBackend>(m, "EngineFloat32", known);
  bind_engine_class<double, CpuBackend>(m, "EngineFloat64", known);
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
