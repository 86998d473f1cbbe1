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

constexpr int64_t kRowChunk = 48;     // rows of a matrix one chunk of work covers,
constexpr int64_t kColumnChunk = 64;  // and columns: 64 weight rows of 784 float32 are 196 KiB, within L2

TWOLAYER_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
TWOLAYER_INLINE constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls body(row0, row1, column0, column1) over a grid of chunks of an m × n result costing `depth` multiply-adds each.
template <class Body>
void for_chunks(int threads, int64_t m, int64_t n, int64_t depth, Body&& body) {
  const int64_t across = ceil_div(n, kColumnChunk), chunks = ceil_div(m, kRowChunk) * across;
  parallel_for(worthwhile_threads(m * n * depth, threads), chunks, [&](int64_t chunk) {
    const int64_t i = chunk / across * kRowChunk, j = chunk % across * kColumnChunk;
    body(i, min_of(i + kRowChunk, m), j, min_of(j + kColumnChunk, n));
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

template <class T>
void forward(const ForwardParams<T>& p) {
  using C = Compute<T>;
  Scratch<C> hidden(p.batch * p.hidden);  // (batch, hidden)
  for_chunks(p.threads, p.batch, p.hidden, p.in, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    C* z = hidden.data + i0 * p.hidden + j0;
    multiply_transposed(i1 - i0, j1 - j0, p.in, p.x + i0 * p.in, p.in, p.w1 + j0 * p.in, p.in,
                        p.b1 ? p.b1 + j0 : nullptr, z, p.hidden);
    for (int64_t i = i0; i < i1; ++i, z += p.hidden)
      activate<C>(p.activation, j1 - j0, z, z, p.saved ? p.saved + i * p.hidden + j0 : nullptr);
  });
  for_chunks(p.threads, p.batch, p.out, p.hidden, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    write_result<C>(i1 - i0, j1 - j0, p.y + i0 * p.out + j0, p.out, [&](C* y, int64_t stride) {
      multiply_transposed(i1 - i0, j1 - j0, p.hidden, hidden.data + i0 * p.hidden, p.hidden, p.w2 + j0 * p.hidden,
                          p.hidden, p.b2 ? p.b2 + j0 : nullptr, y, stride);
    });
  });
}
