// The gradients of y = act(x W1ᵀ + b1) W2ᵀ + b2 that are asked for. Included once per ISA.

// c (m, n) = a b in chunks; a (m, k) as Left says, in compute type; b (k, n) and c in storage type.
template <Left kLeft, class C, class TB, class T>
void gradient_product(int threads, int64_t m, int64_t n, int64_t k, const C* a, int64_t lda, const TB* b, T* c) {
  for_chunks(threads, m, n, k, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    const Strided<const C> left{kLeft == Left::kTransposed ? a + i0 : a + i0 * lda, lda};
    write_result<C>(i1 - i0, j1 - j0, c + i0 * n + j0, n, [&](C* out, int64_t stride) {
      multiply<kLeft>(i1 - i0, j1 - j0, k, left, Strided<const TB>{b + j0, n}, Strided<C>{out, stride});
    });
  });
}

template <class T>
void backward(const BackwardParams<T>& p) {
  using C = Compute<T>;
  const C* grad_y;  // (batch, out), in compute type
  Scratch<C> converted(__is_same(C, T) ? 0 : p.batch * p.out);
  if constexpr (__is_same(C, T)) {
    grad_y = p.grad_y;
  } else {
    map<C>(p.batch * p.out, [](auto v) { return v; }, converted.data, p.grad_y);
    grad_y = converted.data;
  }

  if (p.grad_b2) sum_rows<C>(p.batch, p.out, grad_y, p.out, p.grad_b2);
  if (p.grad_w2) {
    const bool recompute = saves_input(p.activation) && !p.h;
    Scratch<C> recomputed(recompute ? p.batch * p.hidden : 0);  // (batch, hidden), the activation's output
    if (recompute)
      for_chunks(p.threads, p.batch, p.hidden, 1, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
        for (int64_t i = i0; i < i1; ++i)
          activate(p.activation, j1 - j0, p.saved + i * p.hidden + j0, recomputed.data + i * p.hidden + j0,
                   static_cast<T*>(nullptr));
      });
    const auto product = [&](const auto* h) {
      gradient_product<Left::kTransposed>(p.threads, p.out, p.hidden, p.batch, grad_y, p.out, h, p.grad_w2);
    };
    recompute ? product(static_cast<const C*>(recomputed.data)) : product(p.h ? p.h : p.saved);
  }
  if (!p.grad_x && !p.grad_w1 && !p.grad_b1 && !p.grad_z) return;

  C* grad_z = nullptr;  // (batch, hidden), the gradient at the activation's input
  if constexpr (__is_same(C, T)) grad_z = p.grad_z;
  Scratch<C> scratch(grad_z ? 0 : p.batch * p.hidden);
  if (!grad_z) grad_z = scratch.data;
  for_chunks(p.threads, p.batch, p.hidden, p.out, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    C* g = grad_z + i0 * p.hidden + j0;
    multiply<Left::kPlain>(i1 - i0, j1 - j0, p.out, Strided<const C>{grad_y + i0 * p.out, p.out},
                           Strided<const T>{p.w2 + j0, p.hidden}, Strided<C>{g, p.hidden});
    for (int64_t i = i0; i < i1; ++i, g += p.hidden)
      multiply_by_derivative<C>(p.activation, j1 - j0, p.saved + i * p.hidden + j0, g);
  });
  if (p.grad_b1) sum_rows<C>(p.batch, p.hidden, grad_z, p.hidden, p.grad_b1);
  if (p.grad_w1)
    gradient_product<Left::kTransposed>(p.threads, p.hidden, p.in, p.batch, grad_z, p.hidden, p.x, p.grad_w1);
  if (p.grad_x) gradient_product<Left::kPlain>(p.threads, p.batch, p.in, p.hidden, grad_z, p.hidden, p.w1, p.grad_x);
}

template <class T>
void derive_all(const DerivativeParams<T>& p) {
  for_elements(p.threads, p.count, [&](int64_t begin, int64_t end) {
    multiply_by_derivative<Compute<T>>(p.activation, end - begin, p.saved + begin, p.grad + begin);
  });
}
