/* Messages between ranks that are threads, as a ds_comm_transport: letters in one office, which can be cut off or held back.
   Included after ds_comm.h. */
#ifndef TEST_POST_H
#define TEST_POST_H

typedef struct letter {
    struct letter *next;
    size_t bytes;
    unsigned channel;
    int from, to;
    char data[];
} letter;

typedef struct post {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    letter *first, *last;
    bool cut;
    size_t held; /* letters of so many bytes stay here */
} post;

/* One rank's. The at-th exchange of it (from 1) cuts the cable; `seen` counts them. */
typedef struct mailman {
    post *office;
    int rank;
    long at, seen;
} mailman;

static inline void post_open(post *o) {
    memset(o, 0, sizeof *o);
    pthread_mutex_init(&o->lock, NULL);
    pthread_cond_init(&o->changed, NULL);
}
static inline void post_close(post *o) {
    for (letter *l = o->first, *next; l; l = next) next = l->next, free(l);
    pthread_mutex_destroy(&o->lock);
    pthread_cond_destroy(&o->changed);
}
static inline void post_cut(post *o) {
    pthread_mutex_lock(&o->lock);
    o->cut = true;
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->lock);
}
static inline void post_hold(post *o, size_t bytes) { /* 0: all that is held goes */
    pthread_mutex_lock(&o->lock);
    o->held = bytes;
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->lock);
}

static inline void drop(post *o, int from, int to, unsigned channel, const void *data, size_t bytes) {
    letter *l = (letter *)calloc(1, sizeof *l + bytes);
    l->bytes = bytes;
    l->channel = channel;
    l->from = from;
    l->to = to;
    if (bytes) memcpy(l->data, data, bytes);
    if (o->last)
        o->last->next = l;
    else
        o->first = l;
    o->last = l;
    pthread_cond_broadcast(&o->changed);
}

/* The first letter from there to here on this channel, taken out; NULL when there is none. */
static inline letter *pick(post *o, int from, int to, unsigned channel) {
    letter *before = NULL;
    for (letter *l = o->first; l; before = l, l = l->next) {
        if (l->from != from || l->to != to || l->channel != channel) continue;
        if (o->held && l->bytes == o->held) return NULL; /* later ones wait behind it */
        if (before)
            before->next = l->next;
        else
            o->first = l->next;
        if (o->last == l) o->last = before;
        return l;
    }
    return NULL;
}

static inline ds_status exchange(void *ctx, unsigned channel, ds_comm_part *parts, int n, int64_t deadline,
                                 ds_error *error) {
    mailman *m = (mailman *)ctx;
    post *o = m->office;
    ds_status status = DS_OK;
    pthread_mutex_lock(&o->lock);
    if (++m->seen == m->at) {
        o->cut = true;
        pthread_cond_broadcast(&o->changed);
    }
    if (o->cut) { /* what was sent before is still on its way */
        pthread_mutex_unlock(&o->lock);
        return dsi_fail(error, DS_ERR_IO, "the cable was cut");
    }
    for (int i = 0; i < n; i++)
        if (parts[i].send_bytes) drop(o, m->rank, parts[i].peer, channel, parts[i].send, parts[i].send_bytes);
    for (int i = 0; i < n && !status; i++) {
        letter *l = NULL;
        while (!status && parts[i].receive_bytes && !(l = pick(o, parts[i].peer, m->rank, channel))) {
            struct timespec until;
            if (o->cut) status = dsi_fail(error, DS_ERR_IO, "the cable was cut");
            if (!status && dsi_now(NULL) > deadline) status = dsi_fail(error, DS_ERR_TIMEOUT, "no letter came");
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 20000000;
            if (until.tv_nsec >= 1000000000) until.tv_nsec -= 1000000000, until.tv_sec++;
            if (!status) pthread_cond_timedwait(&o->changed, &o->lock, &until);
        }
        if (l && parts[i].receive_bytes >= l->bytes) memcpy(parts[i].receive, l->data, l->bytes);
        free(l);
        parts[i].done = !status;
    }
    pthread_mutex_unlock(&o->lock);
    return status;
}

static inline ds_comm_transport post_transport(mailman *m) {
    ds_comm_transport t;
    memset(&t, 0, sizeof t);
    t.name = "letters";
    t.ctx = m;
    t.exchange = exchange;
    return t;
}
#endif
