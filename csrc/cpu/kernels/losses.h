// One row of a batch: its loss, and the gradient in place of its outputs. Included once per ISA, after math/losses.h.

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
  const auto outputs = [&](int64_t j) {  // −∞ in the padding
    const Vec<T> zj = load(z + j);
    return j + L <= p.out ? zj : select(lane < static_cast<T>(p.out - j), zj, constant<Vec<T>>(-__builtin_inf()));
  };
  Vec<T> top = outputs(0);
  for (int64_t j = L; j < p.padded_out; j += L) top = max(top, outputs(j));
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
    const Vec<T> e = exp(outputs(j) - broadcast<T>(highest));
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
