// From gradients to parameters. Included once per ISA, after share.h, read_ahead.h and sparse.h.

// The batch as pairs, along the inputs and along the rows; a chunk has its own.
struct BatchPairs {
  uint32_t *rows, *transposed;
  int64_t in_pairs, batch_pairs;
  template <class T>
  BatchPairs(const TrainParams<T>& p, int chunk)
      : rows(nullptr), transposed(nullptr), in_pairs(padded_pairs(p.in)), batch_pairs(padded_pairs(p.batch)) {
    if (!p.pairs) return;
    rows = p.x_pairs + chunk * p.batch * in_pairs;
    transposed = p.x_pairs_transposed + chunk * p.in * batch_pairs;
  }
};

// Which numbers of a parameter a gradient belongs to: `count` pieces of n, each `step` after the one before; the units
// of a piece begin unit_step after those of the one before.
struct Pieces {
  int64_t count, n, step = 0, unit_step = 0;
};

// What happens between a gradient and the parameter, with the step's constants spread over vectors. Which optimiser it
// is shows in one function pointer, so that products are compiled once and not once for each.
template <class T>
struct Updater {
  using V = Vec<T>;
  using Update = void (*)(const Updater&, const Pieces&, const T* grad, const Trained<T>& param, int64_t at);
  const TrainParams<T>& p;
  const void* rule;  // an optimiser's Rule<V>
  const Update update_by_rule;
  const bool zero_changes_nothing;
  const V l1, l2, clip_factor, clip_value;
  const bool penalised, waits, clips;
  mutable V zeros;  // 0 while every updated weight is finite as products read it

  template <class Rule>
  TWOLAYER_INLINE Updater(const TrainParams<T>& params, const Rule& update_rule)
      : p(params),
        rule(&update_rule),
        update_by_rule(update_of<Rule>(params)),
        zero_changes_nothing(update_rule.zero_changes_nothing()),
        l1(constant<V>(p.gradient.l1)),
        l2(constant<V>(p.gradient.l2)),
        clip_factor(constant<V>(p.clip_factor)),
        clip_value(constant<V>(p.gradient.clip_value)),
        penalised(p.gradient.l1 != 0 || p.gradient.l2 != 0),
        waits(p.gradient.clip_norm != 0),
        clips(p.gradient.clip_value != 0),
        zeros(zero<T>()) {}

  // Updates `pieces` of `param`, the first of which begins at index `at`; n is a whole number of vectors.
  TWOLAYER_INLINE void update(const Pieces& pieces, const T* grad, const Trained<T>& param, int64_t at) const {
    update_by_rule(*this, pieces, grad, param, at);
  }

  // The update that knows which states are kept, so that its loop does not ask.
  template <class Rule>
  static Update update_of(const TrainParams<T>& p) {
    int kept = 0;  // a bit for each
    for (const Trained<T>* param : {&p.w1, &p.b1, &p.w2, &p.b2})
      for (int s = 0; s < Trained<T>::kStates; ++s) kept |= (param->state[s] != nullptr) << s;
    return kept == 0   ? update_with<Rule, 0>
           : kept == 1 ? update_with<Rule, 1>
           : kept == 3 ? update_with<Rule, 3>
                       : update_with<Rule, 7>;
  }

  template <class Rule, int kKept>
  static void update_with(const Updater& u, const Pieces& pieces, const T* grad, const Trained<T>& param, int64_t at) {
    if (u.waits || u.clips || param.compute != param.value)
      update_loop<Rule, kKept, false>(u, pieces, grad, param, at);
    else
      update_loop<Rule, kKept, true>(u, pieces, grad, param, at);
  }

  // States outside of kKept are not kept; where kKept is all of them, some others may not be.
  template <class Rule, int kKept, bool kPlain>
  static TWOLAYER_INLINE void update_loop(const Updater& u, const Pieces& pieces, const T* grad,
                                          const Trained<T>& param, int64_t at) {
    constexpr int kStates = Trained<T>::kStates, kAll = (1 << kStates) - 1;
    const Rule rule = *static_cast<const Rule*>(u.rule);
    T *value = param.value + at, *compute = param.compute == param.value ? nullptr : param.compute + at;
    T* states[kStates];
    for (int s = 0; s < kStates; ++s) states[s] = param.state[s] ? param.state[s] + at : nullptr;
    const auto keeps = [&](int s) { return kKept == kAll ? states[s] != nullptr : (kKept >> s & 1) != 0; };
    V zeros = u.zeros;
    for (int64_t piece = 0; piece < pieces.count; ++piece, grad += pieces.n) {
      const int64_t first = piece * pieces.step;
      for (int64_t j = 0; j < pieces.n; j += lanes<T>) {
        V state[kStates];
        TWOLAYER_UNROLL for (int s = 0; s < kStates; ++s) state[s] = keeps(s) ? load(states[s] + first + j) : zero<T>();
        V g = load(grad + j);
        if (!kPlain && u.waits) g = g * u.clip_factor;
        if (!kPlain && u.clips) g = max(min(g, u.clip_value), -u.clip_value);
        const V w = rule.step(load(value + first + j), g, state);
        store(value + first + j, w);
        V read = w;  // by products
        if (!kPlain && compute) store(compute + first + j, read = rounded_to_bfloat16(w));
        zeros = fma(read, zero<T>(), zeros);
        TWOLAYER_UNROLL for (int s = 0; s < kStates; ++s) if (keeps(s)) store(states[s] + first + j, state[s]);
      }
    }
    u.zeros = zeros;
  }

  // The gradient of `pieces` of w is complete. The first begins at index `at`, in the panel of `unit`.
  void take(const Pieces& pieces, T* grad, const Trained<T>& w, int64_t at, int64_t unit) const {
    for (int64_t piece = 0; piece < pieces.count && (penalised || waits); ++piece)
      for (int64_t j = 0; j < pieces.n; j += lanes<T>) {
        const int64_t here = at + piece * pieces.step + j, column = unit + piece * pieces.unit_step + j % kPanel;
        V g = load(grad + piece * pieces.n + j);
        if (penalised) store(grad + piece * pieces.n + j, g = penalise(column, load(w.value + here), g));
        if (waits) store(w.grad + here, g), note_squares(column, g);
      }
    if (!waits) update(pieces, grad, w, at);
  }

  // The gradient g of weights w, in columns [unit, unit + lanes), with that of the penalty, whose value is noted by
  // unit.
  TWOLAYER_INLINE V penalise(int64_t unit, V w, V g) const {
    T *abs_sum = p.penalty + unit, *square_sum = p.penalty + p.padded_hidden + unit;
    store(abs_sum, load(abs_sum) + abs(w));
    store(square_sum, fma(w, w, load(square_sum)));
    const V sign = select(w > 0, constant<V>(1), select(w < 0, constant<V>(-1), w));
    return fma(l2, w, fma(l1, sign, g));
  }

  TWOLAYER_INLINE void note_squares(int64_t column, V g) const {
    store(p.square_sum + column, fma(g, g, load(p.square_sum + column)));
  }

  // kRows cache lines of w and of its states into L1, for the update to find there when the gradient's sum is formed.
  template <int kRows>
  TWOLAYER_INLINE void prefetch(const Trained<T>& w, int64_t at) const {
    for (int r = 0; r < kRows; ++r) __builtin_prefetch(w.value + at + r * kPanel, 1);
    for (int s = 0; s < Trained<T>::kStates; ++s)
      for (int r = 0; w.state[s] && r < kRows; ++r) __builtin_prefetch(w.state[s] + at + r * kPanel, 1);
  }

  // Rows `range` and columns `units` of w, panels of (m), from its gradient aᵀ b: a's rows hold what belongs to
  // `range`, b (batch, units) starts at units.begin. Of a long batch, columns [i, i + width) of rows [k, k + depth) of
  // a are copied side by side, and handed to beside(k, i, width, depth, copy) too.
  template <class A, class B, class Beside = Nothing>
  void weight(Range range, int64_t m, Range units, const A& a, const B& b, const Trained<T>& w, ReadAhead& next,
              Beside&& beside = {}) const {
    if (w.frozen) return;
    constexpr int L = lanes<T>;
    const auto index = [&](int64_t i, int64_t j) {
      return units.begin * m + panels<T>(nullptr, m, 0).index(range.begin + i, j);
    };
    if (p.batch > kShortBatch) {
      constexpr int64_t kWidth = 48;  // whole tiles of every shape
      alignas(64) T copy[kDepth * kWidth];
      const Strided<const T> columns{copy, kWidth};
      for (int64_t k = 0; k < p.batch; k += kDepth)
        for (int64_t i = 0; i < range.size(); i += kWidth) {
          const int64_t depth = min_of(kDepth, p.batch - k), width = min_of(kWidth, range.size() - i);
          for (int64_t row = 0; row < depth; ++row)
            map<T>(width, [](auto v) { return v; }, copy + row * kWidth, a.row(k + row) + i);
          multiply<Left::kTransposed>(width, units.size(), depth, columns, b.from_row(k),
                                      panels(w.grad, m, units.begin).from_row(range.begin + i), k > 0, nullptr,
                                      [&](int64_t work) { next.advance(work); });
          beside(k, i, width, depth, columns);
        }
      for (int64_t j = 0; j < units.size(); j += kPanel)
        take({1, range.size() * kPanel}, w.grad + index(0, j), w, index(0, j), units.begin + j);
      return;
    }
    for_column_tiles<T>(units.size(), [&]<int kVectors, bool kTail>(int64_t j, int64_t) {
      for_row_tiles<TileShape<T>::rows>(range.size(), [&]<int kRows>(int64_t i) {
        next.advance(kRows * kVectors * L * p.batch);
        take_tile<kRows, kVectors>(w, m, range.begin + i, units.begin, j, [&](auto&& finish) {
          broadcast_tile<kRows, kVectors, false, Left::kTransposed, T>(
              a, i, 0, p.batch, b, j, L, [](int, int) { return zero<T>(); }, finish);
        });
      });
    });
  }

  // The same of w1, where most inputs are zero. A column of zeros has no gradient. grad_rows is scratch of grad_z's
  // size.
  void sparse_weight(Range columns, Range units, const Panels<const T>& grad_z, T* grad_rows, ReadAhead& next) const {
    const bool lr_finite = static_cast<T>(p.options.lr) * 0 == 0;  // in T
    const bool nothing_is_no_change = zero_changes_nothing && lr_finite && !penalised && !waits;
    for_column_tiles<T, kSparseVectors<T>>(units.size(), [&]<int kVectors, bool kTail>(int64_t j, int64_t) {
      gather_units<kVectors>(p, grad_z, j, grad_rows);
      for_row_tiles<kSparseColumns>(columns.size(), [&]<int kColumns>(int64_t i) {
        const int64_t column = columns.begin + i;
        next.advance(kColumns * kVectors * lanes<T> * p.batch);
        if (nothing_is_no_change && is_empty<kColumns>(column)) return;
        together_or_alone<kColumns>(p, 0, p.batch, column, [&]<int kTaken>(int64_t first) {
          take_tile<kTaken, kVectors>(p.w1, p.in, first, units.begin, j, [&](auto&& finish) {
            sparse_gradient_tile<kTaken, kVectors>(p, first, grad_rows, finish);
          });
        });
      });
    });
  }

  template <int kColumns>
  TWOLAYER_INLINE bool is_empty(int64_t column) const {
    uint64_t any = 0;
    for (int64_t row = 0; row < p.batch; row += kMarkedRows) any |= nonzero_rows<kColumns>(p, row, column);
    return any == 0;
  }

  // Takes the gradient of rows [row, row + kRows) of w, panels of (m), and kVectors vectors from unit first + j on,
  // that form(finish) hands to finish(r, v, gradient).
  template <int kRows, int kVectors, class Form>
  TWOLAYER_INLINE void take_tile(const Trained<T>& w, int64_t m, int64_t row, int64_t first, int64_t j,
                                 Form&& form) const {
    constexpr int L = lanes<T>, width = kVectors * L;
    constexpr int line = width % kPanel == 0 ? static_cast<int>(kPanel) : width;
    const auto index = [&](int64_t column) { return first * m + panels<T>(nullptr, m, 0).index(row, column); };
    for (int v = 0; v < kVectors; v += line / L > 1 ? line / L : 1) prefetch<kRows>(w, index(j + v * L));
    alignas(64) T grad[kRows * width];  // in pieces of kRows lines
    form([&](int r, int v, V g) { store(grad + (v * L / line * kRows + r) * line + v * L % line, g); });
    const Pieces lines_of_panels{width / line, kRows * line, m * kPanel, kPanel}, parts_of_lines{kRows, width, kPanel};
    take(line == kPanel ? lines_of_panels : parts_of_lines, grad, w, index(j), first + j);
  }

  // The same of w1's rest: its part for `inputs`, from a multiple of kPanel on, from its gradient gradᵀ x; grad (batch,
  // kPanel).
  void rest_weight(Range inputs, const T* grad, bool skips_vectors) const {
    constexpr int L = lanes<T>;
    const auto tile = [&]<int kUnits, int kVectors>(int64_t unit, int64_t j, int64_t valid, auto&& form) {
      constexpr int64_t width = kVectors * L;
      alignas(64) T total[kUnits * width] = {};  // and 0 it stays in the padding
      form([&](int u, int v, V g) { store_partial(total + u * width + v * L, g, valid); });
      const int64_t stride = p.rest_stride, at = p.whole * p.in + unit * stride + inputs.begin + j;
      take({kUnits, width, stride}, total, p.w1, at, p.whole + unit);
    };
    if (skips_vectors) {
      for_row_tiles<TileShape<T>::rows>(p.rest, [&]<int kUnits>(int64_t unit) {
        for (int64_t j = 0; j < inputs.size(); j += L)
          tile.template operator()<kUnits, 1>(unit, j, min_of(L, inputs.size() - j), [&](auto&& finish) {
            skipping_gradient_tile<kUnits>(p, unit, inputs.begin + j, grad, finish);
          });
      });
      return;
    }
    constexpr int kWide = TWOLAYER_VECTOR_REGISTERS >= 32 ? 6 : 3;  // vectors of a row at a time, for as few visits
    for_column_tiles<T, kWide>(inputs.size(), [&]<int kVectors, bool kTail>(int64_t j, int64_t tail) {
      for_row_tiles<4>(p.rest, [&]<int kUnits>(int64_t unit) {
        tile.template operator()<kUnits, kVectors>(unit, j, kTail ? tail : L, [&](auto&& finish) {
          broadcast_tile<kUnits, kVectors, kTail, Left::kTransposed, T>(
              Strided<const T>{grad, kPanel}, unit, 0, p.batch, RowPointers<T>{p.x_rows}, inputs.begin + j, tail,
              [](int, int) { return zero<T>(); }, finish);
        });
      });
    });
  }

  // The same of a long batch, in pieces: first add_rest_gradient() for all rows [k, k + depth), whose `inputs` are in
  // `columns`, then take_rest().
  void add_rest_gradient(int64_t k, Range inputs, int64_t depth, const Strided<const T>& columns, const T* grad) const {
    multiply<Left::kTransposed>(p.rest, inputs.size(), depth, Strided<const T>{grad + k * kPanel, kPanel}, columns,
                                Strided<T>{p.w1.grad + p.whole * p.in + inputs.begin, p.rest_stride}, k > 0);
  }

  void take_rest(Range inputs) const {
    for (int64_t unit = 0; unit < p.rest; ++unit) {
      const int64_t at = p.whole * p.in + unit * p.rest_stride + inputs.begin;
      take({1, ceil_div(inputs.size(), lanes<T>) * lanes<T>}, p.w1.grad + at, p.w1, at, p.whole + unit);
    }
  }

  // The same of w1, in pairs: inputs `inputs`, from a multiple of kPanel on; grad_pairs are those of `units`.
  void paired_weight(const BatchPairs& x, Range inputs, Range units, const uint32_t* grad_pairs,
                     ReadAhead& next) const {
    constexpr int64_t panels_at_once = 8, inputs_at_once = 2 * kPairStep;
    alignas(64) T grad[panels_at_once * inputs_at_once * kPanel];
    for (int64_t j = 0; j < units.size(); j += panels_at_once * kPanel)
      for (int64_t i = inputs.begin; i < inputs.end; i += inputs_at_once) {
        const int64_t rows = min_of(inputs_at_once, inputs.end - i), unit = units.begin + j;
        const int64_t count = min_of(panels_at_once, (units.size() - j) / kPanel);
        next.advance(rows * count * kPanel * p.batch);
        if constexpr (__is_same(T, float))
          p.pairs->multiply({rows, count, x.batch_pairs, x.transposed + i * x.batch_pairs, x.batch_pairs,
                             grad_pairs + j * x.batch_pairs, x.batch_pairs * kPanel, nullptr, grad, rows * kPanel});
        take({count, rows * kPanel, p.in * kPanel, kPanel}, grad, p.w1, unit * p.in + i * kPanel, unit);
        if (!waits) pack_weights(unit, count, i, rows);
      }
  }

  // w1's rows [input, input + rows) of `count` panels, as products read them.
  void pack_weights(int64_t unit, int64_t count, int64_t input, int64_t rows) const {
    if constexpr (__is_same(T, float))
      for (int64_t panel = unit; panel < unit + count * kPanel; panel += kPanel)
        p.pairs->pack_panel(p.w1.value + panel * p.in + input * kPanel, rows, ceil_div(rows, 2),
                            p.w1_pairs + panel * padded_pairs(p.in) + input / 2 * kPanel);
  }

  // n numbers of a bias from index `first` on; its gradient is the column sums of `grad` (batch, n).
  template <class Grad>
  void bias(int64_t first, int64_t n, const Grad& grad, const Trained<T>& b, int64_t squares_at) const {
    if (!b.value || b.frozen) return;
    constexpr int L = lanes<T>;
    for_column_tiles<T>(n, [&]<int kVectors, bool kTail>(int64_t j, int64_t) {
      V sum[kVectors];
      decltype(grad.at(0, 0)) rows[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = zero<T>(), rows[v] = grad.at(0, j + v * L);
      for (int64_t i = 0; i < p.batch; ++i)
        TWOLAYER_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = sum[v] + load(rows[v] + i * grad.step());
      for (int v = 0; v < kVectors; ++v) {
        const int64_t here = j + v * L;
        alignas(64) T total[L];
        store(waits ? b.grad + first + here : total, sum[v]);
        if (waits)
          note_squares(squares_at + here, sum[v]);
        else
          update({1, L}, total, b, first + here);
      }
    });
  }

  // What was kept whole, now that clip_factor is known.
  void update_kept(Range units) const {
    const auto update_all = [&](int64_t first, int64_t n, const Trained<T>& param) {
      if (!param.value || param.frozen) return;
      update({1, n}, param.grad + first, param, first);
    };
    update_all(units.begin * p.out, units.size() * p.out, p.w2);
    update_all(units.begin * p.in, units.size() * p.in, p.w1);
    update_all(units.begin, units.size(), p.b1);
    if (units.begin == 0) update_all(0, p.padded_out, p.b2);
  }
};

// Calls f with the Updater of the step's optimiser.
template <class T, class F>
TWOLAYER_INLINE void with_updater(const TrainParams<T>& p, F&& f) {
  const auto spread = [](double v) { return constant<Vec<T>>(v); };
  switch (p.optimizer) {
#define TWOLAYER_CASE(number, Name)                           \
  case number: {                                              \
    const Name::Rule<Vec<T>> rule(p.options, p.step, spread); \
    const Updater<T> updater(p, rule);                        \
    return f(updater);                                        \
  }
    TWOLAYER_OPTIMIZERS(TWOLAYER_CASE)
#undef TWOLAYER_CASE
  }
}
