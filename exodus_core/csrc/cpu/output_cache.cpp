// The operating system clears a page before a program may write to it. A training step frees memory that the next one
// allocates again, in the same sizes; a cache in between saves clearing its pages anew.
//
// A block belongs to the storage of one tensor, or is idle. The storage's deleter makes it idle, once no view holds it.
#include "output_cache.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__unix__)
#include <pthread.h>
#endif

#include "caches.h"

// Part of the stable interface since torch 2.11. Weak, so that the library also loads into torch 2.10, which leaves it null.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, std::int64_t ndim, const std::int64_t* sizes, const std::int64_t* strides, std::int64_t storage_offset,
    std::int32_t dtype, std::int32_t device_type, std::int32_t device_index, AtenTensorHandle* ret, std::int32_t layout,
    const std::uint8_t* opaque_metadata, std::int64_t opaque_metadata_size, void (*deleter)(void* data, void* context),
    void* context);

namespace exodus::cpu {
namespace {

// The C library keeps the pages of smaller blocks itself.
constexpr std::size_t kMinCachedBytes = 256 << 10;

constexpr std::size_t kPageBytes = 4096;

#if defined(__SANITIZE_ADDRESS__)
constexpr std::int64_t kDefaultLimitBytes = 0;  // reused memory would hide a use after free
#else
constexpr std::int64_t kDefaultLimitBytes = 512 << 20;
#endif

struct Block {
  void* memory;
  std::size_t bytes;
};

void release(Block block) { ::operator delete(block.memory, std::align_val_t{kPageBytes}); }

class IdleBlocks {
 public:
  // Never destroyed: a tensor may be freed after the program's static objects are.
  static IdleBlocks& instance() {
    static IdleBlocks* idle = new IdleBlocks;
    return *idle;
  }

  // The block of about this size that was freed last: the likeliest to be in a processor's cache.
  std::optional<Block> take(std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto fits = [bytes](Block block) { return block.bytes >= bytes && block.bytes - bytes <= bytes / 8; };
    const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(), fits);
    if (found == blocks_.rend()) return std::nullopt;
    const Block block = *found;
    blocks_.erase(std::next(found).base());
    bytes_ -= static_cast<std::int64_t>(block.bytes);
    return block;
  }

  void give(Block block) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::int64_t bytes = static_cast<std::int64_t>(block.bytes);
    if (bytes > limit_) return release(block);
    release_oldest(limit_ - bytes, kMaxBlocks - 1);
    blocks_.push_back(block);
    bytes_ += bytes;
  }

  // Returns the limit before.
  std::int64_t set_limit(std::int64_t limit) {
    const std::lock_guard<std::mutex> lock(mutex_);
    release_oldest(limit, kMaxBlocks);
    return std::exchange(limit_, limit);
  }

  std::tuple<std::int64_t, std::int64_t> bytes_and_limit() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {bytes_, limit_};
  }

 private:
  static constexpr std::size_t kMaxBlocks = 256;  // bounds the time of a search

  IdleBlocks() {
    blocks_.reserve(kMaxBlocks);
#if defined(__unix__)
    // A child has no thread that could unlock what another thread of its parent had locked.
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
#endif
  }

  void release_oldest(std::int64_t bytes, std::size_t count) noexcept {
    auto kept = blocks_.begin();
    for (; bytes_ > bytes || static_cast<std::size_t>(blocks_.end() - kept) > count; ++kept) {
      bytes_ -= static_cast<std::int64_t>(kept->bytes);
      release(*kept);
    }
    blocks_.erase(blocks_.begin(), kept);
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;  // the oldest first
  std::int64_t bytes_ = 0;
  std::int64_t limit_ = torch_from_blob == nullptr ? 0 : kDefaultLimitBytes;
};

std::optional<Block> allocate(std::size_t bytes) {
  void* memory = ::operator new(bytes, std::align_val_t{kPageBytes}, std::nothrow);
  if (memory == nullptr) return std::nullopt;
  use_huge_pages(memory, static_cast<std::int64_t>(bytes));
  return Block{memory, bytes};
}

// Offset of an output in its first page: in another quarter than `like`, and than the output before it. Rows of arrays
// that a kernel walks in parallel would otherwise fall into the same few sets of the caches.
std::size_t offset_beside(const Tensor& like) {
  static std::atomic<std::size_t> count{0};
  constexpr std::size_t quarter = kPageBytes / 4;
  return (reinterpret_cast<std::uintptr_t>(like.const_data_ptr()) / quarter + 1 + count++ % 3) % 4 * quarter;
}

Tensor tensor_in(Block block, const Tensor& beside, const std::vector<std::int64_t>& sizes,
                 const std::vector<std::int64_t>& strides, ScalarType dtype) {
  const auto free = [](void* elements, void* bytes) {
    const std::uintptr_t memory = reinterpret_cast<std::uintptr_t>(elements) / kPageBytes * kPageBytes;
    IdleBlocks::instance().give({reinterpret_cast<void*>(memory), reinterpret_cast<std::uintptr_t>(bytes)});
  };
  const auto code = torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle tensor = nullptr;
  const AOTITorchError error =
      torch_from_blob(static_cast<char*>(block.memory) + offset_beside(beside),
                      static_cast<std::int64_t>(sizes.size()), sizes.data(), strides.data(), 0, code,
                      aoti_torch_device_type_cpu(), -1, &tensor, aoti_torch_layout_strided(), nullptr, 0, free,
                      reinterpret_cast<void*>(block.bytes));
  if (error != AOTI_TORCH_SUCCESS) release(block);
  TORCH_ERROR_CODE_CHECK(error);
  return Tensor(tensor);
}

std::size_t element_bytes(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Float:
      return 4;
    default:
      return 8;
  }
}

std::int64_t keep_memory(std::int64_t limit) {
  STD_TORCH_CHECK(limit >= 0, "limit must be at least 0, got ", limit);
  return torch_from_blob == nullptr ? 0 : IdleBlocks::instance().set_limit(limit);
}

std::tuple<std::int64_t, std::int64_t> kept_memory() { return IdleBlocks::instance().bytes_and_limit(); }

// A tensor in a block of the cache; none if it is small, or if nothing is cached.
std::optional<Tensor> cached(const Tensor& beside, const std::vector<std::int64_t>& sizes,
                             const std::vector<std::int64_t>& strides, ScalarType dtype, std::size_t bytes) {
  if (bytes < kMinCachedBytes || std::get<1>(kept_memory()) == 0) return std::nullopt;
  const std::size_t wanted = bytes + kPageBytes;  // with room for the offset
  std::optional<Block> block = IdleBlocks::instance().take(wanted);
  if (!block.has_value()) block = allocate(wanted);
  if (!block.has_value()) return std::nullopt;
  return tensor_in(*block, beside, sizes, strides, dtype);
}

Tensor with_huge_pages(Tensor output, std::size_t bytes) {
  use_huge_pages(output.mutable_data_ptr(), static_cast<std::int64_t>(bytes));
  return output;
}

}  // namespace

Tensor output_like(const Tensor& tensor) {
  if (!tensor.is_contiguous()) return output_of(tensor, {tensor.sizes().begin(), tensor.sizes().end()});
  const std::size_t bytes = static_cast<std::size_t>(tensor.numel()) * tensor.element_size();
  const auto found = cached(tensor, {tensor.sizes().begin(), tensor.sizes().end()},
                            {tensor.strides().begin(), tensor.strides().end()}, tensor.scalar_type(), bytes);
  return found.has_value() ? *found : with_huge_pages(torch::stable::empty_like(tensor), bytes);
}

Tensor output_of(const Tensor& tensor, const std::vector<std::int64_t>& sizes, std::optional<ScalarType> dtype) {
  const ScalarType type = dtype.value_or(tensor.scalar_type());
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t count = 1;
  for (std::size_t i = sizes.size(); i-- > 0; count *= sizes[i]) strides[i] = count;
  const std::size_t bytes = static_cast<std::size_t>(count) * element_bytes(type);
  const auto found = cached(tensor, sizes, strides, type, bytes);
  return found.has_value() ? *found : with_huge_pages(torch::stable::new_empty(tensor, sizes, type), bytes);
}

Tensor output(const Tensor& like, std::vector<std::int64_t> size) { return output_of(like, size); }

STABLE_TORCH_LIBRARY_IMPL(exodus, CPU, m) { m.impl("output", TORCH_BOX(&output)); }

STABLE_TORCH_LIBRARY_IMPL(exodus, CompositeExplicitAutograd, m) {
  m.impl("keep_memory", TORCH_BOX(&keep_memory));
  m.impl("kept_memory", TORCH_BOX(&kept_memory));
}

}  // namespace exodus::cpu
