// Bringing rows into cache before they are needed. Included once per ISA.

// Brings rows into this core's cache, a few lines at a time while products are computed: all at once, they would hold
// up what the products read from the same cache.
class ReadAhead {
 public:
  // Of `count` rows of `bytes` each, the part [begin, end) of 1, in step with advance(), whose works add up to `work`.
  TWOLAYER_INLINE ReadAhead(const void* const* rows, int64_t count, int64_t bytes, float begin, float end, int64_t work)
      : rows_(rows), count_(count), lines_of_row_(ceil_div(bytes, 64)) {
    const float lines = static_cast<float>(count * lines_of_row_);
    lines_per_work_ = work > 0 ? lines * (end - begin) / static_cast<float>(work) : 0;
    const int64_t first = static_cast<int64_t>(lines * begin);
    row_ = lines_of_row_ ? first / lines_of_row_ : 0, line_ = lines_of_row_ ? first % lines_of_row_ : 0;
  }

  TWOLAYER_INLINE void advance(int64_t work) {
    due_ += lines_per_work_ * static_cast<float>(work);
    for (; due_ >= 1 && row_ < count_; due_ -= 1) {
      __builtin_prefetch(static_cast<const char*>(rows_[row_]) + 64 * line_, 0, 2);
      if (++line_ == lines_of_row_) line_ = 0, ++row_;
    }
  }

 private:
  const void* const* rows_;
  int64_t count_, lines_of_row_;
  float lines_per_work_, due_ = 0;
  int64_t row_, line_;
};

// The part [begin, end) of what is read ahead during a step of `work`: the next batch, where it is small enough to stay
// in cache until then.
template <class T>
TWOLAYER_INLINE ReadAhead next_batch(const TrainParams<T>& p, float begin, float end, int64_t work) {
  return {p.next_rows, p.next_batch, p.row_bytes, begin, end, work};
}

// `count` of the batch's rows, from `row` on, during `work`.
template <class T>
TWOLAYER_INLINE ReadAhead rows_ahead(const TrainParams<T>& p, int64_t row, int64_t count, int64_t work) {
  const auto rows = reinterpret_cast<const void* const*>(p.x_rows + row);
  return {rows, count, p.in * static_cast<int64_t>(sizeof(T)), 0, 1, work};
}
