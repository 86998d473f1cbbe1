// The phases of a training step (see TrainParams). Included once per ISA.
//   train_gather    a range of batch rows: rows of T out of what the data holds (gather.h), where it is not T already
//   train_forward   a range of hidden blocks: hidden layer, and its part of the outputs
//   train_loss      a range of batch rows: outputs, loss, gradient at the outputs
//   train_backward  the same hidden blocks: gradients, and the update of every parameter that belongs to them
//   train_update    the same hidden blocks: the update, when it must wait for all gradients (clip_norm)
// Threads meet between the phases and nowhere else. Products run over the padding too, in whole vectors: padded lanes
// of a result depend on padded lanes only, and no sum over hidden units or outputs reads one.

template <class T>
struct HiddenRange {  // of padded units
  int64_t begin, end;
  TWOLAYER_INLINE HiddenRange(const TrainParams<T>& p, int64_t block0, int64_t block1)
      : begin(min_of(block0 * p.block, p.padded_hidden)), end(min_of(block1 * p.block, p.padded_hidden)) {}
  TWOLAYER_INLINE int64_t width() const { return end - begin; }
};

// ---- Dropout

// values[j] of units [unit, unit + n), n a whole number of vectors, times 0 or 1 / (1 − dropout).
template <class T>
void drop_out(const TrainParams<T>& p, int64_t row, int64_t unit, int64_t n, T* values) {
  using U = typename Format<Vec<T>>::Unsigned;
  const uint64_t key = dropout_row_key(p.dropout_key, p.step, row);
  const U threshold = U{} + dropout_threshold(p.dropout);
  const Vec<T> kept = broadcast<T>(static_cast<T>(1 / (1 - p.dropout)));
  U index;
  for (int l = 0; l < lanes<T>; ++l) index[l] = static_cast<uint32_t>(unit + l);
  for (int64_t j = 0; j < n; j += lanes<T>, index += lanes<T>) {
    const Vec<T> v = load(values + j) * kept;
    store(values + j, select(dropout_bits(key, index) < threshold, zero<T>(), v));
  }
}

// ---- Forward

template <class T>
void train_forward(const TrainParams<T>& p, int64_t block0, int64_t block1) {
  const int64_t H = p.padded_hidden, O = p.padded_out;
  const HiddenRange<T> units(p, block0, block1);
  const int64_t width = units.width(), real_width = min_of(units.end, p.hidden) - units.begin;
  const bool drops = p.training && p.dropout > 0;
  for (int64_t i0 = 0; i0 < p.batch; i0 += kDepth) {
    const int64_t rows = min_of(kDepth, p.batch - i0);
    T* z = p.hidden_value + i0 * H + units.begin;
    if (p.b1.value)
      for (int64_t i = 0; i < rows; ++i) map<T>(width, [](auto v) { return v; }, z + i * H, p.b1.value + units.begin);
    if (p.skips_zeros) {
      if (!p.b1.value)
        for (int64_t i = 0; i < rows; ++i) fill_zero(width, z + i * H);
      sparse_forward(p, i0, rows, units.begin, width, z);
    } else {
      multiply<Left::kPlain>(rows, width, p.in, RowPointers<T>{p.x_rows + i0}, p.w1.compute + units.begin, H, z, H,
                             p.b1.value != nullptr);
    }
    T* saved = p.hidden_saved == p.hidden_value ? nullptr : p.hidden_saved + i0 * H + units.begin;
    for (int64_t i = 0; i < rows; ++i) {
      T* h = z + i * H;
      activate(p.activation, real_width, h, h, saved ? saved + i * H : nullptr);
      if (drops) drop_out(p, i0 + i, units.begin, width, h);
      if (p.bfloat16_compute) round_to_bfloat16(width, h);
    }
  }
  for (int64_t block = block0; block < block1; ++block) {
    const int64_t first = block * p.block, count = min_of(p.block, p.hidden - first);
    multiply<Left::kPlain>(p.batch, O, count, Strided<T>{p.hidden_value + first, H}, p.w2_transposed + first * O, O,
                           p.partial + block * p.batch * O, O);
  }
}

// ---- Loss

// Whether the first of the largest of n outputs is the row's class.
template <class T>
bool is_hit(int64_t n, const T* z, int64_t label) {
  int64_t best = 0;
  for (int64_t j = 1; j < n; ++j)
    if (z[j] > z[best]) best = j;
  return best == label;
}

template <class T>
void train_loss(const TrainParams<T>& p, int64_t row0, int64_t row1) {
  const int64_t O = p.padded_out;
  const auto rows_with = [&](auto loss) {
    for (int64_t row = row0; row < row1; ++row) {
      T* z = p.grad_out + row * O;
      for (int64_t j = 0; j < O; j += lanes<T>) {
        Vec<T> total = p.b2.value ? load(p.b2.value + j) : zero<T>();
        for (int64_t block = 0; block < p.blocks; ++block)
          total = total + load(p.partial + (block * p.batch + row) * O + j);
        store(z + j, total);
      }
      if (!p.training && p.classes) p.row_hit[row] = is_hit(p.out, z, p.classes[row]);
      const T weight = p.row_weight ? p.row_weight[row] : T(1);
      if (p.classes && p.classes[row] == p.loss_options.ignore_index) {
        p.row_loss[row] = 0;
        for (int64_t j = 0; j < O; ++j) z[j] = 0;
        continue;
      }
      p.row_loss[row] = weight * loss_row(loss, p, row, static_cast<T>(weight / p.loss_divisor), z);
      if (p.bfloat16_compute) round_to_bfloat16(O, z);
    }
  };
  switch (p.loss) {
#define TWOLAYER_CASE(number, Name) \
  case number:                      \
    return rows_with(Name{});
    TWOLAYER_LOSSES(TWOLAYER_CASE)
#undef TWOLAYER_CASE
  }
}

// ---- Backward and update

// Brings the next batch's rows towards the caches, a few lines at a call, so that memory works while the weights are
// updated. A chunk takes the share of rows that its blocks are of all.
template <class T>
class NextBatch {
 public:
  TWOLAYER_INLINE NextBatch(const TrainParams<T>& p, int64_t block0, int64_t block1)
      : p_(p), row_(block0 * p.next_batch / p.blocks), end_(block1 * p.next_batch / p.blocks) {}

  TWOLAYER_INLINE void prefetch(int64_t lines) {
    for (; lines > 0 && row_ < end_; --lines) {
      __builtin_prefetch(static_cast<const char*>(p_.next_rows[row_]) + at_, 0, 2);
      at_ += 64;
      if (at_ >= p_.row_bytes) at_ = 0, ++row_;
    }
  }

 private:
  const TrainParams<T>& p_;
  int64_t row_, end_, at_ = 0;
};

// What happens between a gradient and the parameter, with the step's constants spread over vectors.
template <class T, class Rule>
struct Updater {
  using V = Vec<T>;
  const TrainParams<T>& p;
  Rule rule;
  V l1, l2, clip_factor, clip_value;
  bool penalised, waits, clips;
  mutable V zeros;  // 0 while every updated weight is finite as products read it

  TWOLAYER_INLINE Updater(const TrainParams<T>& params, const Rule& update_rule)
      : p(params),
        rule(update_rule),
        l1(constant<V>(p.gradient.l1)),
        l2(constant<V>(p.gradient.l2)),
        clip_factor(constant<V>(p.clip_factor)),
        clip_value(constant<V>(p.gradient.clip_value)),
        penalised(p.gradient.l1 != 0 || p.gradient.l2 != 0),
        waits(p.gradient.clip_norm != 0),
        clips(p.gradient.clip_value != 0),
        zeros(zero<T>()) {}

  // grad (columns [unit, unit + n) of a row of weight w) += the gradient of the penalty, whose value is noted by unit.
  TWOLAYER_INLINE void penalise(int64_t unit, int64_t n, const T* w, T* grad) const {
    T *abs_sum = p.penalty + unit, *square_sum = p.penalty + p.padded_hidden + unit;
    for (int64_t j = 0; j < n; j += lanes<T>) {
      const V wj = load(w + j);
      store(abs_sum + j, load(abs_sum + j) + abs(wj));
      store(square_sum + j, fma(wj, wj, load(square_sum + j)));
      const V sign = select(wj > 0, constant<V>(1), select(wj < 0, constant<V>(-1), wj));
      store(grad + j, fma(l2, wj, fma(l1, sign, load(grad + j))));
    }
  }

  TWOLAYER_INLINE void note_squares(int64_t column, int64_t n, const T* grad) const {
    T* squares = p.square_sum + column;
    for (int64_t j = 0; j < n; j += lanes<T>)
      store(squares + j, fma(load(grad + j), load(grad + j), load(squares + j)));
  }

  // Updates n numbers of `param`, from index `at` on; n is a whole number of vectors.
  TWOLAYER_INLINE void update(int64_t n, const T* grad, const Trained<T>& param, int64_t at) const {
    for (int64_t j = 0; j < n; j += lanes<T>) {
      V state[Trained<T>::kStates];
      for (int s = 0; s < Trained<T>::kStates; ++s)
        state[s] = param.state[s] ? load(param.state[s] + at + j) : zero<T>();
      V g = load(grad + j);
      if (waits) g = g * clip_factor;
      if (clips) g = max(min(g, clip_value), -clip_value);
      const V w = rule.step(load(param.value + at + j), g, state);
      store(param.value + at + j, w);
      V read = w;  // by products
      if (param.compute != param.value) store(param.compute + at + j, read = rounded_to_bfloat16(w));
      zeros = fma(read, zero<T>(), zeros);
      for (int s = 0; s < Trained<T>::kStates; ++s)
        if (param.state[s]) store(param.state[s] + at + j, state[s]);
    }
  }

  // One row of a weight's gradient is complete: columns [unit, unit + n) of row `row`.
  TWOLAYER_INLINE void take_weight_row(int64_t row, int64_t unit, int64_t n, T* grad, const Trained<T>& w) const {
    const int64_t at = row * p.padded_hidden + unit;
    if (penalised) penalise(unit, n, w.value + at, grad);
    if (waits)
      note_squares(unit, n, grad);
    else
      update(n, grad, w, at);
  }

  // w (m, H), columns `units`, from its gradient aᵀ b: a's rows hold m numbers, b (batch, H) starts at units.begin. The
  // gradient goes from registers to the update by way of a tile in L1, unless w.grad says that it is to be kept whole.
  template <class A>
  void weight(int64_t m, const HiddenRange<T>& units, const A& a, const T* b, const Trained<T>& w) const {
    const int64_t H = p.padded_hidden;
    if (w.frozen) return;
    if (w.grad) {
      multiply<Left::kTransposed>(m, units.width(), p.batch, a, b, H, w.grad + units.begin, H);
      for (int64_t i = 0; i < m; ++i) take_weight_row(i, units.begin, units.width(), w.grad + i * H + units.begin, w);
      return;
    }
    for_column_tiles<T>(units.width(), [&]<int kVectors, bool kTail>(int64_t j, int64_t) {
      constexpr int width = kVectors * lanes<T>;
      for_row_tiles<TileShape<T>::rows>(m, [&]<int kRows>(int64_t i) {
        alignas(64) T grad[kRows * width];
        broadcast_tile<kRows, kVectors, false, Left::kTransposed>(a, i, int64_t(0), p.batch, b + j, H, grad, width,
                                                                  false, 0);
        for (int r = 0; r < kRows; ++r) take_weight_row(i + r, units.begin + j, width, grad + r * width, w);
      });
    });
  }

  // w1 from its gradient where most inputs are zero. A column of zeros has no gradient.
  void sparse_weight(const HiddenRange<T>& units, NextBatch<T> next) const {
    const Trained<T>& w = p.w1;
    const bool lr_finite = static_cast<T>(p.options.lr) * 0 == 0;  // in T
    const bool nothing_is_no_change = rule.zero_changes_nothing() && lr_finite && !penalised && !waits;
    const int64_t words = ceil_div(p.batch, 64);
    const auto is_empty = [&](int64_t column) {
      uint64_t any = 0;
      for (int64_t word = 0; word < words; ++word) any |= p.nonzero_rows[word * p.in + column];
      return any == 0;
    };
    for_column_tiles<T, kSparseVectors>(units.width(), [&]<int kVectors, bool kTail>(int64_t j, int64_t) {
      constexpr int width = kVectors * lanes<T>;
      const int64_t unit = units.begin + j;
      alignas(64) T tile[2 * width];
      const auto take = [&](int64_t column, T* grad) {
        if (waits) map<T>(width, [](auto g) { return g; }, w.grad + column * p.padded_hidden + unit, grad);
        take_weight_row(column, unit, width, waits ? w.grad + column * p.padded_hidden + unit : grad, w);
      };
      int64_t pair[2];
      int found = 0;
      for (int64_t column = 0; column < p.in; ++column) {
        if (nothing_is_no_change && is_empty(column)) continue;
        pair[found++] = column;
        if (found < 2) continue;
        sparse_gradient_tile<2, kVectors>(p, pair, unit, tile);
        take(pair[0], tile), take(pair[1], tile + width);
        next.prefetch(kPrefetchLines);
        found = 0;
      }
      if (found == 0) return;
      sparse_gradient_tile<1, kVectors>(p, pair, unit, tile);
      take(pair[0], tile);
    });
  }

  // n numbers of a bias from index `first` on; its gradient is the column sums of `grad` (batch, stride).
  void bias(int64_t first, int64_t n, const T* grad, int64_t stride, const Trained<T>& b, int64_t squares_at) const {
    if (!b.value || b.frozen) return;
    for (int64_t j = first; j < first + n; j += lanes<T>) {
      alignas(64) T total[lanes<T>];
      sum_rows<T>(p.batch, lanes<T>, grad + j - first, stride, total);
      if (waits) {
        store(b.grad + j, load(total));
        note_squares(squares_at + j - first, lanes<T>, total);
      } else {
        update(lanes<T>, total, b, j);
      }
    }
  }

  // What was kept whole, now that clip_factor is known.
  void update_kept(const HiddenRange<T>& units) const {
    const auto rows = [&](int64_t m, const Trained<T>& w) {
      if (w.frozen) return;
      for (int64_t i = 0; i < m; ++i) {
        const int64_t at = i * p.padded_hidden + units.begin;
        update(units.width(), w.grad + at, w, at);
      }
    };
    rows(p.out, p.w2);
    rows(p.in, p.w1);
    if (p.b1.value && !p.b1.frozen) update(units.width(), p.b1.grad + units.begin, p.b1, units.begin);
    if (units.begin == 0 && p.b2.value && !p.b2.frozen) update(p.padded_out, p.b2.grad, p.b2, 0);
  }
};

// Calls f with the Updater of the step's optimiser.
template <class T, class F>
TWOLAYER_INLINE void with_updater(const TrainParams<T>& p, F&& f) {
  const auto spread = [](double v) { return constant<Vec<T>>(v); };
  switch (p.optimizer) {
#define TWOLAYER_CASE(number, Name)                                 \
  case number: {                                                    \
    using Rule = Name::Rule<Vec<T>>;                                \
    return f(Updater<T, Rule>(p, Rule(p.options, p.step, spread))); \
  }
    TWOLAYER_OPTIMIZERS(TWOLAYER_CASE)
#undef TWOLAYER_CASE
  }
}

template <class T>
void refresh_transposed(const TrainParams<T>& p, const HiddenRange<T>& units) {
  const int64_t end = min_of(units.end, p.hidden);
  for (int64_t o = 0; o < p.out; ++o)
    for (int64_t j = units.begin; j < end; ++j)
      p.w2_transposed[j * p.padded_out + o] = p.w2.compute[o * p.padded_hidden + j];
}

template <class T>
void train_backward(const TrainParams<T>& p, int64_t block0, int64_t block1) {
  const int64_t H = p.padded_hidden, O = p.padded_out;
  const HiddenRange<T> units(p, block0, block1);
  const int64_t width = units.width();
  const Strided<T> grad_out{p.grad_out, O};
  T* grad_z = p.grad_hidden + units.begin;
  if (!p.w1.frozen || (p.b1.value && !p.b1.frozen)) {
    multiply<Left::kPlain>(p.batch, width, p.out, grad_out, p.w2.compute + units.begin, H, grad_z, H);
    for (int64_t i = 0; i < p.batch; ++i) {
      T* g = grad_z + i * H;
      if (p.dropout > 0) drop_out(p, i, units.begin, width, g);
      multiply_by_derivative(p.activation, width, p.hidden_saved + units.begin + i * H, g);
      if (p.bfloat16_compute) round_to_bfloat16(width, g);
    }
  }
  const bool penalised = p.gradient.l1 != 0 || p.gradient.l2 != 0, waits = p.gradient.clip_norm != 0;
  for (int64_t j = units.begin; j < units.end; ++j) {
    if (penalised) p.penalty[j] = p.penalty[H + j] = 0;
    if (waits) p.square_sum[j] = 0;
  }
  if (waits && block0 == 0)
    for (int64_t j = H; j < H + O; ++j) p.square_sum[j] = 0;

  with_updater(p, [&](const auto& updater) {
    if (block0 == 0) updater.bias(0, O, p.grad_out, O, p.b2, H);
    updater.weight(p.out, units, grad_out, p.hidden_value + units.begin, p.w2);
    updater.bias(units.begin, width, grad_z, H, p.b1, units.begin);
    if (p.skips_zeros && !p.w1.frozen && all_finite(p.batch, width, grad_z, H))
      updater.sparse_weight(units, NextBatch<T>(p, block0, block1));
    else
      updater.weight(p.in, units, RowPointers<T>{p.x_rows}, grad_z, p.w1);
    if (sum(updater.zeros) != 0) p.found_not_finite[block0] = 1;
  });
  if (!waits && !p.w2.frozen) refresh_transposed(p, units);
}

template <class T>
void train_update(const TrainParams<T>& p, int64_t block0, int64_t block1) {
  const HiddenRange<T> units(p, block0, block1);
  with_updater(p, [&](const auto& updater) {
    updater.update_kept(units);
    if (sum(updater.zeros) != 0) p.found_not_finite[block0] = 1;
  });
  if (!p.w2.frozen) refresh_transposed(p, units);
}

// Makes the copies of the weights that products read, after the weights were set from outside; returns whether every
// number of w1 is finite as they read it.
template <class T>
bool train_take_weights(const TrainParams<T>& p) {
  const auto copy = [&](int64_t m, const Trained<T>& w) {
    if (w.compute != w.value)
      map<T>(m * p.padded_hidden, [](auto v) { return rounded_to_bfloat16(v); }, w.compute, w.value);
  };
  copy(p.in, p.w1);
  copy(p.out, p.w2);
  return all_finite(p.in, p.padded_hidden, p.w1.compute, p.padded_hidden);
}
