/* SPDX-License-Identifier: MIT */
/*
 * What the files of the benchmark's Lua module share. A contestant made in C is
 * a Lua function: called with a count, it has its guest take so many exits.
 */
#ifndef BENCH_H
#define BENCH_H

#include <lauxlib.h>
#include <lua.h>

/* The guest of every contestant; guests.lua has its code. */
#define BENCH_MEMORY 0x1000 /* where its memory begins, with the code */
#define BENCH_SIZE 0x4000
#define BENCH_PORT 0x3f8  /* dx: where it reads and writes */
#define BENCH_SYNC 0x10	  /* the port after a round of batched writes */
#define BENCH_MMIO 0x8000 /* an address with no memory behind it */
#define BENCH_ROUND 100	  /* batched writes between two exits */

/* plain.c: KVM without a library. Each takes the guest's code. */
int bench_plain(lua_State *L);	       /* answers accesses */
int bench_plain_write(lua_State *L);   /* and uses registers, on a write */
int bench_plain_read(lua_State *L);    /* the same on a read */
int bench_plain_batched(lua_State *L); /* has the kernel queue the writes */
int bench_plain_create(lua_State *L);  /* a VM up to its first exit */

/* library.c: the same with libckvm. */
int bench_callback(lua_State *L);
int bench_hand_back(lua_State *L);
int bench_create(lua_State *L);

#endif
