/* SPDX-License-Identifier: Apache-2.0
 *
 * The software engine: Bochs' CPU behind the backend interface.
 *
 *	soft.c              the backend: machine, vCPUs, the loop
 *	soft_library.c      the file that Bochs comes in        soft_bochs.c     a loaded copy of it
 *	soft_spare.c        the first copy, ahead of time       soft_instrumentation.c  what is cut out of copies
 *	soft_turn.c         which vCPU executes                 soft_execution.c in and out of guest code
 *	soft_state.c        registers                           soft_fpu.c       FPU state
 *	soft_state_check.c  states that no CPU can be in
 *	soft_event.c        injected events, and their windows  soft_breakdown.c what Bochs cannot execute
 *	soft_exits.c        I/O, MMIO and MSR exits             soft_code.c      memory and decoded code
 *	soft_debug.c        steps and breakpoints               soft_clock.c     the TSC
 *	soft_cpuid.c        CPUID                               soft_options.c   the CPU model
 *	soft_quiet.c        what Bochs calls and nobody needs   soft_crash.c     the end, should Bochs crash
 *	soft_python_stubs.c what the loader wants to see
 *
 * Interposition: the executable exports its symbols, so wherever Bochs calls an exported function of its own
 * through the PLT or a table, a definition in here is called instead. It finds its vCPU in `soft_current`.
 */
#ifndef VMSESSION_SOFT_H
#define VMSESSION_SOFT_H

#include "engine.h"
#include "soft_bochs.h"
#include "soft_spare.h"
#include "soft_turn.h"

#define SOFT_TSC_KHZ 1000000u    /* the TSC counts nanoseconds */
#define SOFT_PHYSICAL_BITS 39u   /* of the CPU model, CPUID 0x80000008 */
#define SOFT_FPU_BYTES 2688u     /* XSAVE: x87, SSE, AVX, AVX-512 */

struct soft_vcpu;

struct soft_vm {
	int library; /* owned */
	struct soft_spare spare;
	struct soft_turn turn;
	struct soft_vcpu *last_turn; /* who had the turn before; only compared */
	uint64_t memory_generation;  /* moves with every map and unmap, while the vCPUs are held */
	uint32_t *stamps;            /* owned; one table for all copies, see soft_code.c */
	uint64_t start_ns;           /* TSC 0 */
	struct msr_range filter[CHANNEL_MSR_RANGES]; /* changes while the vCPUs are held */
	uint32_t filters;
	struct soft_vcpu *vcpus;     /* owned: all that there ever were, since a kick may come late */
	/* copies that can hold decoded code; changed and used only by who has the turn */
	struct soft_vcpu *decoder[CHANNEL_VCPUS];
};

/* Why a vCPU left guest code, beyond what vcpu_boundary() finds by itself. */
enum soft_stop { STOP_NONE, STOP_HALTED, STOP_SHUT_DOWN, STOP_FETCH, STOP_BROKEN, STOP_DEBUG, STOP_TPR };

/* `detail` of EXIT_INTERNAL_ERROR. */
enum soft_breakdown { BREAKDOWN_PANIC = 1, BREAKDOWN_ASSERTION };

struct soft_vcpu {
	struct vcpu *vcpu;
	struct soft_vm *vm;
	struct soft_vcpu *next; /* of the VM */
	struct bochs bochs;
	pthread_mutex_t kick_lock; /* whoever kicks from another thread, and the end of the CPU */
	bool created;              /* under kick_lock: the CPU is there */
	_Atomic bool kicked;
	struct soft_waiter waiter; /* for its turn */
	void *signal_stack;        /* owned */

	/* the vCPU's thread only */
	bool executing; /* inside cpu_loop: exits are possible, and longjmp to its start */
	bool has_turn;
	bool leave;     /* leave cpu_loop at the next boundary */
	bool ended;     /* the VM ends */
	bool yield;     /* the guest spins: give others a turn */
	bool window;    /* leave as soon as an interrupt can be injected */
	bool nmi_window; /* leave as soon as an NMI would be delivered */
	uint32_t ticks; /* of this turn */
	uint64_t memory_generation; /* that the TLB knows */
	uint32_t injection, injection_error; /* to be delivered before the next instruction */
	enum soft_stop stop;
	uint64_t halt_ip;
	uint32_t halt_length;
	uint64_t fetch_gpa;
	enum soft_breakdown breakdown;
	uint64_t entry_icount;   /* instructions and exceptions until guest code was entered */
	uint32_t debug_status;   /* what the next boundary has to tell of, in DR6's layout */
	struct vcpu_debug armed; /* the breakpoints that the TLB knows */
	struct cpuid_leaf cpuid[CHANNEL_CPUID_LEAVES];
	uint32_t cpuid_leaves;
};

/* The vCPU whose thread this is; NULL on other threads. */
extern _Thread_local struct soft_vcpu *soft_current;

/* soft_execution.c */
void soft_execute(struct soft_vcpu *);
/* Wait for the turn; with `kickable`, until it is kicked at most. Sets has_turn. */
void soft_take_turn(struct soft_vcpu *, bool kickable);
void soft_give_turn(struct soft_vcpu *);
/* Any thread, as long as the CPU is there. */
void soft_look_at_boundary(struct soft_vcpu *);
void soft_leave_at_boundary(struct soft_vcpu *);
/* From within an instruction: undo it as far as a fault would, and stop. */
_Noreturn void soft_abandon_instruction(struct soft_vcpu *, enum soft_stop);

/* soft_event.c */
uint32_t soft_event_flags(struct vcpu *);
bool soft_inject(struct vcpu *, uint32_t injection, uint32_t error);
/* Inside cpu_loop, at a boundary. May not return: a fault in it starts cpu_loop over. */
void soft_deliver(struct soft_vcpu *);
/* Before guest code is entered: watch for the windows that the VMM asked for. */
void soft_arm_windows(struct soft_vcpu *);
/* Whether one was asked for since. */
bool soft_windows_changed(const struct soft_vcpu *);
/* At a boundary: whether one that is watched for is open, or can be at the next. */
bool soft_window_open(const struct soft_vcpu *);
bool soft_window_near(const struct soft_vcpu *);

/* soft_debug.c */
/* With the turn, before guest code is entered. */
void soft_debug_begin(struct soft_vcpu *);
/* At a boundary: whether a step or a breakpoint ends the run. */
void soft_debug_boundary(struct soft_vcpu *);
void soft_debug_report(struct soft_vcpu *);
uint64_t soft_linear_ip(const struct soft_vcpu *);

/* soft_code.c */
enum channel_status soft_map(struct vm *, struct region *, struct failure *);
void soft_unmap(struct vm *, struct region *);
void soft_written(struct vm *, uint64_t gpa, uint64_t size);
void soft_add_decoder(struct soft_vcpu *);
void soft_remove_decoder(struct soft_vcpu *);

/* soft_exits.c */
enum channel_status soft_set_msr_filter(struct vm *, const struct msr_range *, uint32_t ranges, struct failure *);
void soft_read_mmio(struct soft_vcpu *, uint64_t gpa, uint32_t bytes, void *data);
void soft_write_mmio(struct soft_vcpu *, uint64_t gpa, uint32_t bytes, const void *data, bool protected);

/* soft_state.c, soft_fpu.c */
#define SOFT_SCALARS ((1ull << REG_SCALARS) - 1)
#define SOFT_SEGMENTS (((1ull << SEG_SEGMENTS) - 1) | 1ull << VCPU_FPU_BIT)
void soft_reset_state(struct soft_vcpu *);
void soft_read_state(struct vcpu *, const uint64_t wanted[2], struct vcpu_engine_half *);
bool soft_write_state(struct vcpu *, const struct vcpu_vmm_half *charged, const uint8_t *fpu);
void soft_read_fpu(const struct bochs *, uint8_t *area); /* VCPU_FPU_BYTES */
bool soft_fpu_enterable(const struct bochs *, const uint8_t *area);
void soft_write_fpu(const struct bochs *, const uint8_t *area);

/* soft_cpuid.c */
void soft_cpuid_fill(struct soft_vcpu *);
uint32_t soft_get_cpuid(struct vcpu *, struct cpuid_leaf *leaf);
enum channel_status soft_set_cpuid(struct vcpu *, const struct cpuid_leaf *, uint32_t leaves, struct failure *);

/* soft_clock.c */
uint64_t soft_clock_ns(void);

/* soft_crash.c */
void soft_crash_watch(void);
enum channel_status soft_crash_stack(struct soft_vcpu *, struct failure *);
void soft_crash_stack_free(struct soft_vcpu *);

#endif
