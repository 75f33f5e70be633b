/* XXH3-64 of a part while its elements are copied, by xxHash's own steps (xxhash.h, BSD license).

After each block that is hashed, part of the next part is prefetched, and what the cache still holds is copied: for 4 kB
parts a batch takes a tenth less time than with the checksum first and the copy after it. A source file that includes
this one is compiled for one set of instructions; xxhash.h chooses by it. */

#define XXH_INLINE_ALL
#include "xxhash.h"

#define BLOCK_STRIPES ((XXH_SECRET_DEFAULT_SIZE - XXH_STRIPE_LEN) / XXH_SECRET_CONSUME_RATE)
#define BLOCK_BYTES (BLOCK_STRIPES * XXH_STRIPE_LEN)
#define TILE_BYTES (16 * BLOCK_BYTES) /* copied at a time, while the cache still holds them */
#define AHEAD_BYTES (8 * BLOCK_BYTES) /* prefetched from the next part; then the processor prefetches by itself */

/* Copies the bytes from `start` to `stop` of a part; returns the checksum of the whole part. */
static inline uint64_t hash_and_copy(const uint8_t *part, size_t size, size_t start, size_t stop, const uint8_t *next,
                                     uint8_t *to) {
    size_t copied = start, whole = size > XXH3_MIDSIZE_MAX ? (size - 1) / BLOCK_BYTES * BLOCK_BYTES : 0;
    XXH_ALIGN(XXH_ACC_ALIGN) xxh_u64 lanes[XXH_ACC_NB] = XXH3_INIT_ACC;
    for (size_t at = 0; at < whole; at += BLOCK_BYTES) {
        for (size_t line = at; at < AHEAD_BYTES && line < at + BLOCK_BYTES; line += 64) __builtin_prefetch(next + line);
        XXH3_accumulate(lanes, part + at, XXH3_kSecret, BLOCK_STRIPES);
        XXH3_scrambleAcc(lanes, XXH3_kSecret + XXH_SECRET_DEFAULT_SIZE - XXH_STRIPE_LEN);
        size_t hashed = at + BLOCK_BYTES < stop ? at + BLOCK_BYTES : stop;
        if (hashed >= copied + TILE_BYTES) {
            memcpy(to + (copied - start), part + copied, hashed - copied);
            copied = hashed;
        }
    }
    memcpy(to + (copied - start), part + copied, stop - copied);
    if (size <= XXH3_MIDSIZE_MAX) return XXH3_64bits(part, size);
    XXH3_accumulate(lanes, part + whole, XXH3_kSecret, (size - 1 - whole) / XXH_STRIPE_LEN);
    XXH3_accumulate_512(lanes, part + size - XXH_STRIPE_LEN,
                        XXH3_kSecret + XXH_SECRET_DEFAULT_SIZE - XXH_STRIPE_LEN - XXH_SECRET_LASTACC_START);
    return XXH3_finalizeLong_64b(lanes, XXH3_kSecret, size);
}
