// Rows of a batch in another storage type, or sparse, made into rows of T. Included once per ISA.

template <class T, class TIn>
TWOLAYER_INLINE void convert_row(int64_t n, const TIn* from, T scale, T shift, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]) * scale + shift;
}
template <class T>
TWOLAYER_INLINE void convert_row(int64_t n, const bfloat16* from, T scale, T shift, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(to_float(from[i])) * scale + shift;
}

template <class T, class TColumn, class TIn>
TWOLAYER_INLINE void scatter_row(const SparseRow& row, const TIn* values, T* to) {
  const TColumn* columns = static_cast<const TColumn*>(row.columns);
  for (int64_t i = 0; i < row.count; ++i) to[columns[i]] += static_cast<T>(values[i]);  // entries named twice add up
}

// Calls f with a null pointer of the type that `storage` names.
template <class F>
TWOLAYER_INLINE void with_storage(Storage storage, F&& f) {
  switch (storage) {
    case Storage::kFloat32:
      return f(static_cast<const float*>(nullptr));
    case Storage::kFloat64:
      return f(static_cast<const double*>(nullptr));
    case Storage::kBFloat16:
      return f(static_cast<const bfloat16*>(nullptr));
    case Storage::kUInt8:
      return f(static_cast<const uint8_t*>(nullptr));
  }
}

template <class T>
void train_gather(const TrainParams<T>& p, int64_t row0, int64_t row1) {
  const T scale = static_cast<T>(p.gather.scale), shift = static_cast<T>(p.gather.shift);
  with_storage(p.gather.storage, [&]<class TIn>(const TIn*) {
    for (int64_t row = row0; row < row1; ++row) {
      T* to = p.gathered + row * p.in;
      if (!p.gather.sparse) {
        convert_row(p.in, static_cast<const TIn*>(p.source_rows[row]), scale, shift, to);
      } else if constexpr (__is_same(TIn, T)) {
        for (int64_t i = 0; i < p.in; ++i) to[i] = 0;
        const SparseRow& sparse = p.sparse_rows[row];
        if (p.gather.wide_columns)
          scatter_row<T, int64_t>(sparse, static_cast<const T*>(sparse.values), to);
        else
          scatter_row<T, int32_t>(sparse, static_cast<const T*>(sparse.values), to);
      }
    }
  });
  if (p.bfloat16_compute && !p.pairs) round_to_bfloat16(p.in * (row1 - row0), p.gathered + row0 * p.in);
}
