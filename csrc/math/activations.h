// The activations: one struct per entry, and one list. Its order and ids are those of twolayer/registry.py.
//
// CPU kernels include this inside an instruction set's namespace, where V is a vector; on CUDA V is a scalar. It is
// written against what stands before it there: exp, log1p, tanh, sigmoid, gaussian, normal_cdf, sin, cos, min, max,
// select, fma, constant<V>. Hence: no include guard, no namespace, nothing from std::.
//
// derivative(s) takes what the forward pass saved: the activation's input z if saves_input, else its output.
// gradient(grad, s), where there is one, replaces grad · derivative(s): an infinite grad gives 0, and not NaN, where
// the function is flat, as in torch. A NaN comes out as NaN, and an infinite z gives the function's limit there.

#ifndef TWOLAYER_HD
#define TWOLAYER_HD TWOLAYER_INLINE
#endif

struct Identity {
  static constexpr const char* name = "identity";
  static constexpr bool saves_input = false;
  template <class V>
  static TWOLAYER_HD V value(V z) {
    return z;
  }
  template <class V>
  static TWOLAYER_HD V derivative(V) {
    return constant<V>(1);
  }
};

struct Relu {
  static constexpr const char* name = "relu";
  static constexpr bool saves_input = false;
  template <class V>
  static TWOLAYER_HD V value(V z) {
    return max(z, constant<V>(0));
  }
  template <class V>
  static TWOLAYER_HD V derivative(V output) {
    return select(output <= 0, constant<V>(0), constant<V>(1));
  }
  template <class V>
  static TWOLAYER_HD V gradient(V grad, V output) {
    return select(output <= 0, constant<V>(0), grad);
  }
};

struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  static constexpr bool saves_input = false;
  template <class V>
  static TWOLAYER_HD V value(V z) {
    return sigmoid(z);
  }
  template <class V>
  static TWOLAYER_HD V derivative(V output) {
    return output * (1 - output);
  }
};

struct Tanh {
  static constexpr const char* name = "tanh";
  static constexpr bool saves_input = false;
  template <class V>
  static TWOLAYER_HD V value(V z) {
    return tanh(z);
  }
  template <class V>
  static TWOLAYER_HD V derivative(V output) {
    return fma(-output, output, constant<V>(1));
  }
};

// z Phi(z). By the distribution's tail, not by 1 + erf, so that negative z keep their relative precision.
struct Gelu {
  static constexpr const char* name = "gelu";
  static constexpr bool saves_input = true;
  static constexpr double flat = 64;  // beyond ±flat the function is 0 or z, in double too; keeps 0 * inf away
  template <class V>
  static TWOLAYER_HD V value(V z) {
    z = max(z, constant<V>(-flat));
    return z * normal_cdf(z);
  }
  template <class V>
  static TWOLAYER_HD V derivative(V z) {
    z = min(max(z, constant<V>(-flat)), constant<V>(flat));
    return fma(z * constant<V>(0.3989422804014327), gaussian(z), normal_cdf(z));  // 1 / sqrt(2 pi)
  }
};

// z (1 + tanh(u)) / 2 = z sigmoid(2u) with 2u = sqrt(8 / pi) (z + 0.044715 z³)
struct GeluTanh {
  static constexpr const char* name = "gelu_tanh";
  static constexpr bool saves_input = true;
  static constexpr double flat = 64;
  static constexpr double linear = 1.5957691216057308, cubic = linear * 0.044715;
  template <class V>
  static TWOLAYER_HD V gate(V z) {
    const V bounded = min(z, constant<V>(flat));
    return sigmoid(bounded * fma(bounded * bounded, constant<V>(cubic), constant<V>(linear)));
  }
  template <class V>
  static TWOLAYER_HD V value(V z) {
    z = max(z, constant<V>(-flat));
    return z * gate(z);
  }
  template <class V>
  static TWOLAYER_HD V derivative(V z) {
    z = min(max(z, constant<V>(-flat)), constant<V>(flat));
    const V s = gate(z);
    const V slope = fma(z * z, constant<V>(3 * cubic), constant<V>(linear));
    return fma(z * s * (1 - s), slope, s);
  }
};

struct Silu {
  static constexpr const char* name = "silu";
  static constexpr bool saves_input = true;
  static constexpr double flat = 1000;
  template <class V>
  static TWOLAYER_HD V value(V z) {
    z = max(z, constant<V>(-flat));
    return z * sigmoid(z);
  }
  template <class V>
  static TWOLAYER_HD V derivative(V z) {
    z = min(max(z, constant<V>(-flat)), constant<V>(flat));
    const V s = sigmoid(z);
    return fma(z * s, 1 - s, s);
  }
};

// log(1 + e^z); above 20 the identity, as in torch.
struct Softplus {
  static constexpr const char* name = "softplus";
  static constexpr bool saves_input = true;
  static constexpr double threshold = 20;
  template <class V>
  static TWOLAYER_HD V value(V z) {
    return select(z > constant<V>(threshold), z, log1p(exp(z)));
  }
  template <class V>
  static TWOLAYER_HD V derivative(V z) {
    return select(z > constant<V>(threshold), constant<V>(1), sigmoid(z));
  }
};

struct LeakyRelu {
  static constexpr const char* name = "leaky_relu";
  static constexpr bool saves_input = false;
  static constexpr double negative_slope = 0.01;
  template <class V>
  static TWOLAYER_HD V value(V z) {
    return select(z > 0, z, z * constant<V>(negative_slope));
  }
  template <class V>
  static TWOLAYER_HD V derivative(V output) {
    return select(output > 0, constant<V>(1), constant<V>(negative_slope));
  }
};

struct ReluSquared {
  static constexpr const char* name = "relu_squared";
  static constexpr bool saves_input = true;
  template <class V>
  static TWOLAYER_HD V value(V z) {
    const V positive = max(z, constant<V>(0));
    return positive * positive;
  }
  template <class V>
  static TWOLAYER_HD V derivative(V z) {
    return 2 * max(z, constant<V>(0));
  }
  template <class V>
  static TWOLAYER_HD V gradient(V grad, V z) {
    return select(z <= 0, constant<V>(0), grad * derivative(z));
  }
};

struct Sine {
  static constexpr const char* name = "sine";
  static constexpr bool saves_input = true;
  template <class V>
  static TWOLAYER_HD V value(V z) {
    return sin(z);
  }
  template <class V>
  static TWOLAYER_HD V derivative(V z) {
    return cos(z);
  }
};

#define TWOLAYER_ACTIVATIONS(X) \
  X(0, Identity)                \
  X(1, Relu)                    \
  X(2, Sigmoid)                 \
  X(3, Tanh)                    \
  X(4, Gelu)                    \
  X(5, GeluTanh)                \
  X(6, Silu)                    \
  X(7, Softplus)                \
  X(8, LeakyRelu)               \
  X(9, ReluSquared)             \
  X(10, Sine)
