// Arrays that own their memory, and the copies between torch.nn.Linear's layout and the engine's.
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>

#include "cpu/isa.h"

namespace twolayer::cpu {

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A zeroed array, aligned to a cache line; null while it is empty.
template <class T>
class Buffer {
 public:
  T* resize(int64_t count) {
    scratch_ = std::make_unique<Scratch<T>>(count);
    if (count) std::memset(scratch_->data, 0, count * sizeof(T));
    count_ = count;
    return data();
  }
  T* grow(int64_t count) { return count > count_ ? resize(count) : data(); }
  T* data() const { return scratch_ ? scratch_->data : nullptr; }

 private:
  std::unique_ptr<Scratch<T>> scratch_;
  int64_t count_ = 0;
};

// to (4, 4) = from (4, 4)ᵀ, in four-lane vectors.
inline void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  typedef float V __attribute__((vector_size(16)));
  V row[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&row[i], from + i * from_stride, sizeof(V));
  const V low01 = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
  const V high01 = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
  const V low23 = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
  const V high23 = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
  const V column[4] = {
      __builtin_shufflevector(low01, low23, 0, 1, 4, 5), __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
      __builtin_shufflevector(high01, high23, 0, 1, 4, 5), __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) std::memcpy(to + i * to_stride, &column[i], sizeof(V));
}

inline void transpose_square(const double* from, int64_t from_stride, double* to, int64_t to_stride) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) to[j * to_stride + i] = from[i * from_stride + j];
}

// to (columns, rows) = from (rows, columns)ᵀ.
template <class T>
void transpose(int64_t rows, int64_t columns, const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t i = 0; i < whole_rows; i += 4)
    for (int64_t j = 0; j < whole_columns; j += 4)
      transpose_square(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
      to[j * to_stride + i] = from[i * from_stride + j];
}

}  // namespace twolayer::cpu
