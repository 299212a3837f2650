// Reads the bundle's samples.npz: an uncompressed zip archive of .npy arrays, little-endian.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace npz {

struct Array {
  std::string dtype;  // numpy's: "<f4" or "<f8"
  std::vector<int64_t> shape;
  std::vector<char> bytes;

  size_t size() const { return bytes.size() / (dtype == "<f8" ? 8 : 4); }

  double operator[](size_t i) const {
    if (dtype == "<f8") return read<double>(i);
    return read<float>(i);
  }

 private:
  template <typename T>
  double read(size_t i) const {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    return value;
  }
};

inline uint64_t number(const std::string& data, size_t at, int bytes) {
  if (at + bytes > data.size()) throw std::runtime_error("truncated");
  uint64_t value = 0;
  for (int i = bytes - 1; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(data[at + i]);
  return value;
}

// One .npy file: magic, header with the description as Python text, values.
inline Array parse(const std::string& npy) {
  if (npy.compare(0, 6, "\x93NUMPY") != 0) throw std::runtime_error("not an array");
  const bool first_version = npy.at(6) == 1;
  const size_t start = first_version ? 10 : 12;
  const size_t length = number(npy, 8, first_version ? 2 : 4);
  const std::string header = npy.substr(start, length);
  if (header.find("'fortran_order': False") == std::string::npos) {
    throw std::runtime_error("array not in C order");
  }
  Array array;
  const size_t type = header.find("'descr': '");
  if (type == std::string::npos) throw std::runtime_error("array without a type");
  array.dtype = header.substr(type + 10, 3);
  if (array.dtype != "<f4" && array.dtype != "<f8") {
    throw std::runtime_error("array of type " + array.dtype);
  }
  const size_t open = header.find('(', header.find("'shape'"));
  for (size_t at = open + 1; header.at(at) != ')';) {
    if (header[at] >= '0' && header[at] <= '9') {
      size_t digits;
      array.shape.push_back(std::stoll(header.substr(at), &digits));
      at += digits;
    } else {
      ++at;
    }
  }
  array.bytes.assign(npy.begin() + start + length, npy.end());
  return array;
}

// All arrays by name, found through the archive's central directory.
inline std::map<std::string, Array> load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string data((std::istreambuf_iterator<char>(file)), {});
  const size_t end = data.rfind("PK\x05\x06");
  if (end == std::string::npos) throw std::runtime_error(path + " is missing or no .npz file");
  std::map<std::string, Array> arrays;
  size_t entry = number(data, end + 16, 4);
  for (uint64_t left = number(data, end + 10, 2); left > 0; --left) {
    if (number(data, entry + 10, 2) != 0) throw std::runtime_error(path + " is compressed");
    const uint64_t size = number(data, entry + 24, 4);
    const uint64_t name_length = number(data, entry + 28, 2);
    const uint64_t local = number(data, entry + 42, 4);
    const std::string name = data.substr(entry + 46, name_length);
    const size_t start = local + 30 + number(data, local + 26, 2) + number(data, local + 28, 2);
    if (start + size > data.size()) throw std::runtime_error(path + " is truncated");
    const size_t suffix = name.rfind(".npy");
    arrays[name.substr(0, suffix)] = parse(data.substr(start, size));
    entry += 46 + name_length + number(data, entry + 30, 2) + number(data, entry + 32, 2);
  }
  return arrays;
}

}  // namespace npz
