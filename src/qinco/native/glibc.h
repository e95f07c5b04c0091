// Old versions of symbols that newer systems have new versions of, which do the same: an engine built on a new system
// then loads on systems with glibc 2.24 and libstdc++ of GCC 6, too. Included before every source (setup.py).
#pragma once

#include <mutex>  // defines __GLIBC__ and __GLIBCXX__

#if defined(__GLIBC__) && defined(__GLIBCXX__) && (defined(__x86_64__) || defined(__aarch64__))
#ifdef __x86_64__
#define OLDEST "GLIBC_2.2.5"
#else
#define OLDEST "GLIBC_2.17"
#endif
__asm__(".symver pthread_mutex_trylock, pthread_mutex_trylock@" OLDEST);
__asm__(".symver pthread_sigmask, pthread_sigmask@" OLDEST);
__asm__(".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE,"
        "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");
#undef OLDEST
#endif
