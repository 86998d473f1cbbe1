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
  static constexpr int dot_rows = 6, dot_columns = 4;
};
#else
template <class T>
struct TileShape {
  static constexpr int rows = 6, vectors = 2;
  static constexpr int dot_rows = 4, dot_columns = 2;
};
#endif

// How the left factor is stored. row(i) is a pointer to row i of the stored matrix.
template <class T>
struct Strided {
  using element = T;
  const T* base;
  int64_t stride;
  TWOLAYER_INLINE const T* row(int64_t i) const { return base + i * stride; }
};

template <class T>
struct RowPointers {  // rows anywhere in memory: a batch is drawn from the data without copying it
  using element = T;
  const T* const* rows;
  TWOLAYER_INLINE const T* row(int64_t i) const { return rows[i]; }
};

enum class Left { kPlain, kTransposed };  // A(m,k) = row(m)[k], or row(k)[m]

// acc[i][v] = (accumulate ? c : 0) + sum over k in [k0, k1) of A(m + i, k) · B(k, vector v). The last vector of B and c
// has `tail` valid lanes when kTail.
template <int kRows, int kVectors, bool kTail, Left kLeft, class A, class TB, class T>
TWOLAYER_INLINE void broadcast_tile(const A& a, int64_t m, int64_t k0, int64_t k1, const TB* b, int64_t ldb, T* c,
                                    int64_t ldc, bool accumulate, int64_t tail) {
  using V = Vec<T>;
  constexpr int L = lanes<T>;
  V acc[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) {
      const T* at = c + i * ldc + v * L;
      acc[i][v] = !accumulate ? zero<T>() : (kTail && v == kVectors - 1) ? load_partial(at, tail) : load(at);
    }
  const typename A::element* rows[kRows];
  if constexpr (kLeft == Left::kPlain)
    for (int i = 0; i < kRows; ++i) rows[i] = a.row(m + i);
  for (int64_t k = k0; k < k1; ++k) {
    V bk[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const TB* at = b + k * ldb + v * L;
      bk[v] = (kTail && v == kVectors - 1) ? load_partial(at, tail) : load(at);
    }
    const typename A::element* column = kLeft == Left::kTransposed ? a.row(k) + m : nullptr;
    for (int i = 0; i < kRows; ++i) {
      const V ai = broadcast<T>(kLeft == Left::kTransposed ? column[i] : rows[i][k]);
      for (int v = 0; v < kVectors; ++v) acc[i][v] = fma(ai, bk[v], acc[i][v]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) {
      T* at = c + i * ldc + v * L;
      if (kTail && v == kVectors - 1)
        store_partial(at, acc[i][v], tail);
      else
        store(at, acc[i][v]);
    }
}

// Calls f.template operator()<kRows>(m) over [0, count) in steps of kMax, then the rest in smaller ones.
template <int kMax, class F>
TWOLAYER_INLINE void for_row_tiles(int64_t count, F&& f) {
  int64_t m = 0;
  for (; m + kMax <= count; m += kMax) f.template operator()<kMax>(m);
  if constexpr (kMax > 3)
    if (m + 3 <= count) {
      f.template operator()<3>(m);
      m += 3;
    }
  for (; m < count; ++m) f.template operator()<1>(m);
}

// Calls f.template operator()<kVectors, kTail>(n, tail) over [0, count) columns.
template <class T, class F>
TWOLAYER_INLINE void for_column_tiles(int64_t count, F&& f) {
  constexpr int L = lanes<T>, kMax = TileShape<T>::vectors;
  int64_t n = 0;
  for (; n + kMax * L <= count; n += kMax * L) f.template operator()<kMax, false>(n, L);
  const int64_t whole = (count - n) / L;
  if constexpr (kMax > 2)
    if (whole == 3) f.template operator()<3, false>(n, L);
  if constexpr (kMax > 2)
    if (whole == 2) f.template operator()<2, false>(n, L);
  if (whole == 1) f.template operator()<1, false>(n, L);
  n += whole * L;
  if (n < count) f.template operator()<1, true>(n, count - n);
}

// C (m,n) = A (m,k) B (k,n), or += when accumulate.
template <Left kLeft, class A, class TB, class T>
void multiply(int64_t m, int64_t n, int64_t k, const A& a, const TB* b, int64_t ldb, T* c, int64_t ldc,
              bool accumulate = false) {
  int64_t k0 = 0;
  do {
    const int64_t k1 = k - k0 < kDepth ? k : k0 + kDepth;
    for_column_tiles<T>(n, [&]<int kVectors, bool kTail>(int64_t column, int64_t tail) {
      for_row_tiles<TileShape<T>::rows>(m, [&]<int kRows>(int64_t row) {
        broadcast_tile<kRows, kVectors, kTail, kLeft>(a, row, k0, k1, b + column, ldb, c + row * ldc + column, ldc,
                                                      accumulate || k0 > 0, tail);
      });
    });
    k0 = k1;
  } while (k0 < k);
}

// c[i][j] = dot(a row i, b row j) + bias[j].
template <int kRows, int kColumns, class TA, class TB, class TBias, class T>
TWOLAYER_INLINE void dot_tile(const TA* a, int64_t lda, const TB* b, int64_t ldb, int64_t k, const TBias* bias, T* c,
                              int64_t ldc) {
  using V = Vec<T>;
  constexpr int L = lanes<T>;
  V acc[kRows][kColumns];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) acc[i][j] = zero<T>();
  const auto step = [&](auto&& read) {
    V bj[kColumns];
    for (int j = 0; j < kColumns; ++j) bj[j] = read(b + j * ldb);
    for (int i = 0; i < kRows; ++i) {
      const V ai = read(a + i * lda);
      for (int j = 0; j < kColumns; ++j) acc[i][j] = fma(ai, bj[j], acc[i][j]);
    }
  };
  int64_t p = 0;
  for (; p + L <= k; p += L) step([&](const auto* row) { return load(row + p); });
  if (p < k) step([&](const auto* row) { return load_partial(row + p, k - p); });
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) c[i * ldc + j] = sum(acc[i][j]) + (bias ? widen(bias[j]) : T(0));
}

// C (m,n) = A (m,k) B (n,k)ᵀ + bias (n), bias may be null.
template <class TA, class TB, class TBias, class T>
void multiply_transposed(int64_t m, int64_t n, int64_t k, const TA* a, int64_t lda, const TB* b, int64_t ldb,
                         const TBias* bias, T* c, int64_t ldc) {
  constexpr int R = TileShape<T>::dot_rows, C = TileShape<T>::dot_columns;
  const auto columns = [&]<int kColumns>(int64_t j) {
    for_row_tiles<R>(m, [&]<int kRows>(int64_t i) {
      dot_tile<kRows, kColumns>(a + i * lda, lda, b + j * ldb, ldb, k, bias ? bias + j : nullptr, c + i * ldc + j, ldc);
    });
  };
  int64_t j = 0;
  for (; j + C <= n; j += C) columns.template operator()<C>(j);
  for (; j < n; ++j) columns.template operator()<1>(j);
}
