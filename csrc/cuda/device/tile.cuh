// One tile of a matrix product, by a block of eight warps: c (m, n) = a (m, k) b (k, n).
//
// Slices of the factors, kDepth of k at a time, go through a ring of stages in shared memory, several of them on their
// way while one is multiplied. The warps stand in a grid over the tile, warps_m × warps_n pieces of 16 × 16; warps_k of
// them share a piece, each with its part of every slice, and their sums are added in order at the end.
#pragma once
#include "cuda/device/async.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/device/elementary.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/types.cuh"

namespace twolayer::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kPiece = 16;

struct Tiling {
  int warps_m, warps_n, warps_k;  // powers of two; their product is kWarps
  int stages;                     // 2, 4 or 8; 1 where there is but one slice

  __host__ __device__ int m() const { return kPiece * warps_m; }
  __host__ __device__ int n() const { return kPiece * warps_n; }
};

// Loops that are told not to unroll have long bodies and need registers more than speed.

// A matrix in global memory.
template <class S>
struct Matrix {
  const S* data;
  int64_t rows, columns;  // what is beyond counts as 0
  int64_t stride;         // numbers from a row to the next
  int access;             // bytes: the address of every row is a multiple (16, 8, 4; less: copied number by number)
};

__device__ __forceinline__ int log2_of(int power) { return 31 - __clz(power); }

// ---- From global to shared memory

template <int kBytes, class S>
__device__ __forceinline__ void copy_pieces(S* to, int to_stride, const Matrix<S>& from, int64_t row0, int64_t column0,
                                            int rows, int columns) {
  constexpr int kNumbers = kBytes / sizeof(S);
  const int shift = log2_of(columns / kNumbers);
#pragma unroll 1
  for (int piece = threadIdx.x; piece < rows << shift; piece += kThreads) {
    const int row = piece >> shift, column = (piece & ((1 << shift) - 1)) * kNumbers;
    const int64_t left = row0 + row < from.rows ? from.columns - column0 - column : 0;
    const int valid = left >= kNumbers ? kBytes : left > 0 ? static_cast<int>(left * sizeof(S)) : 0;
    const S* source = valid ? from.data + (row0 + row) * from.stride + column0 + column : from.data;
    copy_async<kBytes>(to + row * to_stride + column, source, valid);
  }
}

// Starts to copy rows × columns numbers; columns is a power of two, at least 16.
template <class S>
__device__ void copy_tile(S* to, int to_stride, const Matrix<S>& from, int64_t row0, int64_t column0, int rows,
                          int columns) {
  if (from.access == 16) return copy_pieces<16>(to, to_stride, from, row0, column0, rows, columns);
  if (from.access == 8) return copy_pieces<8>(to, to_stride, from, row0, column0, rows, columns);
  if constexpr (sizeof(S) <= 4)
    if (from.access == 4) return copy_pieces<4>(to, to_stride, from, row0, column0, rows, columns);
  if constexpr (sizeof(S) < 4) {
    const int shift = log2_of(columns);
#pragma unroll 1
    for (int i = threadIdx.x; i < rows << shift; i += kThreads) {
      const int row = i >> shift, column = i & (columns - 1);
      const bool valid = row0 + row < from.rows && column0 + column < from.columns;
      to[row * to_stride + column] = valid ? from.data[(row0 + row) * from.stride + column0 + column] : S{};
    }
  }
}

__device__ __forceinline__ void wait_for_oldest_of(int stages) {
  if (stages <= 2) return wait_for_copies<0>();
  if (stages == 4) return wait_for_copies<2>();
  wait_for_copies<6>();
}

// ---- From shared memory to registers

template <class S, int kCount>
struct alignas(sizeof(S) * kCount <= 16 ? sizeof(S) * kCount : 16) Pack {
  S numbers[kCount];
};

// Sixteen rows of a, or columns of b, in shared memory: kAlong: number (i, k) is at i · stride + k, else at
// k · stride + i.
template <class S, bool kAlong>
struct Strip {
  const S* data;
  int stride;
  __device__ __forceinline__ const S* at(int i, int k) const {
    return data + (kAlong ? i * stride + k : k * stride + i);
  }
};

// Lane's share of 16 × kDepth numbers for plain multiply-adds: kCount of its own rows, kSpan apart (or next to each
// other where memory runs along rows), and kDepth of k.
template <int kCount, int kSpan, int kDepth, class S, bool kAlong>
__device__ __forceinline__ void fetch(S (&out)[kCount][kDepth], const Strip<S, kAlong>& from, int lane, int k) {
  if constexpr (kAlong) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const auto pack = *reinterpret_cast<const Pack<S, kDepth>*>(from.at(lane + i * kSpan, k));
#pragma unroll
      for (int d = 0; d < kDepth; ++d) out[i][d] = pack.numbers[d];
    }
  } else {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const auto pack = *reinterpret_cast<const Pack<S, kCount>*>(from.at(lane * kCount, k + d));
#pragma unroll
      for (int i = 0; i < kCount; ++i) out[i][d] = pack.numbers[i];
    }
  }
}

// Two 16-bit numbers, of k and k + 1.
template <class S, bool kAlong>
__device__ __forceinline__ uint32_t fetch_pair(const Strip<S, kAlong>& from, int i, int k) {
  if constexpr (kAlong)
    return *reinterpret_cast<const uint32_t*>(from.at(i, k));
  else
    return from.at(i, k)->bits | static_cast<uint32_t>(from.at(i, k + 1)->bits) << 16;
}

// A number as TF32, and what that leaves of it. 16-bit numbers fit whole.
struct Tf32 {
  uint32_t high, low;
};
template <bool kSplit, class S>
__device__ __forceinline__ Tf32 fetch_tf32(const S* from) {
  const float x = widen(*from);
  if constexpr (sizeof(S) == 2) return {__float_as_uint(x), 0};
  if constexpr (!kSplit) return {to_tf32(x), 0};
  const uint32_t high = __float_as_uint(x) & 0xffffe000u;
  const float rest = __fadd_rn(x, -__uint_as_float(high));
  return {high, isinf(x) ? 0 : to_tf32(rest)};
}

// What a low part meets: infinities are the high part's to multiply, as 0 times one is not a number.
__device__ __forceinline__ uint32_t finite_or_0(uint32_t bits) {
  return (bits & 0x7f800000u) == 0x7f800000u ? 0 : bits;
}

// ---- A warp's piece: 16 × 16 sums in eight registers a lane

enum class Unit { kFma, kHalf, kTf32, kSplitTf32 };

// What multiplies factors of these types: 16-bit ones on tensor cores; with a float beside one, that float in two
// parts.
template <bool kTf32, class A, class B>
constexpr Unit unit_for = sizeof(A) == 2 && sizeof(B) == 2   ? Unit::kHalf
                          : sizeof(A) == 2 || sizeof(B) == 2 ? Unit::kSplitTf32
                          : kTf32                            ? Unit::kTf32
                                                             : Unit::kFma;

template <Unit kUnit, class C, class A, bool kAlongA, class B, bool kAlongB>
struct Piece {
  C sums[8] = {};

  // sums += a b over [k0, k1)
  __device__ __forceinline__ void multiply(const Strip<A, kAlongA>& a, const Strip<B, kAlongB>& b, int k0, int k1) {
    const int lane = threadIdx.x % 32;
    if constexpr (kUnit == Unit::kFma) {
      constexpr int kDepth = 16 / sizeof(C);
#pragma unroll 2
      for (int k = k0; k < k1; k += kDepth) {
        C left[4][kDepth], right[2][kDepth];
        fetch<4, 4, kDepth>(left, a, lane / 8, k);
        fetch<2, 8, kDepth>(right, b, lane % 8, k);
#pragma unroll
        for (int d = 0; d < kDepth; ++d)
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 2; ++j) sums[2 * i + j] = fma(left[i][d], right[j][d], sums[2 * i + j]);
      }
    } else if constexpr (kUnit == Unit::kHalf) {
      const int g = lane / 4, t = lane % 4;
#pragma unroll 2
      for (int k = k0; k < k1; k += 16) {
        const uint32_t left[4] = {fetch_pair(a, g, k + 2 * t), fetch_pair(a, g + 8, k + 2 * t),
                                  fetch_pair(a, g, k + 2 * t + 8), fetch_pair(a, g + 8, k + 2 * t + 8)};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t right[2] = {fetch_pair(b, g + 8 * j, k + 2 * t), fetch_pair(b, g + 8 * j, k + 2 * t + 8)};
          mma(sums + 4 * j, left, right, A{});
        }
      }
    } else {
      constexpr bool kSplit = kUnit == Unit::kSplitTf32;
      const int g = lane / 4, t = lane % 4;
#pragma unroll 2
      for (int k = k0; k < k1; k += 8) {
        uint32_t left[4], left_low[4], left_finite[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Tf32 part = fetch_tf32<kSplit>(a.at(g + i % 2 * 8, k + t + i / 2 * 4));
          left[i] = part.high, left_low[i] = part.low, left_finite[i] = finite_or_0(part.high);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const Tf32 first = fetch_tf32<kSplit>(b.at(g + 8 * j, k + t));
          const Tf32 second = fetch_tf32<kSplit>(b.at(g + 8 * j, k + t + 4));
          const uint32_t right[2] = {first.high, second.high}, right_low[2] = {first.low, second.low};
          const uint32_t right_finite[2] = {finite_or_0(first.high), finite_or_0(second.high)};
          mma_tf32(sums + 4 * j, left, right);
          if constexpr (kSplit && sizeof(A) == 4) mma_tf32(sums + 4 * j, left_low, right_finite);
          if constexpr (kSplit && sizeof(B) == 4) mma_tf32(sums + 4 * j, left_finite, right_low);
        }
      }
    }
  }

  // c[row · stride + column] = the sums
  __device__ __forceinline__ void store(C* c, int stride) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      int row, column;
      if constexpr (kUnit == Unit::kFma) {
        row = kAlongA ? lane / 8 + 4 * (e / 2) : lane / 8 * 4 + e / 2;
        column = kAlongB ? lane % 8 + 8 * (e % 2) : lane % 8 * 2 + e % 2;
      } else {
        row = lane / 4 + e % 4 / 2 * 8;
        column = e / 4 * 8 + lane % 4 * 2 + e % 2;
      }
      c[row * stride + column] = sums[e];
    }
  }
};

// ---- The block's tile

// A factor as it comes: Raw in global memory, Used in what is multiplied. Where they differ, or kChanged says so, a
// step between makes one of the other.
template <class Raw_, class Used_, bool kAlong_, bool kChanged_ = false>
struct Factor {
  using Raw = Raw_;
  using Used = Used_;
  static constexpr bool kAlong = kAlong_;  // rows of memory run along k
  static constexpr bool kChanged = kChanged_;
};

struct Unchanged {
  __device__ void operator()(...) const {}
};

template <bool kTf32, class A, class B>
struct Product {
  using C = Compute<typename A::Used>;
  using RawA = typename A::Raw;
  using RawB = typename B::Raw;
  using UsedA = typename A::Used;
  using UsedB = typename B::Used;
  static constexpr int kWidest = sizeof(UsedA) > sizeof(UsedB) ? sizeof(UsedA) : sizeof(UsedB);
  static constexpr int kDepth = 256 / kWidest;

  // A slice in shared memory, rows padded so that the lanes of a warp meet no bank twice.
  struct Slice {
    int rows, columns, padding;  // the last in bytes
    template <class S>
    __host__ __device__ int stride() const {
      return columns + padding / static_cast<int>(sizeof(S));
    }
    template <class S>
    __host__ __device__ int bytes() const {
      return rows * stride<S>() * static_cast<int>(sizeof(S));
    }
  };
  template <class F>
  static __host__ __device__ Slice slice(int width) {
    return F::kAlong ? Slice{width, kDepth, 16} : Slice{kDepth, width, 32};
  }

  // Shared memory: the ring (and after it, in its place, the warps' sums), then slices as they are multiplied.
  static __host__ __device__ int64_t ring_bytes(const Tiling& t) {
    const int64_t ring = t.stages * (slice<A>(t.m()).template bytes<RawA>() + slice<B>(t.n()).template bytes<RawB>());
    const int64_t sums = int64_t{kWarps} * kPiece * kPiece * sizeof(C);
    return ring > sums ? ring : sums;
  }
  static __host__ __device__ int64_t bytes(const Tiling& t) {
    return ring_bytes(t) + (A::kChanged ? slice<A>(t.m()).template bytes<UsedA>() : 0) +
           (B::kChanged ? slice<B>(t.n()).template bytes<UsedB>() : 0);
  }

  // The tile at (m0, n0), over [k_begin, k_end), in `memory`; read it by for_each_sum. change_a(raw, raw_stride, used,
  // used_stride, k0) and change_b make slices; then see(used, used_stride) is shown each slice of a. What was committed
  // before has arrived, too.
  template <class ChangeA, class ChangeB, class See>
  static __device__ __forceinline__ void run(const Tiling& t, const Matrix<RawA>& a, const Matrix<RawB>& b, int64_t m0,
                                             int64_t n0, int64_t k_begin, int64_t k_end, char* memory,
                                             ChangeA&& change_a, ChangeB&& change_b, See&& see) {
    const Slice in_a = slice<A>(t.m()), in_b = slice<B>(t.n());
    const int raw_stride_a = in_a.template stride<RawA>(), raw_stride_b = in_b.template stride<RawB>();
    const int bytes_a = in_a.template bytes<RawA>(), stage_bytes = bytes_a + in_b.template bytes<RawB>();
    const int steps = static_cast<int>((k_end - k_begin + kDepth - 1) / kDepth);
    const auto load = [&](int step) {
      if (step < steps) {
        char* stage = memory + (step & (t.stages - 1)) * stage_bytes;
        const int64_t k = k_begin + int64_t{step} * kDepth;
        copy_tile(reinterpret_cast<RawA*>(stage), raw_stride_a, a, A::kAlong ? m0 : k, A::kAlong ? k : m0, in_a.rows,
                  in_a.columns);
        copy_tile(reinterpret_cast<RawB*>(stage + bytes_a), raw_stride_b, b, B::kAlong ? n0 : k, B::kAlong ? k : n0,
                  in_b.rows, in_b.columns);
      }
      commit_copies();
    };

    const int ahead = t.stages > 1 ? t.stages - 1 : 1;

    constexpr bool kAnyChanged = A::kChanged || B::kChanged;
    char* const changed_a = memory + ring_bytes(t);
    char* const changed_b = changed_a + (A::kChanged ? in_a.template bytes<UsedA>() : 0);
    const int stride_a = in_a.template stride<UsedA>(), stride_b = in_b.template stride<UsedB>();

    const int warp = threadIdx.x / 32;
    const int warp_n = warp & (t.warps_n - 1), warp_mk = warp >> log2_of(t.warps_n);
    const int warp_m = warp_mk & (t.warps_m - 1), warp_k = warp_mk >> log2_of(t.warps_m);
    const int k_share = kDepth >> log2_of(t.warps_k);
    Piece<unit_for<kTf32, UsedA, UsedB>, C, UsedA, A::kAlong, UsedB, B::kAlong> piece;

#pragma unroll 1
    for (int step = 0; step < ahead; ++step) load(step);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      wait_for_oldest_of(t.stages);
      __syncthreads();  // the slice is there for all, and the one that the next overwrites is no longer read
      load(step + ahead);
      char* const stage = memory + (step & (t.stages - 1)) * stage_bytes;
      const UsedA* used_a;
      const UsedB* used_b;
      const int64_t k = k_begin + int64_t{step} * kDepth;
      if constexpr (A::kChanged) {
        change_a(reinterpret_cast<const RawA*>(stage), raw_stride_a, reinterpret_cast<UsedA*>(changed_a), stride_a, k);
        used_a = reinterpret_cast<const UsedA*>(changed_a);
      } else {
        used_a = reinterpret_cast<const UsedA*>(stage);
      }
      if constexpr (B::kChanged) {
        change_b(reinterpret_cast<const RawB*>(stage + bytes_a), raw_stride_b, reinterpret_cast<UsedB*>(changed_b),
                 stride_b, k);
        used_b = reinterpret_cast<const UsedB*>(changed_b);
      } else {
        used_b = reinterpret_cast<const UsedB*>(stage + bytes_a);
      }
      if constexpr (kAnyChanged) __syncthreads();  // the changed slices are there for all
      see(used_a, stride_a);
      const Strip<UsedA, A::kAlong> strip_a{used_a, stride_a};
      const Strip<UsedB, B::kAlong> strip_b{used_b, stride_b};
      piece.multiply({strip_a.at(warp_m * kPiece, 0), stride_a}, {strip_b.at(warp_n * kPiece, 0), stride_b},
                     warp_k * k_share, (warp_k + 1) * k_share);
    }
    wait_for_copies<0>();
    __syncthreads();  // the ring is no longer read, and what was copied beside it is there
    piece.store(reinterpret_cast<C*>(memory) + (warp_k * t.m() + warp_m * kPiece) * t.n() + warp_n * kPiece, t.n());
    __syncthreads();  // all sums are there
  }

  // f(row, column, sum) for those of the tile that are within rows × columns.
  template <class F>
  static __device__ __forceinline__ void for_each_sum(const Tiling& t, const char* memory, int64_t rows,
                                                      int64_t columns, F&& f) {
    const C* sums = reinterpret_cast<const C*>(memory);
    const int shift = log2_of(t.n()), count = t.m() << shift;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const int row = i >> shift, column = i & (t.n() - 1);
      if (row >= rows || column >= columns) continue;
      C sum = sums[i];
      for (int part = 1; part < t.warps_k; ++part) sum += sums[part * count + i];
      f(row, column, sum);
    }
  }
};

}  // namespace twolayer::cuda
