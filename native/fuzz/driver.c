/* driver: runs a target without libFuzzer: the files of its corpus, then inputs mutated from them
 * under a seed. An input that is a finding is left in a file.
 *
 *   TARGET [-t SECONDS] [-n RUNS] [-s SEED] [-o FOLDER] FILE_OR_FOLDER...
 *
 * The mutator knows the records of fuzz.h: it moves, repeats, drops, joins and cuts them with their
 * lengths kept right, and changes bytes and numbers within them. A mutated input that does what no
 * other did is not known (there is no coverage here): a few are kept at random to build upon. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

#define INPUTS_MAX 1024
#define KEPT_MAX   64 /* mutated ones to build upon */

struct input {
    uint8_t *bytes;
    size_t size;
};

static struct input inputs[INPUTS_MAX];
static uint32_t input_count, corpus_count;
static uint8_t current[FZ_INPUT_MAX]; /* what runs now, for the handler */
static size_t current_size;
static char finding_path[512];
static uint64_t runs, state;

/* From ASan, where there is one: bytes that are allocated. */
__attribute__((weak)) size_t __sanitizer_get_current_allocated_bytes(void);

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- findings ----------------------------------------------------------------------------------
 */

static void save_finding(int number) {
    static const char text[] = "\nfuzz: the input that did it is saved\n";
    int fd = open(finding_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd >= 0 && write(fd, current, current_size) == (ssize_t)current_size)
        (void)!write(STDERR_FILENO, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    signal(number, SIG_DFL);
    raise(number);
}

static void run(const uint8_t *bytes, size_t size) {
    current_size = size;
    memcpy(current, bytes, size);
    uint8_t *own = malloc(size ? size : 1); /* reading past the input would be ours */
    FZ_CHECK(own);
    memcpy(own, bytes, size);
    alarm(20); /* an input that takes longer is a finding */
    size_t before =
        __sanitizer_get_current_allocated_bytes ? __sanitizer_get_current_allocated_bytes() : 0;
    LLVMFuzzerTestOneInput(own, size);
    if (__sanitizer_get_current_allocated_bytes && runs > 10) /* stdio and tables have theirs now */
        FZ_CHECK(__sanitizer_get_current_allocated_bytes() <= before);
    alarm(0);
    free(own);
    runs++;
}

/* ---- mutation ----------------------------------------------------------------------------------
 */

static uint32_t draw(uint32_t below) {
    return below ? fz_random(&state) % below : 0;
}

struct span {
    size_t at, n;
};

/* Where the records of an input lie; returns how many there are. */
static uint32_t spans_of(const uint8_t *bytes, size_t size, struct span spans[], uint32_t max) {
    uint32_t count = 0;
    size_t at = 0;
    while (count < max && at + FZ_RECORD_BYTES <= size) {
        size_t n = FZ_RECORD_BYTES + (size_t)(bytes[at + 3] | bytes[at + 4] << 8);
        if (n > size - at)
            n = size - at;
        spans[count++] = (struct span){at, n};
        at += n;
    }
    return count;
}

static void set_length(uint8_t *record, size_t n) {
    record[3] = (uint8_t)(n - FZ_RECORD_BYTES);
    record[4] = (uint8_t)((n - FZ_RECORD_BYTES) >> 8);
}

static size_t put_in(uint8_t *bytes, size_t size, size_t at, const uint8_t *what, size_t n) {
    if (n > FZ_INPUT_MAX - size)
        return size;
    memmove(bytes + at + n, bytes + at, size - at);
    memcpy(bytes + at, what, n);
    return size + n;
}

static size_t cut_out(uint8_t *bytes, size_t size, size_t at, size_t n) {
    memmove(bytes + at, bytes + at + n, size - at - n);
    return size - n;
}

static void change_number(uint8_t *bytes, size_t size) {
    static const uint32_t edges[] = {
        0,       1,        2,        3,        31,         32,         33,         63,
        64,      65,       0x7f,     0x80,     0xff,       0x7fff,     0x8000,     0xffff,
        0x10000, 0x3fffff, 0x400000, 0x400001, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
    size_t width = (size_t)1 << draw(4);
    if (size < width)
        return;
    size_t at = draw((uint32_t)(size - width + 1));
    uint64_t value = 0;
    memcpy(&value, bytes + at, width);
    switch (draw(3)) {
    case 0:
        value = edges[draw(sizeof edges / sizeof *edges)];
        break;
    case 1:
        value += draw(9) - 4u;
        break;
    default:
        value ^= UINT64_C(1) << draw((uint32_t)width * 8);
    }
    memcpy(bytes + at, &value, width);
}

/* A record grows or shrinks by a few bytes or to a length that matters; its number is kept right.
 */
static size_t resize_record(uint8_t *bytes, size_t size, struct span span) {
    static const uint16_t lengths[] = {0, 1, 31, 32, 33, 63, 64, 65, 96, 97, 128, 600};
    size_t have = span.n - FZ_RECORD_BYTES;
    size_t want = draw(2) ? lengths[draw(12)] : have + draw(17);
    if (want < have)
        size = cut_out(bytes, size, span.at + FZ_RECORD_BYTES + want, have - want);
    uint8_t more[1024];
    size_t extra = want > have ? want - have : 0;
    for (size_t i = 0; i < extra; i++)
        more[i] = draw(2) ? 0 : (uint8_t)draw(256);
    if (extra > FZ_INPUT_MAX - size)
        return size;
    size = put_in(bytes, size, span.at + span.n - (want < have ? have - want : 0), more, extra);
    set_length(bytes + span.at, FZ_RECORD_BYTES + want);
    return size;
}

static size_t mutate_once(uint8_t *bytes, size_t size) {
    struct span spans[512];
    uint32_t count = spans_of(bytes, size, spans, 512);
    if (!count) {
        static const uint8_t fresh[FZ_RECORD_BYTES + 4] = {0, 0, 0, 4, 0};
        return put_in(bytes, size, 0, fresh, sizeof fresh);
    }
    struct span one = spans[draw(count)], two = spans[draw(count)];
    uint8_t copy[FZ_INPUT_MAX];
    memcpy(copy, bytes + one.at, one.n);
    switch (draw(12)) {
    case 0: /* repeated elsewhere */
        return put_in(bytes, size, two.at, copy, one.n);
    case 1: /* dropped */
        return count > 1 ? cut_out(bytes, size, one.at, one.n) : size;
    case 2: { /* one of another input, at any place */
        const struct input *other = &inputs[draw(input_count)];
        struct span theirs[512];
        uint32_t n = spans_of(other->bytes, other->size, theirs, 512);
        if (!n)
            return size;
        struct span from = theirs[draw(n)];
        return put_in(bytes, size, one.at, other->bytes + from.at, from.n);
    }
    case 3: { /* the rest from another input */
        const struct input *other = &inputs[draw(input_count)];
        struct span theirs[512];
        uint32_t n = spans_of(other->bytes, other->size, theirs, 512);
        if (!n)
            return size;
        struct span from = theirs[draw(n)];
        size_t rest = other->size - from.at;
        rest = rest < FZ_INPUT_MAX - one.at ? rest : FZ_INPUT_MAX - one.at;
        memcpy(bytes + one.at, other->bytes + from.at, rest);
        return one.at + rest;
    }
    case 4:
        return resize_record(bytes, size, one);
    case 5: /* another kind of record, or for another member */
        bytes[one.at + draw(2)] = (uint8_t)draw(256);
        return size;
    case 6:
        bytes[one.at + 2] = draw(3) ? 0 : (uint8_t)draw(256);
        return size;
    case 7: /* any bit of all */
        bytes[draw((uint32_t)size)] ^= (uint8_t)(1u << draw(8));
        return size;
    default:
        change_number(bytes + one.at + FZ_RECORD_BYTES, one.n - FZ_RECORD_BYTES);
        return size;
    }
}

static void mutate_and_run(void) {
    static uint8_t bytes[FZ_INPUT_MAX];
    const struct input *from = &inputs[draw(input_count)];
    size_t size = from->size;
    memcpy(bytes, from->bytes, size);
    for (uint32_t left = 1 + draw(6); left; left--)
        size = mutate_once(bytes, size);
    run(bytes, size);
    if (draw(20) || corpus_count == INPUTS_MAX)
        return;
    uint32_t place = corpus_count + draw(KEPT_MAX);
    if (place >= input_count)
        place = input_count < INPUTS_MAX ? input_count++ : INPUTS_MAX - 1;
    uint8_t *kept = malloc(size ? size : 1);
    FZ_CHECK(kept);
    memcpy(kept, bytes, size);
    free(inputs[place].bytes);
    inputs[place] = (struct input){kept, size};
}

/* ---- corpus ------------------------------------------------------------------------------------
 */

static void load(const char *path);

static void load_folder(const char *path) {
    struct dirent **names;
    int count = scandir(path, &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char inner[1024];
        snprintf(inner, sizeof inner, "%s/%s", path, names[i]->d_name);
        if (names[i]->d_name[0] != '.')
            load(inner);
        free(names[i]);
    }
    if (count >= 0)
        free(names);
}

static void load(const char *path) {
    struct stat stat_of;
    if (stat(path, &stat_of) == 0 && S_ISDIR(stat_of.st_mode)) {
        load_folder(path);
        return;
    }
    FILE *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "fuzz: cannot read %s\n", path);
        exit(2);
    }
    struct input *input = &inputs[input_count];
    uint8_t *bytes = malloc(FZ_INPUT_MAX);
    FZ_CHECK(bytes && input_count < INPUTS_MAX);
    *input = (struct input){bytes, fread(bytes, 1, FZ_INPUT_MAX, file)};
    input_count++;
    fclose(file);
}

int main(int argc, char **argv) {
    double seconds = 0;
    uint64_t runs_max = UINT64_MAX, seed = 1;
    const char *folder = ".";
    int option;
    while ((option = getopt(argc, argv, "t:n:s:o:")) != -1)
        switch (option) {
        case 't':
            seconds = atof(optarg);
            break;
        case 'n':
            runs_max = strtoull(optarg, NULL, 10);
            break;
        case 's':
            seed = strtoull(optarg, NULL, 10);
            break;
        case 'o':
            folder = optarg;
            break;
        default:
            return 2;
        }
    for (; optind < argc; optind++)
        load(argv[optind]);
    snprintf(finding_path, sizeof finding_path, "%s/finding-%llu", folder,
             (unsigned long long)seed);
    signal(SIGABRT, save_finding);
    signal(SIGALRM, save_finding);
    if (!__sanitizer_get_current_allocated_bytes) /* ASan's own says more, and then aborts */
        signal(SIGSEGV, save_finding);
    state = seed;
    if (runs_max != UINT64_MAX && seconds <= 0)
        seconds = 3600;
    for (uint32_t i = 0; i < input_count; i++)
        run(inputs[i].bytes, inputs[i].size);
    corpus_count = input_count;
    printf("corpus: %lu inputs\n", runs);
    fz_summary(stdout);
    fflush(stdout);
    double start = now_s();
    uint64_t before = runs;
    while (input_count && runs - before < runs_max && now_s() - start < seconds)
        mutate_and_run();
    double took = now_s() - start;
    printf("mutated: %lu inputs in %.1f s (%.0f/s), seed %llu\n", runs - before, took,
           took > 0 ? (double)(runs - before) / took : 0.0, (unsigned long long)seed);
    fz_summary(stdout);
    for (uint32_t i = 0; i < input_count; i++)
        free(inputs[i].bytes);
    return 0;
}
