/* slow_cable SPACE_A SPACE_B NAME BITS_PER_SECOND DELAY_US: joins two network spaces (ip netns) by a cable of a given rate and
   delay in each direction, for kernels whose tc cannot. Both ends are TUN devices called NAME; this program carries packets
   between them until it is ended. Says "ready" when the devices are there. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 2048, LARGEST = 2048, FD_NET = 0x40000000 /* CLONE_NEWNET */ };
typedef struct packet {
    int64_t due;
    size_t bytes;
    char data[LARGEST];
} packet;
typedef struct way { /* packets in one direction; one that finds the queue full is lost, as in a router */
    packet *queue;
    size_t first, count;
    int64_t free_at; /* when the last bit that was taken is on the cable */
} way;
int setns(int fd, int kind);

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static int end_of(const char *space, const char *name) {
    char path[256];
    struct ifreq request;
    int net, fd;
    snprintf(path, sizeof path, "/var/run/netns/%s", space);
    net = open(path, O_RDONLY);
    if (net < 0 || setns(net, FD_NET)) return -1;
    close(net);
    fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    memset(&request, 0, sizeof request);
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    return fd >= 0 && ioctl(fd, TUNSETIFF, &request) ? -1 : fd;
}
static void take(way *w, int fd, double rate, int64_t delay) {
    while (1) {
        packet *p = &w->queue[(w->first + w->count) % MOST];
        char lost[LARGEST];
        ssize_t n = read(fd, w->count < MOST ? p->data : lost, LARGEST);
        int64_t at = now();
        if (n <= 0) return;
        if (w->count == MOST) continue;
        if (w->free_at < at) w->free_at = at;
        w->free_at += (int64_t)((double)n * 8e9 / rate);
        p->due = w->free_at + delay;
        p->bytes = (size_t)n;
        w->count++;
    }
}
/* Gives out what is due; when the next one is. */
static int64_t give(way *w, int fd) {
    while (w->count && w->queue[w->first].due <= now()) {
        packet *p = &w->queue[w->first];
        if (write(fd, p->data, p->bytes) < 0 && errno == EAGAIN) return now() + 100000;
        w->first = (w->first + 1) % MOST;
        w->count--;
    }
    return w->count ? w->queue[w->first].due : INT64_MAX;
}

int main(int argc, char **argv) {
    way ways[2];
    struct pollfd ends[2];
    double rate;
    int64_t delay;
    if (argc != 6) return fprintf(stderr, "slow_cable SPACE_A SPACE_B NAME BITS_PER_SECOND DELAY_US\n"), 2;
    rate = atof(argv[4]);
    delay = (int64_t)atoi(argv[5]) * 1000;
    for (int i = 0; i < 2; i++) {
        memset(&ways[i], 0, sizeof ways[i]);
        ways[i].queue = (packet *)calloc(MOST, sizeof *ways[i].queue);
        ends[i].fd = end_of(argv[1 + i], argv[3]);
        ends[i].events = POLLIN;
        if (ends[i].fd < 0) return fprintf(stderr, "slow_cable: %s: %s\n", argv[1 + i], strerror(errno)), 1;
    }
    printf("ready\n");
    fflush(stdout);
    while (1) {
        int64_t next = INT64_MAX, wait;
        for (int i = 0; i < 2; i++) {
            int64_t due = give(&ways[i], ends[1 - i].fd);
            if (due < next) next = due;
        }
        wait = next == INT64_MAX ? 1000000000 : next - now();
        if (wait > 0) {
            struct timespec t = {(time_t)(wait / 1000000000), (long)(wait % 1000000000)};
            ppoll(ends, 2, &t, NULL);
        }
        for (int i = 0; i < 2; i++) take(&ways[i], ends[i].fd, rate, delay);
    }
}
