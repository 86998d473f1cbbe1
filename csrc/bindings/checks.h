// Checks of plain numbers that Python passes.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace twolayer {

inline void check_at_least_1(const char* name, int64_t value) {
  if (value < 1) throw pybind11::value_error(std::string(name) + " must be at least 1; got " + std::to_string(value));
}

inline void check_id(const char* name, int id, const std::vector<std::string>& known) {
  if (id < 0 || id >= static_cast<int>(known.size()))
    throw pybind11::value_error(std::string(name) + " must be an id in [0, " + std::to_string(known.size()) +
                                "); got " + std::to_string(id));
}

}  // namespace twolayer
