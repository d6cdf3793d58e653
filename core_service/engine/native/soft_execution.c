/* SPDX-License-Identifier: Apache-2.0
 *
 * In and out of guest code. Bochs calls handleAsyncEvent between two instructions whenever `async_event` is
 * set; that call is interposed, and is the one place where a vCPU leaves, yields, or takes an injected event.
 */
#include <stdarg.h>
#include <stdlib.h>

#include "soft.h"

#define TURN_TICKS 5u /* the longest turn while others wait, in ticks: about 1 ms */
#define FLAG_INTERRUPT (1u << 9)
#define ASYNC_LOOK 1u /* any bit but Bochs' own, 31 */

_Thread_local struct soft_vcpu *soft_current;

/* Make Bochs call handleAsyncEvent at the next boundary. */
static void look_at_boundary(struct soft_vcpu *soft)
{
	*bochs_u32(&soft->bochs, BOCHS_ASYNC) |= ASYNC_LOOK;
}

void soft_leave_at_boundary(struct soft_vcpu *soft)
{
	soft->leave = true;
	look_at_boundary(soft);
}

/* What others did while they had the turn. */
static void catch_up(struct soft_vcpu *soft)
{
	struct soft_vm *vm = soft->vm;
	if (vm->last_turn != soft) {
		vm->last_turn = soft;
		/* Bochs writes to the cached stack page without looking whether code was decoded from it, since
		 * it drops the cache when it decodes from there itself. Others may have done so meanwhile. */
		*bochs_u32(&soft->bochs, BOCHS_STACK_WINDOW_SIZE) = 0;
	}
	if (soft->memory_generation != vm->memory_generation) {
		soft->memory_generation = vm->memory_generation;
		soft->bochs.flush_tlb();
		look_at_boundary(soft);
	}
}

void soft_take_turn(struct soft_vcpu *soft, bool kickable)
{
	soft->has_turn = soft_turn_take(&soft->vm->turn, &soft->waiter, kickable ? &soft->kicked : NULL);
	soft->ticks = 0;
	soft->yield = false;
	if (soft->has_turn)
		catch_up(soft);
}

void soft_give_turn(struct soft_vcpu *soft)
{
	soft->has_turn = false;
	soft_turn_give(&soft->vm->turn);
}

static bool turn_is_over(const struct soft_vcpu *soft)
{
	return (soft->yield || soft->ticks >= TURN_TICKS) && soft_turn_wanted(&soft->vm->turn);
}

/* ---- events */

uint32_t soft_event_flags(struct vcpu *vcpu)
{
	const struct soft_vcpu *soft = vcpu->backend;
	const struct bochs *bochs = &soft->bochs;
	if (!(*bochs_u32(bochs, BOCHS_EFLAGS) & FLAG_INTERRUPT))
		return 0;
	bool shadow = *bochs_u64(bochs, BOCHS_ICOUNT) <= *bochs_u64(bochs, BOCHS_INHIBIT_ICOUNT) &&
		      *bochs_u32(bochs, BOCHS_INHIBIT_MASK) & BOCHS_INHIBIT_INTERRUPTS;
	bool trap = *bochs_u32(bochs, BOCHS_DEBUG_TRAP) & BOCHS_DEBUG_TRAPS;
	bool nmi = *bochs_u32(bochs, BOCHS_PENDING) & ~*bochs_u32(bochs, BOCHS_MASKED) & BOCHS_EVENT_NMI;
	return shadow || trap || nmi || soft->injection ? EXIT_IF : EXIT_IF | EXIT_INTERRUPTIBLE;
}

bool soft_inject(struct vcpu *vcpu, uint32_t injection, uint32_t error)
{
	struct soft_vcpu *soft = vcpu->backend;
	if ((injection >> INJECT_TYPE_SHIFT & 7) == INJECT_NMI) {
		*bochs_u32(&soft->bochs, BOCHS_PENDING) |= BOCHS_EVENT_NMI;
		return true;
	}
	if (soft->injection)
		return false;
	soft->injection = injection;
	soft->injection_error = error;
	return true;
}

/* For the double fault that an exception during the delivery may make: SDM vol. 3, table 6-4. */
static uint32_t exception_class(uint8_t vector)
{
	switch (vector) {
	case 0: case 10: case 11: case 12: case 13:
		return BOCHS_ET_CONTRIBUTORY;
	case 14:
		return BOCHS_ET_PAGE_FAULT;
	case 8:
		return BOCHS_ET_DOUBLE_FAULT;
	default:
		return BOCHS_ET_BENIGN;
	}
}

/* As Bochs' own VMX injects events (VMenterInjectEvents). May not return: a fault in it starts cpu_loop over. */
static void deliver_injection(struct soft_vcpu *soft)
{
	const struct bochs *bochs = &soft->bochs;
	uint32_t injection = soft->injection;
	uint8_t vector = injection & 0xff;
	unsigned type = injection >> INJECT_TYPE_SHIFT & 7;

	soft->injection = 0;
	*bochs_u8(bochs, BOCHS_EXT) = 1;
	if (type == INJECT_EXCEPTION)
		*bochs_u32(bochs, BOCHS_LAST_EXCEPTION) = exception_class(vector);
	bochs->interrupt(vector, type, injection & INJECT_ERROR_CODE, (uint16_t)soft->injection_error);
	*bochs_u32(bochs, BOCHS_LAST_EXCEPTION) = BOCHS_ET_BENIGN;
	*bochs_u64(bochs, BOCHS_PREV_RIP) = *bochs_u64(bochs, BOCHS_RIP);
}

/* ---- the boundary */

/* The guest halted or shut down; common code keeps it so, and Bochs goes on when it wakes. */
static void note_activity(struct soft_vcpu *soft)
{
	uint32_t *activity = bochs_u32(&soft->bochs, BOCHS_ACTIVITY);
	soft->stop = *activity == BOCHS_HALTED ? STOP_HALTED : STOP_SHUT_DOWN;
	*activity = BOCHS_ACTIVE;
}

static bool must_leave(struct soft_vcpu *soft)
{
	if (*bochs_u32(&soft->bochs, BOCHS_ACTIVITY) != BOCHS_ACTIVE)
		note_activity(soft);
	if (soft->stop || soft->leave || soft->ended || atomic_load(&soft->kicked))
		return true;
	return soft->window && soft_event_flags(soft->vcpu) & EXIT_INTERRUPTIBLE;
}

bool soft_handle_async_event(void) __asm__("_ZN8BX_CPU_C16handleAsyncEventEv");
bool soft_handle_async_event(void)
{
	struct soft_vcpu *soft = soft_current;
	if (turn_is_over(soft)) {
		soft_give_turn(soft);
		soft_take_turn(soft, true);
	}
	if (!soft->has_turn || must_leave(soft))
		return true;
	if (soft->injection)
		deliver_injection(soft);
	return soft->bochs.handle_async_event();
}

/* With the window asked for, Bochs has an interrupt pending that it never gets to deliver: it looks at every
 * boundary once the interrupt flag is set, and the vCPU leaves first. */
static void arm_window(struct soft_vcpu *soft)
{
	uint32_t *pending = bochs_u32(&soft->bochs, BOCHS_PENDING);
	soft->window = vcpu_attention(soft->vcpu) & ATTENTION_WINDOW;
	if (soft->window)
		*pending |= BOCHS_EVENT_INTERRUPT;
	else
		*pending &= ~BOCHS_EVENT_INTERRUPT;
}

void soft_handle_external_interrupt(void) __asm__("_ZN8BX_CPU_C18HandleExtInterruptEv");
void soft_handle_external_interrupt(void)
{
}

void soft_execute(struct soft_vcpu *soft)
{
	/* Before vcpu_attention() is asked: what comes later kicks again. */
	atomic_store(&soft->kicked, false);
	arm_window(soft);
	soft->stop = STOP_NONE;
	soft->leave = false;
	if (vcpu_attention(soft->vcpu) & ~(unsigned)ATTENTION_WINDOW)
		return;
	soft_take_turn(soft, true);
	if (!soft->has_turn)
		return;
	look_at_boundary(soft);
	soft->executing = true;
	soft->bochs.loop(0);
	soft->executing = false;
	if (soft->has_turn)
		soft_give_turn(soft);
}

void soft_abandon_instruction(struct soft_vcpu *soft, enum soft_stop stop)
{
	const struct bochs *bochs = &soft->bochs;
	*bochs_u64(bochs, BOCHS_RIP) = *bochs_u64(bochs, BOCHS_PREV_RIP);
	if (*bochs_u8(bochs, BOCHS_SPECULATIVE_RSP))
		*bochs_u64(bochs, BOCHS_RSP) = *bochs_u64(bochs, BOCHS_PREV_RSP);
	*bochs_u8(bochs, BOCHS_SPECULATIVE_RSP) = 0;
	*bochs_u8(bochs, BOCHS_EXT) = 0;
	*bochs_u32(bochs, BOCHS_LAST_EXCEPTION) = BOCHS_ET_BENIGN;
	*bochs_u64(bochs, BOCHS_ICOUNT) -= 1; /* cpu_loop counts the instruction when it starts over */
	soft->stop = stop;
	soft_leave_at_boundary(soft);
	bochs->bail(0); /* longjmp to the start of cpu_loop */
	abort();
}

/* ---- what Bochs tells */

/* A tick: every TICK_INSTRUCTIONS, also within repeated string instructions. */
void soft_tick(void *system) __asm__("_ZN14bx_pc_system_c14countdownEventEv");
void soft_tick(void *system)
{
	struct soft_vcpu *soft = soft_current;
	(void)system;
	*(uint32_t *)(soft->bochs.system + BOCHS_COUNTDOWN) =
		*(const uint32_t *)(soft->bochs.system + BOCHS_COUNTDOWN_PERIOD);
	soft->ticks++;
	look_at_boundary(soft);
}

/* The guest executes PAUSE, most likely while it waits for another vCPU. */
void soft_pause(void *instruction) __asm__("_ZN8BX_CPU_C5PAUSEEP15bxInstruction_c");
void soft_pause(void *instruction)
{
	struct soft_vcpu *soft = soft_current;
	if (soft_turn_wanted(&soft->vm->turn)) {
		soft->yield = true;
		look_at_boundary(soft);
	}
	soft->bochs.pause(instruction);
}

/* HLT; rip is behind it already, prev_rip at it. */
void soft_enter_sleep_state(unsigned activity) __asm__("_ZN8BX_CPU_C17enter_sleep_stateEj");
void soft_enter_sleep_state(unsigned activity)
{
	struct soft_vcpu *soft = soft_current;
	const struct bochs *bochs = &soft->bochs;
	soft->halt_ip = *bochs_u64(bochs, BOCHS_PREV_RIP);
	soft->halt_length = (uint32_t)(*bochs_u64(bochs, BOCHS_RIP) - soft->halt_ip);
	bochs->enter_sleep_state(activity);
}

/* A triple fault; cpu_loop starts over after it. */
int soft_system_reset(void *system, unsigned type) __asm__("_ZN14bx_pc_system_c5ResetEj");
int soft_system_reset(void *system, unsigned type)
{
	struct soft_vcpu *soft = soft_current;
	(void)system;
	(void)type;
	/* Whatever the VMM makes of the vCPU, no exception is being delivered any more. */
	*bochs_u8(&soft->bochs, BOCHS_EXT) = 0;
	*bochs_u32(&soft->bochs, BOCHS_LAST_EXCEPTION) = BOCHS_ET_BENIGN;
	*bochs_u32(&soft->bochs, BOCHS_ACTIVITY) = BOCHS_SHUT_DOWN;
	look_at_boundary(soft);
	return 0;
}

/* Bochs meets something that it was not made for. */
static void break_down(enum soft_breakdown breakdown)
{
	struct soft_vcpu *soft = soft_current;
	if (!soft)
		abort();
	soft->breakdown = breakdown;
	if (soft->executing)
		soft_abandon_instruction(soft, STOP_BROKEN);
}

void soft_panic(void *log, const char *format, ...) __asm__("_ZN12logfunctions5panicEPKcz");
void soft_panic(void *log, const char *format, ...)
{
	(void)log;
	(void)format;
	break_down(BREAKDOWN_PANIC);
}

void soft_fatal(void *log, const char *format, ...) __asm__("_ZN12logfunctions6fatal1EPKcz");
void soft_fatal(void *log, const char *format, ...)
{
	(void)log;
	(void)format;
	break_down(BREAKDOWN_PANIC);
}

_Noreturn void soft_assertion_failed(const char *text, const char *file, unsigned line, const char *function)
	__asm__("__assert_fail");
void soft_assertion_failed(const char *text, const char *file, unsigned line, const char *function)
{
	(void)text;
	(void)file;
	(void)line;
	(void)function;
	break_down(BREAKDOWN_ASSERTION);
	abort();
}
