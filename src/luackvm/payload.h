/* SPDX-License-Identifier: MIT */
/* What exits carry: payload.c has the fields, exit.c shows them to Lua. */
#ifndef LUACKVM_PAYLOAD_H
#define LUACKVM_PAYLOAD_H

#include "luackvm.h"

/* The `flag` of a field, from the start of struct kvm_run. */
#define PAYLOAD_ANSWER (1u << 0)    /* the kernel reads it back */
#define PAYLOAD_NDATA (1u << 1)	    /* of the array, only ndata are meant */
#define PAYLOAD_INSN (1u << 2)	    /* a string: instruction bytes */
#define PAYLOAD_INSN_SIZE (1u << 4) /* how many these are */
#define PAYLOAD_IF_NDATA                                     \
	(1u << 3) /* nothing was written there if ndata is 0 \
		   */

/*
 * The lists of fields that are in the page, one after the other from *next = 0
 * on, the exit's own first and last what every exit has; NULL: no more.
 */
const struct luackvm_field *luackvm_payload(const struct kvm_run *run,
					    size_t *next);

/* The field of that name, or NULL. */
const struct luackvm_field *luackvm_find_payload(const struct kvm_run *run,
						 const char *name);

/* Pushes the field's value. */
void luackvm_push_payload(lua_State *L, const struct kvm_run *run,
			  const struct luackvm_field *field);

#endif
