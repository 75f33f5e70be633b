/* `hash_and_copy` for processors with AVX2. */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2")
#endif

#include "hash_and_copy.h"

uint64_t hash_and_copy_avx2(const uint8_t *part, size_t size, size_t start, size_t stop, const uint8_t *next,
                            uint8_t *to) {
    return hash_and_copy(part, size, start, stop, next, to);
}
