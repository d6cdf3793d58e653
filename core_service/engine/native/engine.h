/* SPDX-License-Identifier: Apache-2.0
 *
 * What all engines share, and what each must provide.
 *
 * One process is one VM. Threads: the control thread (main) serves the channel and owns memory; one
 * thread per vCPU runs it; one kicker thread sleeps on the kick_seq words of all vCPU pages and makes
 * running vCPUs look at pause_seq and window_seq.
 *
 * A backend (kvm, soft) executes. It calls vcpu_exchange() at every exit, also in the middle of an
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

	/* Create the machine; called once, before anything else. Fills vm->tsc_khz and vm->physical_bits. */
	enum channel_status (*vm_create)(struct vm *, struct failure *);

	/* Memory. Called by the control thread while no vCPU executes guest code (a rendezvous holds them,
	 * see vm_hold); vCPUs may stand in an exchange, in the middle of an instruction. */
	enum channel_status (*map)(struct vm *, struct region *, struct failure *);
	void (*unmap)(struct vm *, struct region *);
	/* Somebody outside the guest wrote [gpa, gpa + size): forget decoded code. vCPUs are held. May be NULL. */
	void (*written)(struct vm *, uint64_t gpa, uint64_t size);

	/* Called on the vCPU's own thread. */
	enum channel_status (*vcpu_create)(struct vcpu *, struct failure *);
	void (*vcpu_destroy)(struct vcpu *);
	/* Execute until vcpu_exchange() has answered RUN_ENDED. Returns only then. */
	void (*vcpu_loop)(struct vcpu *);

	/* Any thread: make a vCPU that executes guest code leave it soon and call vcpu_attention(). Must not
	 * be lost when the vCPU is just about to enter. */
	void (*kick)(struct vcpu *);

	/* On the vCPU's thread, at an instruction boundary only. */
	void (*read_state)(struct vcpu *, const uint64_t wanted[2], struct vcpu_engine_half *out);
	/* Apply charged registers; false when the state cannot be entered (EXIT_INVALID_STATE follows). */
	bool (*write_state)(struct vcpu *, const struct vcpu_vmm_half *charged, const uint8_t *fpu);
};
extern const struct backend backend; /* exactly one per executable */

/* What a running vCPU owes its VMM: asked by the backend before it enters the guest and after a kick. */
enum attention {
	ATTENTION_NONE,
	ATTENTION_PAUSE = 1,  /* publish EXIT_PAUSED at the next boundary */
	ATTENTION_WINDOW = 2, /* publish EXIT_WINDOW as soon as an interrupt can be injected */
	ATTENTION_HOLD = 4,   /* the control thread wants the vCPUs held: call vcpu_hold_point() */
	ATTENTION_END = 8,    /* leave vcpu_loop */
};
unsigned vcpu_attention(struct vcpu *);

/* Held: blocks while the control thread changes memory. Call at ATTENTION_HOLD, outside guest code. */
void vcpu_hold_point(struct vcpu *);

enum run_verdict {
	RUN_GO,    /* proceed with `reply` */
	RUN_ENDED, /* the VM ends: unwind */
};

/* Publish the exit that stands in vcpu->half->exit (and data), sleep until the VMM runs the vCPU again,
 * and copy its reply into vcpu->reply, checked. FETCH is answered inside when the exit is at a boundary, and
 * so are GET_STATE and SET_STATE of the channel. The backend sees a reply once.
 * Bookkeeping of pause_ack and window_ack is done here by reason. */
enum run_verdict vcpu_exchange(struct vcpu *);

struct vcpu {
	struct vm *vm;
	uint32_t index;
	uint32_t transport;
	pthread_t thread;

	/* The engine's words. With the page transport `half` is inside the shared page and is written only,
	 * never read back; with the stream transport it is private. */
	struct vcpu_engine_half *half;
	struct vcpu_page *page; /* NULL with the stream transport */

	/* The reply, private and checked: sizes within bounds, injection well-formed, unknown bits refused. */
	struct vcpu_vmm_half reply;
	uint8_t fpu_charged[VCPU_FPU_BYTES];

	void *backend; /* the backend's own */

	/* common code's own: counters, transport, waiting; see vcpu.c */
	struct vcpu_common *common;
};

struct vm {
	uint32_t tsc_khz;
	uint32_t physical_bits;
	void *backend;
	struct vcpu *vcpu[CHANNEL_VCPUS];
	uint32_t vcpus;
};

/* Region lookup for the backend; the caller is on a vCPU thread outside a hold, or on the control thread. */
struct region *memory_find(struct vm *, uint64_t gpa);

#endif
