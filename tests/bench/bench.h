/* What the benchmark programs share: a clock, a histogram of latencies, and how to fail.
 *
 * The clock is CLOCK_MONOTONIC, which is one for all processes of a machine: a publisher stamps an event with it and a
 * subscriber in another process subtracts. So all of this runs on one machine, and measures no network.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* User and system time of this process: a client which takes half the machine has measured itself. */
static inline double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Log-linear, as HdrHistogram: 128 steps for each power of two, so no value is off by more than 0.8 %, in 60 KB and
 * without a sort of 20 million samples. */
enum { STEPS = 128, BUCKETS = 58 * STEPS };

struct histogram {
    uint64_t count, max;
    uint64_t bucket[BUCKETS];
};

static inline void record(struct histogram *h, uint64_t ns) {
    unsigned shift = ns < STEPS ? 0 : 56 - (unsigned)__builtin_clzll(ns);
    h->bucket[shift * STEPS + (ns >> shift)]++;
    h->count++;
    if (ns > h->max) h->max = ns;
}

static inline double percentile_ms(const struct histogram *h, double share) {
    uint64_t wanted = (uint64_t)(share * (double)h->count + 0.999999), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen && seen >= wanted) {
            unsigned shift = i < 2 * STEPS ? 0 : i / STEPS - 1;
            return (double)((uint64_t)(i - shift * STEPS) << shift) / 1e6;
        }
    }
    return 0;
}

static inline void print_histogram(const char *prefix, const struct histogram *h) {
    printf("\"%sp50_ms\":%.3f,\"%sp90_ms\":%.3f,\"%sp99_ms\":%.3f,\"%smax_ms\":%.3f", prefix, percentile_ms(h, 0.5),
           prefix, percentile_ms(h, 0.9), prefix, percentile_ms(h, 0.99), prefix, (double)h->max / 1e6);
}

#endif
