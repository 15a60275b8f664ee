// Large blocks of memory: fresh zero pages from the operating system, of 2 MiB where it gives such. Built with sanitizers
// (KNEE_GUARDED) they come from the heap, so that a step outside a block is seen.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

namespace knee {

class Pages {
  public:
    Pages() = default;
    explicit Pages(std::size_t bytes, bool huge = false) : bytes_(bytes) {
        if (bytes == 0) return;
#if defined(KNEE_GUARDED)
        data_ = new std::uint8_t[bytes]();
        (void)huge;
#else
        void* const found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | kNoReserve, -1, 0);
        if (found == MAP_FAILED) throw std::bad_alloc();
        data_ = static_cast<std::uint8_t*>(found);
#if defined(MADV_HUGEPAGE)
        if (huge) madvise(found, bytes, MADV_HUGEPAGE);  // advice: where it is not taken, small pages do
#else
        (void)huge;
#endif
#endif
    }
    ~Pages() {
#if defined(KNEE_GUARDED)
        delete[] data_;
#else
        if (data_) munmap(data_, bytes_);
#endif
    }
    Pages(Pages&& other) noexcept { swap(other); }
    Pages& operator=(Pages&& other) noexcept {
        swap(other);
        return *this;
    }
    std::uint8_t* data() const { return data_; }
    std::size_t size() const { return bytes_; }

  private:
#if defined(MAP_NORESERVE)
    static constexpr int kNoReserve = MAP_NORESERVE;
#else
    static constexpr int kNoReserve = 0;
#endif
    void swap(Pages& other) {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }
    std::uint8_t* data_ = nullptr;
    std::size_t bytes_ = 0;
};

// Memory handed out piece by piece and freed as a whole. Pieces share pages, so that hundreds of matrices do not leave
// hundreds of half-used huge pages.
class Arena {
  public:
    std::uint8_t* take(std::size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        used_ += bytes;
        if (left_ < bytes) {
            std::size_t const chunk = bytes > kChunk ? bytes : kChunk;
            chunks_.emplace_back(chunk, true);
            next_ = chunks_.back().data();
            left_ = chunk;
        }
        std::uint8_t* const piece = next_;
        next_ += bytes;
        left_ -= bytes;
        return piece;
    }
    std::size_t used() const { return used_; }

  private:
#if defined(KNEE_GUARDED)
    static constexpr std::size_t kChunk = 1;  // every piece its own block
#else
    static constexpr std::size_t kChunk = std::size_t{64} << 20;
#endif
    std::vector<Pages> chunks_;
    std::uint8_t* next_ = nullptr;
    std::size_t left_ = 0, used_ = 0;
};

// Floats that grow; new ones are zero, and start at a whole cache line.
class Floats {
  public:
    float* data() const { return reinterpret_cast<float*>(pages_.data()); }
    std::size_t size() const { return pages_.size() / sizeof(float); }
    void at_least(std::size_t count) {
        if (size() < count) pages_ = Pages(count * sizeof(float));
    }

  private:
    Pages pages_;
};

}  // namespace knee
