// Rows of a batch: their losses, and the gradient at their outputs. Included once per ISA, after math/losses.h.

// Outputs [j, j + lanes) of a row: the second layer's bias and what the blocks of hidden units add to it.
template <class T>
TWOLAYER_INLINE Vec<T> outputs(const TrainParams<T>& p, int64_t row, int64_t j) {
  Vec<T> total = p.b2.value ? load(p.b2.value + j) : zero<T>();
  for (int64_t block = 0; block < p.blocks; ++block)
    total = total + load(p.partial + (block * p.batch + row) * p.padded_out + j);
  return total;
}

// ---- As many rows at a time as a vector has lanes: the cross entropy with one class a row, of so few outputs that
// most of the lanes of a row alone would be padding.

template <class Loss, class T>
TWOLAYER_INLINE bool goes_by_rows_of_lanes(Loss, const TrainParams<T>& p) {
  return Loss::kind == LossKind::kSoftmax && p.classes && !p.soft_target && p.padded_out == kPanel;
}

// Transposes (kPanel, lanes) from columns of rows [row, row + rows) to rows of grad_out.
template <class T>
TWOLAYER_INLINE void store_rows(const TrainParams<T>& p, int64_t row, int64_t rows, const T* columns) {
  constexpr int L = lanes<T>;
  for (int64_t j = 0; j < kPanel; j += L) {
    Vec<T> square[L];
    for (int i = 0; i < L; ++i) square[i] = load(columns + (j + i) * L);
    transpose(square);
    for (int64_t r = 0; r < rows; ++r) store(p.grad_out + (row + r) * kPanel + j, square[r]);
  }
}

// Rows [row, row + rows), rows ≤ lanes<T>.
template <class T>
void loss_rows(const TrainParams<T>& p, int64_t row, int64_t rows) {
  using V = Vec<T>;
  constexpr int L = lanes<T>;
  const T even = static_cast<T>(1 / p.loss_divisor);
  alignas(64) T columns[kPanel * L] = {}, label_of[L] = {}, weight_of[L] = {}, scale_of[L] = {};  // of each row
  const auto column = [&](int64_t j) { return load(columns + j * L); };
  for (int64_t j = 0; j < p.out; j += L) {
    V square[L];
    for (int64_t r = 0; r < L; ++r) square[r] = r < rows ? outputs(p, row + r, j) : zero<T>();
    transpose(square);
    for (int i = 0; i < L; ++i) store(columns + (j + i) * L, square[i]);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t label = p.classes[row + r];
    const bool ignored = label == p.loss_options.ignore_index;
    label_of[r] = ignored ? T(-1) : static_cast<T>(label);
    weight_of[r] = p.row_weight ? p.row_weight[row + r] : T(1);
    scale_of[r] = p.row_weight ? static_cast<T>(weight_of[r] / p.loss_divisor) : even;
  }
  const V label = load(label_of), weight = load(weight_of), scale = load(scale_of);

  V top = column(0), best = zero<T>();  // the largest output, and the first that is
  for (int64_t j = 1; j < p.out; ++j) {
    const V z = column(j);
    best = select(z > top, broadcast<T>(static_cast<T>(j)), best);
    top = select(z > top, z, top);
  }
  if (!p.training)
    for (int64_t r = 0; r < rows; ++r)
      p.row_hit[row + r] = static_cast<T>(best[r]) == static_cast<T>(p.classes[row + r]);

  V total = zero<T>(), of_label = zero<T>();
  for (int64_t j = 0; j < p.out; ++j) {
    const V below = column(j) - top, e = exp(below);
    total = total + e;
    of_label = select(label == static_cast<T>(j), below, of_label);
    store(columns + j * L, e);
  }
  const V factor = scale / total;
  for (int64_t j = 0; j < p.out; ++j) {
    V gradient = column(j) * factor;
    gradient = select(label == static_cast<T>(j), gradient - scale, gradient);
    gradient = select(label < 0, zero<T>(), gradient);
    store(columns + j * L, p.bfloat16_compute ? rounded_to_bfloat16(gradient) : gradient);
  }
  for (int64_t j = p.out * L; j < kPanel * L; j += L) store(columns + j, zero<T>());
  store_rows(p, row, rows, columns);
  const V loss = weight * log1p(total - 1) - of_label * weight;
  store_partial(p.row_loss + row, select(label < 0, zero<T>(), loss), rows);
}

// ---- One row: the gradient takes the place of its outputs.

// Writes the target distribution of row `row`, weighted and smoothed, into t (O); returns its sum.
template <class T>
T soft_target(const TrainParams<T>& p, int64_t row, T* t) {
  const T smoothing = static_cast<T>(p.loss_options.label_smoothing), even = smoothing / static_cast<T>(p.out);
  const T* values = p.value_rows ? p.value_rows[row] : nullptr;
  T total = 0;
  for (int64_t j = 0; j < p.out; ++j) {
    const T given = values ? values[j] : static_cast<T>(j == p.classes[row]);
    t[j] = (given * (1 - smoothing) + even) * (p.class_weight ? p.class_weight[j] : T(1));
    total += t[j];
  }
  return total;
}

// A row's loss as factor · log(total) − offset, of which the logarithm is taken for many rows together. total ≥ 1.
template <class T>
struct LogTerms {
  T factor, total, offset;
};

// The cross entropy of softmax(z) with the row's class or distribution; z (O) leaves as its gradient times `scale`.
template <class T>
LogTerms<T> loss_row(CrossEntropy, const TrainParams<T>& p, int64_t row, T scale, T* z) {
  constexpr int L = lanes<T>;
  Vec<T> lane;
  for (int l = 0; l < L; ++l) lane[l] = static_cast<T>(l);
  const auto padded = [&](int64_t j) {  // −∞ in the padding
    const Vec<T> zj = load(z + j);
    return j + L <= p.out ? zj : select(lane < static_cast<T>(p.out - j), zj, constant<Vec<T>>(-__builtin_inf()));
  };
  Vec<T> top = padded(0);
  for (int64_t j = L; j < p.padded_out; j += L) top = max(top, padded(j));
  const T highest = maximum(top);

  T* target = p.soft_target ? p.soft_target + row * p.padded_out : nullptr;
  T target_total = 1, target_dot_z = 0;
  if (target) {
    target_total = soft_target(p, row, target);
    for (int64_t j = 0; j < p.out; ++j) target_dot_z += target[j] * (z[j] - highest);
  } else {
    target_dot_z = z[p.classes[row]] - highest;
  }

  Vec<T> total = zero<T>();
  for (int64_t j = 0; j < p.padded_out; j += L) {
    const Vec<T> e = exp(padded(j) - broadcast<T>(highest));
    total = total + e;
    store(z + j, e);
  }
  const T sum_of_exp = sum(total);
  const Vec<T> factor = broadcast<T>(scale * target_total / sum_of_exp);
  for (int64_t j = 0; j < p.padded_out; j += L) store(z + j, load(z + j) * factor);
  if (target)
    for (int64_t j = 0; j < p.out; ++j) z[j] -= scale * target[j];
  else
    z[p.classes[row]] -= scale;
  return {target_total, sum_of_exp, target_dot_z};
}

template <class T, class Loss>
  requires(Loss::kind == LossKind::kElementwise)
LogTerms<T> loss_row(Loss, const TrainParams<T>& p, int64_t row, T scale, T* z) {
  constexpr int L = lanes<T>;
  const Vec<T> beta = broadcast<T>(static_cast<T>(p.loss_options.beta));
  Vec<T> total = zero<T>();
  for (int64_t j = 0; j < p.out; j += L) {
    const int64_t valid = min_of(p.out - j, L);
    const Vec<T> zj = load_partial(z + j, valid), yj = load_partial(p.value_rows[row] + j, valid);
    alignas(64) T values[L] = {};  // where the row has ended a loss need not be 0
    store_partial(values, Loss::value(zj, yj, beta), valid);
    total = total + load(values);
    store_partial(z + j, Loss::gradient(zj, yj, beta) * broadcast<T>(scale), valid);
  }
  return {0, 1, -sum(total)};
}
