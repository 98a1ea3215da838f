#include "ops/arguments.h"

#include <torch/csrc/stable/ops.h>

#include "core/registry.h"
#include "core/saved_row.h"

namespace fused_rnn {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

namespace {

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat;
    case ScalarType::Double:
      return Dtype::kDouble;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kHalf;
    default:
      fail("fused_rnn: input must be float32, float64, bfloat16 or float16, got ",
           torch::headeronly::toString(t.scalar_type()));
  }
}

// From a tensor's first element to past its last one.
int64_t elements_spanned(const Tensor& t) {
  int64_t last = 0;
  const auto sizes = t.sizes(), strides = t.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return 0;
    last += (sizes[i] - 1) * strides[i];
  }
  return last + 1;
}

int32_t code_of_dtype(const Tensor& t) {
  int32_t code;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
  return code;
}

}  // namespace

ScalarType scalar_type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat:
      return ScalarType::Float;
    case Dtype::kDouble:
      return ScalarType::Double;
    case Dtype::kBFloat16:
      return ScalarType::BFloat16;
    case Dtype::kHalf:
      return ScalarType::Half;
  }
  unknown_value("dtype", static_cast<int64_t>(dtype));
}

void check_storage(const Tensor& t, const char* name) { check_storage(t, name, elements_spanned(t)); }

void check_storage(const Tensor& t, const char* name, int64_t elements) {
  if (elements == 0) return;
  int64_t bytes, first;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(t.get(), &first));
  const int64_t needed = (first + elements) * static_cast<int64_t>(t.element_size());
  FUSED_RNN_CHECK(needed <= bytes, "fused_rnn: ", name, " needs ", needed, " bytes of storage, but its storage has ",
                  bytes, ": it was freed or resized");
}

const void* address_of(const Tensor& t) {
  static constexpr char kNothing = 0;
  const void* data = t.const_data_ptr();
  return data ? data : &kNothing;
}

int32_t code_of(ScalarType dtype) { return torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)); }

Checker::Checker(const Tensor& on_device_of, int32_t dtype) : dtype_(dtype) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(on_device_of.get(), &device_type_));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(on_device_of.get(), &device_index_));
}
Checker::Checker(const Tensor& like) : Checker(like, code_of_dtype(like)) {}

Tensor Checker::as(const Tensor& t, const char* name, const Shape& shape, int32_t dtype) const {
  FUSED_RNN_CHECK(same(t.sizes(), shape), "fused_rnn: ", name, " must be ", text(shape), ", got ", text(t.sizes()));
  const auto name_of = [](int32_t code) {
    return torch::headeronly::toString(torch::stable::detail::to<ScalarType>(torch::stable::detail::from(code)));
  };
  const int32_t found = code_of_dtype(t);
  FUSED_RNN_CHECK(found == dtype, "fused_rnn: ", name, " must be ", name_of(dtype), ", got ", name_of(found));
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &device_index));
  FUSED_RNN_CHECK(device_type == device_type_ && device_index == device_index_, "fused_rnn: ", name,
                  " is not on the input's device");
  const bool is_contiguous = t.is_contiguous();
  check_storage(t, name, is_contiguous ? elements_of(shape) : elements_spanned(t));
  return is_contiguous ? t : torch::stable::contiguous(t);  // contiguous() costs a dispatch
}

double clip_of(std::optional<double> grad_clip) {
  FUSED_RNN_CHECK(!grad_clip || *grad_clip > 0, "fused_rnn: grad_clip must be above 0, got ", *grad_clip);
  return grad_clip.value_or(0);
}

Arguments::Arguments(Layer& layer, int64_t cell_id, bool bias, bool bidirectional, const Tensor& input,
                     std::span<const Tensor> weights)
    : cell(traits_of_any(cell_id)), checked(like_of(input, weights)), layer_(layer) {
  layer.cell = cell_id;
  layer.dtype = dtype_of(like_of(input, weights));
  layer.directions = bidirectional ? 2 : 1;
  begin(input, weights.size());
  read_weight_layout(bias, weights);
  layer.saved_width = saved_width(layer, cell);
}

Arguments::Arguments(Layer& layer, const Tensor& input)
    : cell(traits_of_any(layer.cell)), checked(input, code_of(scalar_type_of(layer.dtype))), layer_(layer) {
  begin(input, 0);
}

void Arguments::begin(const Tensor& input, int64_t weights) {
  layer_.device = input.get_device_index();
  held_.reserve(weights + 10);
}

void Arguments::read(const Tensor& input, const std::optional<Tensor>& h0, const std::optional<Tensor>& c0,
                     std::span<const Tensor> weights, const std::optional<Tensor>& lengths,
                     const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& reset_mask) {
  read_rows(input, batch_sizes);
  read_weights(weights);
  read_states(h0, c0);
  read_masks(lengths, reset_mask);
  check_tokens();
}

void Arguments::read_weight_layout(bool bias, std::span<const Tensor> weights) {
  const int64_t least = 1 + cell.recurrent + (bias ? 1 + cell.recurrent : 0) + (cell.params > 0);
  const int64_t given = static_cast<int64_t>(weights.size());
  weights_per_direction = given / layer_.directions;
  has_bias = bias;
  has_projection = weights_per_direction == least + 1;
  FUSED_RNN_CHECK(given % layer_.directions == 0 && (weights_per_direction == least || has_projection),
                  "fused_rnn: weights must hold ", least, " tensors for each of ", layer_.directions,
                  " directions, or ", least + 1, " with a projection, got ", given, " in all");
  FUSED_RNN_CHECK(!has_projection || cell.projectable, "fused_rnn: this cell cannot be projected (proj_size)");
  const Tensor& ih = weights[0];
  FUSED_RNN_CHECK(ih.dim() == 2 || ih.dim() == 3, "fused_rnn: weight_ih must be [", cell.gates, "H, I], or [M, ",
                  cell.gates, "H, I] for M members, got ", text(ih.sizes()));
  if (ih.dim() == 3) members = {ih.size(0)};
  layer_.members = members.empty() ? 1 : members[0];
  layer_.hidden = ih.size(-2) / cell.gates;
  layer_.input_size = ih.size(-1);
  const Tensor& last = weights[weights_per_direction - 1];
  FUSED_RNN_CHECK(!has_projection || last.dim() == ih.dim(),
                  "fused_rnn: weight_hr must be [P, H], with the members "
                  "first if weight_ih has them, got ",
                  text(last.sizes()));
  layer_.output_size = has_projection ? last.size(-2) : layer_.hidden;
}

void Arguments::read_rows(const Tensor& input, const std::optional<Tensor>& batch_sizes) {
  const bool tokens = holds_tokens(input);
  const int64_t dims = (batch_sizes ? 1 : 2) + !tokens;
  const bool own = per_member(input, dims);
  FUSED_RNN_CHECK(own || input.dim() == dims, "fused_rnn: input must be ", batch_sizes ? "[rows" : "[T, B",
                  tokens ? "] of ids" : ", I]", members.empty() ? "" : ", members first if each has its own", ", got ",
                  text(input.sizes()));
  const Shape shape = shape_of(input);
  row_shape = Shape(shape.begin() + own, shape.end() - !tokens);
  if (batch_sizes) {
    read_batch_sizes(*batch_sizes);
  } else {
    layer_.steps = row_shape[0];
    layer_.batch = row_shape[1];
    layer_.rows = layer_.steps * layer_.batch;
  }
  FUSED_RNN_CHECK(layer_.steps > 0, "Expected sequence length to be larger than 0 in RNN");
  take_input(input, concat({own ? members : Shape{}, row_shape}), own);
}

void Arguments::take_input(const Tensor& input, const Shape& rows, bool own) {
  if (holds_tokens(input)) {
    layer_.tokens = static_cast<const int64_t*>(hold(checked.as(input, "input", rows, ScalarType::Long)));
    layer_.input_member_stride = own ? layer_.rows : 0;
    may_read_tokens_ = input.device().type() == DeviceType::CPU;
  } else {
    layer_.input = hold(checked(input, "input", concat({rows, {layer_.input_size}})));
    layer_.input_member_stride = own ? layer_.rows * layer_.input_size : 0;
  }
}

void Arguments::check_tokens() const {
  if (!layer_.tokens || !may_read_tokens_ || layer_.rows == 0) return;  // on a GPU the kernel asserts it
  const int64_t M = layer_.input_member_stride || layer_.lengths_member_stride ? layer_.members : 1;
  for (int64_t m = 0; m < M; ++m)
    for (int64_t t = 0; t < layer_.steps; ++t)
      for (int64_t b = 0; b < layer_.batch; ++b) {
        if (!is_active(layer_, m, t, b)) continue;
        const int64_t id = layer_.tokens[m * layer_.input_member_stride + row_of(layer_, t, b)];
        FUSED_RNN_CHECK(0 <= id && id < layer_.input_size, "fused_rnn: ids must lie between 0 and ",
                        layer_.input_size - 1, ", as input_size is ", layer_.input_size, "; got ", id, " at step ", t,
                        " of row ", b);
      }
}

void Arguments::take_rows(const Tensor& input, const Shape& rows, int64_t steps, int64_t batch) {
  row_shape = {steps, batch};
  layer_.steps = steps;
  layer_.batch = batch;
  layer_.rows = steps * batch;
  take_input(input, rows, false);
}

void Arguments::take_step(const Tensor& input) {
  FUSED_RNN_CHECK(members.empty(), "fused_rnn: a single step runs no members");
  FUSED_RNN_CHECK(input.dim() == 2 && !holds_tokens(input), "fused_rnn: input must be [B, I], got ",
                  text(input.sizes()), holds_tokens(input) ? " of ids" : "");
  is_step_ = true;
  take_rows(input, {input.size(0)}, 1, input.size(0));
  row_shape = {input.size(0)};
}

void Arguments::read_batch_sizes(const Tensor& batch_sizes) {
  FUSED_RNN_CHECK(batch_sizes.device().type() == DeviceType::CPU && batch_sizes.scalar_type() == ScalarType::Long &&
                      batch_sizes.dim() == 1,
                  "fused_rnn: batch_sizes must be a 1-D int64 tensor on the CPU");
  check_storage(batch_sizes, "batch_sizes");
  const Tensor contiguous = torch::stable::contiguous(batch_sizes);
  const int64_t* sizes = contiguous.const_data_ptr<int64_t>();
  layer_.steps = batch_sizes.size(0);
  int64_t row = 0;
  for (int64_t t = 0; t < layer_.steps; ++t) {
    FUSED_RNN_CHECK(sizes[t] > 0 && sizes[t] <= (t ? sizes[t - 1] : row_shape[0]),
                    "fused_rnn: batch_sizes must be positive, never grow and not exceed the rows, got ", sizes[t],
                    " at step ", t);
    offsets_.push_back(row);
    row += sizes[t];
  }
  FUSED_RNN_CHECK(row == row_shape[0], "fused_rnn: batch_sizes add up to ", row, " rows, but the input has ",
                  row_shape[0]);
  layer_.batch = layer_.steps > 0 ? sizes[0] : 0;
  packed_lengths_.assign(layer_.batch, 0);
  for (int64_t t = 0; t < layer_.steps; ++t)
    for (int64_t b = 0; b < sizes[t]; ++b) packed_lengths_[b] = t + 1;
  layer_.rows = row;
  layer_.offsets = offsets_.data();
  layer_.lengths = packed_lengths_.data();
  layer_.lengths_member_stride = 0;
}

void Arguments::read_weights(std::span<const Tensor> weights) {
  const int64_t gate_rows = cell.gates * layer_.hidden;
  for (int64_t d = 0; d < layer_.directions; ++d) {
    const Tensor* next = &weights[d * weights_per_direction];
    Weights& w = layer_.weights[d];
    const auto take = [&](const char* name, Shape shape) {
      return hold(checked(*next++, name, concat({members, shape})));
    };
    w.ih = take("weight_ih", {gate_rows, layer_.input_size});
    if (cell.recurrent) w.hh = take("weight_hh", {gate_rows, layer_.output_size});
    if (has_bias) w.bias_ih = take("bias_ih", {gate_rows});
    if (has_bias && cell.recurrent) w.bias_hh = take("bias_hh", {gate_rows});
    if (cell.params > 0) w.params = take("weight_params", {cell.params, layer_.hidden});
    if (has_projection) w.hr = take("weight_hr", {layer_.output_size, layer_.hidden});
  }
}

void Arguments::read_states(const std::optional<Tensor>& h0, const std::optional<Tensor>& c0) {
  layer_.h0 = optional_data(h0, "h0", states(layer_.output_size));
  FUSED_RNN_CHECK(!c0 || cell.states > 1, "fused_rnn: this cell has no second state, but c0 was given");
  layer_.c0 = optional_data(c0, "c0", states(further_width()));
}

void Arguments::read_masks(const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset_mask) {
  read_lengths(lengths);
  if (!reset_mask) return;
  const bool own = per_member(*reset_mask, 2);
  take_reset(*reset_mask, concat({own ? members : Shape{}, {layer_.steps, layer_.batch}}));
  layer_.reset_member_stride = own ? layer_.steps * layer_.batch : 0;
}

void Arguments::read_options(const LoopOptions& options) {
  const auto& [h_factor, zoneout_mask, zoneout_h, zoneout_c] = options;
  FUSED_RNN_CHECK(!h_factor || cell.recurrent, "fused_rnn: this cell has no W_hh, but h_factor was given");
  layer_.h_factor = optional_data(h_factor, "h_factor", states(layer_.output_size));
  for (const auto& p : {zoneout_h, zoneout_c})
    FUSED_RNN_CHECK(!p || (0 <= *p && *p < 1), "fused_rnn: zoneout must lie in [0, 1), got ", *p);
  layer_.zones_out = zoneout_mask || zoneout_h || zoneout_c;
  FUSED_RNN_CHECK(!layer_.zones_out || !has_projection, "fused_rnn: zoneout does not go with a projection (proj_size)");
  FUSED_RNN_CHECK(!zoneout_mask || !(zoneout_h || zoneout_c),
                  "fused_rnn: zoneout has a mask or probabilities, not both");
  layer_.zoneout[0] = zoneout_h.value_or(0);
  layer_.zoneout[1] = zoneout_c.value_or(0);
  if (!zoneout_mask) return;
  const Shape shape = rows(layer_.directions * cell.states * layer_.hidden);
  layer_.zoneout_mask =
      static_cast<const uint8_t*>(hold(checked.as(*zoneout_mask, "zoneout_mask", shape, ScalarType::Bool)));
}

void Arguments::read_checkpoint(std::optional<int64_t> steps, const Engine& engine) {
  if (!steps) return;
  FUSED_RNN_CHECK(*steps > 0, "fused_rnn: checkpoint must be a number of steps above 0, got ", *steps);
  FUSED_RNN_CHECK(engine.segment_for != nullptr, "fused_rnn: checkpoint runs on the CPU so far, not on CUDA");
  layer_.segment = layer_.rows > 0 ? engine.segment_for(layer_, *steps) : 0;
}

void Arguments::take_reset(const Tensor& reset_mask, const Shape& shape) {
  layer_.reset = static_cast<const uint8_t*>(hold(checked.as(reset_mask, "reset_mask", shape, ScalarType::Bool)));
}

void Arguments::read_lengths(const std::optional<Tensor>& lengths) {
  if (!lengths) return;
  FUSED_RNN_CHECK(!layer_.offsets, "fused_rnn: packed input has its lengths already, so `lengths` must be left out");
  const bool own = per_member(*lengths, 1);
  const Tensor held_lengths =
      checked.as(*lengths, "lengths", concat({own ? members : Shape{}, {layer_.batch}}), ScalarType::Long);
  layer_.lengths = static_cast<const int64_t*>(hold(held_lengths));
  layer_.lengths_member_stride = own ? layer_.batch : 0;
  if (held_lengths.device().type() != DeviceType::CPU) return;  // reading them would synchronize
  for (int64_t i = 0; i < held_lengths.numel(); ++i)
    FUSED_RNN_CHECK(0 <= layer_.lengths[i] && layer_.lengths[i] <= layer_.steps,
                    "fused_rnn: lengths must lie between 0 and the number of steps, ", layer_.steps, ", got ",
                    layer_.lengths[i], " for row ", i);
}

}  // namespace fused_rnn
