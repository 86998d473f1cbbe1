#include "cpu/permutation.h"

#include <utility>

namespace twolayer::cpu {

void permutation(int64_t n, uint64_t seed, uint64_t epoch, int64_t* order) {
  uint64_t state = seed * 0x9E3779B97F4A7C15 + (epoch + 1) * 0xD1B54A32D192ED03;
  const auto next = [&] {
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  };
  state = next();  // the starts of neighbouring seeds differ by the generator's own increment: without this their draws
                   // overlap
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  for (int64_t i = n - 1; i > 0; --i) {
    const auto j = static_cast<int64_t>((static_cast<unsigned __int128>(next()) * static_cast<uint64_t>(i + 1)) >> 64);
    std::swap(order[i], order[j]);
  }
}

}  // namespace twolayer::cpu
