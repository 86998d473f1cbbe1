// The Python module twolayer._core: checks what it is given, fills parameter structs, lets go of the GIL, calls a
// kernel.
#include <optional>

#include "bindings/checks.h"
#include "bindings/engine.h"
#include "bindings/limits.h"
#include "bindings/plain.h"
#include "bindings/predictor.h"
#include "bindings/tensor_view.h"
#include "cpu/dispatch.h"
#include "cpu/threads.h"

#ifdef __clang__
#define TWOLAYER_COMPILER __VERSION__
#else
#define TWOLAYER_COMPILER "GCC " __VERSION__
#endif

namespace twolayer {
namespace {

// An argument that may be None.
class OptionalView {
 public:
  OptionalView(py::handle object, const char* name) {
    if (!object.is_none()) view_.emplace(object, name);
  }
  template <class T>
  const T* read(std::initializer_list<int64_t> shape) const {
    return view_ ? view_->read_contiguous<T>(shape) : nullptr;
  }
  template <class T>
  T* write(std::initializer_list<int64_t> shape) const {
    return view_ ? view_->write<T>(shape) : nullptr;
  }

 private:
  std::optional<TensorView> view_;
};

// Calls f with a null pointer of the storage type that `view` holds.
template <class F>
void with_storage_type(const TensorView& view, F&& f) {
  switch (view.dtype()) {
    case DType::kFloat32:
      return f(static_cast<float*>(nullptr));
    case DType::kFloat64:
      return f(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<bfloat16*>(nullptr));
    default:
      throw py::type_error("x must be float32, float64 or bfloat16; got another dtype");
  }
}

void forward(py::handle x_, py::handle w1_, py::handle b1_, py::handle w2_, py::handle b2_, py::handle saved_,
             py::handle y_, int activation, int threads, py::handle h_) {
  check_id("activation", activation, cpu::activation_names());
  const TensorView x(x_, "x"), w1(w1_, "w1"), w2(w2_, "w2"), y(y_, "y");
  const OptionalView b1(b1_, "b1"), b2(b2_, "b2"), saved(saved_, "saved"), h(h_, "h");
  with_storage_type(x, [&]<class T>(T*) {
    if (sizeof(T) == 2 && !h_.is_none()) throw py::type_error("h must be None for bfloat16");
    ForwardParams<T> p{};
    p.x = x.read_contiguous<T>({-1, -1});
    p.w1 = w1.read_contiguous<T>({-1, x.size(1)});
    p.w2 = w2.read_contiguous<T>({-1, w1.size(0)});
    p.batch = x.size(0), p.in = x.size(1), p.hidden = w1.size(0), p.out = w2.size(0);
    p.b1 = b1.read<T>({p.hidden});
    p.b2 = b2.read<T>({p.out});
    p.saved = saved.write<T>({p.batch, p.hidden});
    p.h = h.write<T>({p.batch, p.hidden});
    p.y = y.write<T>({p.batch, p.out});
    p.activation = activation;
    p.threads = threads;
    const auto& kernels = cpu::net_kernels<T>(cpu::current_isa());
    py::gil_scoped_release unlocked;
    kernels.forward(p);
  });
}

// y = act(z) w2ᵀ + b2, and act(z) into h, which may be z.
void finish_forward(py::handle z_, py::handle w2_, py::handle b2_, py::handle h_, py::handle y_, int activation,
                    int threads) {
  check_id("activation", activation, cpu::activation_names());
  const TensorView z(z_, "z"), w2(w2_, "w2"), h(h_, "h"), y(y_, "y");
  const OptionalView b2(b2_, "b2");
  with_storage_type(z, [&]<class T>(T*) {
    if (sizeof(T) == 2) throw py::type_error("z must be float32 or float64; got bfloat16");
    ForwardParams<T> p{};
    p.z = z.read_contiguous<T>({-1, -1});
    p.w2 = w2.read_contiguous<T>({-1, z.size(1)});
    p.batch = z.size(0), p.hidden = z.size(1), p.out = w2.size(0);
    p.b2 = b2.read<T>({p.out});
    p.h = h.write<T>({p.batch, p.hidden});
    p.y = y.write<T>({p.batch, p.out});
    p.activation = activation;
    p.threads = threads;
    const auto& kernels = cpu::net_kernels<T>(cpu::current_isa());
    py::gil_scoped_release unlocked;
    kernels.forward(p);
  });
}

void backward(py::handle grad_y_, py::handle x_, py::handle w1_, py::handle w2_, py::handle saved_, py::handle grad_x_,
              py::handle grad_w1_, py::handle grad_b1_, py::handle grad_w2_, py::handle grad_b2_, int activation,
              int threads, py::handle h_, py::handle grad_z_) {
  check_id("activation", activation, cpu::activation_names());
  const TensorView grad_y(grad_y_, "grad_y"), x(x_, "x"), w1(w1_, "w1"), w2(w2_, "w2"), saved(saved_, "saved");
  const OptionalView grad_x(grad_x_, "grad_x"), grad_w1(grad_w1_, "grad_w1"), grad_b1(grad_b1_, "grad_b1"),
      grad_w2(grad_w2_, "grad_w2"), grad_b2(grad_b2_, "grad_b2"), grad_z(grad_z_, "grad_z"), h(h_, "h");
  with_storage_type(x, [&]<class T>(T*) {
    if (sizeof(T) == 2 && !grad_z_.is_none()) throw py::type_error("grad_z must be None for bfloat16");
    BackwardParams<T> p{};
    p.x = x.read_contiguous<T>({-1, -1});
    p.w1 = w1.read_contiguous<T>({-1, x.size(1)});
    p.w2 = w2.read_contiguous<T>({-1, w1.size(0)});
    p.batch = x.size(0), p.in = x.size(1), p.hidden = w1.size(0), p.out = w2.size(0);
    p.grad_y = grad_y.read_contiguous<T>({p.batch, p.out});
    p.saved = saved.read_contiguous<T>({p.batch, p.hidden});
    p.grad_x = grad_x.write<T>({p.batch, p.in});
    p.grad_w1 = grad_w1.write<T>({p.hidden, p.in});
    p.grad_b1 = grad_b1.write<T>({p.hidden});
    p.grad_w2 = grad_w2.write<T>({p.out, p.hidden});
    p.grad_b2 = grad_b2.write<T>({p.out});
    p.h = h.read<T>({p.batch, p.hidden});
    p.grad_z = grad_z.write<T>({p.batch, p.hidden});
    p.activation = activation;
    p.threads = threads;
    const auto& kernels = cpu::net_kernels<T>(cpu::current_isa());
    py::gil_scoped_release unlocked;
    kernels.backward(p);
  });
}

void activate(py::handle in_, py::handle out_, int activation, int threads) {
  check_id("activation", activation, cpu::activation_names());
  const TensorView in(in_, "in"), out(out_, "out");
  with_storage_type(in, [&]<class T>(T*) {
    ActivateParams<T> p{};
    p.in = in.read_contiguous<T>({-1, -1});
    p.out = out.write<T>({in.size(0), in.size(1)});
    p.count = in.size(0) * in.size(1), p.activation = activation, p.threads = threads;
    const auto& kernels = cpu::net_kernels<T>(cpu::current_isa());
    py::gil_scoped_release unlocked;
    kernels.activate(p);
  });
}

void multiply_by_derivative(py::handle saved_, py::handle grad_, int activation, int threads) {
  check_id("activation", activation, cpu::activation_names());
  const TensorView saved(saved_, "saved"), grad(grad_, "grad");
  with_storage_type(saved, [&]<class T>(T*) {
    DerivativeParams<T> p{};
    p.saved = saved.read_contiguous<T>({-1, -1});
    p.grad = grad.write<T>({saved.size(0), saved.size(1)});
    p.count = saved.size(0) * saved.size(1), p.activation = activation, p.threads = threads;
    const auto& kernels = cpu::net_kernels<T>(cpu::current_isa());
    py::gil_scoped_release unlocked;
    kernels.derive(p);
  });
}

py::list names(const std::vector<const cpu::Isa*>& isas) {
  py::list found;
  for (const cpu::Isa* isa : isas) found.append(isa->name);
  return found;
}

py::list as_list(const std::vector<std::string>& strings) {
  py::list list;
  for (const std::string& s : strings) list.append(s);
  return list;
}

}  // namespace
}  // namespace twolayer

PYBIND11_MODULE(_core, m) {
  using namespace twolayer;
  m.doc() = "The native kernels of twolayer. Use it through the twolayer package.";
  m.def("forward", &forward, py::arg("x"), py::arg("w1"), py::arg("b1"), py::arg("w2"), py::arg("b2"), py::arg("saved"),
        py::arg("y"), py::arg("activation"), py::arg("threads"), py::arg("h") = py::none());
  m.def("finish_forward", &finish_forward, py::arg("z"), py::arg("w2"), py::arg("b2"), py::arg("h"), py::arg("y"),
        py::arg("activation"), py::arg("threads"));
  m.def("backward", &backward, py::arg("grad_y"), py::arg("x"), py::arg("w1"), py::arg("w2"), py::arg("saved"),
        py::arg("grad_x"), py::arg("grad_w1"), py::arg("grad_b1"), py::arg("grad_w2"), py::arg("grad_b2"),
        py::arg("activation"), py::arg("threads"), py::arg("h") = py::none(), py::arg("grad_z") = py::none());
  m.def("activate", &activate, py::arg("in"), py::arg("out"), py::arg("activation"), py::arg("threads"));
  m.def("multiply_by_derivative", &multiply_by_derivative, py::arg("saved"), py::arg("grad"), py::arg("activation"),
        py::arg("threads"));
  m.def(
      "borrow_threads",
      [](uintptr_t team, uintptr_t thread_number) {
        const bool both = team && thread_number;
        cpu::borrow_threads(reinterpret_cast<cpu::OpenMPTeam>(both ? team : 0),
                            reinterpret_cast<cpu::OpenMPThreadNumber>(both ? thread_number : 0));
      },
      py::arg("team"), py::arg("thread_number"));
  m.def("isa", [] { return cpu::current_isa().name; });
  m.def("isas_available", [] { return names(cpu::available_isas()); });
  m.def("isas_compiled", [] { return names(cpu::compiled_isas()); });
  m.def("activations", [] { return as_list(cpu::activation_names()); });
  m.def("losses", [] { return as_list(cpu::loss_names()); });
  m.def("optimizers", [] { return as_list(cpu::optimizer_names()); });
  m.def("compiler", [] { return TWOLAYER_COMPILER; });
  bind_plain(m);
  bind_engine(m);
  bind_limits(m);
  bind_predictor(m);
}
