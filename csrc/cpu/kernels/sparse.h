// Products with a batch most of whose numbers are zero, going through the others only. Included once per ISA, after
// gemm.h.
//
// Each sum takes its terms in the order the dense product does, so the two agree to the bit. Two sums are formed at a
// time: one alone would wait for its own additions.

constexpr int kSparseVectors = TWOLAYER_VECTOR_REGISTERS >= 32 ? 8 : 4;  // of a row of weights, per pass over the lists

// Lists what is not zero: by row for rows [row0, row1), by column for columns [column0, column1).
template <class T>
void train_scan(const TrainParams<T>& p, int64_t row0, int64_t row1, int64_t column0, int64_t column1) {
  const int64_t sections = p.sections();
  for (int64_t row = row0; row < row1; ++row) {
    int32_t *list = p.nonzero_columns + row * p.in, *ends = p.section_end + row * sections;
    int32_t count = 0;
    for (int64_t s = 0; s < sections; ++s) {
      const int64_t first = s * TrainParams<T>::kSection, n = min_of(TrainParams<T>::kSection, p.in - first);
      count += static_cast<int32_t>(list_nonzero(n, p.x_rows[row] + first, static_cast<int32_t>(first), list + count));
      ends[s] = count;
    }
  }
  for (int64_t row = 0; row < p.batch; row += 64) {
    uint64_t* words = p.nonzero_rows + row / 64 * p.in;
    const int64_t rows = min_of(64, p.batch - row);
    int64_t i = column0;
    for (; i + 16 <= column1; i += 16) mark_nonzero(rows, p.x_rows + row, i, words + i);
    for (; i < column1; ++i) {
      words[i] = 0;
      for (int64_t r = 0; r < rows; ++r) words[i] |= static_cast<uint64_t>(p.x_rows[row + r][i] != 0) << r;
    }
  }
}

// z (kRows rows, units [j, j + kVectors · lanes)) += x w for rows [row, row + kRows) and one section of the columns.
template <int kRows, int kVectors, class T>
TWOLAYER_INLINE void sparse_forward_tile(const TrainParams<T>& p, int64_t section, int64_t row, int64_t j,
                                         const Panels<const T>& w, const Panels<T>& z) {
  constexpr int L = lanes<T>;
  Vec<T> acc[kRows][kVectors];
  const T* weights[kVectors];
  for (int v = 0; v < kVectors; ++v) weights[v] = w.at(0, j + v * L);
  const T* x[kRows];
  const int32_t *next[kRows], *end[kRows];
  int64_t shortest = p.in;
  for (int r = 0; r < kRows; ++r) {
    const int32_t *columns = p.nonzero_columns + (row + r) * p.in, *ends = p.section_end + (row + r) * p.sections();
    x[r] = p.x_rows[row + r];
    next[r] = columns + (section ? ends[section - 1] : 0);
    end[r] = columns + ends[section];
    shortest = min_of(shortest, end[r] - next[r]);
    for (int v = 0; v < kVectors; ++v) acc[r][v] = load(z.at(row + r, j + v * L));
  }
  const auto add = [&](int r) {
    const int64_t column = *next[r]++;
    const Vec<T> xk = broadcast<T>(x[r][column]);
    for (int v = 0; v < kVectors; ++v) acc[r][v] = fma(xk, load(weights[v] + column * kPanel), acc[r][v]);
  };
  for (; shortest > 0; --shortest)
    for (int r = 0; r < kRows; ++r) add(r);
  for (int r = 0; r < kRows; ++r)
    while (next[r] < end[r]) add(r);
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store(z.at(row + r, j + v * L), acc[r][v]);
}

// z += x w for rows [row, row + rows) and `width` units from `unit` on, a whole number of vectors. All rows go through
// one section of the columns before the next, so that its weights stay in L1.
template <class T>
void sparse_forward(const TrainParams<T>& p, int64_t row, int64_t rows, int64_t unit, int64_t width,
                    const Panels<T>& z) {
  const Panels<const T> w{p.w1.compute + unit * p.in, p.in * kPanel};
  for_column_tiles<T, kSparseVectors>(width, [&]<int kVectors, bool kTail>(int64_t j, int64_t) {
    for (int64_t section = 0; section < p.sections(); ++section) {
      int64_t r = 0;
      for (; r + 2 <= rows; r += 2) sparse_forward_tile<2, kVectors>(p, section, row + r, j, w, z);
      if (r < rows) sparse_forward_tile<1, kVectors>(p, section, row + r, j, w, z);
    }
  });
}

// Forms the rows of xᵀ grad_z for these columns of x, units [j, j + kVectors · lanes), and hands each vector to
// finish(column, v, gradient).
template <int kColumns, int kVectors, class T, class Finish>
TWOLAYER_INLINE void sparse_gradient_tile(const TrainParams<T>& p, const int64_t* columns,
                                          const Panels<const T>& grad_z, int64_t j, Finish&& finish) {
  constexpr int L = lanes<T>;
  Vec<T> acc[kColumns][kVectors];
  for (int c = 0; c < kColumns; ++c)
    for (int v = 0; v < kVectors; ++v) acc[c][v] = zero<T>();
  const T* grad[kVectors];
  for (int v = 0; v < kVectors; ++v) grad[v] = grad_z.at(0, j + v * L);
  for (int64_t row = 0; row < p.batch; row += 64) {
    uint64_t left[kColumns];
    for (int c = 0; c < kColumns; ++c) left[c] = p.nonzero_rows[row / 64 * p.in + columns[c]];
    const auto add = [&](int c) {
      const int64_t r = row + __builtin_ctzll(left[c]);
      left[c] &= left[c] - 1;
      const Vec<T> x = broadcast<T>(p.x_rows[r][columns[c]]);
      for (int v = 0; v < kVectors; ++v) acc[c][v] = fma(x, load(grad[v] + r * kPanel), acc[c][v]);
    };
    if constexpr (kColumns == 2)
      while (left[0] && left[1]) add(0), add(1);
    for (int c = 0; c < kColumns; ++c)
      while (left[c]) add(c);
  }
  for (int c = 0; c < kColumns; ++c)
    for (int v = 0; v < kVectors; ++v) finish(c, v, acc[c][v]);
}

// Whether all are finite: 0 · x is 0 for those, and NaN for the others. n is a whole number of vectors.
template <class T>
bool all_finite(int64_t n, const T* values) {
  Vec<T> zeros = zero<T>();
  for (int64_t i = 0; i < n; i += lanes<T>) zeros = fma(load(values + i), zero<T>(), zeros);
  return sum(zeros) == 0;
}
