// Old versions of symbols that newer systems have new versions of, which do the same: an engine built on a new system
// then loads on systems with glibc 2.24 and the libstdc++ of GCC 6, too. Included before every source (setup.py).
#pragma once

#include <mutex>  // defines __GLIBC__ and __GLIBCXX__
#include <new>

#if defined(__GLIBC__) && defined(__GLIBCXX__) && (defined(__x86_64__) || defined(__aarch64__))
#ifdef __x86_64__
#define FIRST_GLIBC "GLIBC_2.2.5"
#else
#define FIRST_GLIBC "GLIBC_2.17"
#endif
__asm__(".symver pthread_mutex_trylock, pthread_mutex_trylock@" FIRST_GLIBC);
__asm__(".symver pthread_sigmask, pthread_sigmask@" FIRST_GLIBC);
__asm__(".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE,"
        "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");
#undef FIRST_GLIBC

// Containers of GCC 11 and later call this one; there is no old version.
namespace std {
[[noreturn]] __attribute__((weak)) void __throw_bad_array_new_length() { throw bad_alloc(); }
}  // namespace std
#endif
