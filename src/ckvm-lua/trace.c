/* SPDX-License-Identifier: MIT */
/* --trace-ioctl: one line for each ioctl. */
#include <stdio.h>
#include <sys/ioctl.h>

#include "host.h"

/*
 * One line an ioctl, in one call: lines of several threads stay whole.
 * Arguments of requests that move no data are numbers; others are pointers,
 * which say nothing to a reader.
 */
static void trace_ioctl(void *opaque, int fd, unsigned long request,
			void *argument, int result)
{
	const char *name = ckvm_ioctl_name(request);
	const char *failure = result < 0 ? ckvm_errno_name(result) : NULL;
	char number[24], value[24] = "...", answer[16];

	snprintf(number, sizeof(number), "%#lx", request);
	if (_IOC_DIR(request) == _IOC_NONE)
		snprintf(value, sizeof(value), "%#lx", (unsigned long)argument);
	snprintf(answer, sizeof(answer), "%d", result);
	fprintf(opaque, "%s(%d, %s) = %s\n", name ? name : number, fd, value,
		failure ? failure : answer);
}

void host_trace(struct ckvm_lua *lua, FILE *file)
{
	struct ckvm_hook hook = { .after = trace_ioctl, .opaque = file };

	if (file)
		ckvm_lua_set_hook(lua, &hook);
}
