/* SPDX-License-Identifier: MIT */
/*
 * A fuzz target without a fuzzer: goes once through the corpus that is kept for
 * it, in tests/fuzz/corpus/ under the program's name.
 */
#include "fuzz.h"

static void replay(const char *path)
{
	static uint8_t data[1 << 16];
	FILE *file = fopen(path, "rb");
	size_t size;

	MUST(file);
	size = fread(data, 1, sizeof(data), file);
	fclose(file);
	LLVMFuzzerTestOneInput(data, size);
}

int main(int argc, char **argv)
{
	const char *top = getenv("CKVM_SRCDIR"), *name = strrchr(argv[0], '/');
	char directory[3000], path[4000];
	struct dirent *entry;
	int count = 0;
	DIR *corpus;

	snprintf(directory, sizeof(directory), "%s/tests/fuzz/corpus/%s",
		 top ? top : ".", name ? name + 1 : argv[0]);
	corpus = opendir(directory);
	MUST(corpus);
	while ((entry = readdir(corpus))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
		replay(path);
		count++;
	}
	closedir(corpus);
	MUST(count);
	return 0;
}
