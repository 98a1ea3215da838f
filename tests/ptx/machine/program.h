// PTX, decoded once: instructions whose operands are places in a warp's register file.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "allocations.h"

namespace ptx {

struct Error : std::runtime_error {
  std::string reason;
  explicit Error(const std::string& why) : std::runtime_error("ptx: " + why), reason(why) {}
};
[[noreturn]] inline void fail(const std::string& what) { throw Error(what); }

struct Warp;
struct Instruction;
// What an instruction does for the lanes in `mask`.
using Execute = void (*)(Warp&, const Instruction&, uint32_t mask);

// What the scheduler must know of an instruction; everything else is in its function.
enum class Kind : uint8_t {
  kPlain,
  kBranch,
  kExit,
  kWarp,     // all lanes of a member mask execute it together
  kBarrier,  // bar.sync of the whole block
  kClusterArrive,
  kClusterWait,
  kPoll,  // a look at what others change: after it others should run
};

// PTX ISA 8.3 (Memory Consistency Model: Operation Types) and 8.5 (Scope). Both of a memory instruction, from its
// opcode.
enum class Semantic : uint8_t { kWeak, kRelaxed, kAcquire, kRelease };
enum class Scope : uint8_t { kBlock, kCluster, kGpu };  // .cta, .cluster; .gpu and .sys are the same here

constexpr uint32_t kNone = ~0u;

struct Instruction {
  Execute run = nullptr;
  Kind kind = Kind::kPlain;
  bool negated = false;  // runs where the predicate is false
  Semantic semantic = Semantic::kWeak;
  Scope scope = Scope::kGpu;
  bool wide_address[2] = {};   // whether an address register has 64 bits: of the first and of the second address
  uint32_t predicate = kNone;  // bytes in the register file, like d and s
  uint32_t d[4] = {kNone, kNone, kNone, kNone};
  uint32_t s[10] = {kNone, kNone, kNone, kNone, kNone, kNone, kNone, kNone, kNone, kNone};
  int64_t offset[2] = {};                     // of the first and of the second address
  uint32_t target = kNone;                    // of a branch
  uint32_t members = kNone;                   // of Kind::kWarp: where its member mask is; kNone: all lanes of the warp
  uint32_t opcode = 0;                        // its number in opcode_names()
  uint32_t line = 0;                          // of the PTX text
  uint32_t source_file = 0, source_line = 0;  // of the last .loc; file 0: none
};

struct Parameter {
  uint32_t offset, size;
};

// An immediate operand or an address known at once, in every lane of a register of its own.
struct Constant {
  uint32_t place;
  uint8_t bytes;
  uint64_t value;
};

// Of each instruction, over all launches: how often it ran; in how many lanes; wavefronts of shared memory or sectors
// of global memory, and how many these would be at best.
struct Count {
  uint64_t executed = 0, lanes = 0, passes = 0, least_passes = 0;
};

struct Kernel {
  std::string name;
  std::vector<Parameter> parameters;
  uint32_t parameter_bytes = 0;
  uint32_t most_threads = 1024;      // .maxntid
  uint32_t static_shared_bytes = 0;  // what is declared; dynamic shared memory follows, aligned to 128 bytes
  std::vector<Instruction> code;
  uint32_t file_bytes = 0;  // of a warp's register file
  std::vector<Constant> constants;
  std::map<std::string, uint32_t> special;  // special registers that are used: "%tid.x" and where
  std::vector<Count> counts;                // by instruction
  uint64_t launches = 0;
};

struct FreeFenced {
  void operator()(unsigned char* memory) const { free_fenced(memory); }
};
using FencedMemory = std::unique_ptr<unsigned char[], FreeFenced>;

// What one text declares.
struct Module {
  std::map<std::string, std::unique_ptr<Kernel>> kernels;
  std::map<std::string, FencedMemory> globals;   // .global and .const variables
  std::map<uint32_t, std::string> source_files;  // by number, as .file has them
  std::vector<std::string> lines;                // of the text
};

std::unique_ptr<Module> parse(std::string text);

// Every opcode met so far, by number.
std::vector<std::string>& opcode_names();

}  // namespace ptx
