// One block of threads: each thread is a fiber that runs to its next barrier, in an order that may be permuted.
//
// When no thread can go on, every thread of the block (or of its warp, for a shuffle) must wait at the same barrier;
// anything else would hang or be undefined on a GPU and ends the program here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "counters.h"
#include "failure.h"
#include "fiber.h"
#include "order.h"

inline thread_local uint3 threadIdx{};
inline thread_local uint3 blockIdx{};

namespace exodus::emulation {

constexpr unsigned warp_size = 32;

// Where a thread waits, and for whom.
struct Barrier {
  enum class Scope { block, warp } scope;
  const char* file;
  int line;

  bool operator==(const Barrier& other) const {
    return scope == other.scope && line == other.line && std::strcmp(file, other.file) == 0;
  }
  std::string name() const {
    return (scope == Scope::block ? "the barrier at " : "the shuffle at ") + std::string(file) + ":" +
           std::to_string(line);
  }
};

class Block {
 public:
  // The block that runs on this thread of the host; null outside a kernel.
  inline static thread_local Block* running = nullptr;

  Block(const char* kernel, uint3 shape, std::size_t shared_bytes, OrderSetting order, std::function<void()> body)
      : kernel_(kernel),
        body_(std::move(body)),
        threads_(std::size_t{shape.x} * shape.y * shape.z),
        order_(order, threads_.size(), 1),
        shared_bytes_(shared_bytes),
        // Exactly as large as asked for, so that AddressSanitizer sees the first byte beyond it.
        shared_(shared_bytes == 0 ? nullptr : new unsigned char[shared_bytes]) {
    static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= 16, "shared memory is aligned to 16 bytes");
    for (std::size_t i = 0; i < threads_.size(); ++i) {
      const unsigned linear = static_cast<unsigned>(i);
      threads_[i].index = {linear % shape.x, linear / shape.x % shape.y, linear / shape.x / shape.y};
    }
  }

  // Runs all threads of the block to their ends.
  void run(uint3 index) {
    index_ = index;
    std::fill_n(shared_.get(), shared_bytes_, static_cast<unsigned char>(0xff));  // what nobody wrote reads as NaN
    for (Thread& thread : threads_) {
      thread.state = State::ready;
      thread.copies.clear();
      thread.copies_done = 0;
      thread.groups = 0;
    }
    running = this;
    do {
      for (const std::uint64_t i : order_.next()) {
        if (threads_[i].state == State::ready) {
          take_turn(threads_[i]);
        }
      }
    } while (release());
    running = nullptr;
  }

  unsigned char* shared_memory() { return shared_.get(); }

  // Called by a running thread: returns when all threads of the block or warp have come to this barrier. What each of
  // them handed in can then be read until its next barrier.
  void wait(const Barrier& barrier, std::uint64_t handed_in) {
    Thread& self = *turn_;
    self.barrier = barrier;
    self.handed_in = handed_in;
    self.state = State::waiting;
    Fiber::pause();
  }

  // True if any thread passed a value other than 0 at the block's last barrier.
  bool any_handed_in() const { return any_; }

  // What a lane of the caller's warp handed in at its last barrier; where there is no such lane, the caller's own.
  std::uint64_t handed_in_by(unsigned lane) const {
    const std::size_t caller = place_in_block();
    const std::size_t source = caller / warp_size * warp_size + lane;
    return threads_[source < threads_.size() ? source : caller].given_out;
  }

  // An asynchronous copy of the running thread. Nothing is copied before the thread waits for its group, and until then
  // the target holds NaN: who reads it too early, or changes it, gets a wrong result.
  void copy_async(void* to, const void* from, std::size_t bytes) {
    const auto address = [](const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); };
    if (address(to) < address(shared_.get()) || address(to) + bytes > address(shared_.get()) + shared_bytes_) {
      fail_here("copies beyond the shared memory of its block");
    }
    if (address(to) % bytes != 0 || address(from) % bytes != 0) {
      fail_here("copies " + std::to_string(bytes) + " bytes that are not aligned to that");
    }
    const std::uint32_t nan = 0xffffffff;
    move_words(static_cast<unsigned char*>(to), [&](std::size_t) { return nan; }, bytes);
    turn_->copies.push_back({static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, turn_->groups});
  }

  void commit_copies() { turn_->groups += 1; }

  // Does the copies of all groups but the last `left`.
  void wait_for_copies(std::int64_t left) {
    std::vector<Copy>& copies = turn_->copies;
    std::size_t& done = turn_->copies_done;
    for (; done < copies.size() && copies[done].group < turn_->groups - left; ++done) {
      const Copy& copy = copies[done];
      const auto word_at = [&copy](std::size_t byte) {
        std::uint32_t word;
        std::memcpy(&word, copy.from + byte, sizeof(word));
        return word;
      };
      move_words(copy.to, word_at, copy.bytes);
    }
    if (done == copies.size() || done >= 4096) {
      copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
      done = 0;
    }
  }

  unsigned lane() const { return static_cast<unsigned>(place_in_block() % warp_size); }

  // Ends the program with a message that says which kernel, block and thread is running.
  [[noreturn]] void fail_here(const std::string& message) const { fail_in(*turn_, message); }

 private:
  enum class State { ready, waiting, finished };

  // Word by word, as a sanitizer's memset and memcpy take longer than all else.
  template <class WordAt>
  static void move_words(unsigned char* to, WordAt word_at, std::size_t bytes) {
    for (std::size_t byte = 0; byte < bytes; byte += sizeof(std::uint32_t)) {
      const std::uint32_t word = word_at(byte);
      std::memcpy(to + byte, &word, sizeof(word));
    }
  }

  struct Copy {
    unsigned char* to;
    const unsigned char* from;
    std::size_t bytes;
    std::int64_t group;
  };

  struct Thread {
    uint3 index{};
    State state = State::ready;
    Fiber* fiber = nullptr;  // from its first turn to its end
    Barrier barrier{};
    std::uint64_t handed_in = 0;
    std::uint64_t given_out = 0;
    std::vector<Copy> copies{};   // that were started, the oldest first
    std::size_t copies_done = 0;  // of these, from the first
    std::int64_t groups = 0;    // that were closed
  };

  // Fibers are kept for later blocks. One OS thread runs one block at a time, so that each pool has one user.
  static std::vector<std::unique_ptr<Fiber>>& idle_fibers() {
    static thread_local std::vector<std::unique_ptr<Fiber>> pool;
    return pool;
  }

  static void run_body() {
    Block& block = *running;
    try {
      block.body_();
    } catch (const std::exception& error) {
      block.fail_here(std::string("threw an exception: ") + error.what());
    }
    block.turn_->state = State::finished;
  }

  void take_turn(Thread& thread) {
    if (thread.fiber == nullptr) {
      auto& idle = idle_fibers();
      if (idle.empty()) {
        idle.push_back(std::make_unique<Fiber>(&run_body));
      }
      thread.fiber = idle.back().release();
      idle.pop_back();
    }
    turn_ = &thread;
    threadIdx = thread.index;
    blockIdx = index_;
    thread.fiber->resume();
    if (thread.state == State::finished) {
      idle_fibers().emplace_back(thread.fiber);
      thread.fiber = nullptr;
    }
  }

  // Lets those go on who have all come to the same barrier. False when the block has finished.
  bool release() {
    bool released = false;
    bool waiting = false;
    for (std::size_t first = 0; first < threads_.size(); first += warp_size) {
      const std::size_t end = first + warp_size < threads_.size() ? first + warp_size : threads_.size();
      for (std::size_t i = first; i < end; ++i) {
        const bool waits = threads_[i].state == State::waiting;
        waiting = waiting || waits;
        if (waits && threads_[i].barrier.scope == Barrier::Scope::warp) {
          release_together(first, end);
          released = true;
        }
      }
    }
    if (waiting && !released) {
      release_together(0, threads_.size());
      this_launch.barriers += 1;
    }
    return waiting;
  }

  void release_together(std::size_t first, std::size_t end) {
    std::size_t reference = first;
    while (threads_[reference].state != State::waiting) {
      ++reference;
    }
    any_ = false;
    for (std::size_t i = first; i < end; ++i) {
      Thread& thread = threads_[i];
      if (thread.state == State::finished || !(thread.barrier == threads_[reference].barrier)) {
        fail_apart(thread, threads_[reference]);
      }
      thread.given_out = thread.handed_in;
      thread.state = State::ready;
      any_ = any_ || thread.given_out != 0;
    }
  }

  [[noreturn]] void fail_apart(const Thread& thread, const Thread& other) const {
    const bool left = thread.state == State::finished;
    fail_in(thread, (left ? "has left the kernel" : "waits at " + thread.barrier.name()) + ", but " +
                        place("thread", other.index) + " waits at " + other.barrier.name());
  }

  [[noreturn]] void fail_in(const Thread& thread, const std::string& message) const {
    fail(kernel_ + std::string(", ") + place("block", index_) + ", " + place("thread", thread.index) + " " + message);
  }

  std::size_t place_in_block() const { return static_cast<std::size_t>(turn_ - threads_.data()); }

  const char* kernel_;
  std::function<void()> body_;
  std::vector<Thread> threads_;
  Order order_;
  std::size_t shared_bytes_;
  std::unique_ptr<unsigned char[]> shared_;
  uint3 index_{};
  Thread* turn_ = nullptr;
  bool any_ = false;
};

}  // namespace exodus::emulation
