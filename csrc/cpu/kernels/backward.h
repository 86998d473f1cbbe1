// The gradients of y = act(x W1ᵀ + b1) W2ᵀ + b2 that are asked for. Included once per ISA.

// c (m, n) = a b in chunks; a (m, k) as Left says, in compute type; b (k, n) and c in storage type.
template <Left kLeft, class C, class TB, class T>
void gradient_product(int threads, int64_t m, int64_t n, int64_t k, const C* a, int64_t lda, const TB* b, T* c) {
  for_chunks(threads, m, n, k, [&](Range rows, Range columns) {
    const Strided<const C> left{kLeft == Left::kTransposed ? a + rows.begin : a + rows.begin * lda, lda};
    write_result<C>(rows.size(), columns.size(), c + rows.begin * n + columns.begin, n, [&](C* out, int64_t stride) {
      multiply<kLeft>(rows.size(), columns.size(), k, left, Strided<const TB>{b + columns.begin, n},
                      Strided<C>{out, stride});
    });
  });
}

// to (k, width) = `columns` columns of (k, ·), whose rows may be a page apart and fall into the same set of a cache.
template <class C, class TB>
void copy_columns(int64_t k, int64_t columns, const TB* from, int64_t ld, C* to, int64_t width) {
  for (int64_t i = 0; i < k; ++i) map<C>(columns, [](auto v) { return v; }, to + i * width, from + i * ld);
}

// The same product for an a that is stored (k, m), with columns of both factors copied: worth it for many of a's.
template <class C, class TB, class T>
void weight_gradient(int threads, int64_t m, int64_t n, int64_t k, const C* a, const TB* b, T* c) {
  constexpr int64_t kWidth = 48;  // whole tiles of every shape
  constexpr int64_t kRows = 256;  // that a copy of b's columns serves
  constexpr int64_t kWorthwhile = 128;
  if (m < kWorthwhile && k <= kDepth) return gradient_product<Left::kTransposed>(threads, m, n, k, a, m, b, c);
  threads = worthwhile_threads(m * n * k, threads);
  Scratch<C> left(ceil_div(m, kPanel) * kPanel * k);  // panels of (k)
  parallel_for(threads, ceil_div(m, kPanel), [&](int64_t panel) {
    const int64_t row = panel * kPanel;
    copy_columns(k, min_of(kPanel, m - row), a + row, m, left.data + row * k, kPanel);
  });
  const int64_t down = ceil_div(m, kRows);
  parallel_for(threads, down * ceil_div(n, kWidth), [&](int64_t chunk) {
    const int64_t row0 = chunk % down * kRows, j = chunk / down * kWidth, columns = min_of(kWidth, n - j);
    const int64_t rows = min_of(kRows, m - row0);
    Scratch<C> unrounded(__is_same(C, T) ? 0 : rows * kWidth);
    Strided<C> sums{unrounded.data, kWidth};
    if constexpr (__is_same(C, T)) sums = {c + row0 * n + j, n};
    alignas(64) C right[kDepth * kWidth];
    int64_t k0 = 0;
    do {
      const int64_t depth = min_of(kDepth, k - k0);
      copy_columns(depth, columns, b + k0 * n + j, n, right, kWidth);
      for (int64_t i = 0; i < rows; i += kPanel)
        multiply<Left::kTransposed>(min_of(kPanel, rows - i), columns, depth,
                                    Strided<const C>{left.data + (row0 + i) * k + k0 * kPanel, kPanel},
                                    Strided<const C>{right, kWidth}, Strided<C>{sums.row(i), sums.stride}, k0 > 0);
      k0 += depth;
    } while (k0 < k);
    if constexpr (!__is_same(C, T))
      for (int64_t i = 0; i < rows; ++i) map<C>(columns, [](auto v) { return v; }, c + (row0 + i) * n + j, sums.row(i));
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
      for_chunks(p.threads, p.batch, p.hidden, 1, [&](Range rows, Range units) {
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          const int64_t at = i * p.hidden + units.begin;
          activate(p.activation, units.size(), p.saved + at, recomputed.data + at, static_cast<T*>(nullptr));
        }
      });
    const auto product = [&](const auto* h) {
      weight_gradient(p.threads, p.out, p.hidden, p.batch, grad_y, h, p.grad_w2);
    };
    recompute ? product(static_cast<const C*>(recomputed.data)) : product(p.h ? p.h : p.saved);
  }
  if (!p.grad_x && !p.grad_w1 && !p.grad_b1 && !p.grad_z) return;

  C* grad_z = nullptr;  // (batch, hidden), the gradient at the activation's input
  if constexpr (__is_same(C, T)) grad_z = p.grad_z;
  Scratch<C> scratch(grad_z ? 0 : p.batch * p.hidden);
  if (!grad_z) grad_z = scratch.data;
  for_chunks(p.threads, p.batch, p.hidden, p.out, [&](Range rows, Range units) {
    C* g = grad_z + rows.begin * p.hidden + units.begin;
    multiply<Left::kPlain>(rows.size(), units.size(), p.out, Strided<const C>{grad_y + rows.begin * p.out, p.out},
                           Strided<const T>{p.w2 + units.begin, p.hidden}, Strided<C>{g, p.hidden});
    for (int64_t i = rows.begin; i < rows.end; ++i, g += p.hidden)
      multiply_by_derivative<C>(p.activation, units.size(), p.saved + i * p.hidden + units.begin, g);
  });
  if (p.grad_b1) sum_rows<C>(p.batch, p.hidden, grad_z, p.hidden, p.grad_b1);
  if (p.grad_w1) weight_gradient(p.threads, p.hidden, p.in, p.batch, grad_z, p.x, p.grad_w1);
  if (p.grad_x) gradient_product<Left::kPlain>(p.threads, p.batch, p.in, p.hidden, grad_z, p.hidden, p.w1, p.grad_x);
}

template <class T>
void derive_all(const DerivativeParams<T>& p) {
  for_elements(p.threads, p.count, [&](int64_t begin, int64_t end) {
    multiply_by_derivative<Compute<T>>(p.activation, end - begin, p.saved + begin, p.grad + begin);
  });
}
