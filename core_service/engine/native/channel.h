/* SPDX-License-Identifier: Apache-2.0
 *
 * The private channel between core and one engine process: a SOCK_SEQPACKET socket, file descriptor 3
 * of the engine. One packet is one message. Core trusts nothing in the engine's messages beyond their
 * size; the engine trusts core but checks all the same. The end of the channel is the end of the engine.
 *
 * `core_service/engine/protocol.py` is the Python view; a test holds them together.
 */
#ifndef VMSESSION_CHANNEL_H
#define VMSESSION_CHANNEL_H

#include <stdint.h>

#include "vcpu_page.h"

#define CHANNEL_FD 3
#define CHANNEL_VERSION 1u
#define CHANNEL_VCPUS 64u /* vCPUs of one VM: what one futex_waitv call can watch, with room to spare */
#define CHANNEL_TEXT_BYTES 232u

enum channel_type {
	/* engine -> core, unasked */
	CHANNEL_HELLO = 1, /* the first packet: struct channel_hello */
	CHANNEL_EXIT = 2,  /* struct channel_exit: an exit of a vCPU with the stream transport */
	CHANNEL_FAILED = 3, /* struct channel_response: the engine is about to end, and why */

	/* engine -> core, answers */
	CHANNEL_RESPONSE = 4, /* struct channel_response */
	CHANNEL_STATE = 5,    /* struct channel_exit: the answer to CHANNEL_GET_STATE when it succeeds */

	/* core -> engine, each answered by one response with its id */
	CHANNEL_CREATE_VCPU = 16, /* struct channel_vcpu; with VCPU_TRANSPORT_PAGE the packet carries the page's fd */
	CHANNEL_MAP = 17,         /* struct channel_range; carries the dataspace's fd (O_RDONLY if not CHANNEL_WRITABLE) */
	CHANNEL_UNMAP = 18,       /* struct channel_range (gpa, size): exactly this range, splitting what overlaps */
	CHANNEL_RUN = 19,         /* struct channel_run */
	CHANNEL_PAUSE = 20,       /* struct channel_vcpu (index) */
	CHANNEL_WINDOW = 21,      /* struct channel_vcpu (index): ask for an interrupt window */
	CHANNEL_GET_STATE = 22,   /* struct channel_run (index, vmm.reply.wanted) */
	CHANNEL_SET_STATE = 23,   /* struct channel_run (index, vmm.charged, vmm.scalar, vmm.segment) */
	CHANNEL_WRITTEN = 24,     /* struct channel_range (gpa, size): somebody wrote guest memory */
};

enum channel_status {
	CHANNEL_OK = 0,
	CHANNEL_BAD_MESSAGE,     /* malformed: unknown type, wrong size, missing fd, unaligned range */
	CHANNEL_NO_VCPU,         /* no vCPU of that index */
	CHANNEL_EXISTS,          /* there is a vCPU of that index */
	CHANNEL_NOT_STOPPED,     /* the vCPU runs, or stopped at another exit than the one named */
	CHANNEL_MID_INSTRUCTION, /* the vCPU stands in the middle of an instruction: complete it first */
	CHANNEL_LIMIT,           /* the engine's own limit (memory slots, vCPUs); text names it */
	CHANNEL_KERNEL,          /* a system call failed: error is its errno, text names it */
	CHANNEL_UNSUPPORTED,     /* this engine cannot */
};

struct channel_header {
	uint32_t type;
	uint32_t id; /* of the request; 0 in unasked messages */
};

/* Capabilities of an engine. */
#define ENGINE_FPU 0x1u         /* moves FPU state */
#define ENGINE_SMP 0x2u         /* more than one vCPU */
#define ENGINE_DEBUG 0x4u       /* single step, hardware breakpoints */
#define ENGINE_PARALLEL 0x8u    /* vCPUs run on several cores at once, not time-sliced */

struct channel_hello {
	struct channel_header header;
	uint32_t version;
	uint32_t page_abi;
	char engine[16];
	uint32_t capabilities;
	uint32_t max_vcpus;
	uint32_t tsc_khz;
	uint32_t physical_bits;
	uint64_t registers[2];  /* those that this engine can deliver and accept */
	uint64_t exit_reasons;  /* bit n: enum vcpu_exit_reason n can occur */
};

struct channel_response {
	struct channel_header header;
	uint32_t status; /* enum channel_status */
	uint32_t error;  /* errno where status is CHANNEL_KERNEL */
	char text[CHANNEL_TEXT_BYTES]; /* what failed, with value and limit; NUL-terminated */
};

enum vcpu_transport { VCPU_TRANSPORT_PAGE, VCPU_TRANSPORT_STREAM };

struct channel_vcpu {
	struct channel_header header;
	uint32_t index;
	uint32_t transport;
};

#define CHANNEL_WRITABLE 0x1u
#define CHANNEL_EXECUTABLE 0x2u

struct channel_range {
	struct channel_header header;
	uint64_t gpa;
	uint64_t size;
	uint64_t offset; /* in the dataspace */
	uint32_t flags;
	uint32_t reserved;
};

struct channel_run {
	struct channel_header header;
	uint32_t index;
	uint32_t exit_seq; /* the exit that this answers; the vCPU must be stopped there. 0 = whichever */
	struct vcpu_vmm_half vmm; /* reply, data, charged registers; the counters in it are ignored */
};

struct channel_exit {
	struct channel_header header;
	uint32_t index;
	uint32_t reserved;
	struct vcpu_engine_half engine;
};

#endif
