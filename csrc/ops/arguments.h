// Checks an operator's arguments and converts them to what engines read (core/problem.h).
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <span>
#include <vector>

#include "core/dispatch.h"
#include "core/engine.h"
#include "core/fail.h"
#include "core/problem.h"
#include "core/saved_row.h"
#include "ops/shape.h"

namespace fused_rnn {

using torch::stable::Tensor;

inline Shape shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Shape(sizes.begin(), sizes.end());
}

// The inverse of an engine's dtype.
torch::headeronly::ScalarType scalar_type_of(Dtype dtype);

// Whether the input is ids, each standing for a one-hot row.
inline bool holds_tokens(const Tensor& input) { return input.scalar_type() == torch::headeronly::ScalarType::Long; }
// A tensor of the layer's dtype and device.
inline const Tensor& like_of(const Tensor& input, std::span<const Tensor> weights) {
  return holds_tokens(input) && !weights.empty() ? weights[0] : input;
}

// Raises if the tensor reaches past its storage, which may have been freed, as FSDP does with parameters.
void check_storage(const Tensor& t, const char* name);
void check_storage(const Tensor& t, const char* name, int64_t elements_spanned);

// The address of a tensor that was given: never null, which would say that it was not, even if it is empty.
const void* address_of(const Tensor& t);

// torch's code of a dtype, which differs between its versions.
int32_t code_of(torch::headeronly::ScalarType dtype);

// Checks a tensor's shape, dtype, device and storage; returns it contiguous.
class Checker {
 public:
  // `dtype`: a code of torch's.
  Checker(const Tensor& on_device_of, int32_t dtype);
  explicit Checker(const Tensor& like);

  Tensor operator()(const Tensor& t, const char* name, const Shape& shape) const { return as(t, name, shape, dtype_); }
  Tensor as(const Tensor& t, const char* name, const Shape& shape, torch::headeronly::ScalarType dtype) const {
    return as(t, name, shape, code_of(dtype));
  }

 private:
  Tensor as(const Tensor& t, const char* name, const Shape& shape, int32_t dtype) const;

  // torch's codes, as comparing them is far cheaper than converting each to an enumerator.
  int32_t dtype_, device_type_, device_index_;
};

// Without rows there is nothing to do in a step, and such an input may have any number of steps.
inline void skip_steps_without_rows(Layer& layer) {
  if (layer.rows == 0) layer.steps = std::min<int64_t>(layer.steps, 1);
}

// Backward::grad_clip.
double clip_of(std::optional<double> grad_clip);

// The loop's own options (core/problem.h), as operators take them.
struct LoopOptions {
  const std::optional<Tensor>&h_factor, &zoneout_mask;
  std::optional<double> zoneout_h, zoneout_c;
};

// Fills in a Layer and keeps alive what its pointers refer to. The tensors passed in must outlive this.
struct Arguments {
  CellTraits cell;
  Checker checked;
  Shape members;    // {M}, or empty when there is no member dimension
  Shape row_shape;  // {T, B}, or {N} when packed
  int64_t weights_per_direction = 0;
  bool has_bias = false, has_projection = false;

  // Takes the layer's sizes from its weights; dtype and device from `input`, or from the weights when `input` is ids.
  Arguments(Layer& layer, int64_t cell_id, bool bias, bool bidirectional, const Tensor& input,
            std::span<const Tensor> weights);
  Arguments(const Arguments&) = delete;

  // Takes them from `layer`, which has those of its packed weights (packed.h).
  Arguments(Layer& layer, const Tensor& input);

  // Everything else, by the following functions in this order.
  void read(const Tensor& input, const std::optional<Tensor>& h0, const std::optional<Tensor>& c0,
            std::span<const Tensor> weights, const std::optional<Tensor>& lengths,
            const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& reset_mask);
  void read_rows(const Tensor& input, const std::optional<Tensor>& batch_sizes);
  void read_weights(std::span<const Tensor> weights);
  void read_states(const std::optional<Tensor>& h0, const std::optional<Tensor>& c0);
  void read_masks(const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset_mask);

  // After the others.
  void read_options(const LoopOptions& options);
  // After all: segments of so many steps, or of some more.
  void read_checkpoint(std::optional<int64_t> steps, const Engine& engine);

  // For `infer`, without members: argument by argument, with shapes that differ from [T, B] but not in memory.
  void take_rows(const Tensor& input, const Shape& rows, int64_t steps, int64_t batch);
  // For a single step: rows are [B], states [B, width]. In place of read_rows; the rest is read as ever.
  void take_step(const Tensor& input);
  void read_lengths(const std::optional<Tensor>& lengths);
  void take_reset(const Tensor& reset_mask, const Shape& shape);
  // After read_lengths: ids of padding may be anything.
  void check_tokens() const;
  // Operators for second derivatives need the rows themselves.
  void refuse_tokens() const {
    FUSED_RNN_CHECK(!layer_.tokens, "fused_rnn: this operator takes one-hot input, not ids");
  }

  // Shapes of the arrays of problem.h.
  Shape rows(int64_t width) const { return concat({members, row_shape, {width}}); }
  Shape states(int64_t width) const {
    return is_step_ ? Shape{layer_.batch, width} : concat({members, {layer_.directions, layer_.batch, width}});
  }
  // The width of all states after h, side by side.
  int64_t further_width() const { return (cell.states - 1) * layer_.hidden; }
  Shape kept_shape() const {
    const int64_t width = layer_.output_size + further_width();
    return concat({members, {layer_.directions, segments(layer_), layer_.batch, width}});
  }
  torch::headeronly::ScalarType arithmetic() const {
    using torch::headeronly::ScalarType;
    return layer_.dtype == Dtype::kDouble ? ScalarType::Double : ScalarType::Float;
  }
  Shape saved_shape() const { return concat({members, {layer_.directions}, row_shape, {layer_.saved_width}}); }

  const void* hold(const Tensor& t) {
    held_.push_back(t);
    return address_of(t);
  }
  const void* optional_data(const std::optional<Tensor>& t, const char* name, const Shape& shape) {
    return t ? hold(checked(*t, name, shape)) : nullptr;
  }

 private:
  // Whether this argument has a member dimension before its own `dims`; if not, all members share it.
  bool per_member(const Tensor& t, int64_t dims) const { return !members.empty() && t.dim() == dims + 1; }

  void begin(const Tensor& input, int64_t weights);
  void read_weight_layout(bool bias, std::span<const Tensor> weights);
  void read_batch_sizes(const Tensor& batch_sizes);
  void take_input(const Tensor& input, const Shape& rows, bool own);

  Layer& layer_;
  bool is_step_ = false;
  bool may_read_tokens_ = false;  // they are on the CPU
  std::vector<Tensor> held_;
  std::vector<int64_t> offsets_, packed_lengths_;
};

}  // namespace fused_rnn
