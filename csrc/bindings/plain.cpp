// The short way for calls on plain tensors: one native function checks, allocates and computes. Whatever is unusual is
// left alone, and the caller goes the careful way, where errors are raised.
#include "bindings/plain.h"

#include "bindings/plain_tensor.h"
#include "cpu/dispatch.h"

namespace twolayer {
namespace {

// Whether a pass of a net of this size is left to torch's own products, with our passes over the hidden layer between
// them: where those took less time on one or on two threads (AVX-512 Xeon, MKL). bfloat16 is theirs sooner where the
// processor multiplies it, which our kernels of these two passes do not.
bool bfloat16_by_blas(int64_t work, int64_t bytes, int64_t least) {
  return bytes == 2 && cpu::current_isa().pairs && work >= least;
}

// Products with many outputs too, from 30M multiply-adds of float32 on.
bool many_outputs_by_blas(int64_t work, int64_t out, int64_t bytes) {
  return out > 64 && work * bytes >= 30'000'000 * 4;
}

// From 20M multiply-adds of float32 on, unless the weights stay in a core's second cache.
bool forward_by_blas(int64_t batch, int64_t in, int64_t hidden, int64_t out, int64_t bytes) {
  const int64_t weights = hidden * (in + out) * bytes, work = batch * hidden * (in + out);
  return bfloat16_by_blas(work, bytes, 2'000'000) || many_outputs_by_blas(work, out, bytes) ||
         (work * bytes >= 20'000'000 * 4 && weights >= 1 << 20);
}

// From 40M of them on.
bool backward_by_blas(int64_t batch, int64_t in, int64_t hidden, int64_t out, int64_t bytes) {
  const int64_t work = batch * hidden * (in + out);
  return bfloat16_by_blas(work, bytes, 6'000'000) || many_outputs_by_blas(work, out, bytes) ||
         work * bytes >= 40'000'000 * 4;
}

// And, within a pass that is left to them, whether so are the products between the hidden layer and the output. Few
// outputs make tiles that torch's products are slow at, and a kernel of ours does the passes over that layer on the
// way.
bool outputs_by_blas(int64_t batch, int64_t hidden, int64_t out, int64_t bytes) {
  return bytes == 2 || out > 64 || batch * hidden * out * bytes >= 8'000'000 * 4;
}

// Calls f with a null pointer of the storage type; returns None for a type without kernels.
template <class F>
py::object with_storage_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(static_cast<float*>(nullptr));
    case DType::kFloat64:
      return f(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<bfloat16*>(nullptr));
    default:
      return py::none();
  }
}

// y; or (y, saved, and the activation's output where `saved` is not that) if a tensor requires a gradient while these
// are `recorded`. None where the call is not plain; a bool, whether a tensor does, where torch's products are to be
// used.
py::object plain_forward(py::handle x_, py::handle w1_, py::handle b1_, py::handle w2_, py::handle b2_, int activation,
                         int threads, bool recorded) {
  const PlainTensor x(x_.ptr()), w1(w1_.ptr()), w2(w2_.ptr());
  if (!x.is_plain || !w1.is_plain || !w2.is_plain) return py::none();
  if (x.view.ndim != 2 || w1.view.ndim != 2 || w2.view.ndim != 2) return py::none();
  const DType dtype = x.dtype();
  const int64_t batch = x.view.shape[0], in = x.view.shape[1], hidden = w1.view.shape[0], out = w2.view.shape[0];
  const OptionalPlain b1(b1_.ptr()), b2(b2_.ptr());
  if (w1.dtype() != dtype || w2.dtype() != dtype || w1.view.shape[1] != in || w2.view.shape[1] != hidden ||
      !b1.fits(dtype, {hidden}) || !b2.fits(dtype, {out}))
    return py::none();
  return with_storage_type(dtype, [&]<class T>(T*) -> py::object {
    const bool save = recorded && (requires_grad(w1_) || requires_grad(w2_) || requires_grad(b1_) ||
                                   requires_grad(b2_) || requires_grad(x_));
    if (forward_by_blas(batch, in, hidden, out, sizeof(T))) return py::bool_(save);
    NewTensor<T> y(x_.ptr(), batch, out);
    ForwardParams<T> p{};
    p.batch = batch, p.in = in, p.hidden = hidden, p.out = out;
    p.x = x.data<T>(), p.w1 = w1.data<T>(), p.b1 = b1.data<T>(), p.w2 = w2.data<T>(), p.b2 = b2.data<T>();
    p.y = y.data;
    std::optional<NewTensor<T>> saved;
    std::optional<NewTensor<T>> h;
    if (save) {
      p.saved = saved.emplace(x_.ptr(), batch, hidden).data;
      if (sizeof(T) != 2 && cpu::activation_saves_input(activation)) p.h = h.emplace(x_.ptr(), batch, hidden).data;
    }
    p.activation = activation;
    p.threads = threads;
    const auto& kernels = cpu::net_kernels<T>(cpu::current_isa());
    {
      py::gil_scoped_release unlocked;
      kernels.forward(p);
    }
    if (!save) return y.object;
    return py::make_tuple(y.object, saved->object, h ? h->object : py::none());
  });
}

// What autograd.Function.backward returns: the gradients of (x, w1, b1, w2, b2, and two arguments more), None where
// `needs` is off. None alone where the call is not plain; true where torch's products are to be used.
py::object plain_backward(py::handle grad_y_, py::handle x_, py::handle w1_, py::handle w2_, py::handle saved_,
                          py::handle h_, int activation, py::tuple needs, int threads) {
  const PlainTensor grad_y(grad_y_.ptr()), x(x_.ptr()), w1(w1_.ptr()), w2(w2_.ptr()), saved(saved_.ptr());
  const OptionalPlain h(h_.ptr());
  if (!grad_y.is_plain || !x.is_plain || !w1.is_plain || !w2.is_plain || !saved.is_plain) return py::none();
  if (x.view.ndim != 2 || w1.view.ndim != 2 || w2.view.ndim != 2) return py::none();
  const DType dtype = x.dtype();
  const int64_t batch = x.view.shape[0], in = x.view.shape[1], hidden = w1.view.shape[0], out = w2.view.shape[0];
  if (grad_y.dtype() != dtype || w1.dtype() != dtype || w2.dtype() != dtype || saved.dtype() != dtype ||
      !grad_y.has_shape({batch, out}) || !w1.has_shape({hidden, in}) || !w2.has_shape({out, hidden}) ||
      !saved.has_shape({batch, hidden}) || !h.fits(dtype, {batch, hidden}))
    return py::none();
  return with_storage_type(dtype, [&]<class T>(T*) -> py::object {
    if (backward_by_blas(batch, in, hidden, out, sizeof(T))) return py::bool_(true);
    BackwardParams<T> p{};
    p.batch = batch, p.in = in, p.hidden = hidden, p.out = out;
    p.grad_y = grad_y.data<T>(), p.x = x.data<T>(), p.w1 = w1.data<T>(), p.w2 = w2.data<T>();
    p.saved = saved.data<T>();
    p.h = h.data<T>();
    const py::tuple gradients = new_gradients(x_.ptr(), needs, p);
    p.activation = activation;
    p.threads = threads;
    const auto& kernels = cpu::net_kernels<T>(cpu::current_isa());
    {
      py::gil_scoped_release unlocked;
      kernels.backward(p);
    }
    return gradients;
  });
}

}  // namespace

void bind_plain(py::module_& m) {
  m.def("plain_forward", &plain_forward);
  m.def("plain_backward", &plain_backward);
  m.def("forward_by_blas", &forward_by_blas, py::arg("batch"), py::arg("in"), py::arg("hidden"), py::arg("out"),
        py::arg("bytes"));
  m.def("backward_by_blas", &backward_by_blas, py::arg("batch"), py::arg("in"), py::arg("hidden"), py::arg("out"),
        py::arg("bytes"));
  m.def("outputs_by_blas", &outputs_by_blas, py::arg("batch"), py::arg("hidden"), py::arg("out"), py::arg("bytes"));
}

}  // namespace twolayer
