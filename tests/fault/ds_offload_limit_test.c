/* A write that the kernel cuts short, by a file-size limit in the middle of a tensor whose space was reserved before, is an
   error that names file, offset and tensor. */
#define DS_OFFLOAD_IMPLEMENTATION
#include "ds_offload.h"
#include "../test.h"
#include <sys/resource.h>

int main(int argc, char **argv) {
    static unsigned char data[300000];
    const ds_offload_engine engines[] = {DS_OFFLOAD_ENGINE_AUTO, DS_OFFLOAD_ENGINE_KERNEL, DS_OFFLOAD_ENGINE_THREADS};
    struct rlimit limit = {100000, RLIM_INFINITY}, none = {RLIM_INFINITY, RLIM_INFINITY};
    const char *folder = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    test_begin(argc, argv);
    signal(SIGXFSZ, SIG_IGN);
    for (int e = 0; e < 3; e++) {
        TEST_NAMED(ds_offload_engine_name(engines[e])) {
            ds_offload_desc d;
            ds_offload *s = NULL;
            ds_offload_id id;
            ds_error error = {DS_OK, ""};
            memset(&d, 0, sizeof d);
            d.folder = folder;
            d.engine = engines[e];
            d.buffered = true;
            for (int n = 0; n < 200 && ds_offload_create(&d, &s, &error) == DS_ERR_IO; n++)
                dsi_sleep(NULL, 100000000); /* while another program has all of fs.aio-max-nr */
            if (!CHECK(s != NULL)) break;
            CHECK(ds_offload_add(s, "weights", sizeof data, DS_OFFLOAD_NVME, &id) == DS_OK);
            setrlimit(RLIMIT_FSIZE, &limit);
            CHECK(ds_offload_write(s, id, 0, sizeof data, data) == DS_ERR_SPACE);
            CHECK_HAS(ds_offload_error(s)->message, "write of tensor 'weights'");
            CHECK_HAS(ds_offload_error(s)->message, folder);
            CHECK_HAS(ds_offload_error(s)->message, "offset 100000");
            setrlimit(RLIMIT_FSIZE, &none);
            CHECK(ds_offload_write(s, id, 0, sizeof data, data) == DS_OK);
            ds_offload_destroy(s);
        }
    }
    return test_end();
}
