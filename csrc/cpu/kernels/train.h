// The phases of a training step (see TrainParams). Included once per ISA.
//   train_gather    a range of batch rows: rows of T out of what the data holds (gather.h), where it is not T already
//   train_scan      a range of batch rows and one of columns: where they are not zero (sparse.h)
//   train_forward   a share of the hidden layer: its values, and its part of the outputs
//   train_loss      a range of batch rows: outputs, loss, gradient at the outputs
//   train_backward  the same share of the hidden layer: gradients, and the update of every parameter that belongs to it
//   train_update    the same share: the update, when it must wait for all gradients (clip_norm)
// Threads meet between the phases and nowhere else. Products run over the padding too, in whole vectors: padded lanes
// of a result depend on padded lanes only, and no sum over hidden units or outputs reads one.

// What one chunk does of the hidden layer: groups of p.group units [group0, group1). The first of them it may share
// with the chunks before, and the last with those after: of a shared group it does the parts from first_part, or those
// before last_part, of `parts`. Going forward these are parts of the batch's rows, going back of the inputs, whose
// weights it then updates.
template <class T>
class Share {
 public:
  Share(const TrainParams<T>& p, int chunk, int chunks) : p_(p), parts_(chunks) {
    const int64_t groups = ceil_div(p.padded_hidden, p.group), begin = chunk * groups, end = begin + groups;
    group0_ = begin / chunks;
    group1_ = p.shares_groups ? ceil_div(end, chunks) : end / chunks;
    first_part_ = p.shares_groups ? begin % chunks : 0;
    last_part_ = p.shares_groups && end % chunks ? end % chunks : chunks;
    before_ = p.shares_groups ? group0_ + chunk : group0_;
  }

  Range units() const { return units_of(group0_, group1_); }
  // Those whose small parameters, which nobody shares, are this chunk's.
  Range owned() const { return units_of(group0_ + (first_part_ > 0), group1_); }

  // How many units grad_hidden holds before this chunk's. Each chunk has its own copy of shared ones, which it needs
  // all.
  int64_t units_before() const { return before_ * p_.group; }

  // The sum of the sizes of for_parts()' ranges, times their units.
  int64_t area(int64_t count) const {
    int64_t total = 0;
    for_parts(count, [&](Range range, Range units) { total += range.size() * units.size(); });
    return total;
  }

  // Calls body(range, units) for ranges of [0, count), rows or inputs, and the units to do for them.
  template <class Body>
  TWOLAYER_INLINE void for_parts(int64_t count, Body&& body) const {
    const int64_t first = cut(count, first_part_), last = cut(count, last_part_);
    if (group1_ - group0_ == 1) return first < last ? body(Range{first, last}, units()) : void();
    const int64_t cuts[] = {0, min_of(first, last), first < last ? last : first, count};
    for (int i = 0; i < 3; ++i) {
      const Range range{cuts[i], cuts[i + 1]};
      const Range part = units_of(group0_ + (range.begin < first), group1_ - (range.end > last));
      if (range.size() > 0 && part.size() > 0) body(range, part);
    }
  }

 private:
  Range units_of(int64_t from, int64_t to) const {
    return {min_of(from * p_.group, p_.padded_hidden), min_of(to * p_.group, p_.padded_hidden)};
  }
  int64_t cut(int64_t count, int64_t part) const {  // at whole cache lines of inputs, and whole register tiles of rows
    return part == parts_ ? count : count * part / parts_ / kPanel * kPanel;
  }

  const TrainParams<T>& p_;
  const int64_t parts_;
  int64_t group0_, group1_, first_part_, last_part_, before_;
};

// The units from `unit` on of an array that is panels of (n).
template <class T>
TWOLAYER_INLINE Panels<T> panels(T* array, int64_t n, int64_t unit) {
  return {array + unit * n, n * kPanel};
}

// ---- Reading ahead

// Brings rows into this core's cache, a few lines at a time while products are computed: all at once, they would hold
// up what the products read from the same cache.
class ReadAhead {
 public:
  // Of `count` rows of `bytes` each, the part [begin, end) of 1, in step with advance(), whose works add up to `work`.
  TWOLAYER_INLINE ReadAhead(const void* const* rows, int64_t count, int64_t bytes, float begin, float end, int64_t work)
      : rows_(rows), count_(count), lines_of_row_(ceil_div(bytes, 64)) {
    const float lines = static_cast<float>(count * lines_of_row_);
    lines_per_work_ = work > 0 ? lines * (end - begin) / static_cast<float>(work) : 0;
    const int64_t first = static_cast<int64_t>(lines * begin);
    row_ = lines_of_row_ ? first / lines_of_row_ : 0, line_ = lines_of_row_ ? first % lines_of_row_ : 0;
  }

  TWOLAYER_INLINE void advance(int64_t work) {
    due_ += lines_per_work_ * static_cast<float>(work);
    for (; due_ >= 1 && row_ < count_; due_ -= 1) {
      __builtin_prefetch(static_cast<const char*>(rows_[row_]) + 64 * line_, 0, 2);
      if (++line_ == lines_of_row_) line_ = 0, ++row_;
    }
  }

 private:
  const void* const* rows_;
  int64_t count_, lines_of_row_;
  float lines_per_work_, due_ = 0;
  int64_t row_, line_;
};

// The part [begin, end) of what is read ahead during a step of `work`: the next batch, where it is small enough to stay
// in cache until then.
template <class T>
TWOLAYER_INLINE ReadAhead next_batch(const TrainParams<T>& p, float begin, float end, int64_t work) {
  return {p.next_rows, p.next_batch, p.row_bytes, begin, end, work};
}

// `count` of the batch's rows, from `row` on, during `work`.
template <class T>
TWOLAYER_INLINE ReadAhead rows_ahead(const TrainParams<T>& p, int64_t row, int64_t count, int64_t work) {
  const auto rows = reinterpret_cast<const void* const*>(p.x_rows + row);
  return {rows, count, p.in * static_cast<int64_t>(sizeof(T)), 0, 1, work};
}

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

// z: one panel of rows [row0, row1), from the activation's input to its output, of the units from `unit` on.
template <class T>
void activate_panel(const TrainParams<T>& p, int64_t unit, Range rows, T* z, T* saved) {
  activate(p.activation, rows.size() * kPanel, z, z, saved);
  const int64_t real = p.hidden - unit;
  for (int64_t i = 0; real < kPanel && i < rows.size(); ++i)
    for (int64_t j = real; j < kPanel; ++j) z[i * kPanel + j] = 0;
  if (p.training && p.dropout > 0)
    for (int64_t i = 0; i < rows.size(); ++i) drop_out(p, rows.begin + i, unit, kPanel, z + i * kPanel);
  if (p.bfloat16_compute) round_to_bfloat16(rows.size() * kPanel, z);
}

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

// z = bias + x w for `rows` of the batch and `units`.
template <class T>
void paired_forward(const TrainParams<T>& p, const BatchPairs& x, Range rows, Range units, const T* bias,
                    const Panels<T>& z, ReadAhead& next) {
  next.advance(rows.size() * units.size() * p.in);
  if constexpr (__is_same(T, float))
    p.pairs->multiply({rows.size(), units.size() / kPanel, x.in_pairs, x.rows + rows.begin * x.in_pairs, x.in_pairs,
                       p.w1_pairs + units.begin * x.in_pairs, x.in_pairs * kPanel, bias, z.at(rows.begin, 0),
                       z.panel_size});
}

constexpr float kAheadForward = 0.5f;  // of the next batch, what is read ahead while going forward
constexpr int64_t kRowsAtOnce = 64;    // of a long batch: 200 KB at 784 inputs of float32
constexpr int64_t kFewUnits = 64;      // below which products wait for their inputs, so that reading ahead pays

// The hidden values of `rows` and `units`, and their contribution to the outputs.
template <class T>
void forward_rows(const TrainParams<T>& p, const BatchPairs& x_pairs, Range rows, Range units, ReadAhead& next) {
  const int64_t O = p.padded_out;
  const Panels<T> z = panels(p.hidden_value, p.batch, units.begin),
                  saved = panels(p.hidden_saved, p.batch, units.begin);
  const T* bias = p.b1.value ? p.b1.value + units.begin : nullptr;
  if (p.skips_zeros)
    sparse_forward(p, units, bias, z, next);  // all rows
  else if (p.pairs)
    paired_forward(p, x_pairs, rows, units, bias, z, next);
  else
    multiply<Left::kPlain>(rows.size(), units.size(), p.in, RowPointers<T>{p.x_rows + rows.begin},
                           panels<const T>(p.w1.compute, p.in, units.begin), z.from_row(rows.begin), false, bias,
                           [&](int64_t work) { next.advance(work); });
  for (int64_t j = 0; j < units.size(); j += kPanel)
    activate_panel(p, units.begin + j, rows, z.at(rows.begin, j),
                   p.hidden_saved == p.hidden_value ? nullptr : saved.at(rows.begin, j));
  for (int64_t unit = units.begin; unit < units.end; unit += kPanel) {
    const int64_t block = unit / p.block, count = min_of(kPanel, p.hidden - unit);
    multiply<Left::kPlain>(rows.size(), O, count, Strided<const T>{z.at(rows.begin, unit - units.begin), kPanel},
                           Strided<const T>{p.w2_transposed + unit * O, O},
                           Strided<T>{p.partial + (block * p.batch + rows.begin) * O, O}, unit % p.block != 0);
  }
}

template <class T>
void train_forward(const TrainParams<T>& p, int chunk, int chunks) {
  const Share<T> share(p, chunk, chunks);
  const BatchPairs x_pairs(p, chunk);
  if constexpr (__is_same(T, float))
    for (int64_t row = 0; p.pairs && row < p.batch; row += 2 * kPairStep)
      p.pairs->pack_rows(p.x_rows, row, p.batch, p.in, x_pairs.rows, x_pairs.transposed);
  ReadAhead next = next_batch(p, 0, kAheadForward, share.area(p.batch) * p.in);
  const bool is_long = p.batch > kRowsAtOnce && !p.skips_zeros;
  share.for_parts(p.batch, [&](Range part, Range units) {
    // Some rows at a time, all the way to their outputs, so that they are read from memory once.
    const int64_t at_once = is_long ? kRowsAtOnce : part.size();
    for (int64_t begin = part.begin; begin < part.end; begin += at_once) {
      const Range rows{begin, min_of(begin + at_once, part.end)};
      const int64_t ahead = min_of(at_once, part.end - rows.end);
      if (is_long && units.size() < kFewUnits) next = rows_ahead(p, rows.end, ahead, rows.size() * units.size() * p.in);
      forward_rows(p, x_pairs, rows, units, next);
    }
  });
  if (!p.shares_groups || !p.training) return;
  const Range owned = share.owned();
  map<T>(
      owned.size() * p.out, [](auto v) { return v; }, p.w2_shared + owned.begin * p.out,
      p.w2.compute + owned.begin * p.out);
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

constexpr int64_t kLogRows = 64;  // rows whose logarithms are taken together

// A row's outputs, their gradient in grad_out, and its loss times its weight.
template <class Loss, class T>
TWOLAYER_INLINE LogTerms<T> row_terms(Loss loss, const TrainParams<T>& p, int64_t row) {
  const int64_t O = p.padded_out;
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
    for (int64_t j = 0; j < O; j += lanes<T>) store(z + j, zero<T>());
    return {0, 1, 0};
  }
  LogTerms<T> terms = loss_row(loss, p, row, static_cast<T>(weight / p.loss_divisor), z);
  if (p.bfloat16_compute) round_to_bfloat16(O, z);
  terms.factor *= weight, terms.offset *= weight;
  return terms;
}

template <class T>
void train_loss(const TrainParams<T>& p, int64_t row0, int64_t row1) {
  const auto rows_with = [&](auto loss) {
    for (int64_t first = row0; first < row1; first += kLogRows) {
      const int64_t rows = min_of(kLogRows, row1 - first);
      alignas(64) T factor[kLogRows], total[kLogRows], offset[kLogRows];
      for (int64_t i = 0; i < rows; ++i) {
        const LogTerms<T> terms = row_terms(loss, p, first + i);
        factor[i] = terms.factor, total[i] = terms.total, offset[i] = terms.offset;
      }
      map<T>(
          rows, [](auto f, auto t, auto o) { return f * log1p(t - 1) - o; }, p.row_loss + first, factor, total, offset);
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
  // `range`, b (batch, units) starts at units.begin.
  template <class A, class B>
  void weight(Range range, int64_t m, Range units, const A& a, const B& b, const Trained<T>& w, ReadAhead& next) const {
    if (w.frozen) return;
    constexpr int L = lanes<T>;
    const auto index = [&](int64_t i, int64_t j) {
      return units.begin * m + panels<T>(nullptr, m, 0).index(range.begin + i, j);
    };
    if (p.batch > kShortBatch) {
      multiply<Left::kTransposed>(range.size(), units.size(), p.batch, a, b,
                                  panels(w.grad, m, units.begin).from_row(range.begin), false, nullptr,
                                  [&](int64_t work) { next.advance(work); });
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

template <class T>
void refresh_transposed(const TrainParams<T>& p, Range units) {
  constexpr int L = lanes<T>;
  const int64_t end = min_of(units.end, p.hidden);
  for (int64_t unit = units.begin; unit < end; unit += kPanel) {
    const Panels<const T> w2 = panels<const T>(p.w2.compute, p.out, unit);
    for (int64_t o = 0; o < p.out; o += L)
      for (int64_t j = 0; j < min_of(kPanel, end - unit); j += L) {
        Vec<T> square[L];
        for (int i = 0; i < L; ++i) square[i] = o + i < p.out ? load(w2.at(o + i, j)) : zero<T>();
        transpose(square);
        const int64_t units_here = min_of(L, end - unit - j);
        for (int64_t i = 0; i < units_here; ++i) store(p.w2_transposed + (unit + j + i) * p.padded_out + o, square[i]);
      }
  }
}

// The gradient at the activation's input, of all rows, into panels of its own and where there are pairs into those.
template <class T>
void hidden_gradient(const TrainParams<T>& p, Range units, T* grad_z, uint32_t* grad_pairs) {
  const Panels<T> grad = panels(grad_z, p.batch, 0);
  multiply<Left::kPlain>(p.batch, units.size(), p.out, Strided<const T>{p.grad_out, p.padded_out},
                         panels<const T>(p.shares_groups ? p.w2_shared : p.w2.compute, p.out, units.begin), grad);
  for (int64_t j = 0; j < units.size(); j += kPanel) {
    T* g = grad.at(0, j);
    if (p.dropout > 0)
      for (int64_t i = 0; i < p.batch; ++i) drop_out(p, i, units.begin + j, kPanel, g + i * kPanel);
    multiply_by_derivative<T>(p.activation, p.batch * kPanel, p.hidden_saved + (units.begin + j) * p.batch, g);
    if (p.bfloat16_compute) round_to_bfloat16(p.batch * kPanel, g);
    if constexpr (__is_same(T, float))
      if (p.pairs) p.pairs->pack_panel(g, p.batch, padded_pairs(p.batch), grad_pairs + j * padded_pairs(p.batch));
  }
}

template <class T>
void train_backward(const TrainParams<T>& p, int chunk, int chunks) {
  const bool penalised = p.gradient.l1 != 0 || p.gradient.l2 != 0, waits = p.gradient.clip_norm != 0;
  const int64_t H = p.padded_hidden, O = p.padded_out;
  const Strided<const T> grad_out{p.grad_out, O};
  const Share<T> share(p, chunk, chunks);
  const Range units = share.units(), owned = share.owned();
  for (int64_t j = owned.begin; j < owned.end; ++j) {
    if (penalised) p.penalty[j] = p.penalty[H + j] = 0;
    if (waits) p.square_sum[j] = 0;
  }
  if (waits && chunk == 0)
    for (int64_t j = H; j < H + O; ++j) p.square_sum[j] = 0;

  const BatchPairs x_pairs(p, chunk);
  T* grad_z = p.grad_hidden + share.units_before() * p.batch;
  uint32_t* grad_pairs = p.pairs ? p.grad_pairs + share.units_before() * x_pairs.batch_pairs : nullptr;
  const auto grad_of = [&](Range some) { return panels<const T>(grad_z, p.batch, some.begin - units.begin); };
  if (!p.w1.frozen || (p.b1.value && !p.b1.frozen)) hidden_gradient(p, units, grad_z, grad_pairs);
  with_updater(p, [&](const Updater<T>& updater) {
    if (chunk == 0) updater.bias(0, O, grad_out, p.b2, H);
    const int64_t work = share.area(p.in) * p.batch;
    ReadAhead none{nullptr, 0, 0, 0, 1, 0};
    ReadAhead next =
        p.batch > kShortBatch ? rows_ahead(p, kDepth, p.batch - kDepth, work) : next_batch(p, kAheadForward, 1, work);
    updater.weight({0, p.out}, p.out, owned, grad_out, panels<const T>(p.hidden_value, p.batch, owned.begin), p.w2,
                   none);
    updater.bias(owned.begin, owned.size(), grad_of(owned), p.b1, owned.begin);
    if (!waits && !p.w2.frozen) refresh_transposed(p, owned);
    if (!p.w1.frozen) {
      const bool skips_zeros = p.skips_zeros && all_finite(p.batch * units.size(), grad_z);
      share.for_parts(p.in, [&](Range inputs, Range some) {
        if (skips_zeros)
          updater.sparse_weight(inputs, some, grad_of(some), p.grad_rows + share.units_before() * p.batch, next);
        else if (p.pairs)
          updater.paired_weight(x_pairs, inputs, some, grad_pairs + (some.begin - units.begin) * x_pairs.batch_pairs,
                                next);
        else
          updater.weight(inputs, p.in, some, RowPointers<T>{p.x_rows, inputs.begin}, grad_of(some), p.w1, next);
      });
    }
    if (sum(updater.zeros) != 0) p.found_not_finite[chunk] = 1;
  });
}

template <class T>
void train_update(const TrainParams<T>& p, int chunk, int chunks) {
  const Range owned = Share<T>(p, chunk, chunks).owned();
  with_updater(p, [&](const Updater<T>& updater) {
    updater.update_kept(owned);
    if (p.pairs && !p.w1.frozen) updater.pack_weights(owned.begin, owned.size() / kPanel, 0, p.in);
    if (sum(updater.zeros) != 0) p.found_not_finite[chunk] = 1;
  });
  if (!p.w2.frozen) refresh_transposed(p, owned);
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
  if constexpr (__is_same(T, float))
    for (int64_t unit = 0; p.pairs && unit < p.padded_hidden; unit += kPanel)
      p.pairs->pack_panel(p.w1.value + unit * p.in, p.in, padded_pairs(p.in), p.w1_pairs + unit * padded_pairs(p.in));
  copy(p.out, p.w2);
  refresh_transposed(p, {0, p.padded_hidden});
  return all_finite(p.in * p.padded_hidden, p.w1.compute);
}
