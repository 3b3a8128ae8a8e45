/* Subscribes with N connections over SSE and measures when each event arrives, and whether each arrives once.
 *
 *     load --port 8080 --path '/stream/bench/load/%d/v1/live' --streams 10000 --hello 'event: hello'
 *
 * It opens the connections, prints "ready" when every one has its response head and the line that --hello asks for, and
 * then reads. An event's data carries the publisher's clock and its number, `{"t":<ns>,"i":<n>,...}`; the numbers of a
 * topic begin with 0 and leave none out. A line on stdin says how many events each connection should have got, which is
 * known when the publisher has ended (a server that can't keep up gets fewer). When all have them, or at the end of
 * stdin or SIGTERM, it prints one line of JSON and ends.
 *
 * It shares the machine with the server it measures, so it must be cheap: one thread, one read(2) for each socket that
 * is ready, one clock reading for each read, no parsing beyond memchr for the line and memmem for the two numbers.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    READ_BYTES = 256 * 1024, /* one read takes all that a burst left in the socket, mostly */
    LINE_BYTES_MAX = 1 << 20,
    READY_AT_ONCE = 1024,
};

enum state { HEAD, CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_DATA, CHUNK_END, UNCHUNKED, CLOSED };

struct stream {
    int fd;
    enum state state;
    bool greeted;
    uint64_t chunk_left; /* bytes of the chunk that are still to come; while reading a size: the size so far */
    uint64_t next;       /* the number that the next event should have */
    uint64_t seen;       /* bit b: number next - 1 - b has come; tells a late event from a repeated one */
    char *carry;         /* the begin of a line (or of the head) whose end is in a later read */
    uint32_t carry_bytes, carry_room;
};

static struct {
    uint16_t port;
    const char *path, *hello;
    char headers[8192];
    unsigned streams, topics, sources, pending, connect_rate, read_bytes;
    uint64_t warmup;
} options = {.path = "/",
             .hello = "",
             .streams = 1,
             .topics = 1,
             .sources = 1,
             .pending = 128,
             .connect_rate = 5000,
             .read_bytes = READ_BYTES};

static struct {
    uint64_t events, lost, repeated, reordered, other, bytes, reads, closed, byes;
    uint64_t first_ns, last_ns;
    unsigned opened, greeted, complete;
    struct histogram latency;
} total;

static struct stream *streams;
static uint64_t expected = UINT64_MAX; /* events for each connection */
static int epoll_fd;
static volatile sig_atomic_t stopping;

static void stop(int number) {
    (void)number;
    stopping = 1;
}

/* The number after `"name":` in a line, which isn't terminated, so strtoull can't have it. */
static bool number_after(const char *line, size_t bytes, const char *name, uint64_t *value) {
    const char *at = memmem(line, bytes, name, 4), *end = line + bytes;
    if (!at) return false;
    for (at += 4; at < end && *at == ' ';) at++;
    if (at == end || *at < '0' || *at > '9') return false;
    for (*value = 0; at < end && *at >= '0' && *at <= '9'; at++) *value = *value * 10 + (uint64_t)(*at - '0');
    return true;
}

static void count(struct stream *s, uint64_t number, uint64_t stamp, uint64_t now) {
    total.events++;
    if (number >= s->next) {
        uint64_t step = number - s->next + 1;
        total.lost += step - 1;
        s->seen = step < 64 ? s->seen << step | 1 : 1;
        if (s->next < expected && number + 1 >= expected) total.complete++;
        s->next = number + 1;
    } else {
        uint64_t back = s->next - 1 - number;
        if (back < 64 && !(s->seen >> back & 1)) {
            s->seen |= (uint64_t)1 << back;
            total.reordered++;
            total.lost--; /* was counted as lost when its follower came */
        } else {
            total.repeated++;
        }
    }
    if (number < options.warmup) return;
    if (!total.first_ns) total.first_ns = now;
    total.last_ns = now;
    record(&total.latency, now > stamp ? now - stamp : 0);
}

static void take_line(struct stream *s, const char *line, size_t bytes, uint64_t now) {
    uint64_t stamp, number;
    if (bytes > 5 && !memcmp(line, "data:", 5)) {
        if (number_after(line, bytes, "\"t\":", &stamp) && number_after(line, bytes, "\"i\":", &number))
            count(s, number, stamp, now);
        else total.other++;
        return;
    }
    if (!s->greeted && bytes >= strlen(options.hello) && !memcmp(line, options.hello, strlen(options.hello))) {
        s->greeted = true;
        total.greeted++;
    }
    if (bytes >= 10 && !memcmp(line, "event: bye", 10)) total.byes++;
}

static void carry(struct stream *s, const char *bytes, size_t n) {
    if (s->carry_bytes + n > LINE_BYTES_MAX) die("a line of more than %d bytes", LINE_BYTES_MAX);
    if (s->carry_bytes + n > s->carry_room) {
        s->carry_room = (uint32_t)(s->carry_bytes + n + 512);
        if (!(s->carry = realloc(s->carry, s->carry_room))) die("out of memory");
    }
    memcpy(s->carry + s->carry_bytes, bytes, n);
    s->carry_bytes += (uint32_t)n;
}

/* A piece of the body, cut anywhere. */
static void take_body(struct stream *s, const char *at, size_t bytes, uint64_t now) {
    const char *end = at + bytes, *newline;
    if (s->carry_bytes) {
        newline = memchr(at, '\n', bytes);
        carry(s, at, newline ? (size_t)(newline - at) : bytes);
        if (!newline) return;
        take_line(s, s->carry, s->carry_bytes, now);
        s->carry_bytes = 0;
        at = newline + 1;
    }
    for (; (newline = memchr(at, '\n', (size_t)(end - at))); at = newline + 1)
        take_line(s, at, (size_t)(newline - at), now);
    if (at < end) carry(s, at, (size_t)(end - at));
}

/* Collects the head; returns how many of these bytes belonged to it. */
static size_t take_head(struct stream *s, const char *at, size_t bytes) {
    uint32_t before = s->carry_bytes;
    carry(s, at, bytes);
    char *end = memmem(s->carry, s->carry_bytes, "\r\n\r\n", 4);
    if (!end) return bytes;
    size_t head = (size_t)(end - s->carry) + 4;
    *end = 0;
    if (s->carry_bytes < 12 || memcmp(s->carry + 8, " 200", 4))
        die("refused: %.200s\n%.*s", s->carry, (int)(s->carry_bytes - head > 300 ? 300 : s->carry_bytes - head),
            s->carry + head);
    /* Without chunks the body ends with the connection, which suits a stream as well. */
    s->state = strcasestr(s->carry, "\r\ntransfer-encoding: chunked") ? CHUNK_SIZE : UNCHUNKED;
    s->chunk_left = s->carry_bytes = 0;
    if (!*options.hello) {
        s->greeted = true;
        total.greeted++;
    }
    return head - before;
}

static void hang_up(struct stream *s) {
    if (s->state == CLOSED) return;
    close(s->fd);
    s->state = CLOSED;
    total.closed++;
}

/* RFC 9112, 7.1: a size line, the data, CRLF. All three may be cut anywhere, as may an event inside the data. */
static void take(struct stream *s, const char *at, size_t bytes, uint64_t now) {
    const char *end = at + bytes;
    while (at < end) {
        size_t step;
        switch (s->state) {
        case HEAD: at += take_head(s, at, (size_t)(end - at)); break;
        case CHUNK_SIZE:
            if (*at >= '0' && *at <= '9') s->chunk_left = s->chunk_left << 4 | (uint64_t)(*at - '0');
            else if ((*at | 32) >= 'a' && (*at | 32) <= 'f')
                s->chunk_left = s->chunk_left << 4 | (uint64_t)((*at | 32) - 'a' + 10);
            else if (*at == '\n') s->state = s->chunk_left ? CHUNK_DATA : CLOSED;
            else if (*at != '\r') s->state = CHUNK_EXTENSION;
            at++;
            if (s->state == CLOSED) {
                s->state = CHUNK_END; /* so that hang_up() closes it */
                hang_up(s);
                return;
            }
            break;
        case CHUNK_EXTENSION:
            if (*at++ == '\n') s->state = CHUNK_DATA;
            break;
        case CHUNK_DATA:
            step = (size_t)(end - at) < s->chunk_left ? (size_t)(end - at) : (size_t)s->chunk_left;
            take_body(s, at, step, now);
            at += step;
            if (!(s->chunk_left -= step)) s->state = CHUNK_END;
            break;
        case CHUNK_END:
            if (*at++ == '\n') s->state = CHUNK_SIZE;
            break;
        case UNCHUNKED: take_body(s, at, (size_t)(end - at), now); return;
        case CLOSED: return;
        }
    }
}

static void open_stream(unsigned index) {
    struct stream *s = &streams[index];
    int one = 1;
    if ((s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0)
        die("socket: %s", strerror(errno));
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    /* Several source addresses, since one has 28,000 ports, and those of the last round rest in TIME_WAIT. Without
     * IP_BIND_ADDRESS_NO_PORT bind(2) would take a port that no other connection from this address has to anywhere. */
    setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    struct sockaddr_in from = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK + index % options.sources)};
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(s->fd, (struct sockaddr *)&from, sizeof from)) die("bind: %s", strerror(errno));
    if (connect(s->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect: %s", strerror(errno));
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = s};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, s->fd, &event)) die("epoll_ctl: %s", strerror(errno));
    total.opened++;
}

static void send_request(struct stream *s) {
    char request[16384], path[4096];
    int error;
    socklen_t size = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) die("connect: %s", strerror(error));
    char *hole = strstr(options.path, "%d");
    if (hole)
        snprintf(path, sizeof path, "%.*s%u%s", (int)(hole - options.path), options.path,
                 (unsigned)(s - streams) % options.topics, hole + 2);
    else snprintf(path, sizeof path, "%s", options.path);
    int bytes = snprintf(request, sizeof request,
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nAccept: text/event-stream\r\n%s\r\n", path,
                         options.port, options.headers);
    if (send(s->fd, request, (size_t)bytes, MSG_NOSIGNAL) != bytes) die("send: %s", strerror(errno));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, s->fd, &event);
}

static void read_stream(struct stream *s) {
    static char buffer[READ_BYTES];
    ssize_t bytes = read(s->fd, buffer, options.read_bytes);
    if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (bytes <= 0) {
        if (!s->greeted) die("connection %u ended before it was a stream", (unsigned)(s - streams));
        hang_up(s);
        return;
    }
    total.bytes += (uint64_t)bytes;
    total.reads++;
    take(s, buffer, (size_t)bytes, now_ns());
}

static void take_command(void) {
    char command[64];
    ssize_t bytes = read(STDIN_FILENO, command, sizeof command - 1);
    if (bytes <= 0) {
        stopping = 1;
        return;
    }
    command[bytes] = 0;
    expected = strtoull(command, 0, 10);
    total.complete = 0;
    for (unsigned i = 0; i < options.streams; i++) total.complete += streams[i].next >= expected;
}

static bool wait_and_read(int timeout_ms) {
    static struct epoll_event ready[READY_AT_ONCE];
    int n = epoll_wait(epoll_fd, ready, READY_AT_ONCE, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct stream *s = ready[i].data.ptr;
        if (!s) {
            take_command();
        } else if (ready[i].events & EPOLLOUT) {
            send_request(s);
        } else {
            read_stream(s);
        }
    }
    return !stopping;
}

static void parse_options(int argc, char **argv) {
    static const struct option long_options[] = {
        {"port", 1, 0, 'p'},         {"path", 1, 0, 'P'},       {"header", 1, 0, 'h'},  {"hello", 1, 0, 'H'},
        {"streams", 1, 0, 's'},      {"topics", 1, 0, 't'},     {"sources", 1, 0, 'S'}, {"pending", 1, 0, 'a'},
        {"connect-rate", 1, 0, 'r'}, {"read-bytes", 1, 0, 'b'}, {"warmup", 1, 0, 'w'},  {0, 0, 0, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", long_options, 0)) != -1;) {
        switch (option) {
        case 'p': options.port = (uint16_t)atoi(optarg); break;
        case 'P': options.path = optarg; break;
        case 'H': options.hello = optarg; break;
        case 's': options.streams = (unsigned)atoi(optarg); break;
        case 't': options.topics = (unsigned)atoi(optarg); break;
        case 'S': options.sources = (unsigned)atoi(optarg); break;
        case 'a': options.pending = (unsigned)atoi(optarg); break;
        case 'r': options.connect_rate = (unsigned)atoi(optarg); break;
        /* For its own test: with 1 everything is cut everywhere. */
        case 'b': options.read_bytes = (unsigned)atoi(optarg); break;
        case 'w': options.warmup = strtoull(optarg, 0, 10); break;
        case 'h':
            if (strlen(options.headers) + strlen(optarg) + 3 > sizeof options.headers) die("too many headers");
            strcat(strcat(options.headers, optarg), "\r\n");
            break;
        default: exit(2);
        }
    }
    if (!options.port || !options.streams || !options.topics || !options.sources || !options.pending ||
        !options.connect_rate || !options.read_bytes || options.read_bytes > READ_BYTES)
        die("--port is needed, no count may be 0, and a read has a bound");
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < options.streams + 16)
        die("%u streams need more than the %lu files allowed (ulimit -Hn)", options.streams,
            (unsigned long)files.rlim_cur);
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    if (!(streams = calloc(options.streams, sizeof *streams)) || (epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0)
        die("out of memory");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = 0};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event)) die("stdin must be a pipe: %s", strerror(errno));

    uint64_t begin = now_ns();
    while (total.greeted < options.streams) {
        uint64_t due = (now_ns() - begin) * options.connect_rate / 1000000000u + 1;
        while (total.opened < options.streams && total.opened < due && total.opened - total.greeted < options.pending)
            open_stream(total.opened);
        if (!wait_and_read(1)) return 1;
    }
    double connect_s = (double)(now_ns() - begin) / 1e9;
    printf("ready\n");
    fflush(stdout);

    double cpu = cpu_s();
    begin = now_ns();
    total.bytes = total.reads = 0;
    while (total.complete < options.streams && wait_and_read(-1)) {
    }
    double seconds = (double)(now_ns() - begin) / 1e9;
    cpu = cpu_s() - cpu;
    for (unsigned i = 0; i < options.streams; i++)
        if (expected != UINT64_MAX && streams[i].next < expected) total.lost += expected - streams[i].next;
    printf("{\"streams\":%u,\"events\":%lu,\"lost\":%lu,\"repeated\":%lu,\"reordered\":%lu,\"other\":%lu,\"closed\":%"
           "lu,\"byes\":%lu,",
           options.streams, total.events, total.lost, total.repeated, total.reordered, total.other, total.closed,
           total.byes);
    print_histogram("", &total.latency);
    printf(",\"measured\":%lu,\"span_s\":%.3f,\"seconds\":%.3f,\"connect_s\":%.3f,\"cpu_s\":%.3f,\"bytes\":%lu,"
           "\"reads\":%lu}\n",
           total.latency.count, (double)(total.last_ns - total.first_ns) / 1e9, seconds, connect_s, cpu, total.bytes,
           total.reads);
    return 0;
}
