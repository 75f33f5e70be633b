/* Fills a batch from parts that differ only in their elements: checks each part and copies its elements.

For a part of 4 kB, slicing, a call of the checksum and a comparison of its head take Python longer than reading its
bytes takes the memory. Here a batch is one call, which prefetches the next part while it reads the current one. Without
the compiled module, `batching.stacking` does the same in Python.

hash_and_copy.h has the checksum. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "hash_and_copy.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "parts are read as a little-endian processor stores them"
#endif

#define RELEASE_BYTES (256 << 10) /* minimum size of a batch that releases the GIL; otherwise waiting costs more */

static inline uint64_t load(const uint8_t *from) {
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* ---- one part ---- */

typedef struct {
    size_t size, start, stop;        /* size of a part; offsets of the first byte of its elements and of their end */
    const uint8_t *edges, *is_fixed; /* bytes before and after the elements; 1 for each that must be equal, else 0 */
    size_t first, second, digits;    /* two offsets in the edges with the same digits, and their number */
} PartLayout;

typedef uint64_t HashAndCopy(const uint8_t *part, size_t size, size_t start, size_t stop, const uint8_t *next,
                             uint8_t *to);
extern HashAndCopy hash_and_copy_avx2;

static HashAndCopy *fastest = hash_and_copy; /* with the instructions of this processor */

static int has_edges(const PartLayout *layout, const uint8_t *part) {
    const uint8_t *edges = layout->edges, *is_fixed = layout->is_fixed;
    size_t before = layout->start, after = layout->size - layout->stop;
    uint8_t differs = 0;
    for (size_t at = 0; at < before; at++) differs |= (part[at] != edges[at]) & is_fixed[at];
    part += layout->stop, edges += before, is_fixed += before;
    for (size_t at = 0; at < after; at++) differs |= (part[at] != edges[at]) & is_fixed[at];
    return !differs;
}

static int has_digits(const PartLayout *layout, const uint8_t *part) {
    size_t gap = layout->stop - layout->start;
    const uint8_t *first = part + layout->first + (layout->first >= layout->start ? gap : 0);
    const uint8_t *second = part + layout->second + (layout->second >= layout->start ? gap : 0);
    for (size_t at = 0; at < layout->digits; at++)
        if (first[at] != second[at] || first[at] < '0' || first[at] > '9') return 0;
    return 1;
}

typedef struct {
    const uint8_t *addresses, *hashes, *targets; /* arrays of 64-bit numbers; targets: where elements go */
    size_t count;
} Parts;

static uint8_t *address(const uint8_t *addresses, size_t number) {
    return (uint8_t *)(uintptr_t)load(addresses + 8 * number);
}

/* Returns the number of correct parts before the first wrong one. */
static size_t gather_all(const PartLayout *layout, const Parts *parts) {
    for (size_t number = 0; number < parts->count; number++) {
        const uint8_t *part = address(parts->addresses, number);
        const uint8_t *next = address(parts->addresses, number + 1 < parts->count ? number + 1 : number);
        uint8_t *to = address(parts->targets, number);
        uint64_t hash = fastest(part, layout->size, layout->start, layout->stop, next, to);
        if (hash != load(parts->hashes + 8 * number) || !has_edges(layout, part) || !has_digits(layout, part))
            return number;
    }
    return parts->count;
}

/* ---- Python ---- */

enum { ADDRESSES, HASHES, TARGETS, EDGES, IS_FIXED, BUFFERS };

/* Whether the digits at `name` are all on one side of the elements. */
static int is_name(const PartLayout *layout, size_t name, size_t edges) {
    return layout->digits <= edges && name <= edges - layout->digits &&
           (name >= layout->start || name + layout->digits <= layout->start);
}

static int is_sound(const PartLayout *layout, const Parts *parts, const Py_buffer *buffers) {
    if (layout->start >= layout->stop || layout->stop > layout->size) return 0;
    size_t edges = layout->start + (layout->size - layout->stop), numbers = parts->count * sizeof(uint64_t);
    if ((size_t)buffers[EDGES].len != edges || (size_t)buffers[IS_FIXED].len != edges) return 0;
    if (!is_name(layout, layout->first, edges) || !is_name(layout, layout->second, edges)) return 0;
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
    /* Negative numbers become too large to pass is_sound. */
    PartLayout layout = {size, start, stop, buffers[EDGES].buf, buffers[IS_FIXED].buf, first, second, digits};
    Parts parts = {buffers[ADDRESSES].buf, buffers[HASHES].buf, buffers[TARGETS].buf,
                   (size_t)buffers[ADDRESSES].len / sizeof(uint64_t)};
    size_t done = 0;
    int sound = is_sound(&layout, &parts, buffers);
    if (sound && parts.count * layout.size >= RELEASE_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        done = gather_all(&layout, &parts);
        Py_END_ALLOW_THREADS
    } else if (sound) {
        done = gather_all(&layout, &parts);
    }
    for (int number = 0; number < BUFFERS; number++) PyBuffer_Release(&buffers[number]);
    if (sound) return PyLong_FromSize_t(done);
    PyErr_SetString(PyExc_ValueError, "gather: inconsistent sizes and offsets");
    return NULL;
}

static PyMethodDef methods[] = {
    {"gather", gather, METH_VARARGS,
     "Copy the elements of equal parts; return the number of correct parts before the first wrong one."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "gather", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit_gather(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) fastest = hash_and_copy_avx2;
#endif
    return PyModule_Create(&definition);
}
