// Definitions of what the headers of a newer compiler expect in its libraries, so that a library that was built with it
// loads on older systems too: manylinux_2_28 has glibc 2.28 and the libstdc++ of GCC 8.
#include <new>
#include <sstream>

#if defined(__GLIBCXX__) && _GLIBCXX_RELEASE >= 9

// Their default constructors became functions of the library in GLIBCXX_3.4.26.
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;

#endif

#if defined(__GLIBCXX__) && _GLIBCXX_RELEASE >= 11

namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

// shared_ptr counts without atomics where this is not zero (glibc 2.32); always atomically here.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

#endif
