// Switching between stacks in user space: a few nanoseconds, no system call. Only what a function must preserve is
// saved; everything else the compiler has already put away when it calls switch_stack.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// Saves this stack's position to *from and goes on at `to`.
extern "C" void emulator_switch_stack(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.weak emulator_switch_stack
.type emulator_switch_stack, @function
emulator_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
#elif defined(__aarch64__)
asm(R"(
.text
.weak emulator_switch_stack
.type emulator_switch_stack, %function
emulator_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "the emulator knows how to switch stacks on x86-64 and aarch64 only; -DEMULATOR_THREADS needs no switching"
#endif

namespace emulator {

// A stack, lowest address `stack`, that switch_stack enters at `entry`, which must never return.
inline void* new_stack_position(char* stack, size_t bytes, void (*entry)()) {
  char* const top = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15});
#if defined(__x86_64__)
  void** position = reinterpret_cast<void**>(top) - 8;  // six registers, the address to return to, and its alignment
  std::memset(position, 0, 64);
  position[6] = reinterpret_cast<void*>(entry);
#else
  char* position = top - 160;
  std::memset(position, 0, 160);
  std::memcpy(position + 88, &entry, sizeof entry);  // x30
#endif
  return position;
}

}  // namespace emulator
