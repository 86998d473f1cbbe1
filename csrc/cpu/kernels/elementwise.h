// Passes over rows of a matrix: activations and conversions. Included once per ISA, after math/activations.h.

// Calls f(Activation{}) with the struct of that id.
template <class F>
TWOLAYER_INLINE void with_activation(int id, F&& f) {
  switch (id) {
#define TWOLAYER_CASE(number, Name) \
  case number:                      \
    return f(Name{});
    TWOLAYER_ACTIVATIONS(TWOLAYER_CASE)
#undef TWOLAYER_CASE
  }
}

// One stored number in the type it is computed in.
TWOLAYER_INLINE float widen(float x) { return x; }
TWOLAYER_INLINE double widen(double x) { return x; }
TWOLAYER_INLINE float widen(bfloat16 x) { return to_float(x); }

// out[i] = f(in[i]...) for i in [0, n), in vectors of T; the pointers may be of any storage type and may coincide.
template <class T, class F, class TOut, class... TIn>
TWOLAYER_INLINE void map(int64_t n, F&& f, TOut* out, const TIn*... in) {
  constexpr int L = lanes<T>;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(out + i, f(load(in + i)...));
  if (i < n) store_partial(out + i, f(load_partial(in + i, n - i)...), n - i);
}

TWOLAYER_INLINE bool saves_input(int activation) {
  bool result = false;
  with_activation(activation, [&](auto act) { result = decltype(act)::saves_input; });
  return result;
}

// out = activation(in), and what backward will need of it into `saved` when that is not null.
template <class T, class TIn, class TSaved>
void activate(int activation, int64_t n, const TIn* in, T* out, TSaved* saved) {
  const auto copy = [](auto v) { return v; };
  with_activation(activation, [&](auto act) {
    using Act = decltype(act);
    if (saved && Act::saves_input) map<T>(n, copy, saved, in);
    map<T>(n, [](auto z) { return Act::value(z); }, out, in);
    if (saved && !Act::saves_input) map<T>(n, copy, saved, out);
  });
}

// grad *= activation'(·), from what activate() saved.
template <class T, class TSaved, class TGrad>
void multiply_by_derivative(int activation, int64_t n, const TSaved* saved, TGrad* grad) {
  with_activation(activation, [&](auto act) {
    using Act = decltype(act);
    const auto through = [](auto g, auto s) {
      if constexpr (requires { Act::gradient(g, s); })
        return Act::gradient(g, s);
      else
        return g * Act::derivative(s);
    };
    map<T>(n, through, grad, grad, saved);
  });
}

TWOLAYER_INLINE f32 rounded_to_bfloat16(f32 v) { return widen(narrow(v)); }
TWOLAYER_INLINE f64 rounded_to_bfloat16(f64 v) { return v; }  // bfloat16 compute is for float32 weights only

template <class T>
void round_to_bfloat16(int64_t n, T* values) {
  map<T>(n, [](auto v) { return rounded_to_bfloat16(v); }, values, values);
}

// out[j] = sum over i of row i's j-th number: rows in ascending order within a block, then blocks, so that many rows
// lose less than by one long chain.
template <class T, class TIn, class TOut>
void sum_rows(int64_t rows, int64_t n, const TIn* in, int64_t stride, TOut* out) {
  constexpr int L = lanes<T>, kBlock = 32;
  const auto sum = [&]<int kVectors>(int64_t j, int64_t valid) {
    const auto read = [&](const TIn* from) { return kVectors > 1 ? load(from) : load_partial(from, valid); };
    Vec<T> totals[kVectors];
    TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) totals[v] = zero<T>();
    for (int64_t first = 0; first < rows; first += kBlock) {
      Vec<T> sums[kVectors];
      TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) sums[v] = zero<T>();
      const TIn* row = in + first * stride + j;
      const int64_t count = rows - first < kBlock ? rows - first : kBlock;
      for (int64_t i = 0; i < count; ++i, row += stride)
        TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) sums[v] = sums[v] + read(row + v * L);
      TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) totals[v] = totals[v] + sums[v];
    }
    TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) store_partial(out + j + v * L, totals[v], valid);
  };
  int64_t j = 0;
  for (; j + 4 * L <= n; j += 4 * L) sum.template operator()<4>(j, L);
  for (; j < n; j += L) sum.template operator()<1>(j, n - j < L ? n - j : L);
}
