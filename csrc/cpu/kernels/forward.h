// y = act(x W1ᵀ + b1) W2ᵀ + b2. Included once per ISA.

// The number type a storage type is computed in.
template <class T>
struct ComputeOf {
  using type = T;
};
template <>
struct ComputeOf<bfloat16> {
  using type = float;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

// Calls body(row0, row1, column0, column1) over a grid of chunks of an m × n result costing `depth` multiply-adds each.
template <class Body>
void for_chunks(int threads, int64_t m, int64_t n, int64_t depth, Body&& body, int64_t rows = kRowChunk) {
  const int64_t across = ceil_div(n, kColumnChunk), chunks = ceil_div(m, rows) * across;
  parallel_for(worthwhile_threads(m * n * depth, threads), chunks, [&](int64_t chunk) {
    const int64_t i = chunk / across * rows, j = chunk % across * kColumnChunk;
    body(i, min_of(i + rows, m), j, min_of(j + kColumnChunk, n));
  });
}

// Has compute(c, stride) write a rows × columns result: straight into `out` when it is of compute type C, else by way
// of a tile that is then rounded. rows ≤ kRowChunk, columns ≤ kColumnChunk.
template <class C, class T, class F>
TWOLAYER_INLINE void write_result(int64_t rows, int64_t columns, T* out, int64_t stride, F&& compute) {
  if constexpr (__is_same(C, T)) {
    compute(out, stride);
  } else {
    alignas(64) C tile[kRowChunk * kColumnChunk];
    compute(tile, kColumnChunk);
    for (int64_t i = 0; i < rows; ++i)
      map<C>(columns, [](auto v) { return v; }, out + i * stride, tile + i * kColumnChunk);
  }
}

constexpr int64_t kActivationCost = 16;  // in multiply-adds: some tens of instructions a vector

// Calls body(begin, end) over [0, count) in chunks, for passes over the hidden layer.
template <class Body>
void for_elements(int threads, int64_t count, Body&& body) {
  constexpr int64_t kChunk = 1 << 14;
  parallel_for(worthwhile_threads(count * kActivationCost, threads), ceil_div(count, kChunk),
               [&](int64_t chunk) { body(chunk * kChunk, min_of((chunk + 1) * kChunk, count)); });
}

template <class T>
void activate_all(const ActivateParams<T>& p) {
  for_elements(p.threads, p.count, [&](int64_t begin, int64_t end) {
    with_activation(p.activation, [&](auto act) {
      map<Compute<T>>(end - begin, [](auto z) { return decltype(act)::value(z); }, p.out + begin, p.in + begin);
    });
  });
}

// c (m, n) = a (m, k) wᵀ + bias, for w (n, k); n ≤ kColumnChunk.
template <class TA, class T, class C>
TWOLAYER_INLINE void product(bool packs, int64_t m, int64_t n, int64_t k, const TA* a, const T* w, const T* bias, C* c,
                             int64_t ldc) {
  if constexpr (__is_same(TA, C) && __is_same(T, C)) {
    if (packs) return multiply_packed(m, n, k, a, k, w, k, bias, c, ldc);
  }
  multiply_transposed(m, n, k, a, k, w, k, bias, c, ldc);
}

template <class T>
void forward(const ForwardParams<T>& p) {
  using C = Compute<T>;
  constexpr bool kSame = __is_same(C, T);
  // The hidden layer (batch, hidden): in `saved` where that keeps just what the second product reads.
  C* hidden = nullptr;
  if constexpr (kSame) hidden = p.h ? p.h : p.saved && !saves_input(p.activation) ? p.saved : nullptr;
  T* const saved = hidden && !p.h ? nullptr : p.saved;
  Scratch<C> scratch(hidden ? 0 : p.batch * p.hidden);
  if (!hidden) hidden = scratch.data;

  const bool packs1 = kSame && packing_pays<C>(p.batch, p.hidden, p.in);
  const bool packs2 = kSame && packing_pays<C>(p.batch, p.out, p.hidden);
  for_chunks(
      p.threads, p.batch, p.hidden, p.z ? kActivationCost : p.in,
      [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
        C* h = hidden + i0 * p.hidden + j0;
        if (p.z) {
          for (int64_t i = i0; i < i1; ++i, h += p.hidden)
            activate<C>(p.activation, j1 - j0, p.z + i * p.hidden + j0, h, static_cast<T*>(nullptr));
          return;
        }
        product(packs1, i1 - i0, j1 - j0, p.in, p.x + i0 * p.in, p.w1 + j0 * p.in, p.b1 ? p.b1 + j0 : nullptr, h,
                p.hidden);
        for (int64_t i = i0; i < i1; ++i, h += p.hidden)
          activate<C>(p.activation, j1 - j0, h, h, saved ? saved + i * p.hidden + j0 : nullptr);
      },
      packs1 ? kPackedRows : kRowChunk);
  for_chunks(
      p.threads, p.batch, p.out, p.hidden,
      [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
        write_result<C>(i1 - i0, j1 - j0, p.y + i0 * p.out + j0, p.out, [&](C* y, int64_t stride) {
          product(packs2, i1 - i0, j1 - j0, p.hidden, hidden + i0 * p.hidden, p.w2 + j0 * p.hidden,
                  p.b2 ? p.b2 + j0 : nullptr, y, stride);
        });
      },
      packs2 ? kPackedRows : kRowChunk);
}
