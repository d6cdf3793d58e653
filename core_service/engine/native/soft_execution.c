/* SPDX-License-Identifier: Apache-2.0
 *
 * In and out of guest code. Bochs calls handleAsyncEvent between two instructions whenever `async_event` is
 * set; that call is interposed, and is the one place where a vCPU leaves, yields, or takes an injected event.
 */
#include <stdlib.h>

#include "soft.h"

#define TURN_TICKS 5u /* the longest turn while others wait, in ticks: about 1 ms */
#define ASYNC_LOOK 1u /* any bit but Bochs' own, 31 */

_Thread_local struct soft_vcpu *soft_current;

/* Make Bochs call handleAsyncEvent at the next boundary. Atomic, since others do the same to kick this vCPU. */
void soft_look_at_boundary(struct soft_vcpu *soft)
{
	__atomic_fetch_or(bochs_u32(&soft->bochs, BOCHS_ASYNC), ASYNC_LOOK, __ATOMIC_RELAXED);
}

void soft_leave_at_boundary(struct soft_vcpu *soft)
{
	soft->leave = true;
	soft_look_at_boundary(soft);
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
		soft_look_at_boundary(soft);
	}
}

static void begin_turn(struct soft_vcpu *soft, bool taken)
{
	soft->has_turn = taken;
	soft->ticks = 0;
	soft->yield = false;
	if (taken)
		catch_up(soft);
}

void soft_take_turn(struct soft_vcpu *soft, bool kickable)
{
	begin_turn(soft, soft_turn_take(&soft->vm->turn, &soft->waiter, kickable ? &soft->kicked : NULL));
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

/* ---- the boundary */

/* Whether the guest halted or shut down: common code keeps it so, and Bochs goes on when it wakes. */
static void note_activity(struct soft_vcpu *soft)
{
	uint32_t *activity = bochs_u32(&soft->bochs, BOCHS_ACTIVITY);
	if (*activity == BOCHS_ACTIVE)
		return;
	soft->stop = *activity == BOCHS_HALTED ? STOP_HALTED : STOP_SHUT_DOWN;
	*activity = BOCHS_ACTIVE;
}

static bool must_leave(const struct soft_vcpu *soft)
{
	return soft->stop || soft->leave || soft->ended || atomic_load(&soft->kicked) || soft_window_open(soft);
}

/* Bochs' own part: traps, NMIs, the guest's TF. It takes async_event back when nothing of its own is due. */
static bool handle_async_event(struct soft_vcpu *soft)
{
	const uint64_t *rip = bochs_u64(&soft->bochs, BOCHS_RIP), before = *rip;
	bool leave = soft->bochs.handle_async_event();
	if (*rip != before) {
		/* An NMI was delivered. Bochs forgets that its handler's first instruction may fault. */
		*bochs_u64(&soft->bochs, BOCHS_PREV_RIP) = *rip;
		soft->vcpu->step_over = false;
	}
	if (soft->vcpu->stepping || soft_window_near(soft))
		soft_look_at_boundary(soft);
	return leave;
}

bool soft_handle_async_event(void) __asm__("_ZN8BX_CPU_C16handleAsyncEventEv");
bool soft_handle_async_event(void)
{
	struct soft_vcpu *soft = soft_current;
	/* First: a vCPU that is called away from the queue leaves at once. */
	note_activity(soft);
	soft_debug_boundary(soft);
	if (turn_is_over(soft))
		begin_turn(soft, soft_turn_pass(&soft->vm->turn, &soft->waiter, &soft->kicked));
	if (!soft->has_turn || must_leave(soft))
		return true;
	if (soft->injection)
		soft_deliver(soft);
	return handle_async_event(soft);
}

void soft_execute(struct soft_vcpu *soft)
{
	/* Before vcpu_attention() is asked: what comes later kicks again. */
	atomic_store(&soft->kicked, false);
	soft_arm_windows(soft);
	soft->stop = STOP_NONE;
	soft->leave = false;
	if (vcpu_attention(soft->vcpu) & ~(unsigned)(ATTENTION_WINDOW | ATTENTION_NMI_WINDOW))
		return;
	soft_take_turn(soft, true);
	if (!soft->has_turn)
		return;
	soft_debug_begin(soft);
	soft_look_at_boundary(soft);
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
	soft_look_at_boundary(soft);
}

/* The guest executes PAUSE, most likely while it waits for another vCPU. */
void soft_pause(void *instruction) __asm__("_ZN8BX_CPU_C5PAUSEEP15bxInstruction_c");
void soft_pause(void *instruction)
{
	struct soft_vcpu *soft = soft_current;
	if (soft_turn_wanted(&soft->vm->turn)) {
		soft->yield = true;
		soft_look_at_boundary(soft);
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
	soft_look_at_boundary(soft);
	return 0;
}
