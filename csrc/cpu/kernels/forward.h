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

// Calls body(rows, columns) over a grid of chunks of an m × n result costing `depth` multiply-adds each.
template <class Body>
void for_chunks(int threads, int64_t m, int64_t n, int64_t depth, Body&& body) {
  const int64_t down = ceil_div(m, kRowChunk), chunks = down * ceil_div(n, kColumnChunk);
  parallel_for(worthwhile_threads(m * n * depth, threads), chunks, [&](int64_t chunk) {
    const int64_t i = chunk % down * kRowChunk, j = chunk / down * kColumnChunk;
    body(Range{i, min_of(i + kRowChunk, m)}, Range{j, min_of(j + kColumnChunk, n)});
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

constexpr int64_t kActivationCost = 16;  // in multiply-adds: some tens of instructions a vector

// Calls body(begin, end) over [0, count) in chunks, for passes over the hidden layer.
template <class Body>
void for_elements(int threads, int64_t count, Body&& body) {
  constexpr int64_t kChunk = 1 << 14;
  parallel_for(worthwhile_threads(count * kActivationCost, threads), ceil_div(count, kChunk),
               [&](int64_t chunk) { body(chunk * kChunk, min_of((chunk + 1) * kChunk, count)); });
}

template <class T>
void activate_all(const ActivateParams<T>& p) {
  for_elements(p.threads, p.count, [&](int64_t begin, int64_t end) {
    with_activation(p.activation, [&](auto act) {
      map<Compute<T>>(end - begin, [](auto z) { return decltype(act)::value(z); }, p.out + begin, p.in + begin);
    });
  });
}

// w (n, k) as a factor from the right, transposed: as it is, or in panels made from it where enough rows are
// multiplied; but for the last few of its rows, whose panel would be mostly padding.
template <class T, class C>
class RightFactor {
 public:
  RightFactor(int threads, int64_t m, int64_t n, int64_t k, const T* w)
      : k_(k), in_panels_(pays(m, n, k) ? in_panels(n) : 0), w_(w), packed_(ceil_div(in_panels_, kPanel) * kPanel * k) {
    if constexpr (__is_same(T, C)) {
      if (!packed_.data) return;
      parallel_for(worthwhile_threads(n * k, threads), ceil_div(in_panels_, kPanel), [&](int64_t panel) {
        const int64_t unit = panel * kPanel;
        pack_transposed(min_of(kPanel, in_panels_ - unit), k, w + unit * k, k, packed_.data + unit * k);
      });
    }
  }

  // c (m, columns of `of`) = a (m, k) wᵀ + bias.
  template <class TA>
  TWOLAYER_INLINE void multiply_by(int64_t m, Range of, const TA* a, const T* bias, C* c, int64_t ldc) const {
    if (bias) bias += of.begin;
    if constexpr (__is_same(TA, C) && __is_same(T, C)) {
      const int64_t whole = max_of(0, min_of(of.end, in_panels_) - of.begin);
      if (whole > 0)
        multiply<Left::kPlain>(m, whole, k_, Strided<const C>{a, k_},
                               Panels<const C>{packed_.data + of.begin * k_, k_ * kPanel}, Strided<C>{c, ldc}, false,
                               bias);
      if (whole == of.size()) return;
      of.begin += whole, c += whole, bias = bias ? bias + whole : nullptr;
    }
    multiply_transposed(m, of.size(), k_, Strided<const TA>{a, k_}, w_ + of.begin * k_, k_, bias, c, ldc);
  }

  // How many rows and columns are best taken at a time.
  int64_t tile_rows() const { return packed_.data ? TileShape<C>::rows : TileShape<C>::dot_rows; }
  int64_t chunk_columns(int64_t n) const { return packed_.data ? n : kColumnChunk; }

 private:
  static bool pays(int64_t m, int64_t n, int64_t k) { return __is_same(T, C) && packing_pays<C>(m, n, k); }

  const int64_t k_, in_panels_;  // so many of the rows of w
  const T* w_;
  Scratch<C> packed_;
};

constexpr int64_t kSharedRows = 32;  // that go through both layers at a time: enough chunks to share them evenly

template <class T>
void forward(const ForwardParams<T>& p) {
  using C = Compute<T>;
  constexpr bool kSame = __is_same(C, T);
  // Where the hidden layer (batch, hidden) is kept: in `saved` where that is just what the second product reads.
  C* kept = nullptr;
  if constexpr (kSame) kept = p.h ? p.h : p.saved && !saves_input(p.activation) ? p.saved : nullptr;
  T* const saved = kept && !p.h ? nullptr : p.saved;

  const RightFactor<T, C> w1(p.threads, p.z ? 0 : p.batch, p.hidden, p.in, p.w1);
  const RightFactor<T, C> w2(p.threads, p.batch, p.out, p.hidden, p.w2);
  // The hidden layer of `rows`, into h from its first row on.
  const auto first = [&](Range rows, Range units, C* h) {
    h += units.begin;
    if (!p.z) w1.multiply_by(rows.size(), units, p.x + rows.begin * p.in, p.b1, h, p.hidden);
    for (int64_t i = rows.begin; i < rows.end; ++i, h += p.hidden) {
      const int64_t at = i * p.hidden + units.begin;
      if (p.z)
        activate<C>(p.activation, units.size(), p.z + at, h, static_cast<T*>(nullptr));
      else
        activate<C>(p.activation, units.size(), h, h, saved ? saved + at : nullptr);
    }
  };
  const auto second = [&](Range rows, Range outputs, const C* h) {
    T* y = p.y + rows.begin * p.out + outputs.begin;
    write_result<C>(rows.size(), outputs.size(), y, p.out,
                    [&](C* to, int64_t stride) { w2.multiply_by(rows.size(), outputs, h, p.b2, to, stride); });
  };

  const int64_t depth = p.z ? kActivationCost : p.in, tile = w1.tile_rows();
  const int threads = worthwhile_threads(p.batch * p.hidden * (depth + p.out), p.threads);
  if (threads == 1 || p.batch >= 4 * tile * threads) {
    // Rows go through both layers on one thread, their hidden layer in its nearest cache.
    const int64_t share = p.batch / threads, most = kSharedRows / tile * tile;
    const int64_t rows = share >= most ? most : share < tile ? tile : (share + tile / 2) / tile * tile;
    parallel_for(threads, ceil_div(p.batch, rows), [&](int64_t chunk) {
      const Range mine{chunk * rows, min_of((chunk + 1) * rows, p.batch)};
      const Scratch<C> own(kept ? 0 : mine.size() * p.hidden);
      C* h = kept ? kept + mine.begin * p.hidden : own.data;
      const auto through = [&](const auto& layer, int64_t n, int64_t width) {
        for (int64_t j = 0; j < n; j += width) layer(mine, Range{j, min_of(j + width, n)}, h);
      };
      through(first, p.hidden, w1.chunk_columns(p.hidden));
      through(second, p.out, w2.chunk_columns(p.out));
    });
  } else {
    const Scratch<C> own(kept ? 0 : p.batch * p.hidden);
    C* hidden = kept ? kept : own.data;
    for_chunks(p.threads, p.batch, p.hidden, depth,
               [&](Range rows, Range units) { first(rows, units, hidden + rows.begin * p.hidden); });
    for_chunks(p.threads, p.batch, p.out, p.hidden,
               [&](Range rows, Range outputs) { second(rows, outputs, hidden + rows.begin * p.hidden); });
  }
}
