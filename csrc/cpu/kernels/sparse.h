// Products with a batch most of whose numbers are zero, going through the others only. Included once per ISA, after
// gemm.h.
//
// Both go through the columns in order, a few neighbours at a time, which are mostly zero in the same rows; what is
// loaded for a column then serves all its rows. Each sum takes its terms in the order the dense product does, so the
// two agree to the bit.

// So many columns, and vectors of each row of weights (whole panels of them), as registers hold beside a sum.
constexpr int kSparseColumns = TWOLAYER_VECTOR_REGISTERS >= 32 ? 4 : 2;
template <class T>
constexpr int kSparseVectors = TWOLAYER_VECTOR_REGISTERS < 32 ? 4
                               : lanes<T> < kPanel            ? 6
                                                              : 7;
constexpr int64_t kMarkedRows = 64;  // whose marks share a word

// Marks what is not zero in columns [column0, column1), and returns how much that is.
template <class T>
int64_t train_scan(const TrainParams<T>& p, int64_t column0, int64_t column1) {
  int64_t count = 0;
  for (int64_t row = 0; row < p.batch; row += kMarkedRows) {
    uint64_t* words = p.nonzero_rows + row / kMarkedRows * p.in;
    const int64_t rows = min_of(kMarkedRows, p.batch - row);
    int64_t i = column0;
    for (; i + 16 <= column1; i += 16) mark_nonzero(rows, p.x_rows + row, i, words + i);
    for (; i < column1; ++i) {
      words[i] = 0;
      for (int64_t r = 0; r < rows; ++r) words[i] |= static_cast<uint64_t>(p.x_rows[row + r][i] != 0) << r;
    }
    for (i = column0; i < column1; ++i) count += __builtin_popcountll(words[i]);
  }
  return count;
}

// The rows from `row` on, kMarkedRows of them, that are not zero in one of kColumns columns: a bit for each.
template <int kColumns, class T>
TWOLAYER_INLINE uint64_t nonzero_rows(const TrainParams<T>& p, int64_t row, int64_t column) {
  const uint64_t* words = p.nonzero_rows + row / kMarkedRows * p.in + column;
  uint64_t any = 0;
  for (int c = 0; c < kColumns; ++c) any |= words[c];
  return any;
}

// Calls f.template operator()<kColumns>(column) for the columns from `column` on: for all of them at once where most of
// the batch's rows [row0, row1) that are not zero in one are so in another too, else one by one. row0 begins a word.
template <int kColumns, class T, class F>
TWOLAYER_INLINE void together_or_alone(const TrainParams<T>& p, int64_t row0, int64_t row1, int64_t column, F&& f) {
  int64_t rows = 0, numbers = 0;
  for (int64_t row = row0; kColumns > 1 && row < row1; row += kMarkedRows) {
    rows += __builtin_popcountll(nonzero_rows<kColumns>(p, row, column));
    for (int c = 0; c < kColumns; ++c) numbers += __builtin_popcountll(nonzero_rows<1>(p, row, column + c));
  }
  if (kColumns == 1 || numbers >= 2 * rows) return f.template operator()<kColumns>(column);
  for (int c = 0; c < kColumns; ++c) f.template operator()<1>(column + c);
}

// sums (kMarkedRows, kVectors · lanes) += x w for rows from `row` on, kColumns columns of x, and units [j, j + kVectors
// · lanes).
template <int kColumns, int kVectors, class T>
TWOLAYER_INLINE void sparse_forward_tile(const TrainParams<T>& p, int64_t row, int64_t column, int64_t j,
                                         const Panels<const T>& w, T* sums) {
  constexpr int L = lanes<T>;
  uint64_t left = nonzero_rows<kColumns>(p, row, column);
  if (!left) return;
  Vec<T> weights[kColumns][kVectors];
  TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) TWOLAYER_UNROLL for (int c = 0; c < kColumns; ++c) weights[c][v] =
      load(w.at(column + c, j + v * L));
  for (; left; left &= left - 1) {
    const int64_t r = __builtin_ctzll(left);
    const T* x = in_register(p.x_rows[row + r] + column);
    T* sum = in_register(sums + r * (kVectors * L));
    Vec<T> xc[kColumns];
    TWOLAYER_UNROLL for (int c = 0; c < kColumns; ++c) xc[c] = broadcast<T>(x[c]);
    TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) {
      Vec<T> s = load(sum + v * L);
      TWOLAYER_UNROLL for (int c = 0; c < kColumns; ++c) s = fma(xc[c], weights[c][v], s);
      store(sum + v * L, s);
    }
  }
}

// z = bias + x w for `units`, which z begins with. `next` reads ahead.
template <class T, class Next>
void sparse_forward(const TrainParams<T>& p, Range units, const T* bias, const Panels<T>& z, Next& next) {
  constexpr int L = lanes<T>;
  const Panels<const T> w{p.w1.compute + units.begin * p.in, p.in * kPanel};
  for_column_tiles<T, kSparseVectors<T>>(units.size(), [&]<int kVectors, bool kTail>(int64_t j, int64_t) {
    for (int64_t row = 0; row < p.batch; row += kMarkedRows) {
      alignas(64) T sums[kMarkedRows * kVectors * L];
      const int64_t rows = min_of(kMarkedRows, p.batch - row);
      for (int v = 0; v < kVectors; ++v) {
        const Vec<T> start = bias ? load(bias + j + v * L) : zero<T>();
        for (int64_t r = 0; r < rows; ++r) store(sums + (r * kVectors + v) * L, start);
      }
      for_row_tiles<kSparseColumns>(p.in, [&]<int kColumns>(int64_t column) {
        next.advance(rows * kColumns * kVectors * L);
        together_or_alone<kColumns>(p, row, row + rows, column, [&]<int kTaken>(int64_t first) {
          sparse_forward_tile<kTaken, kVectors>(p, row, first, j, w, sums);
        });
      });
      for (int v = 0; v < kVectors; ++v)
        for (int64_t r = 0; r < rows; ++r) store(z.at(row + r, j + v * L), load(sums + (r * kVectors + v) * L));
    }
  });
}

// The kVectors vectors from unit j on of every row of grad_z, side by side: rows (batch, kVectors · lanes).
template <int kVectors, class T>
TWOLAYER_INLINE void gather_units(const TrainParams<T>& p, const Panels<const T>& grad_z, int64_t j, T* rows) {
  constexpr int L = lanes<T>;
  for (int v = 0; v < kVectors; ++v)
    for (int64_t r = 0; r < p.batch; ++r) store(rows + (r * kVectors + v) * L, load(grad_z.at(r, j + v * L)));
}

// Forms kColumns rows of xᵀ grad, grad (batch, kVectors · lanes), and hands each vector to finish(c, v, gradient).
template <int kColumns, int kVectors, class T, class Finish>
TWOLAYER_INLINE void sparse_gradient_tile(const TrainParams<T>& p, int64_t column, const T* grad, Finish&& finish) {
  constexpr int L = lanes<T>;
  Vec<T> acc[kColumns][kVectors];
  TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) TWOLAYER_UNROLL for (int c = 0; c < kColumns; ++c) acc[c][v] =
      zero<T>();
  for (int64_t row = 0; row < p.batch; row += kMarkedRows)
    for (uint64_t left = nonzero_rows<kColumns>(p, row, column); left; left &= left - 1) {
      const int64_t r = row + __builtin_ctzll(left);
      const T* x = in_register(p.x_rows[r] + column);
      const T* gr = in_register(grad + r * (kVectors * L));
      Vec<T> xc[kColumns];
      TWOLAYER_UNROLL for (int c = 0; c < kColumns; ++c) xc[c] = broadcast<T>(x[c]);
      TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) {
        const Vec<T> g = load(gr + v * L);
        TWOLAYER_UNROLL for (int c = 0; c < kColumns; ++c) acc[c][v] = fma(xc[c], g, acc[c][v]);
      }
    }
  TWOLAYER_UNROLL for (int c = 0; c < kColumns; ++c) TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v)
      finish(c, v, acc[c][v]);
}

// Whether all are finite: 0 · x is 0 for those, and NaN for the others. n is a whole number of vectors.
template <class T>
bool all_finite(int64_t n, const T* values) {
  Vec<T> zeros = zero<T>();
  for (int64_t i = 0; i < n; i += lanes<T>) zeros = fma(load(values + i), zero<T>(), zeros);
  return sum(zeros) == 0;
}
