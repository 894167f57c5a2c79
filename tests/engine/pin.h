/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What pin.c offers to tests/lib/native.py, which reads this very file. */
#ifndef MSH_TEST_PIN_H
#define MSH_TEST_PIN_H

#include <stddef.h>

typedef struct Pin Pin;

/* Registers the memory as a buffer of an io_uring: its pages are pinned. NULL: errno says why. */
Pin *pin_new(void *address, size_t length_bytes);
/* Lets the kernel read from the file straight into the pinned pages; bytes read, or -errno. */
int pin_read(Pin *pin, int fd, size_t offset_bytes, size_t length_bytes);
void pin_free(Pin *pin);

#endif
