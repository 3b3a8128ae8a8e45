/* The least that a fan-out over HTTP can be: one thread which calls send(2) for each subscriber in turn.
 *
 *     bare PORT
 *
 * GET answers an SSE head and keeps the connection; the body of a POST goes to all of those as one event, and is
 * answered when it has gone to all. No topics, no log, no resume, no auth, no chunks: it is no server anyone could use,
 * but the floor against which the others are measured, since the kernel's work for a socket is the same for all.
 *
 * The events that one read(2) of a publisher brought (it may pipeline) go out in one send, as a fan-out that wants to
 * be fast would do. What a full socket doesn't take is kept, up to a bound, and sent when epoll says so.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    FILES_MAX = 1 << 20,
    REQUEST_BYTES_MAX = 1 << 20,
    WAITING_BYTES_MAX = 4 << 20, /* of one subscriber; one that lags by more is cut off */
    READY_AT_ONCE = 1024,
};

struct buffer {
    char *bytes;
    size_t size, room;
};

struct connection {
    int fd;
    bool subscribed;
    size_t place;          /* in the list of subscribers */
    struct buffer in, out; /* a request not yet whole; what the socket didn't take */
};

static struct connection *by_fd[FILES_MAX];
static struct connection **subscribers;
static size_t subscribed;
static int epoll_fd;
static uint64_t number;

static void append(struct buffer *b, const char *bytes, size_t n) {
    if (b->size + n > b->room) {
        b->room = (b->size + n) * 2;
        if (!(b->bytes = realloc(b->bytes, b->room))) die("out of memory");
    }
    memcpy(b->bytes + b->size, bytes, n);
    b->size += n;
}

static void take_off(struct buffer *b, size_t n) {
    memmove(b->bytes, b->bytes + n, b->size - n);
    b->size -= n;
}

static void forget(struct connection *c) {
    if (c->subscribed) {
        subscribers[c->place] = subscribers[--subscribed];
        subscribers[c->place]->place = c->place;
    }
    by_fd[c->fd] = 0;
    close(c->fd);
    free(c->in.bytes);
    free(c->out.bytes);
    free(c);
}

static void watch(struct connection *c, uint32_t events, int how) {
    struct epoll_event event = {.events = events, .data.fd = c->fd};
    if (epoll_ctl(epoll_fd, how, c->fd, &event)) die("epoll_ctl: %s", strerror(errno));
}

/* False: the connection is gone. */
static bool push(struct connection *c, const char *bytes, size_t n) {
    ssize_t sent = 0;
    if (!c->out.size) {
        sent = send(c->fd, bytes, n, MSG_NOSIGNAL);
        if (sent == (ssize_t)n) return true;
        if (sent < 0 && errno != EAGAIN) return false;
        if (sent < 0) sent = 0;
        watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
    if (c->out.size + n > WAITING_BYTES_MAX) return false;
    append(&c->out, bytes + sent, n - (size_t)sent);
    return true;
}

static void fan_out(struct buffer *events) {
    /* Backwards, since forget() puts the last one in the place of the one that goes. */
    for (size_t i = subscribed; i-- > 0;)
        if (!push(subscribers[i], events->bytes, events->size)) forget(subscribers[i]);
    events->size = 0;
}

/* All whole requests of the buffer. False: the connection is gone. */
static bool serve(struct connection *c) {
    static const char stream_head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: "
                                      "no-store\r\n\r\nevent: hello\ndata: {}\n\n";
    static const char created[] = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
    static struct buffer events, answers;
    size_t at = 0;
    answers.size = 0;
    for (;;) {
        char *request = c->in.bytes + at, *end = memmem(request, c->in.size - at, "\r\n\r\n", 4);
        if (!end) break;
        *end = 0;
        if (!memcmp(request, "GET ", 4)) {
            c->subscribed = true;
            c->place = subscribed;
            subscribers[subscribed++] = c;
            free(c->in.bytes);
            c->in = (struct buffer){0};
            return push(c, stream_head, sizeof stream_head - 1);
        }
        char *length = strcasestr(request, "\r\ncontent-length:");
        size_t head = (size_t)(end - request) + 4, body = length ? strtoul(length + 17, 0, 10) : 0;
        *end = '\r';
        if (c->in.size - at < head + body) break;
        char start[64];
        append(&events, start, (size_t)snprintf(start, sizeof start, "event: update\nid: %lu\ndata: ", number++));
        append(&events, request + head, body);
        append(&events, "\n\n", 2);
        append(&answers, created, sizeof created - 1);
        at += head + body;
    }
    take_off(&c->in, at);
    if (c->in.size > REQUEST_BYTES_MAX) return false;
    if (!answers.size) return true;
    fan_out(&events);
    return push(c, answers.bytes, answers.size);
}

static bool read_request(struct connection *c) {
    static char buffer[65536];
    ssize_t bytes = read(c->fd, buffer, sizeof buffer);
    if (bytes < 0 && errno == EAGAIN) return true;
    if (bytes <= 0) return false;
    if (c->subscribed) return true; /* a subscriber has nothing more to say */
    append(&c->in, buffer, (size_t)bytes);
    return serve(c);
}

static bool flush(struct connection *c) {
    ssize_t sent = send(c->fd, c->out.bytes, c->out.size, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN;
    take_off(&c->out, (size_t)sent);
    if (!c->out.size) watch(c, EPOLLIN, EPOLL_CTL_MOD);
    return true;
}

int main(int argc, char **argv) {
    int one = 1;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0")),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        die("listen: %s", strerror(errno));
    if (!(subscribers = malloc(FILES_MAX * sizeof *subscribers)) || (epoll_fd = epoll_create1(0)) < 0)
        die("out of memory");
    struct epoll_event ready[READY_AT_ONCE], event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(epoll_fd, ready, READY_AT_ONCE, -1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd != listener) {
                /* Gone already: by a fan-out earlier in this batch of events. */
                struct connection *c = by_fd[fd];
                if (c && (ready[i].events & EPOLLOUT) && !flush(c)) forget(c), c = 0;
                if (c && (ready[i].events & ~(uint32_t)EPOLLOUT) && !read_request(c)) forget(c);
                continue;
            }
            while ((fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
                if (fd >= FILES_MAX) die("too many connections");
                struct connection *c = by_fd[fd] = calloc(1, sizeof *c);
                if (!c) die("out of memory");
                c->fd = fd;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                watch(c, EPOLLIN, EPOLL_CTL_ADD);
            }
        }
    }
}
