// What the processor can do at most, in its registers and from its caches. Included once per ISA.

// `rounds` of multiply-adds in more independent chains than are in flight at once. Returns how many were done; what
// they came to goes to *result, so that none of them can be left out.
template <class T>
int64_t limit_multiply_adds(int64_t rounds, T* result) {
  constexpr int kChains = 12;
  const Vec<T> shrink = broadcast(*result), grow = broadcast(T(1) - *result);
  Vec<T> chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = broadcast(static_cast<T>(i));
  for (int64_t round = 0; round < rounds; ++round)
    for (int i = 0; i < kChains; ++i) chain[i] = fma(chain[i], shrink, grow);
  Vec<T> total = zero<T>();
  for (int i = 0; i < kChains; ++i) total += chain[i];
  *result = sum(total);
  return rounds * kChains * lanes<T>;
}

// Reads the first n floats from memory once, but for less than a vector's worth per chain, and returns how many it
// read.
inline int64_t limit_read(int64_t n, const float* from, float* result) {
  constexpr int kChains = 8;
  constexpr int64_t kStep = kChains * lanes<float>;
  f32 chain[kChains] = {};
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep)
    for (int c = 0; c < kChains; ++c) chain[c] += load(from + i + c * lanes<float>);
  f32 total = zero<float>();
  for (int c = 0; c < kChains; ++c) total += chain[c];
  *result = sum(total);
  return i;
}
