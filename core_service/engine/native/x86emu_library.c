/* SPDX-License-Identifier: Apache-2.0 */
#include "x86emu_library.h"

#include <dlfcn.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "failure.h"

static const struct {
	const char *name;
	size_t place;
} functions[] = {
	{"x86emu_new", offsetof(struct x86emu_library, create)},
	{"x86emu_done", offsetof(struct x86emu_library, destroy)},
	{"x86emu_run", offsetof(struct x86emu_library, run)},
	{"x86emu_set_code_handler", offsetof(struct x86emu_library, set_check)},
	{"x86emu_set_memio_handler", offsetof(struct x86emu_library, set_access)},
	{"x86emu_set_intr_handler", offsetof(struct x86emu_library, set_interrupt)},
	{"x86emu_set_cpuid_handler", offsetof(struct x86emu_library, set_cpuid)},
	{"x86emu_set_rdmsr_handler", offsetof(struct x86emu_library, set_rdmsr)},
	{"x86emu_set_wrmsr_handler", offsetof(struct x86emu_library, set_wrmsr)},
};

static const char *find_functions(struct x86emu_library *library)
{
	for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
		void *found = dlsym(library->file, functions[i].name);
		if (!found)
			return functions[i].name;
		memcpy((char *)library + functions[i].place, &found, sizeof(found));
	}
	return NULL;
}

/* ---- the layout, by what is known of a new CPU: SDM vol. 3, table 10-1, in the library's own version */

static bool segment_is(const struct x86emu_segment *segment, uint16_t selector, uint32_t base, uint16_t attributes)
{
	return segment->selector == selector && segment->base == base && segment->limit == 0xffff &&
	       segment->attributes == attributes;
}

static bool registers_fit(const struct x86emu_registers *registers)
{
	bool fit = registers->general[X86EMU_EIP] == 0xfff0 && registers->flags == 2 &&
		   registers->gdt.limit == 0xffff && registers->idt.limit == 0xffff &&
		   segment_is(&registers->segment[SEG_CS], 0xf000, 0xf0000, 0x9b);
	for (unsigned i = SEG_ES; i <= SEG_GS; i++)
		fit &= i == SEG_CS || segment_is(&registers->segment[i], 0, 0, 0x93);
	return fit;
}

static int probe_check(struct x86emu *emu)
{
	(void)emu;
	return 1; /* before the first instruction */
}

static unsigned probe_access(struct x86emu *emu, uint32_t address, uint32_t *value, unsigned type)
{
	(void)emu, (void)address, (void)type;
	*value = 0;
	return 1;
}

static int probe_interrupt(struct x86emu *emu, uint8_t number, unsigned type)
{
	(void)emu, (void)number, (void)type;
	return 1;
}

static void probe_cpuid(struct x86emu *emu)
{
	(void)emu;
}

static void probe_wrmsr(struct x86emu *emu)
{
	(void)emu;
}

static void probe_rdmsr(struct x86emu *emu)
{
	(void)emu;
}

static bool hooks_fit(const struct x86emu_library *library, struct x86emu *emu)
{
	library->set_check(emu, probe_check);
	library->set_access(emu, probe_access);
	library->set_interrupt(emu, probe_interrupt);
	library->set_cpuid(emu, probe_cpuid);
	library->set_wrmsr(emu, probe_wrmsr);
	library->set_rdmsr(emu, probe_rdmsr);
	return emu->check == probe_check && emu->access == probe_access && emu->interrupt == probe_interrupt &&
	       emu->cpuid == probe_cpuid && emu->wrmsr == probe_wrmsr && emu->rdmsr == probe_rdmsr;
}

/* What x86emu_run() writes before it asks `check`. */
static bool run_fits(const struct x86emu_library *library, struct x86emu *emu)
{
	emu->instruction_length = 1;
	library->run(emu, 0);
	return emu->saved_ip == 0xfff0 && emu->saved_cs == 0xf000 && !emu->instruction_length &&
	       emu->disassembly_end == emu->disassembly && registers_fit(&emu->registers);
}

static bool layout_fits(const struct x86emu_library *library)
{
	struct x86emu *emu = library->create(0, 0);
	if (!emu)
		return false;
	bool fits = malloc_usable_size(emu) >= sizeof(*emu) && registers_fit(&emu->registers) &&
		    hooks_fit(library, emu) && run_fits(library, emu);
	library->destroy(emu);
	return fits;
}

/* The path comes last in what is said: it is what may be cut off. */
enum channel_status x86emu_library_open(struct x86emu_library *library, struct failure *failure)
{
	const char *path = getenv(X86EMU_VARIABLE);
	if (!path || !*path)
		return failed(failure, CHANNEL_UNSUPPORTED, "%s is not set; install %s", X86EMU_VARIABLE,
			      X86EMU_PACKAGE);
	library->file = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!library->file)
		return failed(failure, CHANNEL_UNSUPPORTED, "install %s: %s", X86EMU_PACKAGE, dlerror());
	const char *missing = find_functions(library);
	enum channel_status status = CHANNEL_OK;
	if (missing)
		status = failed(failure, CHANNEL_UNSUPPORTED, "no %s; install %s: %s", missing, X86EMU_PACKAGE, path);
	else if (!layout_fits(library))
		status = failed(failure, CHANNEL_UNSUPPORTED, "not laid out as libx86emu 3.5; install %s: %s",
				X86EMU_PACKAGE, path);
	if (status != CHANNEL_OK)
		x86emu_library_close(library);
	return status;
}

void x86emu_library_close(struct x86emu_library *library)
{
	dlclose(library->file);
}
