// Elementary functions on f32 and f64 vectors, written once against the names of vector.h.
//
// The error against the exact value, in ULP of that value, stays below these bounds over the whole range, subnormal
// results included. tests/test_elementary.py holds every instruction set to them:
//
//           exp  log1p  tanh  sigmoid  gaussian  normal_cdf  sin  cos
//     f32   1.1    1.6   2.6      2.5       1.3         6    1.7  1.7
//     f64   1.1    1.6   2.6      2.5       1.3         7    (the C library, lane by lane)
//
// A lane's result depends on that lane's argument only, so a tail gives the same bits as a full vector. Coefficients
// are minimax fits; the comment at each says of what, where, and how large the relative error of the function is.

template <class V>
TWOLAYER_INLINE V polynomial(V, Element<V> last) {
  return broadcast(last);
}

// c0 + c1 x + c2 x² + … by Horner's rule.
template <class V, class... Rest>
TWOLAYER_INLINE V polynomial(V x, Element<V> c0, Element<V> c1, Rest... rest) {
  return fma(polynomial(x, c1, rest...), x, broadcast(c0));
}

// ---- exp: e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2

// (e^r - 1 - r) / r² for |r| <= 0.35; relative to e^r - 1: 2^-25.8
TWOLAYER_INLINE f32 exp_remainder(f32 r) {
  return polynomial(r, 0.49999997f, 0.16666536f, 0.0416678f, 0.0083675105f, 0.0013835469f);
}
// 2^-60
TWOLAYER_INLINE f64 exp_remainder(f64 r) {
  return polynomial(r, 0.5, 0.16666666666666677, 0.041666666666666526, 0.008333333333321338, 0.0013888888888957322,
                    0.0001984126988733503, 2.4801587182170743e-05, 2.7557242599628195e-06, 2.755739354101877e-07,
                    2.5109716439681733e-08, 2.0878596263296417e-09);
}

// ln 2 = high + low, high short enough that n * high is exact without a fused multiply-add.
template <class V>
struct Ln2;
template <>
struct Ln2<f32> {
  static constexpr float high = 0x1.62e4p-1f, low = 0x1.7f7d1cp-20f;
};
template <>
struct Ln2<f64> {
  static constexpr double high = 0x1.62e42fefa4p-1, low = -0x1.8432a1b0e2634p-43;
};

template <class V>
TWOLAYER_INLINE V multiples_of_ln2(V x) {
  return round_nearest(x * constant<V>(0x1.71547652b82fep0));
}

template <class V>
TWOLAYER_INLINE V subtract_multiples_of_ln2(V x, V n) {
  return fma(n, constant<V>(-Ln2<V>::low), fma(n, constant<V>(-Ln2<V>::high), x));
}

// e^r - 1 for |r| <= 0.35
template <class V>
TWOLAYER_INLINE V expm1_reduced(V r) {
  return fma(r * r, exp_remainder(r), r);
}

// Where e^x has become 0 (below) or infinity (above) in rounding to nearest.
template <class V>
struct ExpRange;
template <>
struct ExpRange<f32> {
  static constexpr float below = -104, above = 89;
};
template <>
struct ExpRange<f64> {
  static constexpr double below = -746, above = 710;
};

// e^x within ExpRange
template <class V>
TWOLAYER_INLINE V exp_in_range(V x) {
  const V n = multiples_of_ln2(x);
  return scale_by_power_of_two(1 + expm1_reduced(subtract_multiples_of_ln2(x, n)), n);
}

template <class V>
TWOLAYER_INLINE V exp(V x) {
  return exp_in_range(min(max(x, constant<V>(ExpRange<V>::below)), constant<V>(ExpRange<V>::above)));
}

// ---- sigmoid and tanh, both from an exponential of a non-positive argument, so that nothing overflows

template <class V>
TWOLAYER_INLINE V sigmoid(V x) {
  const V one = constant<V>(1);
  const V e = exp_in_range(max(-abs(x), constant<V>(ExpRange<V>::below)));
  return select(x < 0, e, one) / (one + e);
}

// tanh a = -m / (2 + m) with m = e^(-2a) - 1, which keeps its relative precision as a goes to 0.
template <class V>
TWOLAYER_INLINE V tanh(V x) {
  const V a = min(abs(x), constant<V>(20));  // tanh 20 rounds to 1
  const V n = multiples_of_ln2(-2 * a);
  const V two_to_n = power_of_two(n);
  const V m = fma(expm1_reduced(subtract_multiples_of_ln2(-2 * a, n)), two_to_n, two_to_n - 1);
  return copysign(m / (2 + m), x);
}

// ---- log1p: log(1 + x) = k ln 2 + log(1 + f) with 1 + f = (1 + x) / 2^k in [sqrt(1/2), sqrt(2)]

// (2 atanh(s) - 2 s) / s³ in z = s², z <= 0.0296; relative to log(1 + f): 2^-35
TWOLAYER_INLINE f32 atanh_remainder(f32 z) { return polynomial(z, 0.6666666f, 0.40000972f, 0.28498822f, 0.24277514f); }
// 2^-59
TWOLAYER_INLINE f64 atanh_remainder(f64 z) {
  return polynomial(z, 0.6666666666666735, 0.39999999999406594, 0.2857142874472024, 0.22222198289341383,
                    0.1818358106754251, 0.1531357682893108, 0.14801104030652817);
}

// log(1 + f) = 2 atanh(s) = f - s (f - s² remainder) with s = f / (2 + f)
template <class V>
TWOLAYER_INLINE V log1p(V x) {
  using F = Format<V>;
  const V one = constant<V>(1);
  const auto to_lower_end = bits(one) - bits(constant<V>(0x1.6a09e667f3bcdp-1));  // sqrt(1/2)
  const auto biased_k = (bits(one + x) + to_lower_end) >> F::mantissa_bits;
  const V k = from_bits<V>(bits(constant<V>(F::integer_shift)) + biased_k) - (F::integer_shift + F::exponent_bias);

  const V four_over_2k = power_of_two(2 - k);  // 2^-k itself would be subnormal for the largest x
  const V quarter = constant<V>(0.25);
  const V f = fma(four_over_2k * x, quarter, fma(four_over_2k, quarter, -one));
  const V s = f / (2 + f);
  const V z = s * s;
  const V low = fma(k, constant<V>(Ln2<V>::low), -s * fma(-z, atanh_remainder(z), f));
  V result = fma(k, constant<V>(Ln2<V>::high), f + low);

  const V infinity = constant<V>(__builtin_inf());
  result = select(abs(x) < constant<V>(0x1p-60), x, result);  // also keeps -0
  result = select(x < infinity, result, x);                   // infinity and NaN
  result = select(x > -one, result, select(x == -one, -infinity, constant<V>(__builtin_nan(""))));
  return result;
}

// ---- The normal distribution: gaussian(z) = exp(-z²/2) and normal_cdf(z) = Phi(z) = (1 + erf(z / sqrt 2)) / 2

// (Phi(z) - 1/2) / z in z², |z| <= 1; relative to Phi: 2^-28
TWOLAYER_INLINE f32 normal_cdf_center(f32 z2) {
  return polynomial(z2, 0.3989423f, -0.06649058f, 0.009974534f, -0.0011890241f, 0.000116120806f, -8.59378e-06f);
}
// 2^-55
TWOLAYER_INLINE f64 normal_cdf_center(f64 z2) {
  return polynomial(z2, 0.3989422804014326, -0.06649038006689963, 0.009973557009908644, -0.0011873282142087001,
                    0.00011543468063095232, -9.444633186130469e-06, 6.659214976554345e-07, -4.1163767978555385e-08,
                    2.2224152408217234e-09, -8.927970813577495e-11);
}

// e^(a²/2) Phi(-a) (a + 4) in t = (4 - a) / (4 + a), 1 <= a <= 15; 2^-25.4
TWOLAYER_INLINE f32 normal_cdf_tail(f32 t) {
  return polynomial(t, 0.75528514f, 0.60789657f, 0.38713697f, 0.18652533f, 0.060400683f, 0.0075008264f, -0.0034951104f,
                    -0.0014685667f, 0.00015314599f);
}
// 1 <= a <= 39; 2^-53.8
TWOLAYER_INLINE f64 normal_cdf_tail(f64 t) {
  return polynomial(t, 0.7552851304157515, 0.6078966419718922, 0.3871374007422113, 0.1865218579596373,
                    0.06039657489115898, 0.007540188967722691, -0.0034796923731913033, -0.001630818480322745,
                    0.00013334438547827956, 0.0002310952174006231, -1.9087426311287136e-06, -3.5146748751188084e-05,
                    7.182660775433267e-07, 5.929297464909166e-06, -6.310712168427646e-07, -1.0455941852846333e-06,
                    2.64933887399876e-07, 1.8988430045703474e-07, -6.413670247725765e-08, -3.556830635880096e-08);
}

// |z|, but no more than where gaussian(z) and Phi(-|z|) have become 0.
TWOLAYER_INLINE f32 bounded_deviation(f32 z) { return min(abs(z), broadcast(15.0f)); }
TWOLAYER_INLINE f64 bounded_deviation(f64 z) { return min(abs(z), broadcast(39.0)); }

// The square is carried in two parts: rounded to one, its error would grow to z²/2 ULP of the result.
template <class V>
TWOLAYER_INLINE V gaussian(V z) {
  const V a = bounded_deviation(z);
  const V high = from_bits<V>(bits(a) & Format<V>::upper_half);
  const V half = constant<V>(0.5);
  const V n = multiples_of_ln2(-half * (a * a));
  const V r = subtract_multiples_of_ln2(-half * (high * high), n) - half * ((a - high) * (a + high));
  return scale_by_power_of_two(1 + expm1_reduced(r), n);
}

template <class V>
TWOLAYER_INLINE V normal_cdf(V z) {
  const V a = bounded_deviation(z);
  const V u = 1 / (a + 4);
  const V tail = gaussian(a) * (u * normal_cdf_tail(fma(constant<V>(8), u, constant<V>(-1))));
  const V center = fma(z, normal_cdf_center(z * z), constant<V>(0.5));
  return select(a < 1, center, select(z > 0, 1 - tail, tail));
}

// ---- sin and cos of f32: x = q pi/2 + r, |r| <= pi/4, then by q mod 4

// (sin r - r) / r³ in r², |r| <= 0.786; relative to sin r: 2^-28
TWOLAYER_INLINE f32 sin_remainder(f32 r2) { return polynomial(r2, -0.16666655f, 0.00833219f, -0.00019518405f); }
// (cos r - 1 + r²/2) / r⁴; relative to cos r: 2^-33
TWOLAYER_INLINE f32 cos_remainder(f32 r2) { return polynomial(r2, 0.041666646f, -0.0013887301f, 2.443067e-05f); }

// sin(r + quarter_turns pi/2) for |r| <= pi/4 and an integral quarter_turns.
TWOLAYER_INLINE f32 sin_reduced(f32 r, f32 quarter_turns) {
  const u32 turns = bits(quarter_turns + Format<f32>::integer_shift);
  const f32 r2 = r * r;
  const f32 s = fma(r * r2, sin_remainder(r2), r);
  const f32 c = fma(r2 * r2, cos_remainder(r2), fma(r2, broadcast(-0.5f), broadcast(1.0f)));
  const f32 magnitude = select((turns & 1) == 0, s, c);
  return from_bits<f32>(bits(magnitude) ^ ((turns & 2) << 30));
}

// x - q pi/2, with pi/2 in three parts; as only the sums are rounded, the error stays below 1 ULP of r for |x| <= 1e5.
TWOLAYER_INLINE f32 subtract_quarter_turns(f32 x, f32 q) {
  const f32 r = fma(q, broadcast(0x1.777a5cp-25f), fma(q, broadcast(-0x1.921fb6p+0f), x));
  return fma(q, broadcast(0x1.ee59dap-50f), r);
}

struct LibmSin {
  static float apply(float x) { return __builtin_sinf(x); }
  static double apply(double x) { return __builtin_sin(x); }
};

struct LibmCos {
  static float apply(float x) { return __builtin_cosf(x); }
  static double apply(double x) { return __builtin_cos(x); }
};

template <class Function, class V>
TWOLAYER_INLINE V by_lane(V x) {
  for (int i = 0; i < lanes<Element<V>>; ++i) x[i] = Function::apply(x[i]);
  return x;
}

TWOLAYER_INLINE f64 sin(f64 x) { return by_lane<LibmSin>(x); }
TWOLAYER_INLINE f64 cos(f64 x) { return by_lane<LibmCos>(x); }

// Whether any lane of a mask is set.
TWOLAYER_INLINE bool any(i32 mask) { return reduce<BitOr, int32_t, lanes<float>>(mask) != 0; }

// `near` for |x| <= 1e5, what the reduction above can serve; the C library beyond, for infinities and for NaN.
template <class Function>
TWOLAYER_INLINE f32 or_by_lane_beyond_range(f32 x, f32 near) {
  const i32 beyond = ~(abs(x) <= 1e5f);
  if (any(beyond)) near = select(beyond, by_lane<Function>(x), near);
  return near;
}

TWOLAYER_INLINE f32 sin(f32 x) {
  if constexpr (!has_fused_multiply_add) return by_lane<LibmSin>(x);
  const f32 a = abs(x);
  const f32 q = round_nearest(a * 0x1.45f306p-1f);
  const f32 s = sin_reduced(subtract_quarter_turns(a, q), q);
  const f32 odd = from_bits<f32>(bits(s) ^ (bits(x) & bits(broadcast(-0.0f))));
  return or_by_lane_beyond_range<LibmSin>(x, odd);
}

TWOLAYER_INLINE f32 cos(f32 x) {
  if constexpr (!has_fused_multiply_add) return by_lane<LibmCos>(x);
  const f32 a = abs(x);
  const f32 q = round_nearest(a * 0x1.45f306p-1f);
  return or_by_lane_beyond_range<LibmCos>(x, sin_reduced(subtract_quarter_turns(a, q), q + 1.0f));
}
