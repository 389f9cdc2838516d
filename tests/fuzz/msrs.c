/* SPDX-License-Identifier: MIT */
/* Lists of MSRs of any length, from a kernel that may refuse any of them. */
#include <limits.h>

#include "fuzz.h"

#define MAX_VALUES 600 /* more than the kernel takes in a few calls */
#define MAX_INDICES 3000

static struct input input;
static struct ckvm *kvm;
static uint32_t has;	 /* indices, by the kernel's last word */
static uint32_t refused; /* MSRs from this index on */
static int calls_left;	 /* until one fails */
static int failure;

/* The kernel -------------------------------------------------------------- */

static uint32_t index_of(uint32_t i)
{
	return 0xc0000080 + 3 * i;
}

static uint64_t value_of(uint32_t index)
{
	return index * 0x123456789ull;
}

/* There may be more of them at each call, as when a module is loaded. */
static int list(struct kvm_msr_list *list)
{
	uint32_t room = list->nmsrs;

	if (take(&input, 1) % 4 == 1)
		has = (uint32_t)take(&input, 2) % MAX_INDICES;
	list->nmsrs = has;
	if (room < has)
		return -E2BIG;
	for (uint32_t i = 0; i < has; i++)
		list->indices[i] = index_of(i);
	return 0;
}

static int transfer(struct kvm_msrs *msrs, bool get)
{
	uint32_t i;

	MUST(msrs->nmsrs && msrs->nmsrs < 256);
	for (i = 0; i < msrs->nmsrs; i++) {
		if (msrs->entries[i].index >= refused)
			break;
		if (get)
			msrs->entries[i].data =
				value_of(msrs->entries[i].index);
		MUST(msrs->entries[i].data == value_of(msrs->entries[i].index));
	}
	return (int)i;
}

static int answer(void *opaque, int fd, unsigned long request, void *arg)
{
	switch (request) {
	case KVM_GET_MSR_INDEX_LIST:
	case KVM_GET_MSR_FEATURE_INDEX_LIST:
	case KVM_GET_MSRS:
	case KVM_SET_MSRS:
		if (!calls_left--)
			return failure;
	}
	switch (request) {
	case KVM_GET_MSR_INDEX_LIST:
	case KVM_GET_MSR_FEATURE_INDEX_LIST:
		return list(arg);
	case KVM_GET_MSRS:
	case KVM_SET_MSRS:
		return transfer(arg, request == KVM_GET_MSRS);
	default:
		return fake_ioctl(opaque, fd, request, arg);
	}
}

/* What is asked of it ----------------------------------------------------- */

static void get_list(bool features)
{
	struct kvm_msr_list *got = NULL;
	int count = features ? ckvm_get_msr_feature_index_list(kvm, &got)
			     : ckvm_get_msr_index_list(kvm, &got);

	if (count < 0) {
		MUST(count == failure && calls_left < 0 && !got);
		return;
	}
	MUST((uint32_t)count == has && got->nmsrs == has);
	for (uint32_t i = 0; i < has; i++)
		MUST(got->indices[i] == index_of(i));
	free(got);
}

/* Just as many entries, so that ASan sees one too many. */
static void transfer_values(struct ckvm_vcpu *vcpu, bool get, size_t count)
{
	struct kvm_msr_entry *entries =
		calloc(count + !count, sizeof(*entries));
	size_t accepted = 0, done = SIZE_MAX;
	int error;

	MUST(entries);
	for (uint32_t i = 0; i < count; i++) {
		entries[i].index = index_of(i);
		entries[i].data = get ? 1 : value_of(index_of(i));
		accepted += index_of(i) < refused;
	}
	if (!get)
		error = ckvm_vcpu_set_msrs(vcpu, entries, count, &done);
	else if (vcpu)
		error = ckvm_vcpu_get_msrs(vcpu, entries, count, &done);
	else
		error = ckvm_get_msrs(kvm, entries, count, &done);
	MUST(done <= accepted);
	MUST(error ? done < count : done == count);
	MUST(!error || (error == failure && calls_left < 0) ||
	     (error == -EINVAL && done == accepted));
	for (uint32_t i = 0; i < count; i++)
		MUST(entries[i].data ==
		     (i < done || !get ? value_of(entries[i].index) : 1));
	free(entries);
}

static void act(struct ckvm_vcpu *vcpu)
{
	static const int failures[] = { -EFAULT, -ENOMEM, -EPERM, -E2BIG };
	uint8_t what = (uint8_t)take(&input, 1);
	size_t count = take(&input, 2) % MAX_VALUES;

	failure = failures[take(&input, 1) % COUNT(failures)];
	calls_left = what & 0x80 ? (int)take(&input, 1) % 8 : INT_MAX;
	refused = what & 0x40 ? index_of((uint32_t)take(&input, 2) % MAX_VALUES)
			      : UINT32_MAX;
	switch (what % 4) {
	case 0:
		get_list(what & 4);
		break;
	case 1:
		transfer_values(NULL, true, count);
		break;
	default:
		transfer_values(vcpu, what % 4 == 2, count);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct ckvm_hook hook = { .before = answer };
	struct ckvm_options options = { .size = sizeof(options),
					.path = "/dev/null",
					.hook = &hook };
	struct ckvm_vcpu *vcpu;
	struct ckvm_vm *vm;

	input = (struct input){ data, size };
	has = (uint32_t)take(&input, 2) % MAX_INDICES;
	NEED(ckvm_open(&options, &kvm));
	NEED(ckvm_create_vm(kvm, 0, &vm));
	NEED(ckvm_vm_create_vcpu(vm, 0, &vcpu));
	while (input.left)
		act(vcpu);
	ckvm_vm_close(vm);
	ckvm_close(kvm);
	return 0;
}
