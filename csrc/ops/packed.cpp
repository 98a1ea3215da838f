#include "ops/packed.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/registry.h"
#include "ops/arguments.h"
#include "ops/memory.h"
#include "ops/ops.h"

namespace fused_rnn {
namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

constexpr int64_t kMaxWeights = 2 * 6;  // directions, tensors of each: the fields of Weights

// Compared by memcmp: no padding, every byte set.
struct alignas(64) Header {
  char magic[8] = {'f', 'u', 's', 'e', 'd', 'r', 'n', 'n'};
  int64_t engine_format, weight_format, cell, dtype, bias, directions, input_size, hidden, output_size;
  int64_t bytes;  // of the whole tensor
  // The weights' addresses: the only cheap way to tell them from others of their size; they differ between processes.
  const void* weights[kMaxWeights] = {};
  int64_t projected;
};
static_assert(sizeof(Header) == 24 * 8 && std::is_trivially_copyable_v<Header>);

constexpr const char* kNotPacked = "packed weights must be what pack_weights returned";

int64_t bytes_of(const Layer& layer, const Engine& engine) {
  return static_cast<int64_t>(sizeof(Header)) + engine.packed_bytes(layer);
}

bool is_whole(const Tensor& packed) {
  return packed.dim() == 1 && is_packed(packed) && packed.is_contiguous() && packed.device().type() == DeviceType::CPU;
}

// The header of packed weights, if they are in this engine's format.
Header header_at(const void* packed, const Engine& engine) {
  FUSED_RNN_CHECK(reinterpret_cast<uintptr_t>(packed) % alignof(Header) == 0, "fused_rnn: ", kNotPacked,
                  ", not a part of another tensor");
  Header found;
  std::memcpy(&found, packed, sizeof(Header));
  FUSED_RNN_CHECK(std::memcmp(found.magic, Header().magic, sizeof found.magic) == 0, "fused_rnn: ", kNotPacked);
  FUSED_RNN_CHECK(found.engine_format == engine.packed_format(),
                  "fused_rnn: these weights were packed for another instruction set: thaw and freeze again");
  return found;
}

Header header_of(const Layer& layer, bool bias, std::span<const Tensor> weights, const Engine& engine) {
  Header header;
  header.engine_format = engine.packed_format();
  header.weight_format = static_cast<int64_t>(layer.format);
  header.cell = layer.cell;
  header.dtype = static_cast<int64_t>(layer.dtype);
  header.bias = bias;
  header.directions = layer.directions;
  header.input_size = layer.input_size;
  header.hidden = layer.hidden;
  header.output_size = layer.output_size;
  header.projected = projected(layer);
  header.bytes = bytes_of(layer, engine);
  for (size_t i = 0; i < weights.size(); ++i) header.weights[i] = weights[i].const_data_ptr();
  return header;
}

WeightFormat format_of(int64_t value) {
  constexpr int64_t kLast = static_cast<int64_t>(WeightFormat::kInt8WeightsOnly);
  FUSED_RNN_CHECK(0 <= value && value <= kLast, "fused_rnn: there is no format ", value, " of weights");
  return static_cast<WeightFormat>(value);
}

// Integers of 8 bits need a float layer whose weights have finite scales, and sums of 32 bits that hold all products.
void check_for_int8(const Layer& layer, std::span<const Tensor> weights) {
  constexpr int64_t kMostDepth = 65'536;
  FUSED_RNN_CHECK(!is_own(layer.cell), "fused_rnn: weights become int8 in LSTM, GRU and RNN layers alone");
  FUSED_RNN_CHECK(layer.dtype == Dtype::kFloat, "fused_rnn: weights become int8 in float32 layers, not in ",
                  torch::headeronly::toString(weights[0].scalar_type()), " ones");
  FUSED_RNN_CHECK(std::max({layer.input_size, layer.hidden, layer.output_size}) <= kMostDepth,
                  "fused_rnn: layers with int8 weights have at most ", kMostDepth, " inputs and units");
  for (const Tensor& weight : weights) {
    const Tensor whole = torch::stable::contiguous(weight);
    const std::span numbers(whole.const_data_ptr<float>(), whole.numel());
    FUSED_RNN_CHECK(std::ranges::all_of(numbers, [](float x) { return std::isfinite(x); }),
                    "fused_rnn: a weight is NaN or infinite, which int8 has no scale for");
  }
}

}  // namespace

Tensor pack_weights(int64_t cell, bool bias, bool bidirectional, std::vector<Tensor> weights, int64_t format) {
  FUSED_RNN_CHECK(!weights.empty(), "fused_rnn: there are no weights to pack");
  const Engine& engine = engine_for(weights[0].device().type());
  Layer layer = {};
  Arguments args(layer, cell, bias, bidirectional, weights[0], weights);
  FUSED_RNN_CHECK(args.members.empty(), "fused_rnn: weights of members cannot be packed");
  args.read_weights(weights);
  layer.format = format_of(format);
  if (layer.format != WeightFormat::kOwn) check_for_int8(layer, weights);
  const Header header = header_of(layer, bias, weights, engine);
  Tensor packed = new_tensor(weights[0], {header.bytes}, ScalarType::Byte);
  char* data = static_cast<char*>(packed.data_ptr());
  std::memset(data, 0, header.bytes);
  std::memcpy(data, &header, sizeof(Header));
  engine.pack(layer, data + sizeof(Header));
  return packed;
}

bool is_packed(const Tensor& weight) { return weight.scalar_type() == ScalarType::Byte; }

void take_packed(Layer& layer, const Tensor& packed, bool bias, std::span<const Tensor> weights, const Engine& engine) {
  FUSED_RNN_CHECK(is_whole(packed) && packed.numel() >= static_cast<int64_t>(sizeof(Header)), "fused_rnn: ", kNotPacked,
                  ": contiguous bytes on the CPU");
  check_storage(packed, "packed");
  const char* data = static_cast<const char*>(packed.const_data_ptr());
  const Header found = header_at(data, engine);
  layer.format = format_of(found.weight_format);
  const Header expected = header_of(layer, bias, weights, engine);
  FUSED_RNN_CHECK(packed.numel() == found.bytes, "fused_rnn: ", kNotPacked, ": ", found.bytes, " bytes, not ",
                  packed.numel());
  FUSED_RNN_CHECK(std::memcmp(&found, &expected, sizeof(Header)) == 0,
                  "fused_rnn: these are not the weights that were packed: thaw and freeze again");
  layer.packed = data + sizeof(Header);
}

void read_packed(const void* packed, int64_t bytes, Layer& layer, const Engine& engine) {
  FUSED_RNN_CHECK(bytes >= static_cast<int64_t>(sizeof(Header)), "fused_rnn: ", kNotPacked);
  const Header found = header_at(packed, engine);
  layer.cell = found.cell;
  layer.dtype = static_cast<Dtype>(found.dtype);
  layer.format = format_of(found.weight_format);
  layer.members = 1;
  layer.directions = found.directions;
  layer.input_size = found.input_size;
  layer.hidden = found.hidden;
  layer.output_size = found.output_size;
  layer.packed = static_cast<const char*>(packed) + sizeof(Header);
  for (int64_t d = 0; d < layer.directions; ++d) layer.weights[d].hr = found.projected ? layer.packed : nullptr;
  FUSED_RNN_CHECK(bytes == found.bytes && bytes == bytes_of(layer, engine), "fused_rnn: ", kNotPacked);
}

void read_packed(const Tensor& packed, Layer& layer, const Engine& engine) {
  FUSED_RNN_CHECK(is_whole(packed), "fused_rnn: ", kNotPacked);
  check_storage(packed, "packed");
  read_packed(packed.const_data_ptr(), packed.numel(), layer, engine);
}

}  // namespace fused_rnn
