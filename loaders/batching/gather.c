/* Parts that are alike, gathered: each is checked, and its elements copied, in one reading of its memory.

What Python does for a part of 4 kB takes longer than reading its bytes from memory: slices, a call of the checksum, a
copy of the head to compare it. Here some batches are one call, which also asks for the memory of the next part while it
reads this one. The price is code that is compiled: without it `batching.stacking` does the same in Python.

The checksum is XXH3-64 with no seed, for more than 240 bytes, as its specification tells
(https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md); tests hold it against the xxhash package. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "parts are read as a little-endian processor stores them"
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LANES 8
#define STRIPE 64               /* bytes that are taken in at once */
#define STRIPES 16              /* of a block, after which the lanes are scrambled */
#define BLOCK (STRIPE * STRIPES)
#define SECRET_BYTES 192
#define MIN_BYTES 241           /* the specification has other ways for less */
#define TILE (16 * BLOCK)       /* bytes that are copied while the processor's cache still has them */
#define AHEAD (8 * BLOCK)       /* of the next part; then the processor sees by itself where the reading goes */
#define RELEASE_BYTES (256 << 10) /* from so much on other threads run meanwhile; for less, waiting for them costs more */

static const uint64_t PRIME32_1 = 0x9E3779B1U, PRIME32_2 = 0x85EBCA77U, PRIME32_3 = 0xC2B2AE3DU;
static const uint64_t PRIME64_1 = 0x9E3779B185EBCA87ULL, PRIME64_2 = 0xC2B2AE3D27D4EB4FULL;
static const uint64_t PRIME64_3 = 0x165667B19E3779F9ULL, PRIME64_4 = 0x85EBCA77C2B2AE63ULL;
static const uint64_t PRIME64_5 = 0x27D4EB2F165667C5ULL, PRIME_AVALANCHE = 0x165667919E3779F9ULL;

static const uint8_t SECRET[SECRET_BYTES] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

static inline uint64_t load(const uint8_t *from) {
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* ---- the checksum ---- */

typedef void Accumulate(uint64_t *lanes, const uint8_t *data, const uint8_t *secret, size_t stripes);

static void accumulate(uint64_t *lanes, const uint8_t *data, const uint8_t *secret, size_t stripes) {
    for (; stripes; stripes--, data += STRIPE, secret += 8) {
        for (int lane = 0; lane < LANES; lane++) {
            uint64_t value = load(data + 8 * lane), keyed = value ^ load(secret + 8 * lane);
            lanes[lane ^ 1] += value;
            lanes[lane] += (uint64_t)(uint32_t)keyed * (keyed >> 32);
        }
    }
}

#if defined(__x86_64__)
/* The same four lanes at a time: three times as fast as what the compiler makes of the above. */
__attribute__((target("avx2"))) static void accumulate_avx2(uint64_t *lanes, const uint8_t *data,
                                                            const uint8_t *secret, size_t stripes) {
    __m256i sums[2];
    memcpy(sums, lanes, sizeof sums);
    for (; stripes; stripes--, data += STRIPE, secret += 8) {
        for (int half = 0; half < 2; half++) {
            __m256i value = _mm256_loadu_si256((const __m256i *)(data + 32 * half));
            __m256i keyed = _mm256_xor_si256(value, _mm256_loadu_si256((const __m256i *)(secret + 32 * half)));
            __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
            __m256i swapped = _mm256_shuffle_epi32(value, _MM_SHUFFLE(1, 0, 3, 2));
            sums[half] = _mm256_add_epi64(sums[half], _mm256_add_epi64(product, swapped));
        }
    }
    memcpy(lanes, sums, sizeof sums);
}
#endif

static Accumulate *fastest_accumulate(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) return accumulate_avx2;
#endif
    return accumulate;
}

static Accumulate *accumulate_stripes;

static void scramble(uint64_t *lanes) {
    for (int lane = 0; lane < LANES; lane++) {
        lanes[lane] ^= lanes[lane] >> 47;
        lanes[lane] ^= load(SECRET + SECRET_BYTES - STRIPE + 8 * lane);
        lanes[lane] *= PRIME32_1;
    }
}

static uint64_t folded_product(uint64_t first, uint64_t second) {
    unsigned __int128 product = (unsigned __int128)first * second;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t merged(const uint64_t *lanes, size_t size) {
    const uint8_t *secret = SECRET + 11;
    uint64_t sum = (uint64_t)size * PRIME64_1;
    for (int lane = 0; lane < LANES; lane += 2)
        sum += folded_product(lanes[lane] ^ load(secret + 8 * lane), lanes[lane + 1] ^ load(secret + 8 * lane + 8));
    sum ^= sum >> 37;
    sum *= PRIME_AVALANCHE;
    return sum ^ (sum >> 32);
}

/* ---- one part ---- */

typedef struct {
    size_t size, start, stop;        /* of a part; where its elements begin and end */
    const uint8_t *edges, *is_fixed; /* the bytes before and after these, and which of them never differ */
    size_t first, second, digits;    /* two places in the edges with the same digits, whatever they are */
} Kind;

/* Copies the elements of a part, and returns the checksum of all of it. */
static uint64_t copy_elements(const Kind *kind, const uint8_t *part, const uint8_t *next, uint8_t *to) {
    uint64_t lanes[LANES] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    size_t size = kind->size, copied = kind->start, whole = (size - 1) / BLOCK * BLOCK;
    for (size_t at = 0; at < whole; at += BLOCK) {
        for (size_t line = at; at < AHEAD && line < at + BLOCK; line += 64) __builtin_prefetch(next + line);
        accumulate_stripes(lanes, part + at, SECRET, STRIPES);
        scramble(lanes);
        size_t behind = at + BLOCK < kind->stop ? at + BLOCK : kind->stop;
        if (behind >= copied + TILE) {
            memcpy(to + (copied - kind->start), part + copied, behind - copied);
            copied = behind;
        }
    }
    accumulate_stripes(lanes, part + whole, SECRET, (size - 1 - whole) / STRIPE);
    accumulate_stripes(lanes, part + size - STRIPE, SECRET + SECRET_BYTES - STRIPE - 7, 1);
    memcpy(to + (copied - kind->start), part + copied, kind->stop - copied);
    return merged(lanes, size);
}

static int has_edges(const Kind *kind, const uint8_t *part) {
    const uint8_t *edges = kind->edges, *is_fixed = kind->is_fixed;
    size_t before = kind->start, after = kind->size - kind->stop;
    uint8_t differs = 0;
    for (size_t at = 0; at < before; at++) differs |= (part[at] != edges[at]) & is_fixed[at];
    part += kind->stop, edges += before, is_fixed += before;
    for (size_t at = 0; at < after; at++) differs |= (part[at] != edges[at]) & is_fixed[at];
    return !differs;
}

static int has_digits(const Kind *kind, const uint8_t *part) {
    size_t gap = kind->stop - kind->start;
    const uint8_t *first = part + kind->first + (kind->first >= kind->start ? gap : 0);
    const uint8_t *second = part + kind->second + (kind->second >= kind->start ? gap : 0);
    for (size_t at = 0; at < kind->digits; at++)
        if (first[at] != second[at] || first[at] < '0' || first[at] > '9') return 0;
    return 1;
}

typedef struct {
    const uint8_t *addresses, *hashes, *targets; /* numbers of 64 bits: of each part, and where its elements go */
    size_t count;
} Parts;

static uint8_t *address(const uint8_t *addresses, size_t number) {
    return (uint8_t *)(uintptr_t)load(addresses + 8 * number);
}

/* How many parts are right, up to the first that is not. */
static size_t gather_all(const Kind *kind, const Parts *parts) {
    for (size_t number = 0; number < parts->count; number++) {
        const uint8_t *part = address(parts->addresses, number);
        const uint8_t *next = address(parts->addresses, number + 1 < parts->count ? number + 1 : number);
        uint64_t hash = copy_elements(kind, part, next, address(parts->targets, number));
        if (hash != load(parts->hashes + 8 * number) || !has_edges(kind, part) || !has_digits(kind, part))
            return number;
    }
    return parts->count;
}

/* ---- Python ---- */

enum { ADDRESSES, HASHES, TARGETS, EDGES, IS_FIXED, BUFFERS };

/* Whether a name lies on one side of the elements. */
static int is_name(const Kind *kind, size_t name, size_t edges) {
    return kind->digits <= edges && name <= edges - kind->digits &&
           (name >= kind->start || name + kind->digits <= kind->start);
}

static int is_sound(const Kind *kind, const Parts *parts, const Py_buffer *buffers) {
    if (kind->start >= kind->stop || kind->stop > kind->size || kind->size < MIN_BYTES) return 0;
    size_t edges = kind->start + (kind->size - kind->stop), numbers = parts->count * sizeof(uint64_t);
    if ((size_t)buffers[EDGES].len != edges || (size_t)buffers[IS_FIXED].len != edges) return 0;
    if (!is_name(kind, kind->first, edges) || !is_name(kind, kind->second, edges)) return 0;
    for (int number = ADDRESSES; number <= TARGETS; number++)
        if ((size_t)buffers[number].len != numbers) return 0;
    return 1;
}

static PyObject *gather(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer buffers[BUFFERS];
    Py_ssize_t size, start, stop, first, second, digits;
    if (!PyArg_ParseTuple(arguments, "y*y*y*nnny*y*nnn:gather", &buffers[ADDRESSES], &buffers[HASHES],
                          &buffers[TARGETS], &size, &start, &stop, &buffers[EDGES], &buffers[IS_FIXED], &first, &second,
                          &digits))
        return NULL;
    /* A negative number becomes one that is too large to be sound. */
    Kind kind = {size, start, stop, buffers[EDGES].buf, buffers[IS_FIXED].buf, first, second, digits};
    Parts parts = {buffers[ADDRESSES].buf, buffers[HASHES].buf, buffers[TARGETS].buf,
                   (size_t)buffers[ADDRESSES].len / sizeof(uint64_t)};
    size_t done = 0;
    int sound = is_sound(&kind, &parts, buffers);
    if (sound && parts.count * kind.size >= RELEASE_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        done = gather_all(&kind, &parts);
        Py_END_ALLOW_THREADS
    } else if (sound) {
        done = gather_all(&kind, &parts);
    }
    for (int number = 0; number < BUFFERS; number++) PyBuffer_Release(&buffers[number]);
    if (sound) return PyLong_FromSize_t(done);
    PyErr_SetString(PyExc_ValueError, "gather: sizes and places do not belong together");
    return NULL;
}

static PyMethodDef methods[] = {
    {"gather", gather, METH_VARARGS,
     "Copy the elements of parts that are alike; return how many are right, up to the first that is not."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "gather", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit_gather(void) {
    accumulate_stripes = fastest_accumulate();
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "MIN_BYTES", MIN_BYTES)) Py_CLEAR(module);
    return module;
}
