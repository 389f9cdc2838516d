/* SPDX-License-Identifier: MIT */
/*
 * A module for specs: a kernel that answers every KVM_RUN with a page of the
 * spec's own making, so that exits can be seen which no KVM here produces.
 *
 *   fake.install()      every ckvm.open { path = "/dev/null" } from now on
 *   fake.remove()       none from now on
 *   fake.exit(page, [result])  what the next KVM_RUN leaves at the start of the
 *                       page, and returns (0); without any: hlt
 *   fake.page()         the page as the last KVM_RUN found it
 *
 * Xen's attributes are what was set last. Of SEV there are launch_start, which
 * makes the length of dh the handle and fills session with S, and dbg_decrypt,
 * which copies; the firmware refuses the rest.
 *
 * One vCPU at a time, on one thread. An attribute has as many bytes as its
 * number says, all of them 0xa5.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <lauxlib.h>

#include "ckvm_lua.h"

#define PAGES (3 * 4096)

static struct {
	char page[PAGES]; /* to be shown, and then what was found */
	size_t length;	  /* of what is to be shown; 0: nothing */
	int result;
} fake;

static int create_vcpu(void)
{
	int fd = memfd_create("vcpu", MFD_CLOEXEC);

	if (fd >= 0 && ftruncate(fd, PAGES)) {
		close(fd);
		return -EIO;
	}
	return fd;
}

static int run(int fd)
{
	static const uint32_t hlt = KVM_EXIT_HLT;
	char found[PAGES];
	int result = fake.result;

	if (pread(fd, found, PAGES, 0) != PAGES)
		return -EIO;
	if (fake.length &&
	    pwrite(fd, fake.page, fake.length, 0) != (ssize_t)fake.length)
		return -EIO;
	if (!fake.length &&
	    pwrite(fd, &hlt, 4, offsetof(struct kvm_run, exit_reason)) != 4)
		return -EIO;
	memcpy(fake.page, found, PAGES);
	fake.length = 0;
	fake.result = 0;
	return result;
}

/* As copy_to_user and copy_from_user do it. */
static int move_attribute(unsigned long request,
			  const struct kvm_device_attr *attr)
{
	struct iovec remote = { (void *)(uintptr_t)attr->addr, attr->attr };
	struct iovec local = { malloc(attr->attr), attr->attr };
	ssize_t done;

	if (!local.iov_base)
		return -ENOMEM;
	memset(local.iov_base, 0xa5, attr->attr);
	done = request == KVM_GET_DEVICE_ATTR
		       ? process_vm_writev(getpid(), &local, 1, &remote, 1, 0)
		       : process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	free(local.iov_base);
	return done == (ssize_t)attr->attr ? 0 : -EFAULT;
}

static void *pointer(uint64_t address)
{
	return (void *)(uintptr_t)address;
}

static int encrypt(struct kvm_sev_cmd *cmd)
{
	struct kvm_sev_launch_start *start = pointer(cmd->data);
	const struct kvm_sev_dbg *debug = pointer(cmd->data);

	switch (cmd->id) {
	case KVM_SEV_LAUNCH_START:
		start->handle = start->dh_len;
		if (start->session_len)
			memset(pointer(start->session_uaddr), 'S',
			       start->session_len);
		return 0;
	case KVM_SEV_DBG_DECRYPT:
		memcpy(pointer(debug->dst_uaddr), pointer(debug->src_uaddr),
		       debug->len);
		return 0;
	default:
		cmd->error = 5;
		return -EIO;
	}
}

/* A type, and 64 bytes at offset 8. */
static int xen_attribute(char *attr, bool set)
{
	static char last[72];

	if (set)
		memcpy(last, attr, sizeof(last));
	else
		memcpy(attr + 8, last + 8, sizeof(last) - 8);
	return 0;
}

static int answer(void *opaque, int fd, unsigned long request, void *arg)
{
	(void)opaque, (void)arg;
	switch (request) {
	case KVM_GET_API_VERSION:
		return KVM_API_VERSION;
	case KVM_GET_VCPU_MMAP_SIZE:
		return PAGES;
	case KVM_CREATE_VM:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	case KVM_CREATE_VCPU:
		return create_vcpu();
	case KVM_RUN:
		return run(fd);
	case KVM_MEMORY_ENCRYPT_OP:
		return encrypt(arg);
	case KVM_XEN_HVM_GET_ATTR:
	case KVM_XEN_VCPU_GET_ATTR:
		return xen_attribute(arg, false);
	case KVM_XEN_HVM_SET_ATTR:
	case KVM_XEN_VCPU_SET_ATTR:
		return xen_attribute(arg, true);
	case KVM_GET_DEVICE_ATTR:
	case KVM_SET_DEVICE_ATTR:
		return move_attribute(request, arg);
	default:
		return 0;
	}
}

static int install(lua_State *L)
{
	static const struct ckvm_hook hook = { .before = answer };

	ckvm_lua_set_hook(ckvm_lua_get(L), &hook);
	return 0;
}

static int remove_hook(lua_State *L)
{
	ckvm_lua_set_hook(ckvm_lua_get(L), NULL);
	return 0;
}

static int set_exit(lua_State *L)
{
	size_t length;
	const char *page = luaL_checklstring(L, 1, &length);

	luaL_argcheck(L, length && length <= PAGES, 1, "no such page");
	memcpy(fake.page, page, length);
	fake.length = length;
	fake.result = (int)luaL_optinteger(L, 2, 0);
	return 0;
}

static int get_page(lua_State *L)
{
	lua_pushlstring(L, fake.page, PAGES);
	return 1;
}

__attribute__((visibility("default"))) int luaopen_fake_kernel(lua_State *L);

int luaopen_fake_kernel(lua_State *L)
{
	static const luaL_Reg functions[] = {
		{ "install", install }, { "remove", remove_hook },
		{ "exit", set_exit },	{ "page", get_page },
		{ NULL, NULL },
	};

	luaL_newlib(L, functions);
	return 1;
}
