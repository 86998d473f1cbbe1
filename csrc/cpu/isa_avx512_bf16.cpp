// AVX-512 with dot products of bfloat16 pairs (Cooper Lake, Zen 4 and later): its kernels, and products of its own.
#include "cpu/dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#endif

namespace twolayer::cpu::avx512_bf16 {
#include "cpu/kernels/pairs.h"

template <int kRows, int kPanels>
inline void tile(const PairProduct& p, int64_t row, int64_t panel) {
  __m512 sum[kRows][kPanels];
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kPanels; ++v)
      sum[i][v] = p.bias ? _mm512_loadu_ps(p.bias + (panel + v) * kPanel) : _mm512_setzero_ps();
  const uint32_t *a = p.a + row * p.a_stride, *b = p.b + panel * p.b_panel;
  for (int64_t k = 0; k < p.pairs; ++k) {
    __m512bh bk[kPanels];
    for (int v = 0; v < kPanels; ++v) bk[v] = (__m512bh)_mm512_loadu_si512(b + v * p.b_panel + k * kPanel);
    for (int i = 0; i < kRows; ++i) {
      const __m512bh ai = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[i * p.a_stride + k]));
      for (int v = 0; v < kPanels; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], ai, bk[v]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kPanels; ++v) _mm512_storeu_ps(p.c + (panel + v) * p.c_panel + (row + i) * kPanel, sum[i][v]);
}

template <int kPanels>
inline void column(const PairProduct& p, int64_t panel) {
  int64_t row = 0;
  for (; row + 8 <= p.rows; row += 8) tile<8, kPanels>(p, row, panel);
  for (; row < p.rows; ++row) tile<1, kPanels>(p, row, panel);
}

static void multiply(const PairProduct& p) {
  int64_t panel = 0;
  for (; panel + 3 <= p.panels && p.panels - panel != 4; panel += 3) column<3>(p, panel);
  for (; panel + 2 <= p.panels; panel += 2) column<2>(p, panel);
  for (; panel < p.panels; ++panel) column<1>(p, panel);
}

static int64_t multiply_adds(int64_t rounds, float* result) {
  constexpr int kChains = 12;
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f003f00), b = (__m512bh)_mm512_set1_epi32(0x3f803f80);  // ½ and 1
  __m512 chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = _mm512_set1_ps(*result + static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round)
    for (int i = 0; i < kChains; ++i) chain[i] = _mm512_dpbf16_ps(chain[i], a, b);
  __m512 total = _mm512_setzero_ps();
  for (int i = 0; i < kChains; ++i) total = _mm512_add_ps(total, chain[i]);
  *result = _mm512_cvtss_f32(total);
  return rounds * kChains * 32;
}

}  // namespace twolayer::cpu::avx512_bf16

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace twolayer::cpu {
bool cpu_has_avx512_bf16() {
  unsigned eax = 0, ebx, ecx, edx;
  return isa_avx512()->supported() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 5);
}

const Isa* isa_avx512_bf16() {
  static const PairKernels pairs{avx512_bf16::multiply, avx512_bf16::pack_rows, avx512_bf16::pack_panel,
                                 avx512_bf16::multiply_adds};
  static const Isa isa = with_pairs(*isa_avx512(), "avx512_bf16", cpu_has_avx512_bf16, &pairs);
  return &isa;
}
}  // namespace twolayer::cpu
#else
const twolayer::cpu::Isa* twolayer::cpu::isa_avx512_bf16() { return nullptr; }
#endif
