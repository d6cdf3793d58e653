/* SPDX-License-Identifier: Apache-2.0
 *
 * What all engines share, and what each must provide.
 *
 * One process is one VM. Threads: the control thread (main) serves the channel and owns memory; one
 * thread per vCPU runs it; one kicker thread sleeps on the kick_seq words of all vCPU pages and makes
 * running vCPUs look at pause_seq and window_seq.
 *
 * A backend (kvm, soft, x86emu) executes. It calls vcpu_exchange() at every exit, also in the middle of an
 * instruction, and gets back a private, checked copy of the VMM's reply. Everything about pages,
 * counters, waiting, pausing, transports and the channel is common code, written once.
 */
#ifndef VMSESSION_ENGINE_H
#define VMSESSION_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "channel.h"
#include "confine.h"
#include "vcpu_page.h"

struct vm;
struct vcpu;
struct region;

/* A failure with its reason for core. Functions that can fail return enum channel_status and fill it. */
struct failure {
	uint32_t error;
	char text[CHANNEL_TEXT_BYTES];
};

/* Guest memory as the backend sees it: one mapping of (a part of) a dataspace. Kept by memory.c, sorted
 * by gpa, never overlapping. `slot` is the backend's own. */
struct region {
	uint64_t gpa;
	uint64_t size;
	uint8_t *host;
	bool writable;
	bool executable;
	uint32_t slot;
};

struct backend {
	const char *name;
	uint32_t capabilities;
	uint32_t max_vcpus;
	uint64_t registers[2];
	uint64_t exit_reasons;
	struct needs needs; /* once vm_create has returned */

	/* Create the machine; called once, before anything else. Fills vm->tsc_khz and vm->physical_bits, and takes
	 * away from vm->capabilities and vm->registers what this host lacks. */
	enum channel_status (*vm_create)(struct vm *, struct failure *);
	/* Undo vm_create, after all vCPUs and mappings are gone. May be NULL. */
	void (*vm_destroy)(struct vm *);

	/* Memory. Called by the control thread while no vCPU executes guest code (a rendezvous holds them,
	 * see hold.h); vCPUs may stand in an exchange, in the middle of an instruction. The region given to
	 * `map` moves when others are added: keep nothing but `slot`. A split is unmap of the whole region
	 * and map of what is left of it, at the same host addresses. The host memory of an unmapped range
	 * stays harmless to touch until no vCPU stands in the middle of an instruction. */
	enum channel_status (*map)(struct vm *, struct region *, struct failure *);
	void (*unmap)(struct vm *, struct region *);
	/* Somebody outside the guest wrote [gpa, gpa + size): forget decoded code. vCPUs are held. May be NULL.
	 * Called for CHANNEL_WRITTEN and for the ranges of every reply; VCPU_WRITTEN_ALL is (0, UINT64_MAX). Any
	 * thread, also that of a vCPU that stands in an exchange. */
	void (*written)(struct vm *, uint64_t gpa, uint64_t size);

	/* Called on the vCPU's own thread. A vcpu_create that fails leaves nothing to destroy. */
	enum channel_status (*vcpu_create)(struct vcpu *, struct failure *);
	void (*vcpu_destroy)(struct vcpu *);
	/* Execute until vcpu_exchange() or vcpu_boundary() has answered RUN_ENDED. Returns only then. Begins at
	 * an instruction boundary, after EXIT_STARTUP, with the reply to that exit not yet acted upon. */
	void (*vcpu_loop)(struct vcpu *);

	/* Any thread: make a vCPU that executes guest code leave it soon and call vcpu_attention(). Must not
	 * be lost when the vCPU is just about to enter. */
	void (*kick)(struct vcpu *);

	/* On the vCPU's thread, at an instruction boundary only. Fills the registers wanted, and says in
	 * out->valid which of them it could deliver; the rest of `out` stays as it is. */
	void (*read_state)(struct vcpu *, const uint64_t wanted[2], struct vcpu_engine_half *out);
	/* Apply charged registers; false when the state cannot be entered (EXIT_INVALID_STATE follows). `fpu` is
	 * NULL when the FPU is not charged. Never sees REG_ACTIVITY charged where vcpu_boundary() is used. */
	bool (*write_state)(struct vcpu *, const struct vcpu_vmm_half *charged, const uint8_t *fpu);

	/* What vcpu_boundary() needs; on the vCPU's thread, at an instruction boundary.
	 * event_flags: EXIT_IF, EXIT_INTERRUPTIBLE and, with EXIT_NMI_WINDOW in exit_reasons, EXIT_NMI_OPEN as they
	 * are now, after injections not yet delivered.
	 * inject: enter or pend the event (INJECT_*), which was checked: a well-formed one of a kind that the engine
	 * has (ENGINE_INTERRUPTS, ...), and an interrupt only with EXIT_INTERRUPTIBLE. False when it did not enter; it must then never enter. */
	uint32_t (*event_flags)(struct vcpu *);
	bool (*inject)(struct vcpu *, uint32_t injection, uint32_t error);

	/* With ENGINE_CPUID; on the vCPU's thread while it is stopped, set_cpuid only before its first run. get_cpuid
	 * fills `leaf` and returns how many, at most CHANNEL_CPUID_LEAVES. The table given to set_cpuid is checked: known
	 * flags, and no leaf twice. */
	uint32_t (*get_cpuid)(struct vcpu *, struct cpuid_leaf *leaf);
	enum channel_status (*set_cpuid)(struct vcpu *, const struct cpuid_leaf *, uint32_t leaves, struct failure *);
	/* With ENGINE_MSR_FILTER; on the control thread, vCPUs held. The ranges are checked. */
	enum channel_status (*set_msr_filter)(struct vm *, const struct msr_range *, uint32_t ranges, struct failure *);
};
extern const struct backend backend; /* exactly one per executable */

/* What a running vCPU owes its VMM: asked by the backend before it enters the guest and after a kick. */
enum attention {
	ATTENTION_NONE,
	ATTENTION_PAUSE = 1,  /* publish EXIT_PAUSED at the next boundary */
	ATTENTION_WINDOW = 2, /* publish EXIT_WINDOW as soon as an interrupt can be injected */
	ATTENTION_HOLD = 4,   /* the control thread wants the vCPUs held: call vcpu_hold_point() */
	ATTENTION_END = 8,    /* leave vcpu_loop */
	ATTENTION_NMI_WINDOW = 16, /* come to the boundary as soon as an NMI would be delivered */
};
unsigned vcpu_attention(struct vcpu *);

/* Held: blocks while somebody changes memory. Call at ATTENTION_HOLD, at an instruction boundary. */
void vcpu_hold_point(struct vcpu *);

enum run_verdict {
	RUN_GO,    /* proceed with `reply` */
	RUN_ENDED, /* the VM ends: unwind */
};

/* Publish the exit that stands in vcpu->half->exit (and data), sleep until the VMM runs the vCPU again,
 * and copy its reply into vcpu->reply, checked. The registers that the VMM wants are read by read_state
 * in here, where the exit is not EXIT_MID_INSTRUCTION, and so are the event flags. What an exit in the middle of
 * the instruction left to be done is done first, also where the instruction ends in an exit of the backend's own
 * (EXIT_MEMORY_FAULT, EXIT_INTERNAL_ERROR). FETCH, malformed replies, written ranges, and
 * GET_STATE and SET_STATE of the channel are answered inside. The backend sees a reply once.
 * Bookkeeping of pause_ack and window_ack is done here by reason. */
enum run_verdict vcpu_exchange(struct vcpu *);

/* The instruction boundary, for a backend that leaves it to common code (and has event_flags and inject):
 *
 *	vcpu_loop:
 *		for (;;) {
 *			if (vcpu_boundary(vcpu) == RUN_ENDED)
 *				return;
 *			execute guest code until it exits, or vcpu_attention() is not zero;
 *			at an exit: fill half->exit; vcpu_exchange(), which may end; use the reply's value or data;
 *			after an exit in the middle of an instruction: if vcpu_owes_boundary(), finish that
 *			instruction and no other, else just execute on;
 *		}
 *
 * vcpu_boundary applies charged registers, injects, publishes EXIT_COMPLETED, EXIT_PAUSED and EXIT_WINDOW,
 * holds, and repeats EXIT_HLT and EXIT_SHUTDOWN until something wakes the vCPU. It returns RUN_GO when guest
 * code is to be executed. */
enum run_verdict vcpu_boundary(struct vcpu *);

/* Whether anything waits for the next boundary: of the last reply, or by vcpu_attention(). Not
 * ATTENTION_WINDOW and ATTENTION_NMI_WINDOW: the backend comes to a boundary as soon as the event can be taken. */
bool vcpu_owes_boundary(struct vcpu *);

/* The guest executed HLT at `ip`, of `length` bytes, and the CPU's rip is behind it; or it shut down.
 * Called at the boundary, instead of an exchange: the next vcpu_boundary() publishes the exit. read_state
 * goes on to report what the CPU has; common code shows rip at the HLT. */
void vcpu_halt(struct vcpu *, uint64_t ip, uint32_t length);
void vcpu_shut_down(struct vcpu *);

/* With ENGINE_DEBUG: what was to be debugged has happened, `status` in DR6's layout (VCPU_DEBUG_STEP and bits 0 to 3).
 * Called at the boundary, instead of an exchange: vcpu_boundary() publishes it with the address of the instruction
 * that comes next, which registers charged meanwhile may have moved. */
void vcpu_debugged(struct vcpu *, uint32_t status);

/* The size of the next part of an access to a device's memory: at most 8 bytes, a power of two; what is not a
 * power of two (an access that ends at its page's end) or larger is cut so that the parts are aligned. */
uint32_t vcpu_access_size(uint64_t gpa, uint32_t bytes);

/* Fill half->exit for a new exit: everything else zero. */
struct vcpu_exit *vcpu_exit(struct vcpu *, enum vcpu_exit_reason, uint32_t flags);

struct vcpu {
	struct vm *vm;
	uint32_t index;
	uint32_t transport;
	pthread_t thread;

	/* The exit and the registers, private with both transports; publishing copies what is valid into the
	 * page, which is written only and never read back. vcpu_create sets half->fpu_size. */
	struct vcpu_engine_half *half;
	struct vcpu_page *page; /* NULL with the stream transport; common code's own */

	/* The reply, private and checked: sizes within bounds, injection well-formed, unknown bits refused. */
	struct vcpu_vmm_half reply;

	/* With ENGINE_DEBUG; `debug` changes at boundaries only.
	 * stepping: execute one instruction, then call vcpu_debugged(). Set when vcpu_boundary() answers RUN_GO, and
	 * when an exit in the middle of an instruction is answered. From such an exit on the backend need not report the
	 * step: vcpu_owes_boundary() has the instruction finished, and vcpu_boundary() publishes EXIT_DEBUG by itself.
	 * step_over: no execution breakpoint fires at the instruction where the vCPU stands. Set by every exit at a
	 * boundary; the backend clears it once it has executed an instruction or delivered an event. It survives a kick
	 * or a hold before that, and a breakpoint that was not reached yet is not lost by them. */
	bool stepping;
	bool step_over;
	struct vcpu_debug debug; /* the VMM's breakpoints, checked; control is 0 where there are none */

	/* FPU state: read_state fills fpu_valid when VCPU_FPU_BIT is wanted. */
	uint8_t fpu_valid[VCPU_FPU_BYTES];
	uint8_t fpu_charged[VCPU_FPU_BYTES];

	void *backend; /* the backend's own */

	/* common code's own: counters, transport, waiting; see vcpu.c */
	struct vcpu_common *common;
};

struct vm {
	uint32_t tsc_khz;
	uint32_t physical_bits;
	uint32_t capabilities; /* of the backend and of this host, ENGINE_*; fixed once vm_create is done */
	uint64_t registers[2]; /* likewise */
	void *backend;
	struct vcpu *vcpu[CHANNEL_VCPUS]; /* by creation, not by index; only the control thread adds */
	_Atomic uint32_t vcpus;

	/* common code's own; see hold.h, memory.h, kicker.h */
	struct vm_common *common;
};

/* Region lookup for the backend; the caller is on a vCPU thread outside a hold, or on the control thread. */
struct region *memory_find(struct vm *, uint64_t gpa);

#endif
