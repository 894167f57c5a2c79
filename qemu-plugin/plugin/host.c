/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "host.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

/* mlockall() and locked guest RAM count in hundreds of MiB; the pools in which cryptographic
 * libraries keep keys in some 10 KiB. */
#define LOCKED_SECRETS_KB 1024ul

#define XFS_MAGIC 0x58465342ul /* not in linux/magic.h of every supported build host */

static int read_text(const char *path, char *ret_text, size_t text_bytes, MshError *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return msh_error_set(error, -errno, "cannot open %s: %s", path, strerror(errno));
    ssize_t length = read(fd, ret_text, text_bytes - 1);
    int r = length < 0 ? -errno : 0;

    close(fd);
    if (r < 0)
        return msh_error_set(error, r, "cannot read %s: %s", path, strerror(-r));
    ret_text[length] = '\0';
    return 0;
}

bool msh_host_direct_io_pins(unsigned long file_system_type)
{
    switch (file_system_type) {
    case EXT4_SUPER_MAGIC: /* of ext2 and ext3 too */
    case XFS_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case FUSE_SUPER_MAGIC:
    case TMPFS_MAGIC: /* copies */
        return true;
    default:
        return false;
    }
}

unsigned long msh_host_locked_kb(const char *status_text)
{
    const char *line = strstr(status_text, "\nVmLck:");

    return line == NULL ? 0 : strtoul(line + strlen("\nVmLck:"), NULL, 10);
}

bool msh_host_nested_pins(const char *kernel_release)
{
    unsigned major = 0, minor = 0;

    return sscanf(kernel_release, "%u.%u", &major, &minor) == 2 &&
           (major > 6 || (major == 6 && minor >= 13));
}

/* Where a descriptor of this process leads, as a person would write it. */
static void describe(int fd, char *ret_text, size_t text_bytes)
{
    char link[64];

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, ret_text, text_bytes - 1);
    if (length < 0)
        length = snprintf(ret_text, text_bytes, "descriptor %d", fd);
    ret_text[length] = '\0';
}

static bool kernel_nested_pins(void)
{
    struct utsname kernel;

    return uname(&kernel) == 0 && msh_host_nested_pins(kernel.release);
}

/* A descriptor may be closed, and its number taken by another file, at any time: what cannot be
 * looked at any more has no I/O in flight that began before. */
static void look_at_descriptor(int fd, MshHostFacts *facts)
{
    struct stat status;
    struct statfs file_system;
    char path[sizeof(facts->unpinned_io)];
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fstat(fd, &status) < 0)
        return;
    if ((status.st_mode & S_IFMT) == 0) { /* an anonymous inode */
        describe(fd, path, sizeof(path));
        if (strcmp(path, "anon_inode:kvm-vm") == 0)
            facts->nested_unpinned = !kernel_nested_pins();
    }
    if (S_ISCHR(status.st_mode)) {
        describe(fd, path, sizeof(path));
        if (strcmp(path, "/dev/vhost-scsi") == 0)
            facts->vhost_scsi = true;
    }
    if ((flags & O_DIRECT) == 0)
        return;
    /* Block devices pin; a pipe's O_DIRECT means packets; sockets have none. */
    if (S_ISBLK(status.st_mode) || S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode))
        return;
    if (S_ISREG(status.st_mode) && fstatfs(fd, &file_system) == 0 &&
        msh_host_direct_io_pins((unsigned long)file_system.f_type))
        return;
    describe(fd, facts->unpinned_io, sizeof(facts->unpinned_io));
}

static bool begins_with_any(const char *text, const char *const *prefixes)
{
    for (; *prefixes != NULL; prefixes++)
        if (strncmp(text, *prefixes, strlen(*prefixes)) == 0)
            return true;
    return false;
}

MshPinner msh_host_device_pinner(const char *path, bool is_block_device)
{
    /* Devices that QEMU uses and that only copy; vhost reads and writes as the process itself does.
     */
    static const char *const copying[] = {
        "/dev/kvm",       "/dev/net/tun",     "/dev/null", "/dev/ptmx",    "/dev/pts/",
        "/dev/random",    "/dev/shm/",        "/dev/tpm",  "/dev/urandom", "/dev/userfaultfd",
        "/dev/vhost-net", "/dev/vhost-vsock", "/dev/zero", NULL};
    /* They take commands for disks, which pin. */
    static const char *const passing_through[] = {"/dev/bsg/", "/dev/ng", "/dev/sg", NULL};

    if (is_block_device) /* takes such commands, too, without O_DIRECT */
        return MSH_PINNER_BLOCK_LAYER;
    if (begins_with_any(path, copying))
        return MSH_PINNER_NONE;
    return begins_with_any(path, passing_through) ? MSH_PINNER_BLOCK_LAYER : MSH_PINNER_UNKNOWN;
}

bool msh_host_ring_holds_nothing(const char *fdinfo_text)
{
    return strstr(fdinfo_text, "\nUserFiles:\t0\n") != NULL &&
           strstr(fdinfo_text, "\nUserBufs:\t0\n") != NULL;
}

/* A ring pins for its requests, and their files are descriptors too, unless it keeps either itself. */
static MshPinner ring_pinner(int fd)
{
    char path[64], text[4096];

    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    if (read_text(path, text, sizeof(text), NULL) == 0 && msh_host_ring_holds_nothing(text))
        return MSH_PINNER_NONE;
    return MSH_PINNER_UNKNOWN;
}

/* Looks at no file system that may not answer. Guests wait for it, and QEMU may have hundreds: most are files
 * and sockets, which are told without their names. I8 */
static MshPinner descriptor_pinner(int fd)
{
    char link[64];
    struct statx status;
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0)
        return MSH_PINNER_NONE;
    MshPinner plain = (flags & O_DIRECT) != 0 ? MSH_PINNER_BLOCK_LAYER : MSH_PINNER_NONE;
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &status) < 0)
        status.stx_mode = 0;
    if (S_ISREG(status.stx_mode) || S_ISDIR(status.stx_mode) || S_ISSOCK(status.stx_mode))
        return plain;
    if (S_ISFIFO(status.stx_mode))
        return MSH_PINNER_NONE; /* there, the flag means packets */
    describe(fd, link, sizeof(link));
    if (strcmp(link, "anon_inode:kvm-vm") == 0)
        return MSH_PINNER_KVM;
    if (strcmp(link, "anon_inode:[io_uring]") == 0)
        return ring_pinner(fd);
    if (strncmp(link, "/dev/", strlen("/dev/")) == 0)
        return msh_host_device_pinner(link, S_ISBLK(status.stx_mode));
    return S_ISBLK(status.stx_mode) ? MSH_PINNER_BLOCK_LAYER : plain;
}

MshPins msh_host_pins(void)
{
    DIR *directory = opendir("/proc/self/fd");
    struct dirent *entry;
    MshPins pins = {.unknown = directory == NULL};

    if (directory == NULL)
        return pins;
    while ((entry = readdir(directory)) != NULL) {
        MshPinner pinner =
            entry->d_name[0] == '.' ? MSH_PINNER_NONE : descriptor_pinner(atoi(entry->d_name));

        pins.block_layer |= pinner == MSH_PINNER_BLOCK_LAYER;
        pins.kvm |= pinner == MSH_PINNER_KVM;
        pins.unknown |= pinner == MSH_PINNER_UNKNOWN;
    }
    closedir(directory);
    return pins;
}

static int look_at_descriptors(MshHostFacts *facts, MshError *error)
{
    DIR *directory = opendir("/proc/self/fd");
    struct dirent *entry;

    if (directory == NULL)
        return msh_error_set(error, -errno, "cannot open /proc/self/fd: %s", strerror(errno));
    while ((entry = readdir(directory)) != NULL)
        if (entry->d_name[0] != '.')
            look_at_descriptor(atoi(entry->d_name), facts);
    closedir(directory);
    return 0;
}

int msh_host_facts(MshHostFacts *ret_facts, MshError *error)
{
    MshHostFacts facts = {0};
    char text[4096];
    int r;

    r = read_text("/proc/sys/vm/overcommit_memory", text, sizeof(text), error);
    if (r < 0)
        return r;
    facts.overcommit_strict = text[0] == '2';

    r = read_text("/proc/self/status", text, sizeof(text), error);
    if (r < 0)
        return r;
    facts.locked = msh_host_locked_kb(text) >= LOCKED_SECRETS_KB;

    r = look_at_descriptors(&facts, error);
    if (r < 0)
        return r;
    *ret_facts = facts;
    return 0;
}
