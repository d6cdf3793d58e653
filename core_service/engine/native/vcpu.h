/* SPDX-License-Identifier: Apache-2.0
 *
 * A vCPU as common code sees it: phases, the exchange of an exit for a reply, and commands of core.
 *
 * Phases and their transitions. The vCPU's own thread makes all of them but one.
 *
 *	CREATING ──▶ STOPPED          vcpu_create succeeded; or ──▶ ENDED
 *	STOPPED  ──▶ REPLYING         run_seq moved: the reply is being copied and checked
 *	STOPPED  ──▶ CLAIMED          by the control thread: it posts a command
 *	CLAIMED  ──▶ STOPPED          the command was served
 *	CLAIMED  ──▶ REPLYING         the command was an accepted CHANNEL_RUN
 *	REPLYING ──▶ STOPPED          refused or FETCH: an exit is published again
 *	REPLYING ──▶ GUEST            the backend executes
 *	GUEST    ──▶ STOPPED          an exit is published
 *	GUEST    ──▶ HELD ──▶ GUEST   somebody changes memory
 *	any      ──▶ ENDED            the VM ends
 */
#ifndef VMSESSION_VCPU_H
#define VMSESSION_VCPU_H

#include "engine.h"
#include "page_wait.h"

enum vcpu_phase {
	PHASE_CREATING,
	PHASE_ENDED,
	PHASE_STOPPED,
	PHASE_CLAIMED,
	PHASE_REPLYING,
	PHASE_GUEST,
	PHASE_HELD,
};

/* A request that is only counted: asked by the channel or in the page, acknowledged as far as it was seen. */
struct request {
	_Atomic uint32_t channel_seq; /* the control thread counts up */
	uint32_t channel_ack, page_ack; /* the vCPU's thread */
};

/* What the control thread asks of a stopped vCPU's thread. Lives on the control thread's stack until done. */
struct command {
	uint32_t type; /* of the request */
	uint32_t exit_seq; /* where the vCPU must be stopped; 0 = whichever exit */
	const struct vcpu_vmm_half *vmm; /* CHANNEL_RUN, GET_STATE, SET_STATE */
	const uint8_t *fpu;              /* CHANNEL_RUN, SET_STATE: NULL where it is not charged */
	struct vcpu_engine_half *state;  /* CHANNEL_GET_STATE fills it, and `fpu_state` when that is valid */
	uint8_t *fpu_state;              /* VCPU_FPU_BYTES */
	struct cpuid_leaf *leaf;         /* CHANNEL_GET_CPUID fills CHANNEL_CPUID_LEAVES at most, CHANNEL_SET_CPUID reads */
	uint32_t leaves;                 /* of `leaf` */
	struct failure *failure;
	enum channel_status status;
};

/* What the vCPU does instead of executing. */
struct rest {
	enum vcpu_activity activity;
	uint64_t halt_ip; /* with ACTIVITY_HALTED: of the HLT, and its length */
	uint32_t halt_length;
};

/* What waits for the next instruction boundary. */
struct owed {
	bool complete;
	bool step;        /* until the next exit at a boundary */
	bool step_ends;   /* the instruction that is being finished is the step */
	bool breakpoints; /* `debug` is to be in force */
	struct vcpu_debug debug;
	uint32_t injection;
	uint32_t injection_error;
	struct vcpu_vmm_half registers; /* charged, scalar, segment */
};

struct vcpu_common {
	_Atomic uint32_t phase;
	uint32_t exit_seq; /* the vCPU's thread counts; others read it only in a phase they own */

	/* commands: posted in phase CLAIMED, served by the vCPU's thread */
	struct command *_Atomic command;
	bool fpu_came; /* `fpu_run` came with the CHANNEL_RUN that is being checked */
	uint8_t fpu_run[VCPU_FPU_BYTES];
	_Atomic uint32_t control_seq; /* moves with every command and at the end */
	_Atomic uint32_t served_seq;  /* moves with every command served */

	/* Whether the vCPU stands in the middle of an instruction; others read it while it is held. */
	_Atomic bool mid_instruction;

	struct request pause, window;
	bool nmi_window;        /* asked for; the vCPU's thread */
	_Atomic uint32_t asleep; /* in phase GUEST, until it is kicked: see kick.h */
	struct page_spinner spinner;
	uint32_t kick_seen; /* the kicker thread's */

	/* instruction boundary, see boundary.c */
	struct owed owed;
	struct rest rest;
	uint32_t debugged; /* what EXIT_DEBUG has still to tell, as DR6 */
	enum vcpu_injection_result injection_result; /* goes into the next exit */

	enum channel_status created; /* what vcpu_create said, and why */
	struct failure failure;
	_Atomic uint32_t dismissed; /* all vCPUs have ended: the thread may destroy its own */
};

/* Control thread, see vcpu_control.c. */

/* Start a vCPU's thread and wait until it is STOPPED. `page_fd` is -1 with the stream transport; it stays the
 * caller's. */
enum channel_status vcpu_start(struct vm *, uint32_t index, uint32_t transport, int page_fd, struct failure *);
/* NULL when there is none. */
struct vcpu *vcpu_find(struct vm *, uint32_t index);
/* Have a command served by a stopped vCPU; CHANNEL_NOT_STOPPED when it is not. */
enum channel_status vcpu_command(struct vcpu *, struct command *);
/* Count up a request and make the vCPU look at it. */
void vcpu_request(struct vcpu *, struct request *);
/* End all vCPUs and free them. vm_common.ending is set. */
void vcpu_end_all(struct vm *);

/* The vCPU's thread. The first run, which answers no exit, and EXIT_STARTUP with all registers. */
enum run_verdict vcpu_start_up(struct vcpu *);

/* The page's words are plain integers in the ABI; C11 allows no atomic access to them without a cast. */
#define SHARED_WORD(field) ((_Atomic uint32_t *)&(field))

/* A word that the VMM writes. Acquire: what it stored before is seen with it. */
static inline uint32_t page_word(const uint32_t *word)
{
	return atomic_load_explicit((const _Atomic uint32_t *)word, memory_order_acquire);
}

#endif
