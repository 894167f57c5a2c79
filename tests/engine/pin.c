/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory pinned for I/O, as a device's would be: what the kernel writes there goes to the page
 * frames that were pinned, whatever is mapped at the address by then.
 */
#include "pin.h"

#include <liburing.h>
#include <stdlib.h>
#include <sys/uio.h>

struct Pin {
    struct io_uring ring;
    char *address;
};

Pin *pin_new(void *address, size_t length_bytes)
{
    Pin *pin = calloc(1, sizeof *pin);
    struct iovec buffer = {address, length_bytes};
    pin->address = address;
    if (io_uring_queue_init(4, &pin->ring, 0) < 0) {
        free(pin);
        return NULL;
    }
    if (io_uring_register_buffers(&pin->ring, &buffer, 1) < 0) {
        pin_free(pin);
        return NULL;
    }
    return pin;
}

int pin_read(Pin *pin, int fd, size_t offset_bytes, size_t length_bytes)
{
    struct io_uring_sqe *request = io_uring_get_sqe(&pin->ring);
    struct io_uring_cqe *done;
    io_uring_prep_read_fixed(request, fd, pin->address + offset_bytes, (unsigned)length_bytes, 0,
                             0);
    int result = io_uring_submit_and_wait(&pin->ring, 1);
    if (result < 0 || (result = io_uring_wait_cqe(&pin->ring, &done)) < 0)
        return result;
    result = done->res;
    io_uring_cqe_seen(&pin->ring, done);
    return result;
}

void pin_free(Pin *pin)
{
    io_uring_unregister_buffers(
        &pin->ring); /* closing the ring would do it too, but some time later */
    io_uring_queue_exit(&pin->ring);
    free(pin);
}
