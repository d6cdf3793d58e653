/* SPDX-License-Identifier: Apache-2.0 */
#include "x86emu.h"

#include <stdlib.h>
#include <string.h>

#include "failure.h"
#include "page_wait.h"

#define REASON(reason) (1ull << (reason))
#define BREAKPOINTS 4u
#define WINDOWS (ATTENTION_WINDOW | ATTENTION_NMI_WINDOW)

/* ---- the machine: one CPU */

static enum channel_status create_vm(struct vm *vm, struct failure *failure)
{
	struct x86emu_vm *x86emu = calloc(1, sizeof(*x86emu));
	if (!x86emu)
		return failed_call(failure, "x86emu: out of memory");
	enum channel_status status = x86emu_library_open(&x86emu->library, failure);
	if (status != CHANNEL_OK) {
		free(x86emu);
		return status;
	}
	x86emu->start_ns = page_now_ns();
	vm->backend = x86emu;
	vm->tsc_khz = X86EMU_TSC_KHZ;
	vm->physical_bits = X86EMU_PHYSICAL_BITS;
	return CHANNEL_OK;
}

static void destroy_vm(struct vm *vm)
{
	struct x86emu_vm *x86emu = vm->backend;
	x86emu_library_close(&x86emu->library);
	free(x86emu);
}

/* Every access asks memory_find(), and nothing decoded is kept. */
static enum channel_status map(struct vm *vm, struct region *region, struct failure *failure)
{
	(void)vm, (void)region, (void)failure;
	return CHANNEL_OK;
}

static void unmap(struct vm *vm, struct region *region)
{
	(void)vm, (void)region;
}

static enum channel_status create_vcpu(struct vcpu *vcpu, struct failure *failure)
{
	struct x86emu_cpu *cpu = calloc(1, sizeof(*cpu));
	if (!cpu)
		return failed_call(failure, "vCPU %u: out of memory", vcpu->index);
	cpu->vcpu = vcpu;
	cpu->vm = vcpu->vm->backend;
	cpu->emu = cpu->vm->library.create(0, 0);
	if (!cpu->emu) {
		free(cpu);
		return failed_call(failure, "vCPU %u: out of memory", vcpu->index);
	}
	x86emu_attach(cpu);
	x86emu_reset_state(cpu);
	x86emu_cpuid_defaults(cpu);
	vcpu->backend = cpu;
	return CHANNEL_OK;
}

static void destroy_vcpu(struct vcpu *vcpu)
{
	struct x86emu_cpu *cpu = vcpu->backend;
	cpu->vm->library.destroy(cpu->emu);
	free(cpu);
}

static void kick_vcpu(struct vcpu *vcpu)
{
	struct x86emu_cpu *cpu = vcpu->backend;
	atomic_store(&cpu->kicked, true);
}

/* ---- debugging */

static uint32_t linear_ip(const struct x86emu_cpu *cpu)
{
	const struct x86emu_registers *registers = &cpu->emu->registers;
	return registers->segment[SEG_CS].base + registers->general[X86EMU_EIP];
}

static uint32_t breakpoints_here(const struct x86emu_cpu *cpu)
{
	const struct vcpu_debug *debug = &cpu->vcpu->debug;
	uint32_t hit = 0, linear = linear_ip(cpu);
	if (!debug->control || cpu->vcpu->step_over)
		return 0;
	for (unsigned n = 0; n < BREAKPOINTS; n++) {
		bool executes = debug->control & 3u << 2 * n && !(debug->control >> (16 + 4 * n) & 3);
		if (executes && debug->address[n] == linear)
			hit |= 1u << n;
	}
	return hit;
}

/* After an instruction or an exception instead of it, which may be a step; or after an event. */
static bool debugged(struct x86emu_cpu *cpu, uint32_t step)
{
	uint32_t status = cpu->watched | step;
	cpu->watched = 0;
	if (status)
		vcpu_debugged(cpu->vcpu, status);
	return status;
}

/* ---- the loop */

static bool window_open(const struct x86emu_cpu *cpu, unsigned windows)
{
	uint32_t flags = windows ? x86emu_event_flags(cpu->vcpu) : 0;
	return (windows & ATTENTION_WINDOW && flags & EXIT_INTERRUPTIBLE) ||
	       (windows & ATTENTION_NMI_WINDOW && flags & EXIT_NMI_OPEN);
}

/* One instruction, after the event that is due. False when the boundary has something to do. */
static bool go_on(struct x86emu_cpu *cpu, enum x86emu_end *end)
{
	if (x86emu_event_due(cpu)) {
		*end = x86emu_take_event(cpu);
		cpu->vcpu->step_over = false;
		return *end == END_DONE && !debugged(cpu, 0) && !cpu->exchanged;
	}
	uint32_t hit = breakpoints_here(cpu);
	if (hit) {
		vcpu_debugged(cpu->vcpu, hit);
		return false;
	}
	uint32_t step = cpu->vcpu->stepping ? VCPU_DEBUG_STEP : 0;
	*end = x86emu_execute(cpu);
	if (*end != END_DONE && *end != END_HALTED)
		return false;
	cpu->vcpu->step_over = false;
	return *end == END_DONE && !debugged(cpu, step) && !cpu->exchanged;
}

static enum x86emu_end run_guest(struct x86emu_cpu *cpu)
{
	enum x86emu_end end = END_DONE;
	/* Before vcpu_attention() is asked: what comes later kicks again. */
	atomic_store(&cpu->kicked, false);
	unsigned attention = vcpu_attention(cpu->vcpu);
	if (attention & ~(unsigned)WINDOWS)
		return END_DONE;
	cpu->exchanged = false;
	while (!atomic_load_explicit(&cpu->kicked, memory_order_relaxed) && !window_open(cpu, attention & WINDOWS))
		if (!go_on(cpu, &end))
			break;
	return end;
}

static struct vcpu_exit *exit_at_boundary(struct x86emu_cpu *cpu, enum vcpu_exit_reason reason, uint32_t flags)
{
	struct vcpu_exit *exit = vcpu_exit(cpu->vcpu, reason, flags | EXIT_IP_VALID);
	exit->ip = cpu->emu->registers.general[X86EMU_EIP];
	return exit;
}

static enum run_verdict report(struct x86emu_cpu *cpu, enum x86emu_end end)
{
	struct vcpu_exit *exit;
	switch (end) {
	case END_HALTED:
		vcpu_halt(cpu->vcpu, cpu->before.general[X86EMU_EIP], cpu->code.length);
		return RUN_GO;
	case END_SHUT_DOWN:
		vcpu_shut_down(cpu->vcpu);
		return RUN_GO;
	case END_NOWHERE:
		exit_at_boundary(cpu, EXIT_MEMORY_FAULT, EXIT_FETCH)->address = cpu->nowhere;
		return vcpu_exchange(cpu->vcpu);
	case END_REFUSED:
		exit = exit_at_boundary(cpu, EXIT_INTERNAL_ERROR, 0);
		exit->detail = cpu->refusal;
		exit->instruction_bytes_size = cpu->code.bytes;
		memcpy(exit->instruction_bytes, cpu->code.byte, cpu->code.bytes);
		return vcpu_exchange(cpu->vcpu);
	default:
		return end == END_SESSION ? RUN_ENDED : RUN_GO;
	}
}

static void run_vcpu(struct vcpu *vcpu)
{
	struct x86emu_cpu *cpu = vcpu->backend;
	while (vcpu_boundary(vcpu) == RUN_GO)
		if (report(cpu, run_guest(cpu)) == RUN_ENDED)
			return;
}

const struct backend backend = {
	.name = "x86emu",
	.capabilities =
		ENGINE_DEBUG | ENGINE_WATCH | ENGINE_INTERRUPTS | ENGINE_NMI | ENGINE_EXCEPTIONS | ENGINE_CPUID,
	.max_vcpus = 1,
	.registers = {X86EMU_SCALARS, X86EMU_SEGMENTS},
	.exit_reasons = REASON(EXIT_STARTUP) | REASON(EXIT_PORT) | REASON(EXIT_MMIO) | REASON(EXIT_MSR) |
			REASON(EXIT_HLT) | REASON(EXIT_SHUTDOWN) | REASON(EXIT_WINDOW) | REASON(EXIT_NMI_WINDOW) |
			REASON(EXIT_PAUSED) | REASON(EXIT_COMPLETED) | REASON(EXIT_DEBUG) | REASON(EXIT_MEMORY_FAULT) |
			REASON(EXIT_INVALID_STATE) | REASON(EXIT_INTERNAL_ERROR),
	.vm_create = create_vm,
	.vm_destroy = destroy_vm,
	.map = map,
	.unmap = unmap,
	.vcpu_create = create_vcpu,
	.vcpu_destroy = destroy_vcpu,
	.vcpu_loop = run_vcpu,
	.kick = kick_vcpu,
	.read_state = x86emu_read_state,
	.write_state = x86emu_write_state,
	.event_flags = x86emu_event_flags,
	.inject = x86emu_inject,
	.get_cpuid = x86emu_get_cpuid,
	.set_cpuid = x86emu_set_cpuid,
};
