/* SPDX-License-Identifier: Apache-2.0 */
#include "soft_library.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "failure.h"
#include "soft_instrumentation.h"

#define SEGMENTS 32u      /* program headers looked at; the wheel has 10 */
#define NOTES_BYTES 4096u /* of one note segment; the wheel's has 36 */
#define BUILD_ID_BYTES 20u

static bool read_exactly(int fd, void *to, size_t bytes, uint64_t offset)
{
	return offset <= INT64_MAX && pread(fd, to, bytes, (off_t)offset) == (ssize_t)bytes;
}

/* Find the build-id in a note segment (elf(5), "Notes"); its name and contents are padded to 4 bytes. */
static const uint8_t *find_build_id(const uint8_t *notes, size_t bytes)
{
	while (bytes >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr note;
		memcpy(&note, notes, sizeof(note));
		uint64_t name = (note.n_namesz + 3ull) & ~3ull, content = (note.n_descsz + 3ull) & ~3ull;
		uint64_t total = sizeof(note) + name + content;
		if (total > bytes)
			return NULL;
		if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && note.n_descsz == BUILD_ID_BYTES &&
		    !memcmp(notes + sizeof(note), ELF_NOTE_GNU, 4))
			return notes + sizeof(note) + name;
		notes += total;
		bytes -= total;
	}
	return NULL;
}

static bool segment_build_id(int fd, const Elf64_Phdr *segment, char text[2 * BUILD_ID_BYTES + 1])
{
	uint8_t notes[NOTES_BYTES];
	if (segment->p_type != PT_NOTE || segment->p_filesz > sizeof(notes) ||
	    !read_exactly(fd, notes, segment->p_filesz, segment->p_offset))
		return false;
	const uint8_t *id = find_build_id(notes, segment->p_filesz);
	for (unsigned i = 0; id && i < BUILD_ID_BYTES; i++)
		sprintf(text + 2 * i, "%02x", id[i]);
	return id;
}

/* The path comes last in what is said: it is what may be cut off. */
static enum channel_status check_build_id(int fd, const char *path, struct failure *failure)
{
	Elf64_Ehdr header;
	Elf64_Phdr segments[SEGMENTS];
	char found[2 * BUILD_ID_BYTES + 1] = "none";

	if (!read_exactly(fd, &header, sizeof(header), 0) || memcmp(header.e_ident, ELFMAG, SELFMAG) ||
	    header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != EM_X86_64 ||
	    header.e_phentsize != sizeof(segments[0]) || header.e_phnum > SEGMENTS)
		return failed(failure, CHANNEL_UNSUPPORTED, "no x86-64 ELF file; install %s: %s",
			      SOFT_LIBRARY_PACKAGE, path);
	if (!read_exactly(fd, segments, header.e_phnum * sizeof(segments[0]), header.e_phoff))
		return failed(failure, CHANNEL_UNSUPPORTED, "truncated; install %s: %s", SOFT_LIBRARY_PACKAGE, path);
	for (unsigned i = 0; i < header.e_phnum; i++)
		if (segment_build_id(fd, &segments[i], found))
			break;
	if (strcmp(found, SOFT_LIBRARY_BUILD_ID))
		return failed(failure, CHANNEL_UNSUPPORTED, "build-id %s, wanted %s; install %s: %s", found,
			      SOFT_LIBRARY_BUILD_ID, SOFT_LIBRARY_PACKAGE, path);
	/* The loader would meet SIGBUS in a file that lost its end. */
	struct stat file;
	if (fstat(fd, &file) < 0)
		return failed_call(failure, "%.128s: fstat", path);
	for (unsigned i = 0; i < header.e_phnum; i++)
		if (segments[i].p_offset + segments[i].p_filesz > (uint64_t)file.st_size)
			return failed(failure, CHANNEL_UNSUPPORTED, "truncated at %lld bytes; install %s: %s",
				      (long long)file.st_size, SOFT_LIBRARY_PACKAGE, path);
	return CHANNEL_OK;
}

enum channel_status soft_library_open(int *fd, struct failure *failure)
{
	const char *path = getenv(SOFT_LIBRARY_VARIABLE);
	if (!path || !*path)
		return failed(failure, CHANNEL_UNSUPPORTED, "%s is not set; install %s", SOFT_LIBRARY_VARIABLE,
			      SOFT_LIBRARY_PACKAGE);
	/* O_NONBLOCK: the path may name a FIFO that nobody writes */
	int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (file < 0)
		return failed_call(failure, "%.128s: open", path);
	enum channel_status status = check_build_id(file, path, failure);
	if (status == CHANNEL_OK)
		*fd = file;
	else
		close(file);
	return status;
}

static bool copy_file(int from, int to)
{
	struct stat file;
	if (fstat(from, &file) < 0)
		return false;
	for (off_t offset = 0; offset < file.st_size;) {
		ssize_t moved = sendfile(to, from, &offset, (size_t)(file.st_size - offset));
		if (moved < 0 && errno == EINTR)
			continue;
		if (moved == 0)
			errno = EIO; /* the file lost its end while it was read */
		if (moved <= 0)
			return false;
	}
	return true;
}

enum channel_status soft_library_copy(int library, int *fd, struct failure *failure)
{
	int copy = memfd_create("bochs", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (copy < 0)
		return failed_call(failure, "software CPU: memfd_create");
	/* Not F_SEAL_WRITE, though nobody maps the copy yet: the kernel refuses that one, with EBUSY, as long as
	 * anybody in the system holds a reference to one of its pages, which happens under load. */
	const int seals = F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
	errno = EINVAL; /* for a file that turns out to be another than the build-id says */
	if (!copy_file(library, copy) || !soft_instrumentation_remove(copy) ||
	    fcntl(copy, F_ADD_SEALS, seals) < 0) {
		enum channel_status status = failed_call(failure, "software CPU: copying its library");
		close(copy);
		return status;
	}
	*fd = copy;
	return CHANNEL_OK;
}
