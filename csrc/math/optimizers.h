// The optimisers: one struct per entry and one list, used by CPU and CUDA alike. Ids are positions, as in
// twolayer/registry.py. The arithmetic is torch.optim's (the single-tensor form), state by state in the same order.
//
// uses_state(options, s) says whether state s is kept. Rule<V>(options, steps, broadcast) holds what is the same for
// every number, after `steps` steps; step(w, g, state) returns the new w and changes the states, of which it uses the
// first kLeast … kMost; zero_changes_nothing() says whether a gradient of 0 leaves w and the states as they are.

inline double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}

// State 0: momentum buffer.
struct Sgd {
  static constexpr const char* name = "sgd";
  static bool uses_state(const OptimizerOptions& o, int state) { return state == 0 && o.momentum != 0; }

  template <class V>
  struct Rule {
    static constexpr int kLeast = 0, kMost = 1;
    V minus_lr, weight_decay, momentum, kept, gain;  // the buffer becomes kept · buffer + gain · gradient
    bool has_decay, has_momentum, nesterov;

    template <class Broadcast>
    TWOLAYER_HD Rule(const OptimizerOptions& o, int64_t steps, Broadcast broadcast)
        : minus_lr(broadcast(-o.lr)),
          weight_decay(broadcast(o.weight_decay)),
          momentum(broadcast(o.momentum)),
          kept(broadcast(steps == 0 ? 0.0 : o.momentum)),
          gain(broadcast(steps == 0 ? 1.0 : 1.0 - o.dampening)),
          has_decay(o.weight_decay != 0),
          has_momentum(o.momentum != 0),
          nesterov(o.nesterov) {}

    TWOLAYER_HD bool zero_changes_nothing() const { return !has_decay && !has_momentum; }

    TWOLAYER_HD V step(V w, V g, V* state) const {
      if (has_decay) g = fma(weight_decay, w, g);
      if (has_momentum) {
        state[0] = fma(kept, state[0], gain * g);
        g = nesterov ? fma(momentum, state[0], g) : state[0];
      }
      return fma(minus_lr, g, w);
    }
  };
};

// States: 0 mean of the gradient, 1 mean of its square, 2 largest such mean (amsgrad).
struct AdamBase {
  static bool uses_state(const OptimizerOptions& o, int state) { return state < 2 || o.amsgrad; }

  template <class V, bool kDecoupledDecay>
  struct Rule {
    static constexpr int kLeast = 2, kMost = 3;
    V minus_step_size, weight_decay, keep_weight, gain1, beta2, gain2, inverse_root_correction2, eps;
    bool has_decay, amsgrad;

    template <class Broadcast>
    TWOLAYER_HD Rule(const OptimizerOptions& o, int64_t steps, Broadcast broadcast)
        : minus_step_size(broadcast(-o.lr / (1 - power(o.beta1, steps + 1)))),
          weight_decay(broadcast(o.weight_decay)),
          keep_weight(broadcast(1 - o.lr * o.weight_decay)),
          gain1(broadcast(1 - o.beta1)),
          beta2(broadcast(o.beta2)),
          gain2(broadcast(1 - o.beta2)),
          inverse_root_correction2(broadcast(1 / __builtin_sqrt(1 - power(o.beta2, steps + 1)))),
          eps(broadcast(o.eps_hat ? o.eps / __builtin_sqrt(1 - power(o.beta2, steps + 1)) : o.eps)),
          has_decay(o.weight_decay != 0),
          amsgrad(o.amsgrad) {}

    TWOLAYER_HD bool zero_changes_nothing() const { return false; }

    TWOLAYER_HD V step(V w, V g, V* state) const {
      if (has_decay) {
        if (kDecoupledDecay)
          w = w * keep_weight;
        else
          g = fma(weight_decay, w, g);
      }
      state[0] = fma(gain1, g - state[0], state[0]);
      state[1] = fma(gain2 * g, g, beta2 * state[1]);
      V square = state[1];
      if (amsgrad) square = state[2] = max(state[2], square);
      return fma(minus_step_size, state[0] / fma(sqrt(square), inverse_root_correction2, eps), w);
    }
  };
};

struct Adam : AdamBase {
  static constexpr const char* name = "adam";
  template <class V>
  using Rule = AdamBase::Rule<V, false>;
};

struct AdamW : AdamBase {
  static constexpr const char* name = "adamw";
  template <class V>
  using Rule = AdamBase::Rule<V, true>;
};

// States: 0 mean of the gradient's square, 1 momentum buffer, 2 mean of the gradient (centered).
struct RmsProp {
  static constexpr const char* name = "rmsprop";
  static bool uses_state(const OptimizerOptions& o, int state) {
    return state == 0 || (state == 1 ? o.momentum != 0 : o.centered);
  }

  template <class V>
  struct Rule {
    static constexpr int kLeast = 1, kMost = 3;
    V minus_lr, weight_decay, momentum, alpha, gain, eps;
    bool has_decay, has_momentum, centered;

    template <class Broadcast>
    TWOLAYER_HD Rule(const OptimizerOptions& o, int64_t, Broadcast broadcast)
        : minus_lr(broadcast(-o.lr)),
          weight_decay(broadcast(o.weight_decay)),
          momentum(broadcast(o.momentum)),
          alpha(broadcast(o.alpha)),
          gain(broadcast(1 - o.alpha)),
          eps(broadcast(o.eps)),
          has_decay(o.weight_decay != 0),
          has_momentum(o.momentum != 0),
          centered(o.centered) {}

    TWOLAYER_HD bool zero_changes_nothing() const { return false; }

    TWOLAYER_HD V step(V w, V g, V* state) const {
      if (has_decay) g = fma(weight_decay, w, g);
      state[0] = fma(gain * g, g, alpha * state[0]);
      V square = state[0];
      if (centered) {
        state[2] = fma(gain, g - state[2], state[2]);
        square = square - state[2] * state[2];
      }
      g = g / (sqrt(square) + eps);
      if (has_momentum) g = state[1] = fma(momentum, state[1], g);
      return fma(minus_lr, g, w);
    }
  };
};

// State 0: sum of the gradient's squares.
struct Adagrad {
  static constexpr const char* name = "adagrad";
  static bool uses_state(const OptimizerOptions&, int state) { return state == 0; }

  template <class V>
  struct Rule {
    static constexpr int kLeast = 1, kMost = 1;
    V minus_lr, weight_decay, eps, start;
    bool has_decay, first;

    template <class Broadcast>
    TWOLAYER_HD Rule(const OptimizerOptions& o, int64_t steps, Broadcast broadcast)
        : minus_lr(broadcast(-o.lr / (1 + static_cast<double>(steps) * o.lr_decay))),
          weight_decay(broadcast(o.weight_decay)),
          eps(broadcast(o.eps)),
          start(broadcast(o.initial_accumulator)),
          has_decay(o.weight_decay != 0),
          first(steps == 0) {}

    TWOLAYER_HD bool zero_changes_nothing() const { return !has_decay && !first; }

    TWOLAYER_HD V step(V w, V g, V* state) const {
      if (has_decay) g = fma(weight_decay, w, g);
      state[0] = fma(g, g, first ? start : state[0]);
      return fma(minus_lr, g / (sqrt(state[0]) + eps), w);
    }
  };
};

#define TWOLAYER_OPTIMIZERS(X) \
  X(0, Sgd)                    \
  X(1, Adam)                   \
  X(2, AdamW)                  \
  X(3, RmsProp)                \
  X(4, Adagrad)
