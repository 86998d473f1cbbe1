// Which hidden values dropout sets to zero: a hash of (run, step, row of the batch, unit), so that a value's fate
// depends on nothing else — not on threads, vectors, or the order in which things are computed. Used by CPU and CUDA
// alike.
//
// U is an unsigned integer, or a vector of them, of at least 32 bits; only the low 32 count. low_32_bits(u) is u modulo
// 2³².

// The key of one row of one step: SplitMix64's output function over the three numbers.
TWOLAYER_HD uint64_t dropout_row_key(uint64_t key, int64_t step, int64_t row) {
  uint64_t z = key + static_cast<uint64_t>(step) * 0x9E3779B97F4A7C15 + static_cast<uint64_t>(row) * 0xD1B54A32D192ED03;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// 32 bits that look random, from a row's key and a unit. The multipliers are those of a bijective mixer of 32 bits with
// low bias (Wellons' "triple32" search), with the key's halves added before and between its rounds.
template <class U>
TWOLAYER_HD U dropout_bits(uint64_t row_key, U unit) {
  const uint32_t low = static_cast<uint32_t>(row_key), high = static_cast<uint32_t>(row_key >> 32);
  U h = low_32_bits(unit * 0x9E3779B9u + low);
  h = low_32_bits((h ^ (h >> 16)) * 0x21F0AAADu);
  h = low_32_bits((h ^ (h >> 15)) + high);
  h = low_32_bits((h ^ (h >> 16)) * 0x735A2D97u);
  return h ^ (h >> 15);
}

// A value is dropped when its bits are below this: the share `dropout` of 2³².
TWOLAYER_HD uint32_t dropout_threshold(double dropout) { return static_cast<uint32_t>(dropout * 4294967296.0); }
