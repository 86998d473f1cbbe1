// The losses: one struct per entry and one list, used by CPU and CUDA alike. Ids are positions, as in
// twolayer/registry.py.
//
// A loss of kind kElementwise gives value(z, y) and gradient(z, y) per number, one of kind kSoftmax is the cross
// entropy of softmax(z) with a class or a distribution. per_row(out) is how much a row of weight 1 adds to what the sum
// over a batch is divided by; 0 for a loss that is a sum.

enum class LossKind { kSoftmax, kElementwise };

struct CrossEntropy {
  static constexpr const char* name = "cross_entropy";
  static constexpr LossKind kind = LossKind::kSoftmax;
  static constexpr int64_t per_row(int64_t) { return 1; }
};

struct MeanOverNumbers {
  static constexpr LossKind kind = LossKind::kElementwise;
  static constexpr int64_t per_row(int64_t out) { return out; }
};

struct MeanSquaredError : MeanOverNumbers {
  static constexpr const char* name = "mse";
  template <class V>
  static TWOLAYER_HD V value(V z, V y, V) {
    return (z - y) * (z - y);
  }
  template <class V>
  static TWOLAYER_HD V gradient(V z, V y, V) {
    return (z - y) + (z - y);
  }
};

struct SumSquaredError : MeanSquaredError {
  static constexpr const char* name = "mse_sum";
  static constexpr int64_t per_row(int64_t) { return 0; }
};

struct AbsoluteError : MeanOverNumbers {
  static constexpr const char* name = "l1";
  template <class V>
  static TWOLAYER_HD V value(V z, V y, V) {
    return abs(z - y);
  }
  template <class V>
  static TWOLAYER_HD V gradient(V z, V y, V) {
    const V d = z - y;
    return select(d > 0, constant<V>(1), select(d < 0, constant<V>(-1), d));  // 0 at 0, NaN at NaN
  }
};

// d²/2 within delta, delta (|d| − delta/2) beyond (torch.nn.HuberLoss).
struct Huber : MeanOverNumbers {
  static constexpr const char* name = "huber";
  template <class V>
  static TWOLAYER_HD V value(V z, V y, V delta) {
    const V d = abs(z - y);
    return select(d < delta, constant<V>(0.5) * d * d, delta * (d - constant<V>(0.5) * delta));
  }
  template <class V>
  static TWOLAYER_HD V gradient(V z, V y, V delta) {
    return max(min(z - y, delta), -delta);
  }
};

// Huber's divided by beta (torch.nn.SmoothL1Loss); the absolute error at beta 0.
struct SmoothL1 : MeanOverNumbers {
  static constexpr const char* name = "smooth_l1";
  template <class V>
  static TWOLAYER_HD V value(V z, V y, V beta) {
    const V d = abs(z - y);
    return select(d < beta, constant<V>(0.5) * d * d / beta, d - constant<V>(0.5) * beta);
  }
  template <class V>
  static TWOLAYER_HD V gradient(V z, V y, V beta) {
    const V d = z - y;
    return select(abs(d) < beta, d / beta, AbsoluteError::gradient(z, y, beta));
  }
};

// −y log σ(z) − (1 − y) log(1 − σ(z)), finite for every finite z.
struct BinaryCrossEntropyWithLogits : MeanOverNumbers {
  static constexpr const char* name = "bce_with_logits";
  template <class V>
  static TWOLAYER_HD V value(V z, V y, V) {
    return max(z, constant<V>(0)) - z * y + log1p(exp(-abs(z)));
  }
  template <class V>
  static TWOLAYER_HD V gradient(V z, V y, V) {
    return sigmoid(z) - y;
  }
};

#define TWOLAYER_LOSSES(X) \
  X(0, CrossEntropy)       \
  X(1, MeanSquaredError)   \
  X(2, SumSquaredError)    \
  X(3, AbsoluteError)      \
  X(4, SmoothL1)           \
  X(5, Huber)              \
  X(6, BinaryCrossEntropyWithLogits)
