/* SPDX-License-Identifier: Apache-2.0
 *
 * KVM and nothing else: the floor under what an engine, a session and a VMM cost.
 *
 * The guest of the benchmarks (64-bit, ring 0, `out; jmp`), run by the shortest loop there is. Commands on
 * standard input, one a line, each answered by one number of nanoseconds:
 *
 *   exits COUNT   one exit, with the general registers in the run page as the engine has them (SYNC_REGS)
 *   plain COUNT   one exit, without them
 *   open SIZE     from nothing to the first exit, with SIZE bytes of memory
 *   map COUNT     one page of a memfd mapped and put into a slot, with COUNT slots there; then out again
 */
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "page_wait.h"

#define MEMORY_BYTES 0x100000u
#define TABLES 0x9000u
#define CODE 0x10000u
#define PORT 0xe9u
#define PAGE 0x1000u
#define SLOTS_AT 0x100000000ull
#define MAPS_TIMED 100u
#define COMMAND_LIMIT_SECONDS 60

static const uint8_t guest[] = {0xe6, PORT, 0xeb, 0xfc}; /* loop: out PORT, al; jmp loop */

struct machine {
	int vm, vcpu;
	size_t memory_size, run_size;
	uint8_t *memory;
	struct kvm_run *run;
};

static int must(int result, const char *call)
{
	if (result < 0)
		err(1, "%s", call);
	return result;
}

static void *map(size_t size, int flags, int fd)
{
	void *mapping = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (mapping == MAP_FAILED)
		err(1, "mmap of %zu bytes", size);
	return mapping;
}

static struct kvm_segment flat(uint8_t type, bool code)
{
	return (struct kvm_segment){.limit = 0xffffffff, .selector = code ? 0x10 : 0x18, .type = type, .present = 1,
				    .s = 1, .g = 1, .l = code, .db = !code};
}

/* Long mode as vmm_client.boot.modes sets it up, with one page of 2 MiB. */
static void enter_long_mode(const struct machine *machine)
{
	const uint64_t tables[] = {TABLES + 0x1003, TABLES + 0x2003, 0x83};
	for (size_t i = 0; i < 3; i++)
		memcpy(machine->memory + TABLES + 0x1000 * i, &tables[i], sizeof(tables[i]));
	memcpy(machine->memory + CODE, guest, sizeof(guest));

	struct kvm_sregs sregs;
	must(ioctl(machine->vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = flat(0xb, true);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat(0x3, false);
	sregs.cr0 = 0x80000031;
	sregs.cr3 = TABLES;
	sregs.cr4 = 0x20;
	sregs.efer = 0x500;
	must(ioctl(machine->vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	struct kvm_regs regs = {.rip = CODE, .rflags = 2};
	must(ioctl(machine->vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static struct machine machine_open(size_t memory_size)
{
	struct machine machine = {.memory_size = memory_size};
	int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	machine.vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	machine.run_size = (size_t)must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	close(kvm);
	machine.memory = map(memory_size, MAP_SHARED | MAP_ANONYMOUS, -1);
	struct kvm_userspace_memory_region region = {.memory_size = memory_size,
						     .userspace_addr = (uintptr_t)machine.memory};
	must(ioctl(machine.vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	machine.vcpu = must(ioctl(machine.vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	machine.run = map(machine.run_size, MAP_SHARED, machine.vcpu);
	enter_long_mode(&machine);
	return machine;
}

static void machine_close(const struct machine *machine)
{
	munmap(machine->run, machine->run_size);
	close(machine->vcpu);
	close(machine->vm);
	munmap(machine->memory, machine->memory_size);
}

static void run_to_exit(const struct machine *machine)
{
	must(ioctl(machine->vcpu, KVM_RUN, 0), "KVM_RUN");
	if (machine->run->exit_reason != KVM_EXIT_IO || machine->run->io.port != PORT)
		errx(1, "exit %u instead of port I/O at %#x", machine->run->exit_reason, PORT);
}

static uint64_t exits(const struct machine *machine, uint64_t count, uint64_t sync)
{
	uint64_t start = page_now_ns();
	for (uint64_t i = 0; i < count; i++) {
		machine->run->kvm_valid_regs = sync;
		run_to_exit(machine);
	}
	return (page_now_ns() - start) / count;
}

static uint64_t open_to_first_exit(size_t size)
{
	uint64_t start = page_now_ns();
	struct machine machine = machine_open(size);
	run_to_exit(&machine);
	uint64_t took = page_now_ns() - start;
	machine_close(&machine);
	return took;
}

static void set_slot(int vm, uint32_t slot, void *page)
{
	struct kvm_userspace_memory_region region = {.slot = slot,
						     .guest_phys_addr = SLOTS_AT + slot * 2ull * PAGE,
						     .memory_size = page ? PAGE : 0,
						     .userspace_addr = (uintptr_t)page};
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
}

/* What attaching and detaching must at least do, and nothing else. */
static uint64_t map_and_unmap(uint32_t count)
{
	struct machine machine = machine_open(MEMORY_BYTES);
	int fd = must(memfd_create("bench", MFD_CLOEXEC), "memfd_create");
	must(ftruncate(fd, PAGE), "ftruncate");
	size_t there = (size_t)count * PAGE;
	uint8_t *pages = map(there, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (uint32_t slot = 1; slot <= count; slot++) {
		uint8_t *page = pages + (slot - 1) * (size_t)PAGE;
		if (mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			err(1, "mmap of page %u", slot);
		set_slot(machine.vm, slot, page);
	}
	uint64_t start = page_now_ns();
	for (uint32_t i = 0; i < MAPS_TIMED; i++) {
		void *page = map(PAGE, MAP_SHARED, fd);
		set_slot(machine.vm, count + 1, page);
		set_slot(machine.vm, count + 1, NULL);
		munmap(page, PAGE);
	}
	uint64_t took = (page_now_ns() - start) / MAPS_TIMED;
	close(fd);
	machine_close(&machine);
	munmap(pages, there);
	return took;
}

int main(void)
{
	struct machine machine = machine_open(MEMORY_BYTES);
	char command[16];
	uint64_t number;
	while (scanf("%15s %" SCNu64, command, &number) == 2 && number) {
		alarm(COMMAND_LIMIT_SECONDS);
		uint64_t answer;
		if (!strcmp(command, "exits"))
			answer = exits(&machine, number, KVM_SYNC_X86_REGS);
		else if (!strcmp(command, "plain"))
			answer = exits(&machine, number, 0);
		else if (!strcmp(command, "open"))
			answer = open_to_first_exit(number);
		else if (!strcmp(command, "map"))
			answer = map_and_unmap((uint32_t)number);
		else
			errx(2, "no command %s", command);
		printf("%" PRIu64 "\n", answer);
		fflush(stdout);
		alarm(0);
	}
	machine_close(&machine);
	return 0;
}
