// The losses: one struct per entry and one list, used by CPU and CUDA alike. Ids are positions, as in
// twolayer/registry.py.
//
// A loss of kind kElementwise gives value(z, y) and gradient(z, y) per number, one of kind kSoftmax is the negative
// log-likelihood of a class under softmax(z). count() is what the sum over a batch is divided by.

enum class LossKind { kSoftmax, kElementwise };

struct CrossEntropy {
  static constexpr const char* name = "cross_entropy";
  static constexpr LossKind kind = LossKind::kSoftmax;
  static TWOLAYER_HD double count(int64_t batch, int64_t) { return static_cast<double>(batch); }
};

struct SquaredError {
  static constexpr LossKind kind = LossKind::kElementwise;
  template <class V>
  static TWOLAYER_HD V value(V z, V y) {
    return (z - y) * (z - y);
  }
  template <class V>
  static TWOLAYER_HD V gradient(V z, V y) {
    return (z - y) + (z - y);
  }
};

struct MeanSquaredError : SquaredError {
  static constexpr const char* name = "mse";
  static TWOLAYER_HD double count(int64_t batch, int64_t out) { return static_cast<double>(batch * out); }
};

struct SumSquaredError : SquaredError {
  static constexpr const char* name = "mse_sum";
  static TWOLAYER_HD double count(int64_t, int64_t) { return 1; }
};

#define TWOLAYER_LOSSES(X) \
  X(0, CrossEntropy)       \
  X(1, MeanSquaredError)   \
  X(2, SumSquaredError)
