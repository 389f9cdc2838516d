/* SPDX-License-Identifier: MIT */
/* A struct as text, for people: what tostring says of a view. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "luackvm.h"

#define WIDTH 78

struct text {
	luaL_Buffer buffer;
	size_t column;
	int indent;
};

static void break_line(struct text *text)
{
	luaL_addchar(&text->buffer, '\n');
	for (int i = 1; i < text->indent; i++)
		luaL_addchar(&text->buffer, ' ');
	text->column = (size_t)text->indent - 1;
}

/* A piece begins with a space, and comes whole into a line. */
static void add(struct text *text, const char *piece)
{
	size_t length = strlen(piece);

	if (text->column + length > WIDTH)
		break_line(text);
	luaL_addlstring(&text->buffer, piece, length);
	text->column += length;
}

/* Bytes are counts, flags and vectors; what is wider, addresses and bits. */
static void add_number(struct text *text, const char *name, const char *comma,
		       const uint8_t *at, size_t size)
{
	char piece[64];
	uint64_t value = luackvm_load(at, size);

	if (size == 1)
		snprintf(piece, sizeof(piece), " %s%" PRIu64 "%s", name, value,
			 comma);
	else
		snprintf(piece, sizeof(piece), " %s0x%" PRIx64 "%s", name,
			 value, comma);
	add(text, piece);
}

static void add_fields(struct text *text, const struct luackvm_field *field,
		       const uint8_t *data);

/* A part of the struct, or an array of numbers. */
static void add_inner(struct text *text, const struct luackvm_field *field,
		      const uint8_t *at)
{
	if (field->sub)
		add_fields(text, field->sub->fields, at);
	for (int i = 0; i < field->count; i++, at += field->size)
		add_number(text, "", i + 1 < field->count ? "," : "", at,
			   field->size);
}

static void add_field(struct text *text, const struct luackvm_field *field,
		      const uint8_t *at)
{
	const char *comma = field[1].name ? "," : "";
	char name[48];

	snprintf(name, sizeof(name), "%s = ", field->name);
	if (!field->sub && !field->count) {
		add_number(text, name, comma, at, field->size);
		return;
	}
	if (field->sub)
		break_line(text);
	snprintf(name, sizeof(name), " %s = {", field->name);
	add(text, name);
	text->indent += 2;
	add_inner(text, field, at);
	text->indent -= 2;
	add(text, " }");
	luaL_addstring(&text->buffer, comma);
}

static void add_fields(struct text *text, const struct luackvm_field *field,
		       const uint8_t *data)
{
	for (; field->name; field++)
		add_field(text, field, data + field->offset);
}

void luackvm_describe(lua_State *L, const struct luackvm_struct *def,
		      const void *data)
{
	struct text text = { .column = strlen(def->name) + 2, .indent = 2 };
	uint64_t copy[LUACKVM_MAX_STRUCT / 8];

	/* Strings may collect, and a finalizer may unmap what data is in. */
	memcpy(copy, data, def->size);
	luaL_buffinit(L, &text.buffer);
	luaL_addstring(&text.buffer, def->name);
	luaL_addstring(&text.buffer, " {");
	add_fields(&text, def->fields, (const uint8_t *)copy);
	luaL_addstring(&text.buffer, " }");
	luaL_pushresult(&text.buffer);
}
