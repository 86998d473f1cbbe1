// Products with a batch most of whose numbers are zero, going through the others only. Included once per ISA, after gemm.h.
//
// Each sum takes its terms in the order the dense product does, so the two agree to the bit. Two sums are formed at a time:
// one alone would wait for its own additions.

constexpr int kSparseVectors = 4;  // of a row of weights, per pass over a row's nonzero numbers

// Lists what is not zero: by row for rows [row0, row1), by column for columns [column0, column1).
template <class T>
void train_scan(const TrainParams<T>& p, int64_t row0, int64_t row1, int64_t column0, int64_t column1) {
  for (int64_t row = row0; row < row1; ++row)
    p.nonzero_count[row] = static_cast<int32_t>(list_nonzero(p.in, p.x_rows[row], p.nonzero_columns + row * p.in));
  for (int64_t row = 0; row < p.batch; row += 64) {
    uint64_t* words = p.nonzero_rows + row / 64 * p.in;
    for (int64_t i = column0; i < column1; ++i) words[i] = 0;
    const int64_t rows = min_of(64, p.batch - row);
    for (int64_t r = 0; r < rows; ++r) {
      const T* x = p.x_rows[row + r];
      for (int64_t i = column0; i < column1; ++i) words[i] |= static_cast<uint64_t>(x[i] != 0) << r;
    }
  }
}

// z (kRows rows, stride H) += x w for rows [row, row + kRows) and units [unit, unit + kVectors · lanes).
template <int kRows, int kVectors, class T>
TWOLAYER_INLINE void sparse_forward_tile(const TrainParams<T>& p, int64_t row, int64_t unit, T* z) {
  constexpr int L = lanes<T>;
  const int64_t H = p.padded_hidden;
  const T* w = p.w1.compute + unit;
  Vec<T> acc[kRows][kVectors];
  const T* x[kRows];
  const int32_t* columns[kRows];
  int32_t shortest = p.nonzero_count[row];
  for (int r = 0; r < kRows; ++r) {
    x[r] = p.x_rows[row + r];
    columns[r] = p.nonzero_columns + (row + r) * p.in;
    if (p.nonzero_count[row + r] < shortest) shortest = p.nonzero_count[row + r];
    for (int v = 0; v < kVectors; ++v) acc[r][v] = load(z + r * H + v * L);
  }
  const auto add = [&](int r, int32_t k) {
    const int64_t column = columns[r][k];
    const Vec<T> xk = broadcast<T>(x[r][column]);
    for (int v = 0; v < kVectors; ++v) acc[r][v] = fma(xk, load(w + column * H + v * L), acc[r][v]);
  };
  for (int32_t k = 0; k < shortest; ++k)
    for (int r = 0; r < kRows; ++r) add(r, k);
  for (int r = 0; r < kRows; ++r)
    for (int32_t k = shortest; k < p.nonzero_count[row + r]; ++k) add(r, k);
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store(z + r * H + v * L, acc[r][v]);
}

// z (rows, width) += x w for rows from `row` on and units from `unit` on; width is a whole number of vectors.
template <class T>
void sparse_forward(const TrainParams<T>& p, int64_t row, int64_t rows, int64_t unit, int64_t width, T* z) {
  for_column_tiles<T, kSparseVectors>(width, [&]<int kVectors, bool kTail>(int64_t j, int64_t) {
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) sparse_forward_tile<2, kVectors>(p, row + r, unit + j, z + r * p.padded_hidden + j);
    if (r < rows) sparse_forward_tile<1, kVectors>(p, row + r, unit + j, z + r * p.padded_hidden + j);
  });
}

// grad (kColumns, kVectors · lanes) = the rows of xᵀ grad_z for these columns of x and the units from `unit` on.
template <int kColumns, int kVectors, class T>
TWOLAYER_INLINE void sparse_gradient_tile(const TrainParams<T>& p, const int64_t* columns, int64_t unit, T* grad) {
  constexpr int L = lanes<T>;
  const T* grad_z = p.grad_hidden + unit;
  Vec<T> acc[kColumns][kVectors];
  for (int c = 0; c < kColumns; ++c)
    for (int v = 0; v < kVectors; ++v) acc[c][v] = zero<T>();
  for (int64_t row = 0; row < p.batch; row += 64) {
    uint64_t left[kColumns];
    for (int c = 0; c < kColumns; ++c) left[c] = p.nonzero_rows[row / 64 * p.in + columns[c]];
    const auto add = [&](int c) {
      const int64_t r = row + __builtin_ctzll(left[c]);
      left[c] &= left[c] - 1;
      const Vec<T> x = broadcast<T>(p.x_rows[r][columns[c]]);
      for (int v = 0; v < kVectors; ++v) acc[c][v] = fma(x, load(grad_z + r * p.padded_hidden + v * L), acc[c][v]);
    };
    if constexpr (kColumns == 2)
      while (left[0] && left[1]) add(0), add(1);
    for (int c = 0; c < kColumns; ++c)
      while (left[c]) add(c);
  }
  for (int c = 0; c < kColumns; ++c)
    for (int v = 0; v < kVectors; ++v) store(grad + c * kVectors * L + v * L, acc[c][v]);
}

// Whether every number of rows [0, rows) is finite: 0 · x is 0 for those, and NaN for the others.
template <class T>
bool all_finite(int64_t rows, int64_t n, const T* values, int64_t stride) {
  Vec<T> zeros = zero<T>();
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; j += lanes<T>) zeros = fma(load(values + i * stride + j), zero<T>(), zeros);
  return sum(zeros) == 0;
}
