// The phases of a training step (see TrainParams). Included once per ISA.
//   train_gather    a range of batch rows: rows of T out of what the data holds (gather.h), where it is not T already
//   train_scan      a range of batch rows and one of columns: where they are not zero (sparse.h)
//   train_forward   a share of the hidden layer: its values, and its part of the outputs
//   train_loss      a range of batch rows: outputs, loss, gradient at the outputs
//   train_backward  the same share of the hidden layer: gradients, and the update of every parameter that belongs to it
//   train_update    the same share: the update, when it must wait for all gradients (clip_norm)
// Threads meet between the phases and nowhere else. Products run over the padding too, in whole vectors: padded lanes
// of a result depend on padded lanes only, and no sum over hidden units or outputs reads one.

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

// From a panel's sums to its values, of `rows` and the units from `unit` on, and to their part of a block's outputs.
template <class T>
void through_activation(const TrainParams<T>& p, Range rows, int64_t unit, int64_t block, bool begins_block) {
  const int64_t O = p.padded_out, at = unit * p.batch + rows.begin * kPanel;
  T* z = p.hidden_value + at;
  activate_panel(p, unit, rows, z, p.hidden_saved == p.hidden_value ? nullptr : p.hidden_saved + at);
  multiply<Left::kPlain>(rows.size(), O, min_of(kPanel, p.hidden - unit), Strided<const T>{z, kPanel},
                         Strided<const T>{p.w2_transposed + unit * O, O},
                         Strided<T>{p.partial + (block * p.batch + rows.begin) * O, O}, !begins_block);
}

// The hidden values of `rows` and `units`, and their contribution to the outputs.
template <class T>
void forward_rows(const TrainParams<T>& p, const BatchPairs& x_pairs, Range rows, Range units, ReadAhead& next) {
  const Panels<T> z = panels(p.hidden_value, p.batch, units.begin);
  const T* bias = p.b1.value ? p.b1.value + units.begin : nullptr;
  if (p.skips_zeros)
    sparse_forward(p, units, bias, z, next);  // all rows
  else if (p.pairs)
    paired_forward(p, x_pairs, rows, units, bias, z, next);
  else
    multiply<Left::kPlain>(rows.size(), units.size(), p.in, RowPointers<T>{p.x_rows + rows.begin},
                           panels<const T>(p.w1.compute, p.in, units.begin), z.from_row(rows.begin), false, bias,
                           [&](int64_t work) { next.advance(work); });
  for (int64_t unit = units.begin; unit < units.end; unit += kPanel)
    through_activation(p, rows, unit, unit / p.block, unit % p.block == 0);
}

// The same of the rest.
template <class T>
void forward_rest(const TrainParams<T>& p, Range rows) {
  rest_forward(p, rows, p.hidden_value + p.whole * p.batch);
  through_activation(p, rows, p.whole, p.blocks - 1, true);
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
  Range rest = share.rest_part(p.batch);
  share.for_parts(p.batch, [&](Range part, Range units) {
    // Some rows at a time, all the way to their outputs, so that they are read from memory once.
    const int64_t at_once = is_long ? kRowsAtOnce : part.size();
    for (int64_t begin = part.begin; begin < part.end; begin += at_once) {
      const Range rows{begin, min_of(begin + at_once, part.end)};
      const int64_t ahead = min_of(at_once, part.end - rows.end);
      if (is_long && units.size() < kFewUnits) next = rows_ahead(p, rows.end, ahead, rows.size() * units.size() * p.in);
      forward_rows(p, x_pairs, rows, units, next);
      if (rest.size() > 0 && rest.begin == rows.begin) {  // while the rows are near
        const int64_t end = min_of(rest.end, rows.end);
        forward_rest(p, {rest.begin, end});
        rest.begin = end;
      }
    }
  });
  if (rest.size() > 0) forward_rest(p, rest);
  if (!p.w2_shared || !p.training) return;
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
  for (int64_t j = 0; j < O; j += lanes<T>) store(z + j, outputs(p, row, j));
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
    if (goes_by_rows_of_lanes(loss, p)) {
      for (int64_t row = row0; row < row1; row += lanes<T>) loss_rows(p, row, min_of(lanes<T>, row1 - row));
      return;
    }
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
                         panels<const T>(p.w2_shared ? p.w2_shared : p.w2.compute, p.out, units.begin), grad);
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
  T* grad_rest = grad_z + units.size() * p.batch;
  if (!p.w1.frozen || (p.b1.value && !p.b1.frozen)) {
    hidden_gradient(p, units, grad_z, grad_pairs);
    hidden_gradient(p, share.rest(), grad_rest, nullptr);
  }
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
      Range rest = share.rest_part(p.in);
      share.for_parts(p.in, [&](Range inputs, Range some) {
        if (skips_zeros)
          updater.sparse_weight(inputs, some, grad_of(some), p.grad_rows + share.units_before() * p.batch, next);
        else if (p.pairs)
          updater.paired_weight(x_pairs, inputs, some, grad_pairs + (some.begin - units.begin) * x_pairs.batch_pairs,
                                next);
        else {
          const bool does_rest = p.batch > kShortBatch && inputs.begin <= rest.begin && rest.end <= inputs.end;
          updater.weight(inputs, p.in, some, RowPointers<T>{p.x_rows, inputs.begin}, grad_of(some), p.w1, next,
                         [&](int64_t k, int64_t i, int64_t width, int64_t depth, const Strided<const T>& columns) {
                           const int64_t first = inputs.begin + i, begin = max_of(first, rest.begin);
                           const Range both{begin, max_of(begin, min_of(first + width, rest.end))};
                           if (does_rest)
                             updater.add_rest_gradient(k, both, depth, {columns.base + begin - first, columns.stride},
                                                       grad_rest);
                         });
          if (does_rest) updater.take_rest(rest), rest.begin = rest.end;
        }
      });
      const bool skips_vectors = p.skips_vectors && all_finite(share.rest().size() * p.batch, grad_rest);
      updater.rest_weight(rest, grad_rest, skips_vectors);
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
  const auto copy = [&](int64_t size, const Trained<T>& w) {
    if (w.compute != w.value) map<T>(size, [](auto v) { return rounded_to_bfloat16(v); }, w.compute, w.value);
  };
  copy(p.w1_size, p.w1);
  if constexpr (__is_same(T, float))
    for (int64_t unit = 0; p.pairs && unit < p.padded_hidden; unit += kPanel)
      p.pairs->pack_panel(p.w1.value + unit * p.in, p.in, padded_pairs(p.in), p.w1_pairs + unit * padded_pairs(p.in));
  copy(p.out * p.padded_hidden, p.w2);
  refresh_transposed(p, {0, p.padded_hidden});
  return all_finite(p.w1_size, p.w1.compute);
}
