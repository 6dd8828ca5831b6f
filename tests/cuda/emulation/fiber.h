// A fiber: a function that stops in the middle and goes on later, on a stack of its own with a guard page below it.
//
// One operating-system thread runs its fibers in turn, so that between two stops nothing else happens. AddressSanitizer
// is told of every change of stack.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define EXODUS_EMULATION_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EXODUS_EMULATION_ASAN 1
#endif
#endif
#if defined(EXODUS_EMULATION_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace exodus::emulation {

class Fiber {
 public:
  // Each resume() of an idle fiber calls `work` once; it is idle again when `work` has returned. It must not throw.
  explicit Fiber(void (*work)()) : work_(work), page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    // Only pages that are touched take memory.
    void* const memory =
        mmap(nullptr, page_ + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      throw std::bad_alloc();
    }
    mprotect(memory, page_, PROT_NONE);
    stack_ = static_cast<char*>(memory) + page_;
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack_;
    inside_.uc_stack.ss_size = stack_bytes;
    makecontext(&inside_, &Fiber::enter, 0);
    inside_.uc_stack.ss_size = 0;  // else AddressSanitizer wipes what it knows of the whole stack at each switch
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Only an idle fiber may be destroyed.
  ~Fiber() {
#if defined(EXODUS_EMULATION_ASAN)
    ASAN_UNPOISON_MEMORY_REGION(stack_, stack_bytes);  // the addresses may be mapped again for something else
#endif
    munmap(stack_ - page_, page_ + stack_bytes);
  }

  // Runs the fiber until it pauses or its work returns.
  void resume() {
    Fiber* const outer = current_;
    current_ = this;
    tell_start(&outside_.fake_stack, stack_, stack_bytes);
    swapcontext(&outside_.context, &inside_);
    tell_finish(outside_.fake_stack, nullptr, nullptr);
    current_ = outer;
  }

  // Called on the running fiber: goes back to who resumed it.
  static void pause() {
    Fiber* const self = current_;
    void* fake_stack = nullptr;
    tell_start(&fake_stack, self->outside_.bottom, self->outside_.bytes);
    swapcontext(&self->inside_, &self->outside_.context);
    tell_finish(fake_stack, &self->outside_.bottom, &self->outside_.bytes);
  }

 private:
  static constexpr std::size_t stack_bytes = 256 * 1024;

  static void enter() {
    Fiber* const self = current_;
    tell_finish(nullptr, &self->outside_.bottom, &self->outside_.bytes);
    for (;;) {
      self->work_();
      pause();
    }
  }

  static void tell_start([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* bottom,
                         [[maybe_unused]] std::size_t bytes) {
#if defined(EXODUS_EMULATION_ASAN)
    __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
#endif
  }

  static void tell_finish([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** old_bottom,
                          [[maybe_unused]] std::size_t* old_bytes) {
#if defined(EXODUS_EMULATION_ASAN)
    __sanitizer_finish_switch_fiber(fake_stack, old_bottom, old_bytes);
#endif
  }

  struct Outside {
    ucontext_t context{};
    void* fake_stack = nullptr;
    const void* bottom = nullptr;
    std::size_t bytes = 0;
  };

  inline static thread_local Fiber* current_ = nullptr;

  void (*work_)();
  std::size_t page_;
  char* stack_ = nullptr;
  ucontext_t inside_{};
  Outside outside_;
};

}  // namespace exodus::emulation
