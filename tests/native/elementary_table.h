// Everything under test in one instruction set's namespace, found by name. Included like the headers it tests.

template <class V>
TWOLAYER_INLINE V sum_everywhere(V v) {
  return broadcast(sum(v));
}

template <class V>
TWOLAYER_INLINE V maximum_everywhere(V v) {
  return broadcast(maximum(v));
}

template <class V>
TWOLAYER_INLINE V identity(V v) {
  return v;
}

#define TWOLAYER_FUNCTIONS(X) \
  X(identity)                 \
  X(abs)                      \
  X(round_nearest)            \
  X(sqrt)                     \
  X(sum_everywhere)           \
  X(maximum_everywhere)       \
  X(exp)                      \
  X(log1p)                    \
  X(tanh)                     \
  X(sigmoid)                  \
  X(gaussian)                 \
  X(normal_cdf)               \
  X(sin)                      \
  X(cos)

#define TWOLAYER_WRAP(function)           \
  struct Wrapped_##function {             \
    template <class V>                    \
    static TWOLAYER_INLINE V apply(V v) { \
      return function(v);                 \
    }                                     \
  };
TWOLAYER_FUNCTIONS(TWOLAYER_WRAP)

template <class Activation>
struct Value {
  template <class V>
  static TWOLAYER_INLINE V apply(V z) {
    return Activation::value(z);
  }
};

template <class Activation>
struct Derivative {
  template <class V>
  static TWOLAYER_INLINE V apply(V z) {
    return Activation::derivative(Activation::saves_input ? z : Activation::value(z));
  }
};

template <class Function, class In, class Out>
void map(const In* in, Out* out, int64_t n) {
  int64_t i = 0;
  for (; i + lanes<In> <= n; i += lanes<In>) store(out + i, Function::apply(load(in + i)));
  store_partial(out + i, Function::apply(load_partial(in + i, n - i)), n - i);
}

// Whether there is such a function: `kind` is "function", "value" or "derivative" (the latter two of an activation).
template <class T>
bool apply(const char* kind, const char* name, const T* in, T* out, int64_t n) {
  const auto asked_for = [=](const char* this_kind, const char* this_name) {
    return __builtin_strcmp(kind, this_kind) == 0 && __builtin_strcmp(name, this_name) == 0;
  };
#define TWOLAYER_APPLY_FUNCTION(function) \
  if (asked_for("function", #function)) return map<Wrapped_##function>(in, out, n), true;
#define TWOLAYER_APPLY_ACTIVATION(id, Activation)                                            \
  if (asked_for("value", Activation::name)) return map<Value<Activation>>(in, out, n), true; \
  if (asked_for("derivative", Activation::name)) return map<Derivative<Activation>>(in, out, n), true;
  TWOLAYER_FUNCTIONS(TWOLAYER_APPLY_FUNCTION)
  TWOLAYER_ACTIVATIONS(TWOLAYER_APPLY_ACTIVATION)
#undef TWOLAYER_APPLY_FUNCTION
#undef TWOLAYER_APPLY_ACTIVATION
  return false;
}

#undef TWOLAYER_FUNCTIONS
#undef TWOLAYER_WRAP

constexpr Tested tested = {
    lanes<float>,
    apply<float>,
    apply<double>,
    map<Wrapped_identity, float, bfloat16>,
    map<Wrapped_identity, bfloat16, float>,
    to_bfloat16,
    to_float,
};
