// The net on a few rows, at packed weights (see PredictParams). Included once per ISA.
//
// Every number of a product is one chain of fma in ascending order, however many rows there are: a row alone has the
// bits that it has among others. What changes with the rows is the shape of the tiles: a tile of few rows is wider, for
// as many chains at once.

constexpr int kMostTileRows = TWOLAYER_VECTOR_REGISTERS >= 32 ? 8 : 4;

template <int kRows>
constexpr int tile_vectors = TWOLAYER_VECTOR_REGISTERS >= 32 ? (kRows == 8   ? 3
                                                                : kRows == 4 ? 6
                                                                             : 8)
                                                             : (kRows == 4   ? 3
                                                                : kRows == 2 ? 4
                                                                             : 8);

// Rows [0, count) of a matrix, and the last of them again after that: a tile may have more rows than there are.
template <class T>
struct RepeatedRows {
  using element = const T;
  const T* base;
  int64_t stride, count;
  TWOLAYER_INLINE const T* row(int64_t i) const { return base + min_of(i, count - 1) * stride; }
};

// c (m,n) = start (n) + a (m,k) b (k,n), or += where `start` is null, by tiles of kRows rows. With kPadded, c has room
// for whole tiles.
template <int kRows, bool kPadded, class T>
void product_by(int64_t n, int64_t k, const RepeatedRows<T>& a, const Panels<const T>& b, const T* start,
                const Strided<T>& c) {
  constexpr int L = lanes<T>;
  const int64_t m = a.count, depth = m > kRows ? kDepth : k;  // a lone tile of rows reads each number of b only once
  int64_t k0 = 0;
  do {
    const int64_t k1 = min_of(k, k0 + depth);
    const Strided<const T> from = start && k0 == 0 ? Strided<const T>{start, 0} : Strided<const T>{c.base, c.stride};
    for_column_tiles<T, tile_vectors<kRows>>(
        ceil_div(n, L) * L, [&]<int kVectors, bool kTail>(int64_t column, int64_t) {
          if constexpr (!kTail)
            for (int64_t row = 0; row < m; row += kRows)
              broadcast_tile<kRows, kVectors, false, Left::kPlain, T>(
                  a, row, k0, k1, b, column, L,
                  [&](int i, int v) {
                    const int64_t j = column + v * L;
                    if (kPadded) return load(from.at(row + i, j));
                    return row + i < m ? load_partial(from.at(row + i, j), min_of(L, n - j)) : zero<T>();
                  },
                  [&](int i, int v, Vec<T> sum) {
                    const int64_t j = column + v * L;
                    if (kPadded) return store(c.at(row + i, j), sum);
                    if (row + i < m) store_partial(c.at(row + i, j), sum, min_of(L, n - j));
                  });
        });
    k0 = k1;
  } while (k0 < k);
}

// The same, by tiles that fit the number of rows.
template <bool kPadded, class T>
void product(int64_t n, int64_t k, const RepeatedRows<T>& a, const Panels<const T>& b, const T* start,
             const Strided<T>& c) {
  constexpr int kMost = kMostTileRows;
  const auto rows = [&]<int kRows>(int64_t first, int64_t count) {
    if (count > 0)
      product_by<kRows, kPadded>(n, k, RepeatedRows<T>{a.row(first), a.stride, count}, b, start,
                                 Strided<T>{c.row(first), c.stride});
  };
  const int64_t over = a.count % kMost, rest = over <= kMost / 2 ? over : 0, whole = a.count - rest;
  rows.template operator()<kMost>(0, whole);
  if (rest == 1) return rows.template operator()<1>(whole, rest);
  if (rest == 2) return rows.template operator()<2>(whole, rest);
  rows.template operator()<kMost / 2>(whole, rest);
}

// hidden (rows, ⌈units⌉) = activation(x W1ᵀ + b1) of units [unit, unit + kUnits), as far as there are so many, padded
// to whole vectors; the array has room for kRows rows.
template <class T>
void predict_hidden(const PredictParams<T>& p, int64_t unit, T* hidden) {
  const int64_t units = ceil_div(min_of(p.kUnits, p.hidden - unit), lanes<T>) * lanes<T>;
  product<true>(units, p.in, RepeatedRows<T>{p.x, p.x_stride, p.rows},
                Panels<const T>{p.w1 + unit * p.in, p.in * kPanel}, p.b1 + unit, Strided<T>{hidden, units});
  activate<T>(p.activation, p.rows * units, hidden, hidden, static_cast<T*>(nullptr));
}

// What those units add to outputs [out0, out1), out0 at the start of a panel; the first units begin with b2.
template <class T>
void predict_outputs(const PredictParams<T>& p, int64_t unit, const T* hidden, int64_t out0, int64_t out1) {
  const int64_t real = min_of(p.kUnits, p.hidden - unit), units = ceil_div(real, lanes<T>) * lanes<T>;
  product<false>(out1 - out0, real, RepeatedRows<T>{hidden, units, p.rows},
                 Panels<const T>{p.w2 + out0 * p.hidden + unit * kPanel, p.hidden * kPanel},
                 unit == 0 ? p.b2 + out0 : nullptr, Strided<T>{p.y + out0, p.out});
}

template <class T>
void predict(const PredictParams<T>& p) {
  alignas(64) T hidden[PredictParams<T>::kRows * PredictParams<T>::kUnits];
  for (int64_t unit = 0; unit == 0 || unit < p.hidden; unit += p.kUnits) {
    predict_hidden(p, unit, hidden);
    predict_outputs(p, unit, hidden, 0, p.out);
  }
}
