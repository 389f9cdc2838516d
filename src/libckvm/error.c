/* SPDX-License-Identifier: MIT */
/* Which step failed, and the names of error numbers. */
#include "internal.h"

#define STRING_(x) #x
#define STRING(x) STRING_(x)

_Thread_local const char *ckvm__errop = "";
static _Thread_local uint64_t fault_gpa;

const char *ckvm_errop(void)
{
	return ckvm__errop;
}

int ckvm__fail_at(const char *step, uint64_t gpa)
{
	fault_gpa = gpa;
	return ckvm__fail(step, -EFAULT);
}

uint64_t ckvm_fault_gpa(void)
{
	return fault_gpa;
}

const char *ckvm_version(void)
{
	return STRING(CKVM_VERSION_MAJOR) "." STRING(
		CKVM_VERSION_MINOR) "." STRING(CKVM_VERSION_PATCH);
}

/* strerrorname_np() is GNU's, and newer than some C libraries in use. */
/* clang-format off */
#define E(name) [name] = #name
static const char *const names[] = {
	E(E2BIG),	E(EACCES),	E(EADDRINUSE),	E(EAGAIN),
	E(EBADF),	E(EBADMSG),	E(EBUSY),	E(ECANCELED),	E(ECHILD),
	E(ECONNREFUSED), E(EDEADLK),	E(EDOM),	E(EDQUOT),
	E(EEXIST),	E(EFAULT),	E(EFBIG),	E(EHWPOISON),
	E(EINTR),	E(EINVAL),	E(EIO),		E(EISDIR),
	E(ELOOP),	E(EMFILE),	E(EMLINK),	E(ENAMETOOLONG),
	E(ENFILE),	E(ENODATA),	E(ENODEV),	E(ENOENT),
	E(ENOEXEC),	E(ENOLCK),	E(ENOMEM),	E(ENOSPC),
	E(ENOSYS),	E(ENOTBLK),	E(ENOTDIR),	E(ENOTEMPTY),
	E(ENOTSUP),	E(ENOTTY),	E(ENXIO),	E(EOVERFLOW),
	E(EPERM),	E(EPIPE),	E(EPROTO),	E(ERANGE),
	E(EROFS),	E(ESPIPE),	E(ESRCH),	E(ESTALE),
	E(ETIME),	E(ETIMEDOUT),	E(ETXTBSY),	E(EUSERS),
	E(EXDEV),
};
#undef E
/* clang-format on */

const char *ckvm_errno_name(int error)
{
	unsigned int number =
		error < 0 ? -(unsigned int)error : (unsigned)error;

	return number < ARRAY_SIZE(names) ? names[number] : NULL;
}
