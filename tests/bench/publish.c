/* Publishes numbered and stamped events at an even rate, and measures how soon they are answered.
 *
 *     publish --port 8080 --path '/stream/bench/load/%d' --wrap --rate 2 --events 20
 *
 * Event k goes to topic k % topics as its number k / topics, with the clock of the moment before its request is sent. A
 * topic has one connection, since two would let the server take its events in either order; a request follows the last
 * one of its connection when that is answered, or, with --window W, when fewer than W wait (HTTP pipelining). Where the
 * server doesn't keep up, events are sent late and it says so: the stamp doesn't hide what the schedule shows.
 *
 * --rate 0 sends as fast as answers come, on each connection. It stops after --events or --seconds, at the latest after
 * --limit, and waits for what isn't answered. --batch B puts up to B events in one request, as the array that
 * POST /stream/publish takes: with a rate, those that are due, at most one request in --every ms. --xadd speaks RESP
 * instead and adds to streams of a Valkey at --unix.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 256, WINDOW_MAX = 4096, ANSWER_BYTES = 1 << 20, REQUEST_BYTES = 16 << 20 };

struct connection {
    int fd;
    uint64_t sent, answered;
    uint64_t sent_ns[WINDOW_MAX];
    char *in;
    size_t in_bytes;
};

static struct {
    uint16_t port;
    const char *path, *topic, *unix_path;
    char headers[8192];
    bool wrap, xadd;
    unsigned topics, connections, window, batch, size;
    double rate, seconds, limit, every;
    uint64_t events;
} options = {.path = "/",
             .topic = "bench/load/%d",
             .topics = 1,
             .connections = 1,
             .window = 1,
             .batch = 1,
             .size = 200,
             .limit = 60};

static struct {
    uint64_t events, requests, errors;
    struct histogram late, answer;
} total;

static struct connection connections[CONNECTIONS_MAX];
static char *body, *request;

/* Puts the topic's number into the hole of a path or name. */
static int fill(char *to, size_t room, const char *from, unsigned topic) {
    const char *hole = strstr(from, "%d");
    if (!hole) return snprintf(to, room, "%s", from);
    return snprintf(to, room, "%.*s%u%s", (int)(hole - from), from, topic, hole + 2);
}

static size_t write_data(char *to, uint64_t number, uint64_t stamp) {
    size_t n = (size_t)sprintf(to, "{\"t\":%lu,\"i\":%lu,\"pad\":\"", stamp, number);
    for (; n + 2 < options.size; n++) to[n] = (char)('a' + n % 26);
    to[n++] = '"';
    to[n++] = '}';
    return n;
}

static size_t write_request(uint64_t event, unsigned events, uint64_t stamp) {
    char name[4096];
    size_t n = 0;
    unsigned topic = (unsigned)(event % options.topics);
    if (options.batch > 1) {
        for (unsigned i = 0; i < events; i++) {
            fill(name, sizeof name, options.topic, (unsigned)((event + i) % options.topics));
            n += (size_t)sprintf(body + n, "%c{\"topic\":\"%s\",\"event\":\"update\",\"data\":", i ? ',' : '[', name);
            n += write_data(body + n, (event + i) / options.topics, stamp);
            body[n++] = '}';
        }
        body[n++] = ']';
    } else {
        if (options.wrap) n += (size_t)sprintf(body, "{\"event\":\"update\",\"data\":");
        n += write_data(body + n, event / options.topics, stamp);
        if (options.wrap) body[n++] = '}';
    }
    int name_bytes = fill(name, sizeof name, options.xadd ? options.topic : options.path, topic);
    size_t head;
    if (options.xadd)
        head = (size_t)sprintf(request, "*5\r\n$4\r\nXADD\r\n$%d\r\n%s\r\n$1\r\n*\r\n$1\r\nd\r\n$%zu\r\n", name_bytes,
                               name, n);
    else
        head = (size_t)sprintf(
            request,
            "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nContent-Type: application/json\r\n%sContent-Length: %zu\r\n\r\n",
            name, options.port, options.headers, n);
    memcpy(request + head, body, n);
    if (options.xadd) body[n] = 0, memcpy(request + head + n, "\r\n", 2), n += 2;
    return head + n;
}

static void send_events(struct connection *c, uint64_t event, unsigned events) {
    uint64_t stamp = c->sent_ns[c->sent % WINDOW_MAX] = now_ns();
    size_t bytes = write_request(event, events, stamp);
    /* Blocking, under the socket's timeout: answers are small and a window of them fits the receive buffer. */
    for (size_t at = 0; at < bytes;) {
        ssize_t sent = send(c->fd, request + at, bytes - at, MSG_NOSIGNAL);
        if (sent <= 0) die("send: %s", strerror(errno));
        at += (size_t)sent;
    }
    c->sent++;
    total.requests++;
    total.events += events;
}

/* How long the first answer of the buffer is; 0: not whole yet. */
static size_t answer_bytes(char *in, size_t bytes, bool *good) {
    if (options.xadd) {
        char *line = memmem(in, bytes, "\r\n", 2);
        *good = in[0] == '$';
        if (!line || !*good) return line ? (size_t)(line - in) + 2 : 0;
        size_t whole = (size_t)(line - in) + 2 + strtoul(in + 1, 0, 10) + 2;
        return bytes >= whole ? whole : 0;
    }
    char *end = memmem(in, bytes, "\r\n\r\n", 4);
    if (!end) return 0;
    *end = 0;
    size_t head = (size_t)(end - in) + 4, whole = head;
    char *length = strcasestr(in, "\r\ncontent-length:");
    *good = bytes > 9 && in[9] == '2';
    if (length) {
        whole += strtoul(length + 17, 0, 10);
    } else if (strcasestr(in, "\r\ntransfer-encoding: chunked")) {
        char *last = memmem(in + head - 2, bytes - head + 2, "\r\n0\r\n\r\n", 7);
        whole = last ? (size_t)(last - in) + 7 : bytes + 1;
    }
    *end = '\r';
    return bytes >= whole ? whole : 0;
}

static void read_answers(struct connection *c) {
    ssize_t got = recv(c->fd, c->in + c->in_bytes, ANSWER_BYTES - c->in_bytes, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) die("the server closed the publisher's connection after %lu answers", c->answered);
    c->in_bytes += (size_t)got;
    uint64_t now = now_ns();
    size_t at = 0, n;
    for (bool good; at < c->in_bytes && (n = answer_bytes(c->in + at, c->in_bytes - at, &good)); at += n) {
        if (!good && !total.errors++) fprintf(stderr, "publish: %.*s\n", (int)(n > 600 ? 600 : n), c->in + at);
        record(&total.answer, now - c->sent_ns[c->answered++ % WINDOW_MAX]);
    }
    memmove(c->in, c->in + at, c->in_bytes - at);
    c->in_bytes -= at;
    if (c->in_bytes == ANSWER_BYTES) die("an answer of more than %d bytes", ANSWER_BYTES);
}

static bool has_room(const struct connection *c) { return c->sent - c->answered < options.window; }

static void open_connection(struct connection *c) {
    int one = 1;
    struct timeval patience = {.tv_sec = 10};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in inet = {
        .sin_family = AF_INET, .sin_port = htons(options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (options.unix_path) snprintf(local.sun_path, sizeof local.sun_path, "%s", options.unix_path);
    c->fd = socket(options.unix_path ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
    if (options.unix_path ? connect(c->fd, (struct sockaddr *)&local, sizeof local)
                          : connect(c->fd, (struct sockaddr *)&inet, sizeof inet))
        die("connect: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (!(c->in = malloc(ANSWER_BYTES))) die("out of memory");
}

static void parse_options(int argc, char **argv) {
    static const struct option long_options[] = {
        {"port", 1, 0, 'p'},   {"path", 1, 0, 'P'},   {"unix", 1, 0, 'u'},        {"topic", 1, 0, 'T'},
        {"header", 1, 0, 'h'}, {"wrap", 0, 0, 'w'},   {"xadd", 0, 0, 'x'},        {"topics", 1, 0, 't'},
        {"window", 1, 0, 'W'}, {"batch", 1, 0, 'b'},  {"every", 1, 0, 'E'},       {"size", 1, 0, 'z'},
        {"rate", 1, 0, 'r'},   {"events", 1, 0, 'e'}, {"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'},
        {"limit", 1, 0, 'l'},  {0, 0, 0, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", long_options, 0)) != -1;) {
        switch (option) {
        case 'p': options.port = (uint16_t)atoi(optarg); break;
        case 'P': options.path = optarg; break;
        case 'u': options.unix_path = optarg; break;
        case 'T': options.topic = optarg; break;
        case 'w': options.wrap = true; break;
        case 'x': options.xadd = true; break;
        case 't': options.topics = (unsigned)atoi(optarg); break;
        case 'c': options.connections = (unsigned)atoi(optarg); break;
        case 'W': options.window = (unsigned)atoi(optarg); break;
        case 'E': options.every = atof(optarg); break;
        case 'b': options.batch = (unsigned)atoi(optarg); break;
        case 'z': options.size = (unsigned)atoi(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 's': options.seconds = atof(optarg); break;
        case 'l': options.limit = atof(optarg); break;
        case 'e': options.events = strtoull(optarg, 0, 10); break;
        case 'h':
            if (strlen(options.headers) + strlen(optarg) + 3 > sizeof options.headers) die("too many headers");
            strcat(strcat(options.headers, optarg), "\r\n");
            break;
        default: exit(2);
        }
    }
    if (!options.topics || !options.connections || !options.window || !options.batch ||
        options.connections > CONNECTIONS_MAX || options.window > WINDOW_MAX || options.batch > 1000 ||
        options.size > 8192 || (!options.events && options.seconds <= 0) || (!options.port && !options.unix_path))
        die("a server, a number of events or seconds, and sane counts are needed");
    if (!options.events) options.events = UINT64_MAX;
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    body = malloc(REQUEST_BYTES);
    request = malloc(REQUEST_BYTES);
    if (!body || !request) die("out of memory");
    struct pollfd polls[CONNECTIONS_MAX];
    for (unsigned i = 0; i < options.connections; i++) {
        open_connection(&connections[i]);
        polls[i] = (struct pollfd){.fd = connections[i].fd, .events = POLLIN};
    }

    double cpu = cpu_s();
    uint64_t begin = now_ns(), next = 0, unanswered = 0, limit = (uint64_t)(options.limit * 1e9);
    uint64_t sent = 0, every = (uint64_t)(options.every * 1e6);
    uint64_t end = begin + (options.seconds > 0 ? (uint64_t)(options.seconds * 1e9) : limit);
    for (;;) {
        uint64_t now = now_ns(), due = 0;
        /* The answers of what was sent are still waited for: how many events were taken must be known. */
        if (now > end) options.events = next;
        while (next < options.events) {
            struct connection *c = 0;
            uint64_t events = options.events - next < options.batch ? options.events - next : options.batch;
            if (options.rate > 0) {
                uint64_t owed = (uint64_t)((double)(now - begin) / 1e9 * options.rate) + 1;
                uint64_t scheduled = begin + (uint64_t)((double)next / options.rate * 1e9);
                due = scheduled > sent + every ? scheduled : sent + every;
                if (now < due || owed <= next) break;
                c = &connections[next % options.topics % options.connections];
                if (!has_room(c)) break;
                record(&total.late, now - scheduled);
                if (events > owed - next) events = owed - next;
            } else {
                for (unsigned i = 0; i < options.connections && !c; i++)
                    if (has_room(&connections[i])) c = &connections[i];
                if (!c) break;
            }
            send_events(c, next, (unsigned)events);
            next += events;
            sent = now;
            now = now_ns();
        }
        unanswered = 0;
        for (unsigned i = 0; i < options.connections; i++) unanswered += connections[i].sent - connections[i].answered;
        if ((next >= options.events && !unanswered) || now > end + limit) break;
        /* To the next due moment, not beyond; a request that waits for room in a window is woken by an answer. */
        uint64_t wait = due > now ? due - now : 100000000u;
        struct timespec timeout = {.tv_sec = (time_t)(wait / 1000000000u), .tv_nsec = (long)(wait % 1000000000u)};
        if (ppoll(polls, options.connections, &timeout, 0) > 0)
            for (unsigned i = 0; i < options.connections; i++)
                if (polls[i].revents) read_answers(&connections[i]);
    }
    double seconds = (double)(now_ns() - begin) / 1e9;
    printf("{\"events\":%lu,\"requests\":%lu,\"errors\":%lu,\"unanswered\":%lu,\"seconds\":%.3f,\"cpu_s\":%.3f,",
           total.events, total.requests, total.errors, unanswered, seconds, cpu_s() - cpu);
    print_histogram("", &total.answer);
    putchar(',');
    print_histogram("late_", &total.late);
    printf("}\n");
    return 0;
}
