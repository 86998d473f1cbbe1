// The Python module twolayer._cuda, the twin of _core: checks tensors on a CUDA device, fills parameter structs, lets
// go of the GIL, launches kernels on torch's current stream. Whatever memory is needed comes from torch.
#include <map>
#include <stdexcept>

#include "bindings/checks.h"
#include "bindings/cuda_device.h"
#include "bindings/cuda_engine.h"
#include "bindings/plain_tensor.h"
#include "cuda/kernels.h"

namespace twolayer {
namespace {

constexpr int32_t kDevice = kCudaDevice;
constexpr int kLeastCapability = 80;  // what the kernels are written for

const cuda::Device& properties(int32_t index) {
  static std::map<int32_t, cuda::Device> known;  // under the GIL
  auto found = known.find(index);
  if (found == known.end()) found = known.emplace(index, cuda::read_device(index)).first;
  return found->second;
}

bool is_supported(int32_t index) { return properties(index).capability >= kLeastCapability; }

// Where a call runs: the device of `tensor` made current for as long as this lives, and torch's stream there.
class Place {
 public:
  Place(PyObject* tensor, int32_t index, bool tf32) : on_device_(index) {
    launch_.device = properties(index);
    launch_.tf32 = tf32;
    launch_.stream = current_stream(Py_TYPE(tensor), index);
  }

  // Calls `kernels` with the Launch, without the GIL: it may have to wait until the device's queue has room.
  template <class F>
  void run(F&& kernels) const {
    std::string error;
    {
      py::gil_scoped_release unlocked;
      kernels(launch_);
      error = cuda::last_error();
    }
    if (!error.empty()) throw std::runtime_error("twolayer could not launch its CUDA kernels: " + error);
  }

  const cuda::Launch& launch() const { return launch_; }

 private:
  cuda::OnDevice on_device_;
  cuda::Launch launch_;
};

// `bytes` of memory on the device of `like`, a tensor of T; none at all for 0.
template <class T>
class Scratch {
 public:
  Scratch(PyObject* like, int64_t bytes) {
    if (bytes > 0) memory_.emplace(like, (bytes + int64_t{sizeof(T)} - 1) / int64_t{sizeof(T)});
  }
  void* data() const { return memory_ ? memory_->data : nullptr; }

 private:
  std::optional<NewTensor<T>> memory_;
};

// Calls f with a null pointer of the storage type; `otherwise` gives the result for a type without kernels.
template <class F, class G>
auto with_storage_type(DType dtype, F&& f, G&& otherwise) {
  switch (dtype) {
    case DType::kFloat32:
      return f(static_cast<float*>(nullptr));
    case DType::kFloat64:
      return f(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<bfloat16*>(nullptr));
    case DType::kFloat16:
      return f(static_cast<float16*>(nullptr));
    default:
      return otherwise();
  }
}

// ---- The careful way: every argument is checked, and an error says what is wrong with it.

// An argument that may be None and must be on the device of the one before it.
class View {
 public:
  View(py::handle object, const char* name) : object_(object) {
    if (!object.is_none()) view_.emplace(object, name, kDevice);
  }
  template <class T>
  const T* read(std::initializer_list<int64_t> shape) const {
    return view_ ? view_->read_contiguous<T>(shape) : nullptr;
  }
  template <class T>
  T* write(std::initializer_list<int64_t> shape) const {
    return view_ ? view_->write<T>(shape) : nullptr;
  }
  int64_t size(int axis) const { return view_->size(axis); }
  DType dtype() const { return view_->dtype(); }
  PyObject* object() const { return object_.ptr(); }
  int32_t index() const { return view_->device_index(); }

  void check_is_beside(const View& first) const {
    if (view_ && index() != first.index())
      throw py::value_error(view_->name() + " must be on CUDA device " + std::to_string(first.index()) + "; got " +
                            std::to_string(index()));
  }

 private:
  py::handle object_;
  std::optional<TensorView> view_;
};

// The same that may not be None, and decides about device and type of the call.
class FirstView : public View {
 public:
  FirstView(py::handle object, const char* name) : View(object, name), name_(name) {
    if (object.is_none()) throw py::type_error(name_ + " must be a torch.Tensor; got None");
  }

  // Calls f with a null pointer of the storage type, and with where to run.
  template <class F>
  void dispatch(std::initializer_list<const View*> others, bool tf32, F&& f) const {
    PyTypeObject* const class_ = Py_TYPE(object());
    if (!torch_exchange_api(class_)) throw py::type_error(name_ + " must be a torch.Tensor; got " + class_->tp_name);
    for (const View* other : others) other->check_is_beside(*this);
    with_storage_type(
        dtype(), [&]<class T>(T* type) { f(type, Place(object(), index(), tf32)); },
        [&] {
          throw py::type_error(name_ + " must be float32, float64, bfloat16 or float16; got " + name_of(dtype()));
        });
  }

 private:
  std::string name_;
};

void forward(py::handle x_, py::handle w1_, py::handle b1_, py::handle w2_, py::handle b2_, py::handle saved_,
             py::handle y_, int activation, bool tf32) {
  check_id("activation", activation, cuda::activation_names());
  const FirstView x(x_, "x"), w1(w1_, "w1"), w2(w2_, "w2"), y(y_, "y");
  const View b1(b1_, "b1"), b2(b2_, "b2"), saved(saved_, "saved");
  x.dispatch({&w1, &b1, &w2, &b2, &saved, &y}, tf32, [&]<class T>(T*, const Place& place) {
    ForwardParams<T> p{};
    p.x = x.read<T>({-1, -1});
    p.w1 = w1.read<T>({-1, x.size(1)});
    p.w2 = w2.read<T>({-1, w1.size(0)});
    p.batch = x.size(0), p.in = x.size(1), p.hidden = w1.size(0), p.out = w2.size(0);
    p.b1 = b1.read<T>({p.hidden});
    p.b2 = b2.read<T>({p.out});
    p.saved = saved.write<T>({p.batch, p.hidden});
    p.y = y.write<T>({p.batch, p.out});
    p.activation = activation;
    const Scratch<T> scratch(x.object(), cuda::forward_scratch(p, place.launch()));
    place.run([&](const cuda::Launch& launch) { cuda::forward(p, scratch.data(), launch); });
  });
}

void backward(py::handle grad_y_, py::handle x_, py::handle w1_, py::handle w2_, py::handle saved_, py::handle grad_x_,
              py::handle grad_w1_, py::handle grad_b1_, py::handle grad_w2_, py::handle grad_b2_, int activation,
              bool tf32) {
  check_id("activation", activation, cuda::activation_names());
  const FirstView x(x_, "x"), grad_y(grad_y_, "grad_y"), w1(w1_, "w1"), w2(w2_, "w2"), saved(saved_, "saved");
  const View grad_x(grad_x_, "grad_x"), grad_w1(grad_w1_, "grad_w1"), grad_b1(grad_b1_, "grad_b1"),
      grad_w2(grad_w2_, "grad_w2"), grad_b2(grad_b2_, "grad_b2");
  x.dispatch({&grad_y, &w1, &w2, &saved, &grad_x, &grad_w1, &grad_b1, &grad_w2, &grad_b2}, tf32,
             [&]<class T>(T*, const Place& place) {
               BackwardParams<T> p{};
               p.x = x.read<T>({-1, -1});
               p.w1 = w1.read<T>({-1, x.size(1)});
               p.w2 = w2.read<T>({-1, w1.size(0)});
               p.batch = x.size(0), p.in = x.size(1), p.hidden = w1.size(0), p.out = w2.size(0);
               p.grad_y = grad_y.read<T>({p.batch, p.out});
               p.saved = saved.read<T>({p.batch, p.hidden});
               p.grad_x = grad_x.write<T>({p.batch, p.in});
               p.grad_w1 = grad_w1.write<T>({p.hidden, p.in});
               p.grad_b1 = grad_b1.write<T>({p.hidden});
               p.grad_w2 = grad_w2.write<T>({p.out, p.hidden});
               p.grad_b2 = grad_b2.write<T>({p.out});
               p.activation = activation;
               const Scratch<T> scratch(x.object(), cuda::backward_scratch(p, place.launch()));
               place.run([&](const cuda::Launch& launch) { cuda::backward(p, scratch.data(), launch); });
             });
}

void activate(py::handle in_, py::handle out_, int activation) {
  check_id("activation", activation, cuda::activation_names());
  const FirstView in(in_, "in"), out(out_, "out");
  in.dispatch({&out}, false, [&]<class T>(T*, const Place& place) {
    ActivateParams<T> p{};
    p.in = in.read<T>({-1, -1});
    p.out = out.write<T>({in.size(0), in.size(1)});
    p.count = in.size(0) * in.size(1), p.activation = activation;
    place.run([&](const cuda::Launch& launch) { cuda::activate(p, launch); });
  });
}

// h = act(z + b1), and what backward needs of it into `saved`. The three may coincide.
void bias_activate(py::handle z_, py::handle b1_, py::handle saved_, py::handle h_, int activation) {
  check_id("activation", activation, cuda::activation_names());
  const FirstView z(z_, "z"), h(h_, "h");
  const View b1(b1_, "b1"), saved(saved_, "saved");
  z.dispatch({&b1, &saved, &h}, false, [&]<class T>(T*, const Place& place) {
    cuda::BiasActivateParams<T> p{};
    p.z = z.read<T>({-1, -1});
    p.batch = z.size(0), p.hidden = z.size(1);
    p.b1 = b1.read<T>({p.hidden});
    p.saved = saved.write<T>({p.batch, p.hidden});
    p.h = h.write<T>({p.batch, p.hidden});
    p.activation = activation;
    place.run([&](const cuda::Launch& launch) { cuda::bias_activate(p, launch); });
  });
}

// grad *= act'(·) from what forward saved, unless that is None, and the sum over the rows, unless that is None.
void derive_sum(py::handle saved_, py::handle grad_, py::handle sum_, int activation) {
  check_id("activation", activation, cuda::activation_names());
  const FirstView grad(grad_, "grad");
  const View saved(saved_, "saved"), sum(sum_, "sum");
  grad.dispatch({&saved, &sum}, false, [&]<class T>(T*, const Place& place) {
    cuda::DeriveSumParams<T> p{};
    p.grad = grad.write<T>({-1, -1});
    p.batch = grad.size(0), p.hidden = grad.size(1);
    p.saved = saved.read<T>({p.batch, p.hidden});
    p.sum = sum.write<T>({p.hidden});
    p.activation = activation;
    const Scratch<T> scratch(grad.object(), cuda::derive_sum_scratch(p, place.launch()));
    place.run([&](const cuda::Launch& launch) { cuda::derive_sum(p, scratch.data(), launch); });
  });
}

// ---- The short way for calls on plain tensors, as bindings/plain.cpp has it for the CPU.

bool on_one_device(std::initializer_list<const PlainTensor*> tensors) {
  const int32_t index = (*tensors.begin())->view.device.index;
  for (const PlainTensor* tensor : tensors)
    if (tensor->view.device.index != index) return false;
  return is_supported(index);
}

bool fits_beside(const OptionalPlain& bias, const PlainTensor& x, std::initializer_list<int64_t> shape) {
  return bias.fits(x.dtype(), shape) && (!bias.tensor || bias.tensor->view.device.index == x.view.device.index);
}

// y; or (y, saved, None) if a tensor requires a gradient while these are `recorded`. True for a net that is left to
// torch's own ops: its outputs, or the gradients that will be wanted, are faster by cuBLAS. None where the call is not
// plain.
py::object plain_forward(py::handle x_, py::handle w1_, py::handle b1_, py::handle w2_, py::handle b2_, int activation,
                         bool tf32, bool recorded) {
  const PlainTensor x(x_.ptr(), kDevice), w1(w1_.ptr(), kDevice), w2(w2_.ptr(), kDevice);
  if (!x.is_plain || !w1.is_plain || !w2.is_plain) return py::none();
  if (x.view.ndim != 2 || w1.view.ndim != 2 || w2.view.ndim != 2) return py::none();
  const DType dtype = x.dtype();
  const int64_t batch = x.view.shape[0], in = x.view.shape[1], hidden = w1.view.shape[0], out = w2.view.shape[0];
  const OptionalPlain b1(b1_.ptr(), kDevice), b2(b2_.ptr(), kDevice);
  if (w1.dtype() != dtype || w2.dtype() != dtype || w1.view.shape[1] != in || w2.view.shape[1] != hidden ||
      !on_one_device({&x, &w1, &w2}) || !fits_beside(b1, x, {hidden}) || !fits_beside(b2, x, {out}))
    return py::none();
  return with_storage_type(
      dtype,
      [&]<class T>(T*) -> py::object {
        const bool save = recorded && (requires_grad(w1_) || requires_grad(w2_) || requires_grad(b1_) ||
                                       requires_grad(b2_) || requires_grad(x_));
        if (cuda::forward_by_blas(batch, in, hidden, out) || (save && cuda::backward_by_blas(batch, in, hidden, out)))
          return py::bool_(true);
        NewTensor<T> y(x_.ptr(), batch, out);
        ForwardParams<T> p{};
        p.batch = batch, p.in = in, p.hidden = hidden, p.out = out;
        p.x = x.data<T>(), p.w1 = w1.data<T>(), p.b1 = b1.data<T>(), p.w2 = w2.data<T>(), p.b2 = b2.data<T>();
        p.y = y.data;
        std::optional<NewTensor<T>> saved;
        if (save) p.saved = saved.emplace(x_.ptr(), batch, hidden).data;
        p.activation = activation;
        const Place place(x_.ptr(), x.view.device.index, tf32);
        const Scratch<T> scratch(x_.ptr(), cuda::forward_scratch(p, place.launch()));
        place.run([&](const cuda::Launch& launch) { cuda::forward(p, scratch.data(), launch); });
        if (!save) return y.object;
        return py::make_tuple(y.object, saved->object, py::none());
      },
      []() -> py::object { return py::none(); });
}

// What autograd.Function.backward returns: the gradients of (x, w1, b1, w2, b2, and two arguments more), None where
// `needs` is off. True for a net whose products are left to cuBLAS, None alone where the call is not plain.
py::object plain_backward(py::handle grad_y_, py::handle x_, py::handle w1_, py::handle w2_, py::handle saved_,
                          int activation, py::tuple needs, bool tf32) {
  const PlainTensor grad_y(grad_y_.ptr(), kDevice), x(x_.ptr(), kDevice), w1(w1_.ptr(), kDevice),
      w2(w2_.ptr(), kDevice), saved(saved_.ptr(), kDevice);
  if (!grad_y.is_plain || !x.is_plain || !w1.is_plain || !w2.is_plain || !saved.is_plain) return py::none();
  if (x.view.ndim != 2 || w1.view.ndim != 2 || w2.view.ndim != 2) return py::none();
  const DType dtype = x.dtype();
  const int64_t batch = x.view.shape[0], in = x.view.shape[1], hidden = w1.view.shape[0], out = w2.view.shape[0];
  if (grad_y.dtype() != dtype || w1.dtype() != dtype || w2.dtype() != dtype || saved.dtype() != dtype ||
      !grad_y.has_shape({batch, out}) || !w1.has_shape({hidden, in}) || !w2.has_shape({out, hidden}) ||
      !saved.has_shape({batch, hidden}) || !on_one_device({&x, &grad_y, &w1, &w2, &saved}))
    return py::none();
  return with_storage_type(
      dtype,
      [&]<class T>(T*) -> py::object {
        if (cuda::backward_by_blas(batch, in, hidden, out)) return py::bool_(true);
        BackwardParams<T> p{};
        p.batch = batch, p.in = in, p.hidden = hidden, p.out = out;
        p.grad_y = grad_y.data<T>(), p.x = x.data<T>(), p.w1 = w1.data<T>(), p.w2 = w2.data<T>();
        p.saved = saved.data<T>();
        const py::tuple gradients = new_gradients(x_.ptr(), needs, p);
        p.activation = activation;
        const Place place(x_.ptr(), x.view.device.index, tf32);
        const Scratch<T> scratch(x_.ptr(), cuda::backward_scratch(p, place.launch()));
        place.run([&](const cuda::Launch& launch) { cuda::backward(p, scratch.data(), launch); });
        return gradients;
      },
      []() -> py::object { return py::none(); });
}

// ---- What there is to run on.

std::string version_text(int version) {
  if (version == 0) return "none";
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Why nothing can run in this process, or None.
py::object driver_problem() {
  std::string why;
  if (cuda::device_count(&why) > 0) return py::none();
  return py::str(why + " (CUDA of the driver: " + version_text(cuda::driver_version()) +
                 ", of this library: " + version_text(cuda::runtime_version()) + ")");
}

// Why no kernel of ours runs on this device, or None.
py::object device_problem(int32_t index) {
  if (is_supported(index)) return py::none();
  return py::str(
      "the library has no code that this GPU can run; the kernels need compute capability 8.0 or newer, and "
      "TWOLAYER_CUDA_ARCHS must not have left it out when twolayer was built");
}

py::list activations() {
  py::list list;
  for (const std::string& name : cuda::activation_names()) list.append(name);
  return list;
}

}  // namespace
}  // namespace twolayer

PYBIND11_MODULE(_cuda, m) {
  using namespace twolayer;
  m.doc() = "The CUDA kernels of twolayer. Use it through the twolayer package.";
  m.def("forward", &forward, py::arg("x"), py::arg("w1"), py::arg("b1"), py::arg("w2"), py::arg("b2"), py::arg("saved"),
        py::arg("y"), py::arg("activation"), py::arg("tf32"));
  m.def("backward", &backward, py::arg("grad_y"), py::arg("x"), py::arg("w1"), py::arg("w2"), py::arg("saved"),
        py::arg("grad_x"), py::arg("grad_w1"), py::arg("grad_b1"), py::arg("grad_w2"), py::arg("grad_b2"),
        py::arg("activation"), py::arg("tf32"));
  m.def("activate", &activate, py::arg("in"), py::arg("out"), py::arg("activation"));
  m.def("bias_activate", &bias_activate, py::arg("z"), py::arg("b1"), py::arg("saved"), py::arg("h"),
        py::arg("activation"));
  m.def("derive_sum", &derive_sum, py::arg("saved"), py::arg("grad"), py::arg("sum"), py::arg("activation"));
  m.def("plain_forward", &plain_forward);
  m.def("plain_backward", &plain_backward);
  m.def("work_of", &cuda::work_of, py::arg("batch"), py::arg("in"), py::arg("hidden"), py::arg("out"));
  m.def("forward_by_blas", &cuda::forward_by_blas, py::arg("batch"), py::arg("in"), py::arg("hidden"), py::arg("out"));
  m.def("backward_by_blas", &cuda::backward_by_blas, py::arg("batch"), py::arg("in"), py::arg("hidden"),
        py::arg("out"));
  m.def("driver_problem", &driver_problem);
  m.def("device_problem", &device_problem, py::arg("index"));
  m.def("version", [] { return version_text(cuda::runtime_version()); });
  m.def("activations", &activations);
  bind_cuda_engine(m);
}
