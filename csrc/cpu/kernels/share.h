// Who does what of a training step, and the panels it is done in. Included once per ISA, after gemm.h.

// The units from `unit` on of an array that is panels of (n).
template <class T>
TWOLAYER_INLINE Panels<T> panels(T* array, int64_t n, int64_t unit) {
  return {array + unit * n, n * kPanel};
}

// What one chunk does of the hidden layer: groups of p.group units [group0, group1). The first of them it may share
// with the chunks before, and the last with those after: of a shared group it does the parts from first_part, or those
// before last_part, of `parts`. Going forward these are parts of the batch's rows, going back of the inputs, whose
// weights it then updates.
template <class T>
class Share {
 public:
  Share(const TrainParams<T>& p, int chunk, int chunks) : p_(p), chunk_(chunk), parts_(chunks) {
    const int64_t groups = ceil_div(p.whole, p.group), begin = chunk * groups, end = begin + groups;
    group0_ = begin / chunks;
    group1_ = p.shares_groups ? ceil_div(end, chunks) : end / chunks;
    first_part_ = p.shares_groups ? begin % chunks : 0;
    last_part_ = p.shares_groups && end % chunks ? end % chunks : chunks;
    before_ = p.shares_groups ? group0_ + chunk : group0_;
  }

  Range units() const { return units_of(group0_, group1_); }
  // Those whose small parameters, which nobody shares, are this chunk's.
  Range owned() const {
    const Range owned = units_of(group0_ + (first_part_ > 0), group1_);
    return {owned.begin, chunk_ == parts_ - 1 ? p_.padded_hidden : owned.end};
  }
  // The panel of hidden values of the rest, which all share; empty where there is none.
  Range rest() const { return {p_.whole, p_.padded_hidden}; }
  // What this chunk does of the rest: of `count` rows, or inputs.
  Range rest_part(int64_t count) const { return p_.rest ? Range{cut(count, chunk_), cut(count, chunk_ + 1)} : Range{}; }

  // How many units grad_hidden holds before this chunk's. Each chunk has its own copy of shared ones, which it needs
  // all; those of the rest follow its other units.
  int64_t units_before() const { return before_ * p_.group + chunk_ * rest().size(); }

  // The sum of the sizes of for_parts()' ranges, times their units.
  int64_t area(int64_t count) const {
    int64_t total = 0;
    for_parts(count, [&](Range range, Range units) { total += range.size() * units.size(); });
    return total;
  }

  // Calls body(range, units) for ranges of [0, count), rows or inputs, and the units to do for them.
  template <class Body>
  TWOLAYER_INLINE void for_parts(int64_t count, Body&& body) const {
    const int64_t first = cut(count, first_part_), last = cut(count, last_part_);
    if (group1_ - group0_ == 1) return first < last ? body(Range{first, last}, units()) : void();
    const int64_t cuts[] = {0, min_of(first, last), first < last ? last : first, count};
    for (int i = 0; i < 3; ++i) {
      const Range range{cuts[i], cuts[i + 1]};
      const Range part = units_of(group0_ + (range.begin < first), group1_ - (range.end > last));
      if (range.size() > 0 && part.size() > 0) body(range, part);
    }
  }

 private:
  Range units_of(int64_t from, int64_t to) const {
    return {min_of(from * p_.group, p_.whole), min_of(to * p_.group, p_.whole)};
  }
  int64_t cut(int64_t count, int64_t part) const {  // at whole cache lines of inputs, and whole register tiles of rows
    return part == parts_ ? count : count * part / parts_ / kPanel * kPanel;
  }

  const TrainParams<T>& p_;
  const int64_t chunk_, parts_;
  int64_t group0_, group1_, first_part_, last_part_, before_;
};
