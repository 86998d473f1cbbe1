// AVX-512 with tiles of bfloat16 (AMX: Sapphire Rapids and later): AVX-512's kernels, and products of its own.
#include "cpu/dispatch.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")
#endif

namespace twolayer::cpu::avx512_amx {
#include "cpu/kernels/pairs.h"

// Tiles 0–3 are sums, (first or second rows) × (first or second panel); 4 and 5 rows of a; 6 and 7 panels of b.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {};
};

static void configure(int64_t first_rows, int64_t second_rows) {
  TileConfig config;
  for (int sum : {0, 1, 4}) config.rows[sum] = static_cast<uint8_t>(first_rows);
  for (int sum : {2, 3, 5}) config.rows[sum] = static_cast<uint8_t>(second_rows ? second_rows : 1);
  for (int b : {6, 7}) config.rows[b] = kPairStep;
  asm volatile("ldtilecfg %0" ::"m"(config));  // GCC 12's intrinsic reads eight bytes only, as the optimiser sees it
}

constexpr int64_t kRowBytes = 64;
constexpr int64_t kTileRows = 16;

template <bool kTwoRows, bool kTwoPanels>
inline void tile(const PairProduct& p, int64_t row, int64_t panel) {
  // A tile is loaded with a stride of 0 from the bias, which so begins every row.
  static const float zeros[kPanel] = {};
  const auto begin = [&](int64_t v) { return p.bias ? p.bias + (panel + v) * kPanel : zeros; };
  _tile_loadd(0, begin(0), 0);
  if constexpr (kTwoPanels) _tile_loadd(1, begin(1), 0);
  if constexpr (kTwoRows) _tile_loadd(2, begin(0), 0);
  if constexpr (kTwoRows && kTwoPanels) _tile_loadd(3, begin(1), 0);
  const uint32_t *a = p.a + row * p.a_stride, *b = p.b + panel * p.b_panel;
  const int64_t a_bytes = p.a_stride * static_cast<int64_t>(sizeof(uint32_t));
  for (int64_t k = 0; k < p.pairs; k += kPairStep) {
    _tile_loadd(4, a + k, a_bytes);
    _tile_loadd(6, b + k * kPanel, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoPanels) {
      _tile_loadd(7, b + p.b_panel + k * kPanel, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kTwoRows) {
      _tile_loadd(5, a + kTileRows * p.a_stride + k, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kTwoPanels) _tile_dpbf16ps(3, 5, 7);
    }
  }
  float* c = p.c + panel * p.c_panel + row * kPanel;
  _tile_stored(0, c, kRowBytes);
  if constexpr (kTwoPanels) _tile_stored(1, c + p.c_panel, kRowBytes);
  if constexpr (kTwoRows) _tile_stored(2, c + kTileRows * kPanel, kRowBytes);
  if constexpr (kTwoRows && kTwoPanels) _tile_stored(3, c + p.c_panel + kTileRows * kPanel, kRowBytes);
}

template <bool kTwoRows>
inline void row_of_tiles(const PairProduct& p, int64_t row) {
  int64_t panel = 0;
  for (; panel + 2 <= p.panels; panel += 2) tile<kTwoRows, true>(p, row, panel);
  if (panel < p.panels) tile<kTwoRows, false>(p, row, panel);
}

static void multiply(const PairProduct& p) {
  int64_t row = 0;
  if (p.rows >= 2 * kTileRows) configure(kTileRows, kTileRows);
  for (; row + 2 * kTileRows <= p.rows; row += 2 * kTileRows) row_of_tiles<true>(p, row);
  const int64_t rest = p.rows - row;
  if (rest > kTileRows) {
    configure(kTileRows, rest - kTileRows);
    row_of_tiles<true>(p, row);
  } else if (rest > 0) {
    configure(rest, 0);
    row_of_tiles<false>(p, row);
  }
  _tile_release();
}

static int64_t multiply_adds(int64_t rounds, float* result) {
  configure(kTileRows, kTileRows);
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  alignas(64) float sums[kTileRows * kPanel];
  _tile_stored(0, sums, kRowBytes);
  _tile_release();
  *result = sums[0];
  return rounds * 4 * kTileRows * kPanel * 2 * kPairStep;
}

}  // namespace twolayer::cpu::avx512_amx

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace twolayer::cpu {
namespace {

// The processor has tiles, and the system lets this process use them.
bool has_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  unsigned eax = 0, ebx, ecx, edx = 0;
  return cpu_has_avx512_bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kBf16) && (edx & kTile) &&
         cpu_has_os_support(kOsSavesTiles) && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

const Isa* isa_avx512_amx() {
  static const PairKernels pairs{avx512_amx::multiply, avx512_amx::pack_rows, avx512_amx::pack_panel,
                                 avx512_amx::multiply_adds};
  static const Isa isa = with_pairs(*isa_avx512(), "avx512_amx", has_amx, &pairs);
  return &isa;
}
}  // namespace twolayer::cpu
#else
const twolayer::cpu::Isa* twolayer::cpu::isa_avx512_amx() { return nullptr; }
#endif
