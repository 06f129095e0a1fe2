/* Reads every code of a baseline JPEG, without computing a pixel, and asks what decoders do not: is
 * there a code without a meaning, a coefficient beyond the 64th of a block, one that no picture of
 * 8 bits has, or a byte that no block needs?
 *
 * It judges ordinary files only: one scan, Huffman codes, everything where it should be. For all
 * others, damaged ones included, the answer is UNSURE, and a decoder has to say. Hostile bytes
 * cost at most time linear in their number: a block takes two bits or more.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* jpeg_codes.py has the same list. */
enum { CLEAN, UNSURE, NO_CODE, BEYOND, TOO_LARGE, LEFT_OVER };
enum { SLACK_BYTES = 512, FAST_BITS = 11, MAX_COMPONENTS = 4, MAX_BLOCKS = 10 };
/* Samples of 8 bits have coefficients of at most 1024. Encoders may round by some steps to save bits,
 * and the fast transform of a common one overflows at extreme patterns, means excepted. */
enum { LARGEST_MEAN = 1024, LARGEST_OTHER = 2048, STEPS = 4, MAX_TABLES = 64 };

typedef struct {
    /* By the next bits: a coefficient of few bits as value, run and length (16, 8 and 8 bits);
     * run 16: no more coefficients; 0: more bits are needed. */
    int32_t fast[1 << FAST_BITS];
    int32_t last[18];              /* by length: codes are below, as 16 bits from the top */
    int32_t offset[17];            /* of a length's first symbol, less its first code */
    uint8_t symbols[256];
    int defined;
} Table;

typedef struct {
    int id, across, down, quantizer;
    const Table *dc, *ac;
    int32_t previous;
} Component;

typedef struct {
    const uint8_t *data;
    int64_t size, at;
    int32_t quantizers[4][64]; /* in zigzag order; 0: not defined */
    int32_t limits[4][64];     /* the largest coefficient, in quantizer steps */
    Table tables[2][4];
    Component components[MAX_COMPONENTS];
    int num_components, num_tables, width, height, interval;
    uint8_t *plain; /* a segment of codes without its stuffing, and slack */
    int64_t num_bits;
} Scan;

static int two(const uint8_t *at) { return at[0] << 8 | at[1]; }

static int read_quantizers(Scan *scan, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int wide = *at >> 4, index = *at & 15, length = wide ? 128 : 64;
        if (wide > 1 || index > 3 || end - ++at < length) return UNSURE;
        for (int k = 0; k < 64; k++, at += 1 + wide) {
            int step = wide ? two(at) : *at;
            if (!step) return UNSURE;
            scan->quantizers[index][k] = step;
            scan->limits[index][k] = (k ? LARGEST_OTHER : LARGEST_MEAN) / step + STEPS;
        }
    }
    return CLEAN;
}

static int32_t number(uint64_t word, int size);

static void add_fast(Table *table, int code, int length, int symbol) {
    int run = symbol >> 4, size = symbol & 15, spare = FAST_BITS - length;
    if (length + size > FAST_BITS) return;
    for (int rest = 0; rest < 1 << spare; rest++) {
        int32_t value = size ? number((uint64_t)rest << (64 - spare), size) : 0;
        if (!size && run != 15) run = 16;
        table->fast[code << spare | rest] =
            (int32_t)((uint32_t)value << 16 | (uint32_t)run << 8 | (uint32_t)(length + size));
    }
}

static int read_tables(Scan *scan, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int kind = *at >> 4, index = *at & 15, code = 0, total = 0;
        if (kind > 1 || index > 3 || end - at < 17 || ++scan->num_tables > MAX_TABLES) return UNSURE;
        Table *table = &scan->tables[kind][index];
        const uint8_t *counts = at; /* counts[length] */
        memset(table, 0, sizeof *table);
        for (int length = 1; length <= 16; length++) total += counts[length];
        if (total > 256 || end - at < 17 + total) return UNSURE;
        memcpy(table->symbols, at + 17, (size_t)total);
        for (int length = 1, used = 0; length <= 16; length++, code <<= 1) {
            table->offset[length] = used - code;
            for (int i = 0; i < counts[length]; i++, code++, used++) {
                int symbol = table->symbols[used];
                if (code >= 1 << length || (!kind && symbol > 15)) return UNSURE;
                if (kind) add_fast(table, code, length, symbol);
            }
            /* A code of ones only is reserved. */
            if (counts[length] && code >= 1 << length) return UNSURE;
            table->last[length] = code << (16 - length);
        }
        table->defined = 1;
        at += 17 + total;
    }
    return CLEAN;
}

static int read_frame(Scan *scan, const uint8_t *at, const uint8_t *end) {
    if (end - at < 6 || scan->num_components || at[0] != 8) return UNSURE;
    scan->height = two(at + 1), scan->width = two(at + 3);
    int count = at[5];
    if (!scan->height || !scan->width || !count || count > MAX_COMPONENTS) return UNSURE;
    if (end - at != 6 + 3 * count) return UNSURE;
    at += 6;
    for (int i = 0; i < count; i++, at += 3) {
        int across = at[1] >> 4, down = at[1] & 15;
        if (!across || !down || across > 4 || down > 4 || at[2] > 3) return UNSURE;
        scan->components[i] = (Component){at[0], across, down, at[2], 0, 0, 0};
    }
    scan->num_components = count;
    return CLEAN;
}

static int read_scan_header(Scan *scan, const uint8_t *at, const uint8_t *end) {
    int count = scan->num_components, blocks = 0;
    if (!count || end - at != 4 + 2 * count || at[0] != count) return UNSURE;
    for (int i = 0; i < count; i++) {
        Component *component = &scan->components[i];
        int dc = at[2 + 2 * i] >> 4, ac = at[2 + 2 * i] & 15;
        if (at[1 + 2 * i] != component->id || dc > 3 || ac > 3) return UNSURE;
        component->dc = &scan->tables[0][dc], component->ac = &scan->tables[1][ac];
        if (!component->dc->defined || !component->ac->defined) return UNSURE;
        if (!scan->quantizers[component->quantizer][0]) return UNSURE;
        blocks += component->across * component->down;
    }
    if (count > 1 && blocks > MAX_BLOCKS) return UNSURE;
    at += 1 + 2 * count;
    return at[0] == 0 && at[1] == 63 && at[2] == 0 ? CLEAN : UNSURE;
}

/* Copies codes up to the next marker; its second byte, or -1 where there is none. */
static int read_segment(Scan *scan) {
    const uint8_t *at = scan->data + scan->at, *end = scan->data + scan->size;
    uint8_t *to = scan->plain;
    while (at < end) {
        const uint8_t *mark = memchr(at, 0xff, (size_t)(end - at));
        if (!mark || mark + 1 >= end) return -1;
        memcpy(to, at, (size_t)(mark - at));
        to += mark - at;
        if (mark[1]) {
            while (mark + 1 < end && mark[1] == 0xff) mark++; /* fill bytes */
            if (mark + 1 >= end) return -1;
            memset(to, 0, SLACK_BYTES);
            scan->num_bits = (to - scan->plain) * 8;
            scan->at = mark + 2 - scan->data;
            return mark[1];
        }
        *to++ = 0xff;
        at = mark + 2;
    }
    return -1;
}

/* The next bits, from the top of a word; at least 32 of them are there after `refill`. */
typedef struct {
    uint64_t word;
    const uint8_t *at;
    int have;
} Bits;

static inline void refill(Bits *bits) {
    uint64_t more;
    memcpy(&more, bits->at, 8);
    bits->word |= __builtin_bswap64(more) >> bits->have;
    bits->at += (63 - bits->have) >> 3;
    bits->have |= 56;
}

static inline void skip(Bits *bits, int count) {
    bits->word <<= count;
    bits->have -= count;
}

/* Length and symbol of the next code: symbol * 256 + length; 0: there is none. */
static int long_code(const Table *table, uint64_t word) {
    int32_t top = (int32_t)(word >> 48);
    for (int length = 1; length <= 16; length++)
        if (top < table->last[length])
            return table->symbols[(top >> (16 - length)) + table->offset[length]] << 8 | length;
    return 0;
}

/* The number of `size` bits, one or more, at the top of `word`. */
static inline int32_t number(uint64_t word, int size) {
    int32_t value = (int32_t)(word >> (64 - size));
    return value < 1 << (size - 1) ? value - (1 << size) + 1 : value;
}

static inline int read_block(Scan *scan, Component *component, Bits *bits) {
    const int32_t *limits = scan->limits[component->quantizer];
    refill(bits);
    int code = long_code(component->dc, bits->word), size = code >> 8;
    if (!code || size > 15) return NO_CODE;
    skip(bits, code & 255);
    if (size) {
        component->previous += number(bits->word, size);
        skip(bits, size);
    }
    if (abs(component->previous) > limits[0]) return TOO_LARGE;
    for (int k = 1; k < 64; k++) {
        int32_t value, run;
        if (bits->have < 32) refill(bits);
        int32_t fast = component->ac->fast[bits->word >> (64 - FAST_BITS)];
        if (fast) {
            skip(bits, fast & 255);
            run = fast >> 8 & 255;
            value = fast >> 16;
        } else {
            code = long_code(component->ac, bits->word), size = code >> 8 & 15;
            if (!code) return NO_CODE;
            run = code >> 12;
            skip(bits, code & 255);
            value = size ? number(bits->word, size) : 0;
            skip(bits, size);
            if (!size && run != 15) break;
        }
        if (run > 15) break;
        k += run;
        if (k > 63 && value) return BEYOND;
        if (abs(value) > limits[k & 63]) return TOO_LARGE;
    }
    return (bits->at - scan->plain) * 8 - bits->have > scan->num_bits ? UNSURE : CLEAN;
}

static int read_unit(Scan *scan, Bits *bits) {
    for (int i = 0; i < scan->num_components; i++) {
        Component *component = &scan->components[i];
        int blocks = scan->num_components == 1 ? 1 : component->across * component->down;
        for (int block = 0; block < blocks; block++) {
            int found = read_block(scan, component, bits);
            if (found != CLEAN) return found;
        }
    }
    return CLEAN;
}

static int64_t count_units(const Scan *scan) {
    int across = 1, down = 1;
    for (int i = 0; i < scan->num_components && scan->num_components > 1; i++) {
        if (scan->components[i].across > across) across = scan->components[i].across;
        if (scan->components[i].down > down) down = scan->components[i].down;
    }
    int64_t columns = (scan->width + 8 * across - 1) / (8 * across);
    return columns * ((scan->height + 8 * down - 1) / (8 * down));
}

/* Whole bytes after the last code; a camera may fill up with ones or zeros. */
static int judge_rest(const Scan *scan, const Bits *bits) {
    int64_t first = ((bits->at - scan->plain) * 8 - bits->have + 7) / 8;
    int64_t count = scan->num_bits / 8 - first;
    if (count <= 0) return CLEAN;
    const uint8_t *at = scan->plain + first;
    if (*at && *at != 0xff) return LEFT_OVER;
    return memcmp(at, at + 1, (size_t)count - 1) ? LEFT_OVER : UNSURE;
}

static int read_codes(Scan *scan) {
    int64_t left = count_units(scan);
    for (int restart = 0;; restart++) {
        int marker = read_segment(scan);
        int64_t units = scan->interval && scan->interval < left ? scan->interval : left;
        Bits bits = {0, scan->plain, 0};
        if (marker < 0) return UNSURE;
        for (int i = 0; i < scan->num_components; i++) scan->components[i].previous = 0;
        for (int64_t unit = 0; unit < units; unit++) {
            int found = read_unit(scan, &bits);
            if (found != CLEAN) return found;
        }
        left -= units;
        int rest = judge_rest(scan, &bits);
        if (rest != CLEAN) return rest;
        if (!left) return marker == 0xd9 ? CLEAN : UNSURE;
        if (marker != 0xd0 + restart % 8) return UNSURE;
    }
}

static int read_file(Scan *scan) {
    const uint8_t *data = scan->data;
    if (scan->size < 4 || data[0] != 0xff || data[1] != 0xd8) return UNSURE;
    for (scan->at = 2; scan->at + 4 <= scan->size;) {
        const uint8_t *at = data + scan->at;
        int marker = at[1], length = two(at + 2), found = CLEAN;
        const uint8_t *end = at + 2 + length;
        if (at[0] != 0xff || length < 2 || scan->at + 2 + length > scan->size) return UNSURE;
        scan->at += 2 + length;
        if (marker == 0xdb) found = read_quantizers(scan, at + 4, end);
        else if (marker == 0xc4) found = read_tables(scan, at + 4, end);
        else if (marker == 0xc0 || marker == 0xc1) found = read_frame(scan, at + 4, end);
        else if (marker == 0xdd && length == 4) scan->interval = two(at + 4);
        else if (marker == 0xda)
            return read_scan_header(scan, at + 4, end) == CLEAN ? read_codes(scan) : UNSURE;
        else if ((marker & 0xf0) != 0xe0 && marker != 0xfe) return UNSURE;
        if (found != CLEAN) return UNSURE;
    }
    return UNSURE;
}

/* What was found, first of all in the order of the codes. */
int gear_scan_jpeg(const uint8_t *data, int64_t size) {
    Scan *scan = calloc(1, sizeof *scan);
    uint8_t *plain = malloc((size_t)size + SLACK_BYTES);
    int found = UNSURE;
    if (scan && plain) {
        scan->data = data, scan->size = size, scan->plain = plain;
        found = read_file(scan);
    }
    free(plain);
    free(scan);
    return found;
}
