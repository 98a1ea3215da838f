// libstdc++ counts the owners of a shared_ptr without atomic instructions while a process has one thread, and asks
// glibc's __libc_single_threaded for that: a symbol of glibc 2.32, so that the library would not load with an older one.
// Hidden, this definition takes its place here alone. It always says that there are several threads, which is right in
// any process; atomic counting costs a few nanoseconds an owner.
#include <cstdlib>  // defines __GLIBC__ where that is the C library

#ifdef __GLIBC__
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
