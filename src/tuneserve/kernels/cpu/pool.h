// Threads that run one function together, in phases of shared-out work. A phase is over when its work is done, not when
// every thread has come by: one that the system has put aside delays the others only by the piece that it holds.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Within a step the others are microseconds away, between steps a sampler runs: spin for some 50 microseconds, then sleep.
constexpr int SPINS = 2000;

template <class T, class Over>
static inline void await(const std::atomic<T>& value, Over&& over) {
    for (int spin = 0; spin < SPINS; ++spin) {
        if (over(value.load(std::memory_order_acquire))) return;
        relax();
    }
    for (T seen; !over(seen = value.load(std::memory_order_acquire));) value.wait(seen, std::memory_order_acquire);
}

struct Phase {
    alignas(64) std::atomic<int> next{0};
    alignas(64) std::atomic<int> done{0};
    alignas(64) std::atomic<int> ready{0};
};

class Pool {
   public:
    explicit Pool(int size) : size_(size) {
        try {
            for (int id = 1; id < size; ++id) threads_.emplace_back([this, id] { work(id); });
        } catch (...) {
            stop();
            throw;
        }
    }
    ~Pool() { stop(); }

    int size() const { return size_; }

    // Call task(id) on every thread, this one being number 0, and return when all have; it has at most `phases` phases.
    void run(int phases, const std::function<void(int)>& task) {
        if (phases > capacity_) phases_.reset(new Phase[capacity_ = phases]);
        for (int i = 0; i < phases; ++i) {
            phases_[i].next.store(0, std::memory_order_relaxed);
            phases_[i].done.store(0, std::memory_order_relaxed);
            phases_[i].ready.store(0, std::memory_order_relaxed);
        }
        task_ = &task;
        working_.store(size_ - 1, std::memory_order_relaxed);
        round_.fetch_add(1);
        round_.notify_all();
        task(0);
        await(working_, [](int working) { return working == 0; });
    }

    // Do what this thread can get of pieces [0, count) of phase `number`, `chunk` at a time, until all are done.
    template <class F>
    void share(int number, int count, int chunk, F&& piece) {
        Phase& phase = phases_[number];
        for (int first; (first = phase.next.fetch_add(chunk, std::memory_order_relaxed)) < count;) {
            const int end = std::min(first + chunk, count);
            for (int i = first; i < end; ++i) piece(i);
            if (phase.done.fetch_add(end - first, std::memory_order_acq_rel) + end - first == count)
                phase.done.notify_all();
        }
        await(phase.done, [count](int done) { return done == count; });
    }

    // Note that a piece is done on which later ones of its phase build. Earlier pieces are taken first, so whoever waits
    // for them waits for threads that are at work.
    void note(int number) {
        phases_[number].ready.fetch_add(1, std::memory_order_acq_rel);
        phases_[number].ready.notify_all();
    }

    // Wait until so many are noted.
    void await_noted(int number, int count) {
        await(phases_[number].ready, [count](int ready) { return ready == count; });
    }

   private:
    void work(int id) {
        for (uint32_t round = 0;; ++round) {
            await(round_, [round](uint32_t now) { return now != round; });
            if (stopping_) return;
            (*task_)(id);
            if (working_.fetch_sub(1, std::memory_order_acq_rel) == 1) working_.notify_all();
        }
    }

    void stop() {
        stopping_ = true;
        round_.fetch_add(1);
        round_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    const int size_;
    int capacity_ = 0;
    std::vector<std::thread> threads_;
    std::unique_ptr<Phase[]> phases_;
    const std::function<void(int)>* task_ = nullptr;
    alignas(64) std::atomic<uint32_t> round_{0};
    alignas(64) std::atomic<int> working_{0};
    std::atomic<bool> stopping_{false};
};
