// Products with a batch most of whose numbers are zero, going through the others only. Included once per ISA, after
// gemm.h.
//
// Each sum takes its terms in the order the dense product does, so the two agree to the bit.

constexpr int kSparseVectors = TWOLAYER_VECTOR_REGISTERS >= 32 ? 8 : 4;  // of a row of weights, per pass over the lists
constexpr int64_t kSparseWeightBytes = 65536;  // of weights that the rows of a batch go through together

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

// z (kRows rows, units [j, j + kVectors · lanes)) += x w for rows from `row` on and sections [section0, section1) of
// the columns.
template <int kRows, int kVectors, class T>
TWOLAYER_INLINE void sparse_forward_tile(const TrainParams<T>& p, int64_t section0, int64_t section1, int64_t row,
                                         int64_t j, const Panels<const T>& w, const T* bias, const Panels<T>& z) {
  constexpr int L = lanes<T>;
  const T* weights[kVectors];
  for (int v = 0; v < kVectors; ++v) weights[v] = w.at(0, j + v * L);
  Vec<T> acc[kRows][kVectors];
  const T* x[kRows];
  const int32_t *next[kRows], *end[kRows];
  int64_t shortest = p.in;
  for (int r = 0; r < kRows; ++r) {
    const int32_t *columns = p.nonzero_columns + (row + r) * p.in, *ends = p.section_end + (row + r) * p.sections();
    x[r] = p.x_rows[row + r];
    next[r] = columns + (section0 ? ends[section0 - 1] : 0);
    end[r] = columns + ends[section1 - 1];
    shortest = min_of(shortest, end[r] - next[r]);
    for (int v = 0; v < kVectors; ++v)
      acc[r][v] = section0 ? load(z.at(row + r, j + v * L)) : bias ? load(bias + j + v * L) : zero<T>();
  }
  const auto add = [&](int r) {
    const int64_t column = *next[r]++;
    const Vec<T> xk = broadcast<T>(x[r][column]);
    for (int v = 0; v < kVectors; ++v) acc[r][v] = fma(xk, load(weights[v] + column * kPanel), acc[r][v]);
  };
  for (; kRows > 1 && shortest > 0; --shortest)
    for (int r = 0; r < kRows; ++r) add(r);
  for (int r = 0; r < kRows; ++r)
    while (next[r] < end[r]) add(r);
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store(z.at(row + r, j + v * L), acc[r][v]);
}

// z = bias + x w for `rows` of the batch and `units`. All rows go through some sections of the columns before the next,
// so that their weights stay in L1.
template <class T>
void sparse_forward(const TrainParams<T>& p, Range rows, Range units, const T* bias, const Panels<T>& z) {
  const Panels<const T> w{p.w1.compute + units.begin * p.in, p.in * kPanel};
  for_column_tiles<T, kSparseVectors>(units.size(), [&]<int kVectors, bool kTail>(int64_t j, int64_t) {
    constexpr int64_t bytes = TrainParams<T>::kSection * kVectors * vector_bytes;
    constexpr int64_t at_once = bytes < kSparseWeightBytes ? kSparseWeightBytes / bytes : 1;
    constexpr int rows_at_once = kVectors > 4 ? 1 : 2;  // a few sums alone would wait for their own additions
    for (int64_t section = 0; section < p.sections(); section += at_once)
      for_row_tiles<rows_at_once>(rows.size(), [&]<int kRows>(int64_t row) {
        sparse_forward_tile<kRows, kVectors>(p, section, min_of(section + at_once, p.sections()), rows.begin + row, j,
                                             w, bias, z);
      });
  });
}

// Forms the rows of xᵀ grad_z for these columns of x, units [j, j + kVectors · lanes), and hands each vector to
// finish(column, v, gradient). Neighbouring columns are mostly zero in the same rows, so they go through their rows
// together.
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
    uint64_t left = 0;
    for (int c = 0; c < kColumns; ++c) left |= p.nonzero_rows[row / 64 * p.in + columns[c]];
    for (; left; left &= left - 1) {
      const int64_t r = row + __builtin_ctzll(left);
      Vec<T> g[kVectors];
      for (int v = 0; v < kVectors; ++v) g[v] = load(grad[v] + r * kPanel);
      for (int c = 0; c < kColumns; ++c) {
        const Vec<T> x = broadcast<T>(p.x_rows[r][columns[c]]);
        for (int v = 0; v < kVectors; ++v) acc[c][v] = fma(x, g[v], acc[c][v]);
      }
    }
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
