// The three phases of a training step (see TrainParams). Included once per ISA.
//   train_forward   a range of hidden blocks: hidden layer, and its part of the outputs
//   train_loss      a range of batch rows: outputs, loss, gradient at the outputs
//   train_backward  the same hidden blocks: gradients, and the update of every parameter that belongs to them
// Threads meet between the phases and nowhere else. Products run over the padding too, in whole vectors: padded lanes
// of a result depend on padded lanes only, and no sum over hidden units or outputs reads one.

template <class T>
struct HiddenRange {  // of padded units
  int64_t begin, end;
  TWOLAYER_INLINE HiddenRange(const TrainParams<T>& p, int64_t block0, int64_t block1)
      : begin(min_of(block0 * p.block, p.padded_hidden)), end(min_of(block1 * p.block, p.padded_hidden)) {}
  TWOLAYER_INLINE int64_t width() const { return end - begin; }
};

template <class T>
void train_forward(const TrainParams<T>& p, int64_t block0, int64_t block1) {
  const int64_t H = p.padded_hidden, O = p.padded_out;
  const HiddenRange<T> units(p, block0, block1);
  const int64_t width = units.width(), real_width = min_of(units.end, p.hidden) - units.begin;
  for (int64_t i0 = 0; i0 < p.batch; i0 += kDepth) {
    const int64_t rows = min_of(kDepth, p.batch - i0);
    T* z = p.hidden_value + i0 * H + units.begin;
    if (p.b1.value)
      for (int64_t i = 0; i < rows; ++i) map<T>(width, [](auto v) { return v; }, z + i * H, p.b1.value + units.begin);
    multiply<Left::kPlain>(rows, width, p.in, RowPointers<T>{p.x_rows + i0}, p.w1.value + units.begin, H, z, H,
                           p.b1.value != nullptr);
    T* saved = p.hidden_saved == p.hidden_value ? nullptr : p.hidden_saved + i0 * H + units.begin;
    for (int64_t i = 0; i < rows; ++i)
      activate(p.activation, real_width, z + i * H, z + i * H, saved ? saved + i * H : nullptr);
  }
  for (int64_t block = block0; block < block1; ++block) {
    const int64_t first = block * p.block, count = min_of(p.block, p.hidden - first);
    multiply<Left::kPlain>(p.batch, O, count, Strided<T>{p.hidden_value + first, H}, p.w2_transposed + first * O, O,
                           p.partial + block * p.batch * O, O);
  }
}

// z (O) holds n logits and leaves as the gradient (softmax(z) − one-hot(label)) · scale. Returns −log
// softmax(z)[label].
template <class T>
T loss_row(CrossEntropy, const TrainParams<T>& p, int64_t row, T scale, T* z) {
  constexpr int L = lanes<T>;
  const int64_t label = p.classes[row];
  const T labelled = z[label];
  for (int64_t j = p.out; j < p.padded_out; ++j) z[j] = -__builtin_inf();
  Vec<T> top = load(z);
  for (int64_t j = L; j < p.padded_out; j += L) top = max(top, load(z + j));
  const T highest = maximum(top);
  Vec<T> total = zero<T>();
  for (int64_t j = 0; j < p.padded_out; j += L) {
    const Vec<T> e = exp(load(z + j) - broadcast<T>(highest));
    total = total + e;
    store(z + j, e);
  }
  const T sum_of_exp = sum(total);
  const Vec<T> factor = broadcast<T>(scale / sum_of_exp);
  for (int64_t j = 0; j < p.padded_out; j += L) store(z + j, load(z + j) * factor);
  z[label] -= scale;
  return static_cast<T>(__builtin_log(sum_of_exp)) + (highest - labelled);
}

template <class T, class Loss>
  requires(Loss::kind == LossKind::kElementwise)
T loss_row(Loss, const TrainParams<T>& p, int64_t row, T scale, T* z) {
  constexpr int L = lanes<T>;
  Vec<T> total = zero<T>();
  for (int64_t j = 0; j < p.out; j += L) {
    const int64_t valid = min_of(p.out - j, L);
    const Vec<T> zj = load_partial(z + j, valid), yj = load_partial(p.value_rows[row] + j, valid);
    total = total + Loss::value(zj, yj);
    store_partial(z + j, Loss::gradient(zj, yj) * broadcast<T>(scale), valid);
  }
  return sum(total);
}

template <class T>
void train_loss(const TrainParams<T>& p, int64_t row0, int64_t row1) {
  const int64_t O = p.padded_out;
  const auto rows_with = [&](auto loss) {
    const T scale = static_cast<T>(1 / loss.count(p.batch, p.out));
    for (int64_t row = row0; row < row1; ++row) {
      T* z = p.grad_out + row * O;
      for (int64_t j = 0; j < O; j += lanes<T>) {
        Vec<T> total = p.b2.value ? load(p.b2.value + j) : zero<T>();
        for (int64_t block = 0; block < p.blocks; ++block)
          total = total + load(p.partial + (block * p.batch + row) * O + j);
        store(z + j, total);
      }
      p.row_loss[row] = loss_row(loss, p, row, scale, z);
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

template <class T>
TWOLAYER_INLINE Trained<T> offset(const Trained<T>& t, int64_t by) {
  Trained<T> moved{t.value + by, {}};
  for (int s = 0; s < Trained<T>::kStates; ++s) moved.state[s] = t.state[s] ? t.state[s] + by : nullptr;
  return moved;
}

// Updates n parameters from their gradients, n a whole number of vectors.
template <class T, class Rule>
TWOLAYER_INLINE void update(const Rule& rule, int64_t n, const T* grad, const Trained<T>& param) {
  for (int64_t j = 0; j < n; j += lanes<T>) {
    Vec<T> state[Trained<T>::kStates];
    for (int s = 0; s < Trained<T>::kStates; ++s) state[s] = param.state[s] ? load(param.state[s] + j) : zero<T>();
    store(param.value + j, rule.step(load(param.value + j), load(grad + j), state));
    for (int s = 0; s < Trained<T>::kStates; ++s)
      if (param.state[s]) store(param.state[s] + j, state[s]);
  }
}

// w (m, columns of H) from its gradient aᵀ b: a's rows hold m numbers, b (batch, columns of H). The gradient goes from
// registers to the update by way of a tile in L1 and is never stored whole, unless the batch is deeper than kDepth.
template <class T, class A, class Rule>
void update_weight(const TrainParams<T>& p, const Rule& rule, int64_t m, int64_t columns, const A& a, const T* b,
                   const Trained<T>& w, T* deep_grad) {
  const int64_t H = p.padded_hidden;
  if (p.batch > kDepth) {
    multiply<Left::kTransposed>(m, columns, p.batch, a, b, H, deep_grad, H);
    for (int64_t i = 0; i < m; ++i) update(rule, columns, deep_grad + i * H, offset(w, i * H));
    return;
  }
  for_column_tiles<T>(columns, [&]<int kVectors, bool kTail>(int64_t j, int64_t) {
    constexpr int width = kVectors * lanes<T>;
    for_row_tiles<TileShape<T>::rows>(m, [&]<int kRows>(int64_t i) {
      alignas(64) T grad[kRows * width];
      broadcast_tile<kRows, kVectors, false, Left::kTransposed>(a, i, int64_t(0), p.batch, b + j, H, grad, width, false,
                                                                0);
      for (int r = 0; r < kRows; ++r) update(rule, width, grad + r * width, offset(w, (i + r) * H + j));
    });
  });
}

// b (n) from its gradient, the column sums of grad (batch, stride).
template <class T, class Rule>
void update_bias(const Rule& rule, int64_t batch, int64_t n, const T* grad, int64_t stride, const Trained<T>& b) {
  for (int64_t j = 0; j < n; j += lanes<T>) {
    alignas(64) T total[lanes<T>];
    sum_rows<T>(batch, lanes<T>, grad + j, stride, total);
    update(rule, lanes<T>, total, offset(b, j));
  }
}

template <class T>
void train_backward(const TrainParams<T>& p, int64_t block0, int64_t block1) {
  const int64_t H = p.padded_hidden, O = p.padded_out;
  const HiddenRange<T> units(p, block0, block1);
  const int64_t width = units.width();
  T* grad_z = p.grad_hidden + units.begin;
  T* deep_grad = p.grad_weight ? p.grad_weight + units.begin : nullptr;
  const T* h = p.hidden_value + units.begin;
  multiply<Left::kPlain>(p.batch, width, p.out, Strided<T>{p.grad_out, O}, p.w2.value + units.begin, H, grad_z, H);
  for (int64_t i = 0; i < p.batch; ++i)
    multiply_by_derivative(p.activation, width, p.hidden_saved + units.begin + i * H, grad_z + i * H);

  const auto update_all = [&](const auto& rule) {
    if (block0 == 0 && p.b2.value) update_bias(rule, p.batch, O, p.grad_out, O, p.b2);
    const Trained<T> w2 = offset(p.w2, units.begin);
    update_weight(p, rule, p.out, width, Strided<T>{p.grad_out, O}, h, w2, deep_grad);
    for (int64_t o = 0; o < p.out; ++o)
      for (int64_t j = 0; j < width; ++j) p.w2_transposed[(units.begin + j) * O + o] = w2.value[o * H + j];
    if (p.b1.value) update_bias(rule, p.batch, width, grad_z, H, offset(p.b1, units.begin));
    update_weight(p, rule, p.in, width, RowPointers<T>{p.x_rows}, grad_z, offset(p.w1, units.begin), deep_grad);
  };
  const auto spread = [](double v) { return broadcast<T>(static_cast<T>(v)); };
  switch (p.optimizer) {
#define TWOLAYER_CASE(number, Name) \
  case number:                      \
    return update_all(Name::Rule<Vec<T>>(p.options, p.step == 0, spread));
    TWOLAYER_OPTIMIZERS(TWOLAYER_CASE)
#undef TWOLAYER_CASE
  }
}
