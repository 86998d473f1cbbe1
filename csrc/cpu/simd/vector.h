// The vector names every kernel is written against, on top of the compiler's vector extensions.
//
// <isa>.h defines `vector_bytes`, includes this file, then adds fma and sqrt and overloads whatever its instructions do
// better than the portable templates below. The includer opens the namespace and the target pragma and has already
// brought in <cstdint>, params.h and the intrinsics header; hence no include guard, no namespace, nothing from std::.

#define TWOLAYER_INLINE inline __attribute__((always_inline))

// Before a loop over an array that is to live in registers: its indices must be constants.
#ifdef __clang__
#define TWOLAYER_UNROLL _Pragma("unroll")
#else
#define TWOLAYER_UNROLL _Pragma("GCC unroll 64")
#endif

typedef float f32 __attribute__((vector_size(vector_bytes)));
typedef double f64 __attribute__((vector_size(vector_bytes)));
typedef int32_t i32 __attribute__((vector_size(vector_bytes)));
typedef int64_t i64 __attribute__((vector_size(vector_bytes)));
typedef uint32_t u32 __attribute__((vector_size(vector_bytes)));
typedef uint64_t u64 __attribute__((vector_size(vector_bytes)));
typedef uint16_t u16_half __attribute__((vector_size(vector_bytes / 2)));

// Vec<T>: the vector in which arithmetic on elements stored as T is done.
template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = f32;
};
template <>
struct VecOf<double> {
  using type = f64;
};
template <>
struct VecOf<bfloat16> {
  using type = f32;
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class V>
struct ElementOf;
template <>
struct ElementOf<f32> {
  using type = float;
};
template <>
struct ElementOf<f64> {
  using type = double;
};
template <class V>
using Element = typename ElementOf<V>::type;

template <class T>
constexpr int lanes = vector_bytes / sizeof(Element<Vec<T>>);

// IEEE 754 layout. Adding integer_shift = 1.5 * 2^mantissa_bits to an integral x, |x| < 2^(mantissa_bits - 1), leaves x
// (two's complement) in the low bits of the sum. upper_half masks off so much that the rest has an exact square.
template <class V>
struct Format;
template <>
struct Format<f32> {
  using Unsigned = u32;
  static constexpr int mantissa_bits = 23;
  static constexpr int exponent_bias = 127;
  static constexpr float integer_shift = 0x1.8p23f;
  static constexpr uint32_t upper_half = ~0u << 12;
};
template <>
struct Format<f64> {
  using Unsigned = u64;
  static constexpr int mantissa_bits = 52;
  static constexpr int exponent_bias = 1023;
  static constexpr double integer_shift = 0x1.8p52;
  static constexpr uint64_t upper_half = ~uint64_t{0} << 27;
};

// ---- Integers

TWOLAYER_INLINE u32 low_32_bits(u32 u) { return u; }
TWOLAYER_INLINE u64 low_32_bits(u64 u) { return u & 0xFFFFFFFFu; }

// ---- Constants

template <class T>
TWOLAYER_INLINE Vec<T> zero() {
  return Vec<T>{};
}

template <class T>
TWOLAYER_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // not x + 0, which would turn -0 into +0
}

template <class V>
TWOLAYER_INLINE V constant(double x) {
  return broadcast(static_cast<Element<V>>(x));
}

// ---- Bits and masks. A comparison operator gives an integer vector whose lanes are all ones or all zeros.

template <class V>
TWOLAYER_INLINE typename Format<V>::Unsigned bits(V v) {
  return (typename Format<V>::Unsigned)v;
}

template <class V>
TWOLAYER_INLINE V from_bits(typename Format<V>::Unsigned b) {
  return (V)b;
}

template <class Mask, class V>
TWOLAYER_INLINE V select(Mask mask, V a, V b) {
  return mask ? a : b;
}

// ---- Elementwise

// min and max return a when a is NaN; a NaN in b alone is not passed on.
template <class V>
TWOLAYER_INLINE V min(V a, V b) {
  return b < a ? b : a;
}

template <class V>
TWOLAYER_INLINE V max(V a, V b) {
  return a < b ? b : a;
}

template <class V>
TWOLAYER_INLINE V abs(V v) {
  return from_bits<V>(bits(v) & ~bits(constant<V>(-0.0)));
}

template <class V>
TWOLAYER_INLINE V copysign(V magnitude, V sign) {
  const auto sign_bit = bits(constant<V>(-0.0));
  return from_bits<V>((bits(magnitude) & ~sign_bit) | (bits(sign) & sign_bit));
}

// To the nearest integer, ties to even.
template <class V>
TWOLAYER_INLINE V round_nearest(V v) {
  const V whole = constant<V>(2.0 / 3.0 * Format<V>::integer_shift);  // 2^mantissa_bits: from here on all are integers
  const V magnitude = abs(v);
  return select(magnitude < whole, copysign((magnitude + whole) - whole, v), v);
}

// 2^n for integral n within the normal exponents.
template <class V>
TWOLAYER_INLINE V power_of_two(V n) {
  const V biased = n + (Format<V>::integer_shift + Format<V>::exponent_bias);
  return from_bits<V>(bits(biased) << Format<V>::mantissa_bits);
}

// v * 2^n for integral n, |n| < 2^8 (float) or 2^11 (double); by two factors, so that the result may be subnormal.
template <class V>
TWOLAYER_INLINE V scale_by_power_of_two(V v, V n) {
  const V half = round_nearest(n * constant<V>(0.5));
  return v * power_of_two(half) * power_of_two(n - half);
}

// ---- Memory: no alignment is needed; the partial forms take 0 <= n <= lanes and touch n elements only.

TWOLAYER_INLINE f32 load(const float* p) {
  f32 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

TWOLAYER_INLINE f64 load(const double* p) {
  f64 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

TWOLAYER_INLINE void store(float* p, f32 v) { __builtin_memcpy(p, &v, sizeof v); }

TWOLAYER_INLINE void store(double* p, f64 v) { __builtin_memcpy(p, &v, sizeof v); }

// bfloat16 is the upper half of a float. Rounding is to nearest, ties to even; a NaN stays a (quiet) NaN.
TWOLAYER_INLINE f32 widen(u16_half halves) { return from_bits<f32>(__builtin_convertvector(halves, u32) << 16); }

TWOLAYER_INLINE u16_half narrow(f32 v) {
  const u32 b = bits(v);
  const u32 rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  const u32 quiet_nan = (b >> 16) | 0x40;
  return __builtin_convertvector(select(v != v, quiet_nan, rounded), u16_half);
}

TWOLAYER_INLINE f32 load(const bfloat16* p) {
  u16_half halves;
  __builtin_memcpy(&halves, p, sizeof halves);
  return widen(halves);
}

TWOLAYER_INLINE void store(bfloat16* p, f32 v) {
  const u16_half halves = narrow(v);
  __builtin_memcpy(p, &halves, sizeof halves);
}

TWOLAYER_INLINE float to_float(bfloat16 x) {
  const uint32_t b = static_cast<uint32_t>(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &b, sizeof value);
  return value;
}

TWOLAYER_INLINE bfloat16 to_bfloat16(float x) {
  uint32_t b;
  __builtin_memcpy(&b, &x, sizeof b);
  const uint32_t rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  const uint32_t quiet_nan = (b >> 16) | 0x40;
  return {static_cast<uint16_t>(x != x ? quiet_nan : rounded)};
}

template <class T>
TWOLAYER_INLINE Vec<T> load_partial(const T* p, int64_t n) {
  T first[lanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) first[i] = p[i];
  return load(first);
}

template <class T>
TWOLAYER_INLINE void store_partial(T* p, Vec<T> v, int64_t n) {
  T first[lanes<T>];
  store(first, v);
  for (int64_t i = 0; i < n; ++i) p[i] = first[i];
}

// ---- Across the lanes, in a fixed order: the upper half is combined with the lower half until one lane is left.

struct Add {
  template <class V>
  static TWOLAYER_INLINE V combine(V a, V b) {
    return a + b;
  }
};

struct BitOr {
  template <class V>
  static TWOLAYER_INLINE V combine(V a, V b) {
    return a | b;
  }
};

struct Maximum {
  template <class V>
  static TWOLAYER_INLINE V combine(V a, V b) {
    return max(a, b);
  }
};

template <class Operation, class T, int count, class V>
TWOLAYER_INLINE T reduce(V v) {
  if constexpr (count == 2) {
    return Operation::combine(T(v[0]), T(v[1]));
  } else {
    typedef T Half __attribute__((vector_size(sizeof(T) * count / 2)));
    union {
      V whole;
      Half half[2];
    } parts;
    parts.whole = v;
    return reduce<Operation, T, count / 2>(Operation::combine(parts.half[0], parts.half[1]));
  }
}

template <class V>
TWOLAYER_INLINE Element<V> sum(V v) {
  return reduce<Add, Element<V>, lanes<Element<V>>>(v);
}

template <int... j>
struct Sequence {};
template <int count, int... j>
struct CountTo : CountTo<count - 1, count - 1, j...> {};
template <int... j>
struct CountTo<0, j...> {
  using type = Sequence<j...>;
};
template <class V>
using LanesOf = typename CountTo<lanes<Element<V>>>::type;

// a and b hold sums in groups of kGroup lanes. Returns a's and then b's groups, half as long: each lower half + upper
// half, as sum() adds them.
template <int kGroup, class V, int... j>
TWOLAYER_INLINE V halve_groups(V a, V b, Sequence<j...>) {
  constexpr int L = lanes<Element<V>>;
  const V lower = __builtin_shufflevector(
      a, b, (j / (L / 2) * L + j % (L / 2) / (kGroup / 2) * kGroup + j % (L / 2) % (kGroup / 2))...);
  const V upper = __builtin_shufflevector(
      a, b, (j / (L / 2) * L + j % (L / 2) / (kGroup / 2) * kGroup + j % (L / 2) % (kGroup / 2) + kGroup / 2)...);
  return lower + upper;
}

template <int kGroup, int kCount, class V>
TWOLAYER_INLINE V sum_groups(const V* v) {
  if constexpr (kCount > 1)
    return halve_groups<2 * kGroup>(sum_groups<2 * kGroup, kCount / 2>(v),
                                    sum_groups<2 * kGroup, kCount / 2>(v + kCount / 2), LanesOf<V>{});
  else
    return *v;
}

template <int kGroup, class V>
TWOLAYER_INLINE V finish_groups(V v) {
  if constexpr (kGroup > 1)
    return finish_groups<kGroup / 2>(halve_groups<kGroup>(v, v, LanesOf<V>{}));
  else
    return v;
}

// Lane i becomes sum(v[i]), to the bit, for i < kCount; kCount is a power of two, at most the number of lanes.
template <int kCount, class V>
TWOLAYER_INLINE V sums(const V* v) {
  constexpr int kGroup = lanes<Element<V>> / kCount;
  return finish_groups<kGroup>(sum_groups<kGroup, kCount>(v));
}

// ---- Transposition

// Of rows i and i + kStep of a square of vectors, what differs in bit kStep of row and column changes places.
template <int kStep, bool kUpper, class V, int... j>
TWOLAYER_INLINE V swapped(V a, V b, Sequence<j...>) {
  constexpr int L = lanes<Element<V>>;
  return __builtin_shufflevector(a, b,
                                 (kUpper ? (j & kStep ? L + j : (j | kStep)) : (j & kStep ? L + (j ^ kStep) : j))...);
}

// v (lanes, lanes) becomes its transpose.
template <int kStep = 1, class V>
TWOLAYER_INLINE void transpose(V* v) {
  constexpr int L = lanes<Element<V>>;
  if constexpr (kStep < L) {
    for (int i = 0; i < L; ++i) {
      if (i & kStep) continue;
      const V a = v[i], b = v[i | kStep];
      v[i] = swapped<kStep, false>(a, b, LanesOf<V>{});
      v[i | kStep] = swapped<kStep, true>(a, b, LanesOf<V>{});
    }
    transpose<2 * kStep>(v);
  }
}

template <class V>
TWOLAYER_INLINE Element<V> maximum(V v) {
  return reduce<Maximum, Element<V>, lanes<Element<V>>>(v);
}

// ---- Where rows of numbers are not zero

// Bit r of marks[c] says whether x_rows[r][column + c] ≠ 0, for c in [0, 16) and r in [0, rows), rows ≤ 64.
template <class T>
TWOLAYER_INLINE void mark_nonzero(int64_t rows, const T* const* x_rows, int64_t column, uint64_t* marks) {
  for (int c = 0; c < 16; ++c) marks[c] = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int c = 0; c < 16; ++c) marks[c] |= static_cast<uint64_t>(x_rows[r][column + c] != 0) << r;
}
