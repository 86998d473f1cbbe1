// Products of matrices, as register tiles. Included once per ISA inside its namespace, after simd/ (see isa.h).
//
// Two forms cover the five products of a two-layer net:
//   broadcast_tile  C (m,n) += A (m,k) B (k,n)   A read one number at a time, B and C in vectors along n
//   dot_tile        C (m,n)  = A (m,k) B (n,k)ᵀ  both read in vectors along k
// In the first every element of C is one chain of fma over k in ascending order, in the second a fixed tree over chains
// of stride lanes<T>: neither depends on tile sizes or on who computes which tile, and so neither do the bits.

template <class T>
struct TileShape;  // (rows, vectors): as many accumulators as the registers hold beside one row of B
#if TWOLAYER_VECTOR_REGISTERS >= 32
template <class T>
struct TileShape {
  static constexpr int rows = 6, vectors = 4;
  static constexpr int dot_rows = 6, dot_columns = lanes<T> < 4 ? lanes<T> : 4;
};
template <>
struct TileShape<float> {  // 8 rows divide the usual batches
  static constexpr int rows = 8, vectors = 3;
  static constexpr int dot_rows = 6, dot_columns = 4;
};
#else
template <class T>
struct TileShape {
  static constexpr int rows = 6, vectors = 2;
  static constexpr int dot_rows = 4, dot_columns = 2;
};
#endif

constexpr int64_t kRowChunk = 48;     // rows of a matrix one chunk of work covers,
constexpr int64_t kColumnChunk = 64;  // and columns: 64 weight rows of 784 float32 are 196 KiB, within L2

TWOLAYER_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
TWOLAYER_INLINE constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
TWOLAYER_INLINE constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

struct Range {
  int64_t begin, end;
  TWOLAYER_INLINE int64_t size() const { return end - begin; }
};

// How a matrix is stored. row(i) points to row i; at(i, j) to element (i, j), with whole vectors from there on where j
// is a multiple of one; step() is how far it is from a row to the next.
template <class T>
struct Strided {
  using element = T;
  T* base;
  int64_t stride;
  TWOLAYER_INLINE T* row(int64_t i) const { return base + i * stride; }
  TWOLAYER_INLINE T* at(int64_t i, int64_t j) const { return base + i * stride + j; }
  TWOLAYER_INLINE int64_t step() const { return stride; }
};

template <class T>
struct Panels {  // kPanel columns after the other, each (rows, kPanel)
  using element = T;
  T* base;
  int64_t panel_size;
  TWOLAYER_INLINE int64_t index(int64_t i, int64_t j) const {
    const uint64_t column = static_cast<uint64_t>(j);  // whose division is a shift
    return static_cast<int64_t>(column / kPanel) * panel_size + i * kPanel + static_cast<int64_t>(column % kPanel);
  }
  TWOLAYER_INLINE T* at(int64_t i, int64_t j) const { return base + index(i, j); }
  TWOLAYER_INLINE Panels from_row(int64_t i) const { return {base + i * kPanel, panel_size}; }
  static TWOLAYER_INLINE int64_t step() { return kPanel; }
};

template <class T>
struct RowPointers {  // rows anywhere in memory: a batch is drawn from the data without copying it
  using element = const T;
  const T* const* rows;
  int64_t first = 0;  // number of each row that counts
  TWOLAYER_INLINE const T* row(int64_t i) const { return rows[i] + first; }
};

// The same pointer, which the compiler takes as it is. What it would make of several sums of pointers and indices needs
// more registers than there are, and it keeps the rest in vector registers, whose moves take turns with fma.
template <class T>
TWOLAYER_INLINE T* in_register(T* pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

enum class Left { kPlain, kTransposed };  // A(m,k) = row(m)[k], or row(k)[m]

// Forms tile (i, v) = start(i, v) + sum over k in [k0, k1) of A(m + i, k) · B(k, n + v · lanes), a vector along n each,
// and hands it to finish(i, v, tile). The last vector of B has `tail` valid lanes when kTail.
template <int kRows, int kVectors, bool kTail, Left kLeft, class T, class A, class B, class Start, class Finish>
TWOLAYER_INLINE void broadcast_tile(const A& a, int64_t m, int64_t k0, int64_t k1, const B& b, int64_t n, int64_t tail,
                                    Start&& start, Finish&& finish) {
  using V = Vec<T>;
  V acc[kRows][kVectors];
  TWOLAYER_UNROLL for (int i = 0; i < kRows; ++i) TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) acc[i][v] =
      start(i, v);
  typename A::element* rows[kRows];
  if constexpr (kLeft == Left::kPlain)
    for (int i = 0; i < kRows; ++i) rows[i] = a.row(m + i);
  constexpr bool kEvenSteps = requires { b.step(); };  // from one row of B to the next
  typename B::element* columns[kVectors];
  if constexpr (kEvenSteps)
    for (int v = 0; v < kVectors; ++v) columns[v] = b.at(k0, n + v * lanes<T>);
  for (int64_t k = k0; k < k1; ++k) {
    V bk[kVectors];
    TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) {
      if constexpr (!kEvenSteps) columns[v] = b.row(k) + n + v * lanes<T>;
      bk[v] = (kTail && v == kVectors - 1) ? load_partial(columns[v], tail) : load(columns[v]);
      if constexpr (kEvenSteps) columns[v] = in_register(columns[v] + b.step());
    }
    typename A::element* column = nullptr;
    if constexpr (kLeft == Left::kTransposed) column = in_register(a.row(k) + m);
    TWOLAYER_UNROLL for (int i = 0; i < kRows; ++i) {
      const V ai = broadcast<T>(kLeft == Left::kTransposed ? column[i] : rows[i][k]);
      TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) acc[i][v] = fma(ai, bk[v], acc[i][v]);
    }
  }
  TWOLAYER_UNROLL for (int i = 0; i < kRows; ++i) TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v)
      finish(i, v, acc[i][v]);
}

// Calls f.template operator()<kRows>(m) over [0, count) in steps of kMax, then the rest in steps of half of it, and so
// on.
template <int kMax, class F>
TWOLAYER_INLINE void for_row_tiles(int64_t count, F&& f, int64_t m = 0) {
  for (; m + kMax <= count; m += kMax) f.template operator()<kMax>(m);
  if constexpr (kMax > 1) for_row_tiles<kMax / 2>(count, f, m);
}

// Calls f.template operator()<count>() for a count of 1 … kMax known only now; nothing for 0.
template <int kMax, class F>
TWOLAYER_INLINE void for_exactly(int64_t count, F&& f) {
  if constexpr (kMax > 0) {
    if (count == kMax)
      f.template operator()<kMax>();
    else
      for_exactly<kMax - 1>(count, f);
  }
}

// Calls f.template operator()<kVectors, kTail>(n, tail) over [0, count) columns, at most kMax vectors at a time, and
// not one alone where two tiles can share.
template <class T, int kMax = TileShape<T>::vectors, class F>
TWOLAYER_INLINE void for_column_tiles(int64_t count, F&& f) {
  constexpr int L = lanes<T>;
  int64_t n = 0;
  for (int64_t left = count / L; left > 0;) {
    const int64_t taken = left == kMax + 1 ? (kMax + 1) / 2 : left < kMax ? left : kMax;
    for_exactly<kMax>(taken, [&]<int kVectors>() { f.template operator()<kVectors, false>(n, L); });
    n += taken * L;
    left -= taken;
  }
  if (n < count) f.template operator()<1, true>(n, count - n);
}

struct Nothing {
  template <class... Arguments>
  TWOLAYER_INLINE void operator()(const Arguments&...) const {}
};

// C (m,n) = A (m,k) B (k,n), or += when accumulate. Otherwise every row begins with `bias` (n), where that is not null.
// Before each tile it calls between(the tile's part of m · n · k).
template <Left kLeft, class A, class B, class C, class Between = Nothing>
void multiply(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const C& c, bool accumulate = false,
              const typename C::element* bias = nullptr, Between&& between = {}) {
  using T = typename C::element;
  constexpr int L = lanes<T>;
  int64_t k0 = 0;
  do {
    const int64_t k1 = k - k0 < kDepth ? k : k0 + kDepth;
    const bool adds = accumulate || k0 > 0;
    for_column_tiles<T>(n, [&]<int kVectors, bool kTail>(int64_t column, int64_t tail) {
      const auto is_partial = [](int v) { return kTail && v == kVectors - 1; };
      for_row_tiles<TileShape<T>::rows>(m, [&]<int kRows>(int64_t row) {
        T* columns[kVectors];
        for (int v = 0; v < kVectors; ++v) columns[v] = c.at(row, column + v * L);
        const int64_t step = c.step();
        between(kRows * kVectors * L * (k1 - k0));
        const auto at = [&](int i, int v) { return columns[v] + i * step; };
        broadcast_tile<kRows, kVectors, kTail, kLeft, T>(
            a, row, k0, k1, b, column, tail,
            [&](int i, int v) {
              if (adds) return is_partial(v) ? load_partial(at(i, v), tail) : load(at(i, v));
              if (!bias) return zero<T>();
              return is_partial(v) ? load_partial(bias + column + v * L, tail) : load(bias + column + v * L);
            },
            [&](int i, int v, Vec<T> sum) {
              if (is_partial(v))
                store_partial(at(i, v), sum, tail);
              else
                store(at(i, v), sum);
            });
      });
    });
    k0 = k1;
  } while (k0 < k);
}

// c[i][j] = dot(a row m + i, b row j) + bias[j].
template <int kRows, int kColumns, class A, class TB, class TBias, class T>
TWOLAYER_INLINE void dot_tile(const A& a, int64_t m, const TB* b, int64_t ldb, int64_t k, const TBias* bias, T* c,
                              int64_t ldc) {
  using V = Vec<T>;
  constexpr int L = lanes<T>;
  V acc[kRows][kColumns];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) acc[i][j] = zero<T>();
  typename A::element* rows[kRows];
  for (int i = 0; i < kRows; ++i) rows[i] = a.row(m + i);
  const auto step = [&](auto&& read) {
    V bj[kColumns];
    for (int j = 0; j < kColumns; ++j) bj[j] = read(b + j * ldb);
    for (int i = 0; i < kRows; ++i) {
      const V ai = read(rows[i]);
      for (int j = 0; j < kColumns; ++j) acc[i][j] = fma(ai, bj[j], acc[i][j]);
    }
  };
  int64_t p = 0;
  for (; p + L <= k; p += L) step([&](const auto* row) { return load(row + p); });
  if (p < k) step([&](const auto* row) { return load_partial(row + p, k - p); });
  const V start = bias ? load_partial(bias, kColumns) : zero<T>();
  for (int i = 0; i < kRows; ++i) store_partial(c + i * ldc, sums<kColumns>(acc[i]) + start, kColumns);
}

// C (m,n) = A (m,k) B (n,k)ᵀ + bias (n), bias may be null. The rows of A that a tile reads stay in the nearest cache.
template <class A, class TB, class TBias, class T>
void multiply_transposed(int64_t m, int64_t n, int64_t k, const A& a, const TB* b, int64_t ldb, const TBias* bias, T* c,
                         int64_t ldc) {
  constexpr int R = TileShape<T>::dot_rows, C = TileShape<T>::dot_columns;
  const auto rows = [&]<int kRows>(int64_t i) {
    const auto columns = [&]<int kColumns>(int64_t j) {
      dot_tile<kRows, kColumns>(a, i, b + j * ldb, ldb, k, bias ? bias + j : nullptr, c + i * ldc + j, ldc);
    };
    int64_t j = 0;
    for (; j + C <= n; j += C) columns.template operator()<C>(j);
    for (; j < n; ++j) columns.template operator()<1>(j);
  };
  int64_t i = 0;
  for (; i + R <= m; i += R) rows.template operator()<R>(i);
  for_exactly<R - 1>(m - i, [&]<int kRows>() { rows.template operator()<kRows>(i); });
}

// panels (kPanel columns after the other, each (k, kPanel)) = Wᵀ for w (n, k), zeros beyond n.
template <class T>
void pack_transposed(int64_t n, int64_t k, const T* w, int64_t ldw, T* panels) {
  constexpr int L = lanes<T>;
  for (int64_t j = 0; j < n; j += L) {
    T* panel = panels + j / kPanel * (k * kPanel) + j % kPanel;
    const int64_t rows = min_of(L, n - j);
    for (int64_t i = 0; i < k; i += L) {
      const int64_t columns = min_of(L, k - i);
      Vec<T> square[L];
      for (int r = 0; r < L; ++r) {
        const T* from = w + (j + r) * ldw + i;
        square[r] = r >= rows ? zero<T>() : columns == L ? load(from) : load_partial(from, columns);
      }
      transpose(square);
      for (int64_t c = 0; c < columns; ++c) store(panel + (i + c) * kPanel, square[c]);
    }
  }
}

// Whether the product is faster by way of panels of Bᵀ, made first: what a multiply-add of vectors takes once per lane
// sum and once per number packed, as measured, against the lanes that stand empty in the last panel.
template <class T>
TWOLAYER_INLINE bool packing_pays(int64_t m, int64_t n, int64_t k) {
  constexpr int L = lanes<T>;
  const int64_t dots = m * in_panels(n) * (ceil_div(k, L) + 7);
  const int64_t packed = (m * ceil_div(in_panels(n), L) + in_panels(n)) * k;
  return m >= 8 && packed < dots;
}
