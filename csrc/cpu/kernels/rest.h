// The few hidden units that are left over beyond whole panels. Included once per ISA, after sparse.h.
//
// A panel of their own would be mostly padding, and cost as much as sixteen units. In w1 each is a row, and products
// over the inputs take the inputs in vectors: a unit's sum is a fixed tree over chains of stride lanes<T>. Chunks share
// the rest by rows of the batch going forward, and by inputs going back. Vectors of zeros are left out only where there
// are hardly any others (p.skips_vectors), with the same sums; elsewhere that costs more than it saves.

// Calls body(bit) for each bit that is set.
template <class Body>
TWOLAYER_INLINE void for_bits(uint64_t bits, Body&& body) {
  for (; bits; bits &= bits - 1) body(__builtin_ctzll(bits));
}

// Which of kMarkedRows rows from `row` on are not all zero in columns [column, column + lanes).
template <class T>
TWOLAYER_INLINE uint64_t nonzero_vectors(const TrainParams<T>& p, int64_t row, int64_t column) {
  if (column + lanes<T> <= p.in) return nonzero_rows<lanes<T>>(p, row, column);
  uint64_t any = 0;
  for (; column < p.in; ++column) any |= nonzero_rows<1>(p, row, column);
  return any;
}

template <class T>
TWOLAYER_INLINE Vec<T> input_vector(const TrainParams<T>& p, int64_t row, int64_t column) {
  const int64_t left = p.in - column;
  return left < lanes<T> ? load_partial(p.x_rows[row] + column, left) : load(p.x_rows[row] + column);
}

// Columns [unit, unit + kUnits) of z (batch, kPanel), of `rows`.
template <int kUnits, class T>
void skipping_rest_tile(const TrainParams<T>& p, Range rows, int64_t unit, const Strided<const T>& w, const T* bias,
                        T* z) {
  constexpr int L = lanes<T>;
  for (int64_t row = rows.begin / kMarkedRows * kMarkedRows; row < rows.end; row += kMarkedRows) {
    uint64_t mine = 0;
    for (int64_t r = 0; r < kMarkedRows; ++r)
      mine |= static_cast<uint64_t>(row + r >= rows.begin && row + r < rows.end) << r;
    alignas(64) T totals[kMarkedRows * kUnits * L];
    const auto total = [&](int64_t r, int u) { return totals + (r * kUnits + u) * L; };
    for_bits(mine, [&](int64_t r) {
      for (int u = 0; u < kUnits; ++u) store(total(r, u), zero<T>());
    });
    for (int64_t column = 0; column < p.in; column += L) {
      Vec<T> weights[kUnits];
      TWOLAYER_UNROLL for (int u = 0; u < kUnits; ++u) weights[u] = load(w.at(unit + u, column));
      for_bits(nonzero_vectors(p, row, column) & mine, [&](int64_t r) {
        const Vec<T> x = input_vector(p, row + r, column);
        TWOLAYER_UNROLL for (int u = 0; u < kUnits; ++u) store(total(r, u), fma(x, weights[u], load(total(r, u))));
      });
    }
    for_bits(mine, [&](int64_t r) {
      for (int u = 0; u < kUnits; ++u)
        z[(row + r) * kPanel + unit + u] = sum(load(total(r, u))) + (bias ? bias[unit + u] : T(0));
    });
  }
}

// z = bias + x w for `rows`; z is the rest's panel (batch, kPanel).
template <class T>
void rest_forward(const TrainParams<T>& p, Range rows, T* z) {
  const Strided<const T> w{p.w1.compute + p.whole * p.in, p.rest_stride};
  const T* bias = p.b1.value ? p.b1.value + p.whole : nullptr;
  if (p.skips_vectors)
    for_row_tiles<4>(p.rest, [&]<int kUnits>(int64_t unit) { skipping_rest_tile<kUnits>(p, rows, unit, w, bias, z); });
  else
    multiply_transposed(rows.size(), p.rest, p.in, RowPointers<T>{p.x_rows + rows.begin}, w.base, w.stride, bias,
                        z + rows.begin * kPanel, kPanel);
}

// Forms rows [unit, unit + kUnits) of gradᵀ x, grad (batch, kPanel), in the vector of inputs from `column` on.
template <int kUnits, class T, class Finish>
TWOLAYER_INLINE void skipping_gradient_tile(const TrainParams<T>& p, int64_t unit, int64_t column, const T* grad,
                                            Finish&& finish) {
  Vec<T> acc[kUnits];
  TWOLAYER_UNROLL for (int u = 0; u < kUnits; ++u) acc[u] = zero<T>();
  for (int64_t row = 0; row < p.batch; row += kMarkedRows)
    for_bits(nonzero_vectors(p, row, column), [&](int64_t r) {
      const Vec<T> x = input_vector(p, row + r, column);
      const T* g = grad + (row + r) * kPanel + unit;
      TWOLAYER_UNROLL for (int u = 0; u < kUnits; ++u) acc[u] = fma(broadcast<T>(g[u]), x, acc[u]);
    });
  TWOLAYER_UNROLL for (int u = 0; u < kUnits; ++u) finish(u, 0, acc[u]);
}
