// The order in which an epoch takes its rows.
#pragma once
#include <cstdint>

namespace twolayer::cpu {

// Writes a permutation of 0 … n − 1: SplitMix64 keyed by seed and epoch drives Fisher–Yates from the end. It is part of
// what users are promised, and the same as twolayer.reference.numpy.permutation.
void permutation(int64_t n, uint64_t seed, uint64_t epoch, int64_t* order);

}  // namespace twolayer::cpu
