#include "ops/packed.h"

#include <cstring>

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
  int64_t format, cell, dtype, bias, directions, input_size, hidden, output_size;
  int64_t bytes;  // of the whole tensor
  // The weights' addresses: the only cheap way to tell them from others of their size; they differ between processes.
  const void* weights[kMaxWeights] = {};
  int64_t unused[2] = {};
};
static_assert(sizeof(Header) == 24 * 8 && std::is_trivially_copyable_v<Header>);

Header header_of(const Layer& layer, bool bias, std::span<const Tensor> weights, const Engine& engine) {
  Header header;
  header.format = engine.packed_format();
  header.cell = layer.cell;
  header.dtype = static_cast<int64_t>(layer.dtype);
  header.bias = bias;
  header.directions = layer.directions;
  header.input_size = layer.input_size;
  header.hidden = layer.hidden;
  header.output_size = layer.output_size;
  header.bytes = static_cast<int64_t>(sizeof(Header)) + engine.packed_bytes(layer);
  for (size_t i = 0; i < weights.size(); ++i) header.weights[i] = weights[i].const_data_ptr();
  return header;
}

}  // namespace

Tensor pack_weights(int64_t cell, bool bias, bool bidirectional, std::vector<Tensor> weights) {
  FUSED_RNN_CHECK(!weights.empty(), "fused_rnn: there are no weights to pack");
  const Engine& engine = engine_for(weights[0].device().type());
  Layer layer = {};
  Arguments args(layer, cell, bias, bidirectional, weights[0], weights);
  FUSED_RNN_CHECK(args.members.empty(), "fused_rnn: weights of members cannot be packed");
  args.read_weights(weights);
  const Header header = header_of(layer, bias, weights, engine);
  Tensor packed = new_tensor(weights[0], {header.bytes}, ScalarType::Byte);
  char* data = static_cast<char*>(packed.data_ptr());
  std::memset(data, 0, header.bytes);
  std::memcpy(data, &header, sizeof(Header));
  engine.pack(layer, data + sizeof(Header));
  return packed;
}

const void* unpacked(const Tensor& packed, const Layer& layer, bool bias, std::span<const Tensor> weights,
                     const Engine& engine) {
  const Header expected = header_of(layer, bias, weights, engine);
  FUSED_RNN_CHECK(packed.dim() == 1 && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                      packed.device().type() == DeviceType::CPU && packed.numel() == expected.bytes,
                  "fused_rnn: packed weights must be what pack_weights returned: ", expected.bytes,
                  " contiguous bytes on the CPU");
  check_storage(packed, "packed");
  const char* data = static_cast<const char*>(packed.const_data_ptr());
  FUSED_RNN_CHECK(reinterpret_cast<uintptr_t>(data) % alignof(Header) == 0,
                  "fused_rnn: packed weights must be what pack_weights returned, not a part of another tensor");
  Header found;
  std::memcpy(&found, data, sizeof(Header));
  FUSED_RNN_CHECK(std::memcmp(found.magic, expected.magic, sizeof found.magic) == 0,
                  "fused_rnn: packed weights must be what pack_weights returned");
  FUSED_RNN_CHECK(found.format == expected.format,
                  "fused_rnn: these weights were packed for another instruction set: thaw and freeze again");
  FUSED_RNN_CHECK(std::memcmp(&found, &expected, sizeof(Header)) == 0,
                  "fused_rnn: these are not the weights that were packed: thaw and freeze again");
  return data + sizeof(Header);
}

}  // namespace fused_rnn
