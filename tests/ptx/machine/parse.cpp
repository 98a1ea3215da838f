// PTX text: chapters 4 (Syntax), 5 (State Spaces, Types, and Variables) and 11 (Directives) of the PTX ISA.
#include <algorithm>
#include <array>
#include <optional>

#include "parse_body.h"
#include "parse_declarations.h"
#include "text.h"

namespace ptx {
namespace {

class Parser {
 public:
  explicit Parser(std::string text) : module_(std::make_unique<Module>()), text_(std::move(text)), reader_(text_) {}

  std::unique_ptr<Module> parse() {
    keep_lines();
    try {
      blank_comments(text_);
      while (!reader_.at_end()) {
        line_ = reader_.line();
        if (body_)
          statement();
        else
          directive();
      }
      if (body_) fail("the text ends inside of a kernel");
    } catch (const Error& error) {
      fail(error.reason + where());
    }
    return std::move(module_);
  }

 private:
  std::string where() const {
    std::string text;
    if (kernel_) text += "\n  in kernel " + kernel_->name;
    text += "\n  at line " + std::to_string(line_) + " of the PTX";
    if (line_ > 0 && line_ <= module_->lines.size())
      text += ": " + std::string(trimmed(module_->lines[line_ - 1]).substr(0, 200));
    return text;
  }

  void keep_lines() {
    for (size_t first = 0; first <= text_.size();) {
      const size_t end = std::min(text_.find('\n', first), text_.size());
      module_->lines.push_back(text_.substr(first, end - first));
      first = end + 1;
    }
  }

  // Outside of kernels.
  void directive() {
    const std::string_view word = reader_.word();
    if (word == ".version" || word == ".target" || word == ".address_size") {
      reader_.rest_of_line();
    } else if (word == ".file") {
      const SourceFile file = parse_file(reader_.rest_of_line());
      module_->source_files[file.number] = file.path;
    } else if (word == ".section") {
      reader_.through('}');
    } else {
      declaration();
    }
  }

  void declaration() {
    const std::string_view rest = reader_.rest(), head = rest.substr(0, rest.find_first_of("(;{="));
    const auto says = [&](std::string_view what) { return head.find(what) != std::string_view::npos; };
    if (says(".entry")) {
      reader_.until("({");
      std::string_view name = head.substr(head.find(".entry"));
      take_word(name);
      begin_kernel(name);
    } else if (says(".func")) {
      if (!says(".extern")) fail("a function that is not a kernel: " + std::string(trimmed(head)));
      reader_.through(';');
    } else if (says(".shared")) {
      shared_.push_back(parse_variable(reader_.through(';')));
    } else if (says(".global") || says(".const")) {
      const Initialized made = parse_initialized(reader_.through(';'));
      FencedMemory& memory = module_->globals[made.variable.name];
      memory.reset(static_cast<unsigned char*>(allocate_fenced(made.bytes.size())));
      std::ranges::copy(made.bytes, memory.get());
    } else {
      fail("cannot read the declaration " + std::string(trimmed(head).substr(0, 100)));
    }
  }

  void begin_kernel(std::string_view name) {
    auto made = std::make_unique<Kernel>();
    kernel_ = made.get();
    kernel_->name = name;
    module_->kernels[kernel_->name] = std::move(made);
    operands_.emplace(*module_, *kernel_, shared_);
    if (reader_.skip("(")) {
      for (const std::string_view parameter : split(reader_.until(")")))
        operands_->declare_parameter(parse_variable(parameter));
      reader_.skip(")");
    }
    while (reader_.skip_space(), !reader_.skip("{")) performance_directive(reader_.until("\n{"));
    body_.emplace(*kernel_, *operands_);
  }

  // 11.4 (Performance-Tuning Directives)
  void performance_directive(std::string_view text) {
    static constexpr std::array<std::string_view, 4> kIgnored = {".minnctapersm", ".maxnctapersm", ".maxnreg",
                                                                 ".noreturn"};
    const std::string_view word = take_word(text);
    if (word == ".maxntid" || word == ".reqntid") {
      kernel_->most_threads = 1;
      for (const std::string_view size : split(text)) kernel_->most_threads *= static_cast<uint32_t>(number(size));
    } else if (std::ranges::find(kIgnored, word) == kIgnored.end()) {
      fail("unknown directive " + std::string(word));
    }
  }

  // In a kernel.
  void statement() {
    if (reader_.skip("{")) return body_->begin_scope();
    if (reader_.skip("}")) {
      if (body_->end_scope()) end_kernel();
      return;
    }
    if (const std::string_view label = reader_.label(); !label.empty()) return body_->label(label);
    const std::string_view word = reader_.word();
    if (word == ".loc") return body_->set_source(parse_loc(reader_.rest_of_line()));
    const std::string_view text = trimmed(reader_.through(';'));
    if (word == ".reg") {
      for (const RegisterDeclaration& one : parse_registers(text)) operands_->declare(one);
    } else if (word == ".shared") {
      operands_->declare_shared(parse_variable(text));
    } else if (word == ".local") {
      fail("local memory is not supported");
    } else if (word == ".param" || word.starts_with("st.param.") || word == ".pragma") {
      // Arguments of a call, of which only that of __assertfail is there; hints.
    } else if (word.starts_with('.')) {
      fail("unknown directive " + std::string(word));
    } else {
      body_->instruction(text, line_);
    }
  }

  void end_kernel() {
    body_.reset();
    operands_.reset();
    kernel_ = nullptr;
  }

  std::unique_ptr<Module> module_;
  std::string text_;
  Reader reader_;
  uint32_t line_ = 0;  // where the directive or statement begins that is being read
  std::vector<Variable> shared_;
  Kernel* kernel_ = nullptr;
  std::optional<Operands> operands_;
  std::optional<Body> body_;
};

}  // namespace

std::unique_ptr<Module> parse(std::string text) { return Parser(std::move(text)).parse(); }

}  // namespace ptx
