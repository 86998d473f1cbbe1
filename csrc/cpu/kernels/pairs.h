// Pairs of bfloat16 made from float32, by AVX512_BF16. Included once per ISA inside its namespace (see
// isa_avx512_*.cpp).

// 16 numbers of an earlier and a later row as 16 pairs.
inline __m512i make_pairs(__m512 earlier, __m512 later) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(earlier));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(later));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// v (16, 16) becomes its transpose: in step s, what differs in bit s of row and column changes places.
inline void transpose(__m512i* v) {
  const auto swap = [&]<int kStep>() {
    alignas(64) int low[16], high[16];
    for (int i = 0; i < 16; ++i) {
      low[i] = i & kStep ? 16 + (i ^ kStep) : i;
      high[i] = i & kStep ? 16 + i : i | kStep;
    }
    const __m512i from_low = _mm512_load_si512(low), from_high = _mm512_load_si512(high);
    for (int i = 0; i < 16; ++i) {
      if (i & kStep) continue;
      const __m512i a = v[i], b = v[i | kStep];
      v[i] = _mm512_permutex2var_epi32(a, from_low, b);
      v[i | kStep] = _mm512_permutex2var_epi32(a, from_high, b);
    }
  };
  swap.template operator()<1>();
  swap.template operator()<2>();
  swap.template operator()<4>();
  swap.template operator()<8>();
}

inline void pack_rows(const float* const* x, int64_t row0, int64_t batch, int64_t in, uint32_t* pairs,
                      uint32_t* transposed) {
  const int64_t stride = padded_pairs(in), transposed_stride = padded_pairs(batch);
  const int64_t rows = batch - row0 < 2 * kPairStep ? batch - row0 : 2 * kPairStep;
  for (int64_t j = 0; j < in; j += 16) {
    const int64_t columns = in - j < 16 ? in - j : 16;
    const __mmask16 valid = static_cast<__mmask16>((1u << columns) - 1);
    const auto load = [&](int64_t r) {
      return r < rows ? _mm512_maskz_loadu_ps(valid, x[row0 + r] + j) : _mm512_setzero_ps();
    };
    __m512i block[kPairStep];
    for (int64_t q = 0; q < kPairStep; ++q) {
      const __m512 earlier = load(2 * q), later = load(2 * q + 1);
      block[q] = make_pairs(earlier, later);
      const auto keep = [&](int64_t r, __m512 numbers) {
        if (r < rows)
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + (row0 + r) * stride + j / 2),
                              (__m256i)_mm512_cvtneps_pbh(numbers));
      };
      keep(2 * q, earlier), keep(2 * q + 1, later);
    }
    transpose(block);
    for (int64_t i = 0; i < columns; ++i)
      _mm512_storeu_si512(transposed + (j + i) * transposed_stride + row0 / 2, block[i]);
  }
}

inline void pack_panel(const float* panel, int64_t rows, int64_t count, uint32_t* pairs) {
  for (int64_t q = 0; q < count; ++q) {
    const auto load = [&](int64_t r) { return r < rows ? _mm512_loadu_ps(panel + r * kPanel) : _mm512_setzero_ps(); };
    _mm512_storeu_si512(pairs + q * kPanel, make_pairs(load(2 * q), load(2 * q + 1)));
  }
}
