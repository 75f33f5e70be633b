/* Decides which pickles the C unpickler may read: those in which every opcode is known to be harmless.

The C unpickler is fast, but it calls whatever a pickle names, and it hashes whatever a pickle uses as a key: a tuple
that holds another one twice, sixty levels deep, takes years. So this module first reads all opcodes once, with a stack
and a memo like the unpickler's, which hold only the kind of each value (and the content of small ones). It builds and
calls nothing. A pickle is

NO_NAMES      if it names nothing: `pickle.loads` may read it,
KNOWN_NAMES   if it names only what numpy and torch write for arrays, scalars and tensors, and calls it exactly as they
              do: each argument has the one kind, number or length that it must have. The C unpickler may read it, given
              a `find_class` that knows these names and no others,
SINGLE_ARRAY  if it is also not a container but one array or tensor,
UNKNOWN       otherwise: it is malformed or of another form, and `pickles.machine` reads it.

In all but UNKNOWN, keys of dicts and items of sets are text, bytes, numbers of at most 64 bits, bools or None; every
length lies inside the input; the elements of an array belong to that array alone; memo entries are numbered in order,
and none is used before its value is complete.

NEWOBJ is UNKNOWN on purpose. On the safe list only the graphs of torch_geometric use it, and in the C unpickler their
BUILD would run the package's own `__setstate__`, where the machine checks and sets each attribute itself.

The price: a few nanoseconds an opcode, and 24 bytes for each entry of the stack and the memo, at most 2**20 of each.

long: one translation unit, so that the compiler inlines what runs for every opcode. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

enum { UNKNOWN, NO_NAMES, KNOWN_NAMES, SINGLE_ARRAY };

enum {
    MAX_ITEMS = 1 << 20, /* entries of the stack, and of the memo */
    FIRST_ITEMS = 256,   /* entries before memory is allocated; MAX_ITEMS is this times a power of 4 */
    MAX_DEPTH = 1000,    /* of nested containers */
    MAX_DIMENSIONS = 64,
    MAX_NAME = 64,   /* bytes of a module's or function's name, newline included */
    MAX_SHARED = 16, /* bytes of elements or text that may be used again from the memo; Python shares them as well */
};

typedef enum {
    NONE, FALSE_, TRUE_, INT, FLOAT, TEXT, BYTES, LAST_KEY = BYTES,
    LIST, DICT, SET, ORDERED, TUPLE, SHAPE, BYTEARRAY, ARRAY, OTHER, LAST_VALUE = OTHER, /* SHAPE: a tuple of sizes */
    MARK, GLOBAL, OPAQUE, NEW_DTYPE, DTYPE, NEW_ARRAY, STORAGE, SPENT, /* OPAQUE: a tuple that holds more than values */
} Kind;

/* What is known of a value on the stack or in the memo. */
typedef struct {
    union {
        struct {
            uint8_t kind;
            uint8_t fresh;  /* whether it was created here, not taken from the memo */
            uint16_t depth; /* of the containers in it */
            uint32_t place; /* its number in the memo, from 1; 0: it is not in the memo */
        };
        uint64_t head; /* all four fields above */
    };
    union {
        struct {
            uint32_t at, size; /* TEXT, BYTES, BYTEARRAY: offset in the input and number of bytes */
        };
        int64_t number; /* INT: its value. DTYPE: its itemsize. GLOBAL: its index. MARK: the previous `first` */
        uint64_t count; /* SHAPE: the number of elements, UINT64_MAX if it overflows */
    };
    uint32_t length; /* tuple: its length. LIST: 0 while it could become a set. ORDERED: 0 while it is empty */
} Item;

typedef struct {
    Item *items;
    size_t length, room;
    Item first[FIRST_ITEMS];
} Items;

typedef struct {
    const uint8_t *data;
    size_t size, pos, frame_end; /* frame_end is 0 if no frame is open */
    Items stack, memo;
    size_t first;          /* index of the item above the topmost MARK; 0: there is no MARK */
    int has_loose;         /* whether the items of the tuple on top are still behind it */
    int names;             /* whether the pickle names anything */
    uint64_t shared_bytes; /* total size of keys from the memo, as comparing them may take long */
} Scan;

/* ---- names ---- */

typedef enum {
    NP_DTYPE, NP_NDARRAY, NP_RECONSTRUCT, NP_SCALAR, NP_FROM_BUFFER,
    TORCH_TENSOR, TORCH_STORAGE, ORDERED_DICT, SET_TYPE, OLD_SET, OLD_BYTES, ENCODE,
} Name;

static const struct {
    const char *module, *name;
    int index;
} GLOBALS[] = {
    {"numpy", "dtype", NP_DTYPE},
    {"numpy", "ndarray", NP_NDARRAY},
    {"numpy._core.multiarray", "_reconstruct", NP_RECONSTRUCT},
    {"numpy._core.multiarray", "scalar", NP_SCALAR},
    {"numpy._core.numeric", "_frombuffer", NP_FROM_BUFFER},
    {"numpy.core.multiarray", "_reconstruct", NP_RECONSTRUCT},
    {"numpy.core.multiarray", "scalar", NP_SCALAR},
    {"numpy.core.numeric", "_frombuffer", NP_FROM_BUFFER},
    {"collections", "OrderedDict", ORDERED_DICT},
    {"torch._utils", "_rebuild_tensor_v2", TORCH_TENSOR},
    {"torch.storage", "_load_from_bytes", TORCH_STORAGE},
    {"_codecs", "encode", ENCODE},
    {"builtins", "set", SET_TYPE},
    {"__builtin__", "set", OLD_SET},
    {"__builtin__", "bytes", OLD_BYTES},
};

static int is_bytes(const uint8_t *found, size_t size, const char *expected) {
    return strlen(expected) == size && memcmp(found, expected, size) == 0;
}

static int find_global(const uint8_t *module, size_t module_size, const uint8_t *name, size_t name_size) {
    for (size_t n = 0; n < sizeof GLOBALS / sizeof *GLOBALS; n++)
        if (is_bytes(name, name_size, GLOBALS[n].name) && is_bytes(module, module_size, GLOBALS[n].module))
            return GLOBALS[n].index;
    return -1;
}

/* ---- stack and memo: from here on, functions return 0 if the pickle is UNKNOWN ---- */

static void begin(Items *items) {
    items->items = items->first;
    items->length = 0;
    items->room = FIRST_ITEMS;
}

static void end(Items *items) {
    if (items->items != items->first) PyMem_Free(items->items);
}

static int make_room(Items *items) {
    if (items->length < items->room) return 1;
    if (items->room >= MAX_ITEMS) return 0;
    size_t room = 4 * items->room, num_bytes = room * sizeof(Item);
    Item *grown = PyMem_Realloc(items->items == items->first ? NULL : items->items, num_bytes);
    if (grown == NULL) return 0; /* then the machine raises MemoryError */
    if (items->items == items->first)
        memcpy(grown, items->first, sizeof items->first);
    items->items = grown;
    items->room = room;
    return 1;
}

/* Pushes a new item, whose other fields the caller sets; NULL: there is no room. */
static Item *push(Scan *scan, Kind kind) {
    Items *stack = &scan->stack;
    if (!make_room(stack)) return NULL;
    Item *item = &stack->items[stack->length++];
    *item = (Item){.kind = kind, .fresh = 1};
    scan->has_loose = 0;
    return item;
}

static int push_kind(Scan *scan, Kind kind) { return push(scan, kind) != NULL; }

static int push_number(Scan *scan, Kind kind, int64_t number) {
    Item *item = push(scan, kind);
    if (item == NULL) return 0;
    item->number = number;
    return 1;
}

/* Copies field by field: reading at once what was just written in parts stalls the processor. */
static void copy(Item *to, const Item *from) {
    to->head = from->head;
    to->number = from->number;
    to->length = from->length;
}

/* Updates the memo's copy of an item that has changed. */
static void note(Scan *scan, const Item *item) {
    if (item->place)
        copy(&scan->memo.items[item->place - 1], item);
}

static int put(Scan *scan, size_t place) {
    Items *stack = &scan->stack;
    if (stack->length == 0 || place != scan->memo.length || !make_room(&scan->memo)) return 0;
    Item *item = &stack->items[stack->length - 1];
    if (item->kind == MARK || item->place) return 0; /* one place, so that its state is kept once */
    item->place = (uint32_t)++scan->memo.length;
    note(scan, item);
    return 1;
}

static int get(Scan *scan, size_t place) {
    if (place >= scan->memo.length) return 0;
    const Item *kept = &scan->memo.items[place];
    if (kept->kind == NEW_DTYPE || kept->kind == NEW_ARRAY || kept->kind == SPENT) return 0;
    Item *item = push(scan, OTHER);
    if (item == NULL) return 0;
    copy(item, kept);
    if (item->kind > LAST_KEY && item->kind <= LAST_VALUE && item->kind != SHAPE)
        item->kind = OTHER; /* a value to which nothing can be added */
    item->fresh = 0;
    return 1;
}

/* ---- containers ---- */

/* Whether text or bytes may be copied, kept or compared without limit: they are used once, or short. */
static int is_own(const Item *item) {
    return item->fresh || (item->kind != TEXT && item->kind != BYTES) || item->size <= MAX_SHARED;
}

static int is_key(Scan *scan, const Item *item) {
    if (!is_own(item))
        scan->shared_bytes += item->size;
    return item->kind <= LAST_KEY && scan->shared_bytes <= 64 * (uint64_t)scan->size + (1 << 20);
}

/* Moves the items from `first` to the top into the container at `target`; every `step`-th is a key, none if 0. */
static int fill(Scan *scan, Kind kind, size_t target, size_t first, size_t step) {
    Item *stack = scan->stack.items, *filled = &stack[target];
    size_t num_items = scan->stack.length - first;
    if (filled->kind != kind && !(kind == DICT && filled->kind == ORDERED)) return 0;
    if (step && num_items % step) return 0;
    for (size_t n = 0; n < num_items; n++) {
        const Item *item = &stack[first + n];
        if (item->kind > LAST_VALUE || (step && n % step == 0 && !is_key(scan, item))) return 0;
        if (item->depth >= filled->depth)
            filled->depth = (uint16_t)(item->depth + 1);
        filled->length |= kind != LIST || item->kind > LAST_KEY || !is_own(item);
    }
    note(scan, filled);
    scan->stack.length = target + 1;
    scan->has_loose = 0;
    return filled->depth <= MAX_DEPTH;
}

/* APPEND and SETITEM. */
static int fill_single(Scan *scan, Kind kind, size_t num_items) {
    size_t length = scan->stack.length;
    return length > num_items && fill(scan, kind, length - num_items - 1, length - num_items, kind == DICT ? 2 : 0);
}

static int open_mark(Scan *scan) {
    if (!push_number(scan, MARK, (int64_t)scan->first)) return 0;
    scan->first = scan->stack.length;
    return 1;
}

/* Removes the topmost MARK; returns the index of the item above it, 0 if there is no MARK. */
static size_t close_mark(Scan *scan) {
    size_t first = scan->first;
    if (first)
        scan->first = (size_t)scan->stack.items[first - 1].number;
    return first;
}

static int fill_marked(Scan *scan, Kind kind, size_t step) {
    size_t first = close_mark(scan);
    return first >= 2 && fill(scan, kind, first - 2, first, step);
}

/* Makes a tuple at index `at` of the items above it; they stay there for a call that follows immediately. */
static int make_tuple(Scan *scan, size_t at) {
    Item *items = &scan->stack.items[at], made = {.kind = SHAPE, .fresh = 1, .count = 1};
    size_t num_items = scan->stack.length - at - 1;
    for (size_t n = 1; n <= num_items; n++) {
        const Item *item = &items[n];
        if (item->kind == MARK) return 0;
        if (item->kind > LAST_VALUE)
            made.kind = OPAQUE;
        else if (made.kind == SHAPE && (item->kind != INT || item->number < 0 || num_items > MAX_DIMENSIONS))
            made.kind = TUPLE;
        if (made.kind == SHAPE && __builtin_mul_overflow(made.count, (uint64_t)item->number, &made.count))
            made.count = UINT64_MAX;
        if (item->depth >= made.depth)
            made.depth = (uint16_t)(item->depth + 1);
    }
    made.length = (uint32_t)num_items;
    items[0] = made;
    scan->stack.length = at + 1;
    scan->has_loose = 1;
    return made.depth <= MAX_DEPTH;
}

/* TUPLE1, TUPLE2 and TUPLE3: without a MARK whose place the tuple could take. */
static int make_short_tuple(Scan *scan, size_t num_items) {
    Items *stack = &scan->stack;
    if (stack->length < num_items || !make_room(stack)) return 0;
    Item *first = &stack->items[stack->length - num_items];
    memmove(first + 1, first, num_items * sizeof(Item));
    stack->length++;
    return make_tuple(scan, stack->length - num_items - 1);
}

static int make_marked_tuple(Scan *scan) {
    size_t first = close_mark(scan);
    return first && make_tuple(scan, first - 1);
}

/* ---- calls ---- */

static int is_text(Scan *scan, const Item *item, const char *expected) {
    return item->kind == TEXT && is_bytes(scan->data + item->at, item->size, expected);
}

static int is_int(const Item *item, int64_t number) { return item->kind == INT && item->number == number; }

static int is_bool(const Item *item) { return item->kind == FALSE_ || item->kind == TRUE_; }

/* Whether `content` has the size that `shape` and `dtype` require; the array may keep these bytes and change them. */
static int takes_elements(Scan *scan, const Item *shape, const Item *dtype, const Item *content) {
    uint64_t num_bytes;
    if (shape->kind != SHAPE || dtype->kind != DTYPE || !is_own(content) ||
        __builtin_mul_overflow(shape->count, (uint64_t)dtype->number, &num_bytes) || num_bytes != content->size)
        return 0;
    if (content->place && (content->size > MAX_SHARED || content->kind == BYTEARRAY))
        scan->memo.items[content->place - 1].kind = SPENT;
    return 1;
}

/* Returns the itemsize for the code of a numeric dtype, 0 for any other. */
static int64_t itemsize(Scan *scan, const Item *code) {
    static const char *const CODES[] = {"b1", "i1", "i2", "i4", "i8", "u1", "u2",
                                        "u4", "u8", "f2", "f4", "f8", "c8", "c16"};
    static const int SIZES[] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 8, 16};
    for (size_t n = 0; n < sizeof CODES / sizeof *CODES; n++)
        if (is_text(scan, code, CODES[n])) return SIZES[n];
    return 0;
}

/* Counts the characters of UTF-8: all bytes that do not continue one, 8 at a time. */
static uint32_t num_chars(const uint8_t *text, uint32_t size) {
    const uint64_t ones = UINT64_MAX / 255; /* 1 in each byte */
    uint32_t found = size, at = 0;
    while (size - at >= 8) {
        uint64_t word, sums = 0;
        uint32_t num_words = (size - at) / 8 < 255 ? (size - at) / 8 : 255; /* before a byte of `sums` overflows */
        for (uint32_t n = 0; n < num_words; n++, at += 8) {
            memcpy(&word, text + at, 8);
            sums += word >> 7 & ~word >> 6 & ones;
        }
        for (; sums; sums >>= 8)
            found -= sums & 255;
    }
    for (; at < size; at++)
        found -= (text[at] & 0xC0) == 0x80;
    return found;
}

/* Text that becomes bytes, one a character (or an error if one is not in Latin-1). */
static int encode(Scan *scan, const Item *text, Item *made) {
    if (text->kind != TEXT || !is_own(text)) return 0;
    *made = (Item){.kind = BYTES, .fresh = 1, .at = text->at, .size = num_chars(scan->data + text->at, text->size)};
    return 1;
}

/* Whether a call's arguments are exactly those that numpy, torch or pickle write; `made` is its result. */
static int call(Scan *scan, int64_t function, const Item *args, uint32_t num_args, Item *made) {
    *made = (Item){.kind = OTHER, .fresh = 1};
    switch (function) {
    case NP_DTYPE: /* (code, False, True) */
        made->kind = NEW_DTYPE;
        return num_args == 3 && (made->number = itemsize(scan, &args[0])) && args[1].kind == FALSE_ &&
               args[2].kind == TRUE_;
    case NP_RECONSTRUCT: /* (ndarray, (0,), b"b") */
        made->kind = NEW_ARRAY;
        return num_args == 3 && args[0].kind == GLOBAL && args[0].number == NP_NDARRAY && args[1].kind == SHAPE &&
               args[1].length == 1 && args[1].count == 0 && args[2].kind == BYTES && args[2].size == 1 &&
               scan->data[args[2].at] == 'b';
    case NP_SCALAR: /* (dtype, item) */
        return num_args == 2 && args[0].kind == DTYPE && args[1].kind == BYTES && args[0].number == args[1].size;
    case NP_FROM_BUFFER: /* (elements, dtype, shape, order) */
        made->kind = ARRAY;
        return num_args == 4 && (args[0].kind == BYTEARRAY || args[0].kind == BYTES) &&
               (is_text(scan, &args[3], "C") || is_text(scan, &args[3], "F")) &&
               takes_elements(scan, &args[2], &args[1], &args[0]);
    case ORDERED_DICT: /* () */
        made->kind = ORDERED;
        return num_args == 0;
    case TORCH_STORAGE: /* (bytes of torch.save,) */
        made->kind = STORAGE;
        return num_args == 1 && args[0].kind == BYTES && args[0].fresh;
    case TORCH_TENSOR: /* (storage, offset, size, stride, requires_grad, hooks), which our function checks again */
        made->kind = ARRAY;
        return num_args == 6 && args[0].kind == STORAGE && args[0].fresh && args[1].kind == INT &&
               args[2].kind == SHAPE && args[3].kind == SHAPE && is_bool(&args[4]) && args[5].kind == ORDERED &&
               args[5].length == 0;
    case SET_TYPE: /* (list,): before protocol 4 */
    case OLD_SET:
        return num_args == 1 && args[0].kind == LIST && !args[0].length;
    case OLD_BYTES: /* (): empty bytes in protocol 2 */
        made->kind = BYTES;
        return num_args == 0;
    case ENCODE: /* (text, "latin1"): bytes in protocol 2 */
        return num_args == 2 && is_text(scan, &args[1], "latin1") && encode(scan, &args[0], made);
    default:
        return 0;
    }
}

/* REDUCE: calls the function below the tuple of its arguments. */
static int reduce(Scan *scan) {
    size_t length = scan->stack.length;
    if (!scan->has_loose || length < 2) return 0;
    Item *function = &scan->stack.items[length - 2], *tuple = function + 1, made;
    if (function->kind != GLOBAL || !call(scan, function->number, tuple + 1, tuple->length, &made)) return 0;
    *function = made;
    scan->stack.length--;
    scan->has_loose = 0;
    return 1;
}

/* BUILD: gives the dtype or array below it the state in the tuple on top. */
static int build(Scan *scan) {
    size_t length = scan->stack.length;
    if (!scan->has_loose || length < 2) return 0;
    Item *target = &scan->stack.items[length - 2], *tuple = target + 1, *args = tuple + 1;
    if (target->kind == NEW_DTYPE) { /* (3, order, None, None, None, -1, -1, 0) */
        if (tuple->length != 8 || !is_int(&args[0], 3) || args[2].kind != NONE || args[3].kind != NONE ||
            args[4].kind != NONE || !is_int(&args[5], -1) || !is_int(&args[6], -1) || !is_int(&args[7], 0))
            return 0;
        if (target->number == 1 ? !is_text(scan, &args[1], "|")
                                : !is_text(scan, &args[1], "<") && !is_text(scan, &args[1], ">"))
            return 0;
        target->kind = DTYPE;
    } else if (target->kind == NEW_ARRAY) { /* (1, shape, dtype, is Fortran's order, elements) */
        if (tuple->length != 5 || !is_int(&args[0], 1) || !is_bool(&args[3]) || args[4].kind != BYTES ||
            !takes_elements(scan, &args[1], &args[2], &args[4]))
            return 0;
        target->kind = ARRAY;
    } else
        return 0;
    note(scan, target);
    scan->stack.length--;
    scan->has_loose = 0;
    return 1;
}

/* ---- opcodes ---- */

/* Returns the next `num_bytes` bytes of the input and skips them; NULL if there are fewer. */
static const uint8_t *take(Scan *scan, size_t num_bytes) {
    const uint8_t *found = scan->data + scan->pos;
    if (num_bytes > scan->size - scan->pos) return NULL;
    scan->pos += num_bytes;
    return found;
}

/* Reads a little-endian number of `num_bytes` bytes, at most 8. */
static int take_number(Scan *scan, size_t num_bytes, uint64_t *number) {
    const uint8_t *found = take(scan, num_bytes);
    *number = 0;
    if (found == NULL) return 0;
    for (size_t n = 0; n < num_bytes; n++)
        *number |= (uint64_t)found[n] << 8 * n;
    return 1;
}

/* Reads text or bytes after a length that takes `width` bytes. */
static int take_sized(Scan *scan, size_t width, Kind kind) {
    uint64_t size;
    if (!take_number(scan, width, &size) || size > scan->size - scan->pos) return 0;
    Item *item = push(scan, kind);
    if (item == NULL) return 0;
    item->at = (uint32_t)scan->pos;
    item->size = (uint32_t)size;
    scan->pos += (size_t)size;
    return 1;
}

static int take_int(Scan *scan, size_t num_bytes, int is_signed) {
    uint64_t found;
    if (!take_number(scan, num_bytes, &found)) return 0;
    if (is_signed && num_bytes && num_bytes < 8 && found >> (8 * num_bytes - 1))
        found |= UINT64_MAX << 8 * num_bytes;
    int64_t number;
    memcpy(&number, &found, sizeof number);
    return push_number(scan, INT, number);
}

/* LONG1: an integer of more than 64 bits may be a value, but not a key. */
static int take_long(Scan *scan) {
    uint64_t num_bytes;
    if (!take_number(scan, 1, &num_bytes)) return 0;
    if (num_bytes <= 8) return take_int(scan, (size_t)num_bytes, 1);
    return take(scan, (size_t)num_bytes) != NULL && push_kind(scan, OTHER);
}

static int push_global(Scan *scan, int index) {
    scan->names = 1;
    if ((index == OLD_SET || index == OLD_BYTES) && scan->data[1] > 2) return 0; /* not a module of Python 3 */
    return index >= 0 && push_number(scan, GLOBAL, index);
}

/* Reads a line, without its newline; NULL if it is longer than any known name. */
static const uint8_t *take_line(Scan *scan, size_t *size) {
    const uint8_t *line = scan->data + scan->pos;
    size_t rest = scan->size - scan->pos;
    const uint8_t *end = rest ? memchr(line, '\n', rest < MAX_NAME ? rest : MAX_NAME) : NULL;
    if (end == NULL) return NULL;
    *size = (size_t)(end - line);
    scan->pos += *size + 1;
    return line;
}

static int take_global(Scan *scan) {
    size_t module_size, name_size;
    const uint8_t *module = take_line(scan, &module_size);
    const uint8_t *name = module ? take_line(scan, &name_size) : NULL;
    return name != NULL && push_global(scan, find_global(module, module_size, name, name_size));
}

static int stack_global(Scan *scan) {
    size_t length = scan->stack.length;
    if (length < 2) return 0;
    const Item *module = &scan->stack.items[length - 2], *name = module + 1;
    if (module->kind != TEXT || name->kind != TEXT) return 0;
    scan->stack.length -= 2;
    return push_global(scan, find_global(scan->data + module->at, module->size, scan->data + name->at, name->size));
}

/* FRAME: must end between two opcodes, and not be nested. */
static int open_frame(Scan *scan) {
    uint64_t size;
    if (scan->frame_end || !take_number(scan, 8, &size) || size > scan->size - scan->pos) return 0;
    scan->frame_end = scan->pos + (size_t)size;
    return 1;
}

static int take_opcode(Scan *scan, uint8_t opcode) {
    uint64_t number;
    switch (opcode) {
    case 'N': return push_kind(scan, NONE);
    case 0x88: return push_kind(scan, TRUE_);
    case 0x89: return push_kind(scan, FALSE_);
    case 'K': return take_int(scan, 1, 0);
    case 'M': return take_int(scan, 2, 0);
    case 'J': return take_int(scan, 4, 1);
    case 0x8a: return take_long(scan);
    case 'G': return take(scan, 8) != NULL && push_kind(scan, FLOAT);
    case 0x8c: return take_sized(scan, 1, TEXT);
    case 'X': return take_sized(scan, 4, TEXT);
    case 0x8d: return take_sized(scan, 8, TEXT);
    case 'C': return take_sized(scan, 1, BYTES);
    case 'B': return take_sized(scan, 4, BYTES);
    case 0x8e: return take_sized(scan, 8, BYTES);
    case 0x96: return take_sized(scan, 8, BYTEARRAY);
    case 0x94: return put(scan, scan->memo.length); /* MEMOIZE */
    case 'q': return take_number(scan, 1, &number) && put(scan, number);
    case 'r': return take_number(scan, 4, &number) && put(scan, number);
    case 'h': return take_number(scan, 1, &number) && get(scan, number);
    case 'j': return take_number(scan, 4, &number) && get(scan, number);
    case '(': return open_mark(scan);
    case ']': return push_kind(scan, LIST);
    case 'a': return fill_single(scan, LIST, 1);
    case 'e': return fill_marked(scan, LIST, 0);
    case '}': return push_kind(scan, DICT);
    case 's': return fill_single(scan, DICT, 2);
    case 'u': return fill_marked(scan, DICT, 2);
    case 0x8f: return push_kind(scan, SET);
    case 0x90: return fill_marked(scan, SET, 1);
    case ')': return make_short_tuple(scan, 0);
    case 0x85: case 0x86: case 0x87: return make_short_tuple(scan, opcode - 0x84u);
    case 't': return make_marked_tuple(scan);
    case 'c': return take_global(scan);
    case 0x93: return stack_global(scan);
    case 'R': return reduce(scan);
    case 'b': return build(scan);
    case 0x95: return open_frame(scan);
    default: return 0;
    }
}

static int read_all(Scan *scan) {
    if (scan->size < 2 || scan->size > UINT32_MAX || scan->data[0] != 0x80 || scan->data[1] < 2 || scan->data[1] > 5)
        return UNKNOWN;
    for (scan->pos = 2; scan->pos < scan->size;) {
        uint8_t opcode = scan->data[scan->pos++];
        if (opcode == '.') {
            const Item *value = scan->stack.items;
            if (scan->pos < scan->size || scan->stack.length != 1 || value->kind > LAST_VALUE) return UNKNOWN;
            return value->kind == ARRAY ? SINGLE_ARRAY : scan->names ? KNOWN_NAMES : NO_NAMES;
        }
        if (!take_opcode(scan, opcode) || (scan->frame_end && scan->pos > scan->frame_end)) return UNKNOWN;
        if (scan->pos == scan->frame_end)
            scan->frame_end = 0;
    }
    return UNKNOWN;
}

static PyObject *scan_pickle(PyObject *Py_UNUSED(module), PyObject *data) {
    Py_buffer view;
    Scan scan; /* not zeroed as a whole: it is larger than most pickles */
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) return NULL;
    scan.data = view.buf;
    scan.size = (size_t)view.len;
    scan.frame_end = scan.first = 0;
    scan.has_loose = scan.names = 0;
    scan.shared_bytes = 0;
    begin(&scan.stack);
    begin(&scan.memo);
    int found = read_all(&scan);
    end(&scan.stack);
    end(&scan.memo);
    PyBuffer_Release(&view);
    return PyLong_FromLong(found);
}

static PyMethodDef METHODS[] = {
    {"scan", scan_pickle, METH_O, "How a pickle, bytes or a contiguous view of some, may be read: see scan.pyi."},
    {NULL, NULL, 0, NULL},
};

static int add_names(PyObject *module) {
    if (PyModule_AddIntMacro(module, UNKNOWN) || PyModule_AddIntMacro(module, NO_NAMES)) return -1;
    return PyModule_AddIntMacro(module, KNOWN_NAMES) || PyModule_AddIntMacro(module, SINGLE_ARRAY) ? -1 : 0;
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, (void *)add_names}, {0, NULL}};

static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "dray.shards.codecs.pickles.scan", NULL, 0, METHODS, SLOTS, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_scan(void) {
    return PyModuleDef_Init(&MODULE);
}
