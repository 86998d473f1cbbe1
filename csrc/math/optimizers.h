// The optimisers: one struct per entry and one list, used by CPU and CUDA alike. Ids are positions, as in
// twolayer/registry.py. The arithmetic is torch.optim's.

// Stochastic gradient descent (torch.optim.SGD). state[0] is the momentum buffer.
struct Sgd {
  static constexpr const char* name = "sgd";
  static bool uses_state(const OptimizerOptions& o, int state) { return state == 0 && o.momentum != 0; }

  // The options as vectors, made once per call. `first`: no step was taken yet.
  template <class V>
  struct Rule {
    V minus_lr, weight_decay, momentum, kept, gain;  // the buffer becomes kept · buffer + gain · gradient
    bool has_decay, has_momentum, nesterov;

    template <class Broadcast>
    TWOLAYER_HD Rule(const OptimizerOptions& o, bool first, Broadcast broadcast)
        : minus_lr(broadcast(-o.lr)),
          weight_decay(broadcast(o.weight_decay)),
          momentum(broadcast(o.momentum)),
          kept(broadcast(first ? 0.0 : o.momentum)),
          gain(broadcast(first ? 1.0 : 1.0 - o.dampening)),
          has_decay(o.weight_decay != 0),
          has_momentum(o.momentum != 0),
          nesterov(o.nesterov) {}

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

#define TWOLAYER_OPTIMIZERS(X) X(0, Sgd)
