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
#define CGROUP_FD 4 /* cgroup.procs of the engine's cgroup, where VMSESSION_CGROUP is set */
#define CHANNEL_VERSION 2u
#define CHANNEL_VCPUS 64u /* vCPUs of one VM: what one futex_waitv call can watch, with room to spare */
#define CHANNEL_TEXT_BYTES 232u
#define CHANNEL_CPUID_LEAVES 160u /* of one vCPU: KVM_GET_SUPPORTED_CPUID gives some 60 */
#define CHANNEL_MSR_RANGES 16u     /* KVM_MSR_FILTER_MAX_RANGES, linux/kvm.h */
#define CHANNEL_MSR_RANGE 4096u    /* MSRs of one range */
#define CHANNEL_MAPPING_ENTRIES 120u /* of one packet */
#define CHANNEL_MEMORY_NAME "vmsession:" /* how the names begin of the memfds that core gives to engines */

enum channel_type {
	/* engine -> core, unasked */
	CHANNEL_HELLO = 1, /* the first packet: struct channel_hello */
	CHANNEL_EXIT = 2,  /* struct channel_exit: an exit of a vCPU with the stream transport; see CHANNEL_FPU */
	CHANNEL_FAILED = 3, /* struct channel_response: the engine is about to end, and why */

	/* engine -> core, answers */
	CHANNEL_RESPONSE = 4, /* struct channel_response */
	CHANNEL_STATE = 5,    /* struct channel_exit: the answer to CHANNEL_GET_STATE when it succeeds; see CHANNEL_FPU */
	CHANNEL_CPUID = 6,    /* struct channel_cpuid: the answer to CHANNEL_GET_CPUID when it succeeds */
	CHANNEL_MAPPINGS = 7, /* struct channel_mappings: the answer to CHANNEL_LIST_MAPPINGS when it succeeds */

	/* core -> engine, each answered by one response with its id */
	CHANNEL_CREATE_VCPU = 16, /* struct channel_vcpu; with VCPU_TRANSPORT_PAGE the packet carries the page's fd */
	CHANNEL_MAP = 17,         /* struct channel_range; carries the dataspace's fd (O_RDONLY if not CHANNEL_WRITABLE) */
	CHANNEL_UNMAP = 18,       /* struct channel_range (gpa, size): exactly this range, splitting what overlaps */
	CHANNEL_RUN = 19,         /* struct channel_run; see CHANNEL_FPU */
	CHANNEL_PAUSE = 20,       /* struct channel_vcpu (index) */
	CHANNEL_WINDOW = 21,      /* struct channel_vcpu (index): ask for an interrupt window */
	CHANNEL_GET_STATE = 22,   /* struct channel_run (index, vmm.reply.wanted) */
	CHANNEL_SET_STATE = 23,   /* struct channel_run (index, vmm.charged, vmm.scalar, vmm.segment); see CHANNEL_FPU */
	CHANNEL_WRITTEN = 24,     /* struct channel_range (gpa, size): somebody wrote guest memory */
	CHANNEL_GET_CPUID = 25,   /* struct channel_vcpu (index): the table as it stands; at first, all that the engine has.
	                           * The vCPU is stopped */
	CHANNEL_SET_CPUID = 26,   /* struct channel_cpuid: the whole table, of a vCPU that never ran */
	CHANNEL_SET_MSR_FILTER = 27, /* struct channel_msr_filter: instead of the one before; the first is empty */
	CHANNEL_RESEND = 29,         /* struct channel_vcpu (index): a vCPU with the stream transport sends the exit again
				      * at which it is stopped, before the answer; none if it never ran. For a core that
				      * goes on with the VM of another */
	CHANNEL_LIST_MAPPINGS = 28,  /* struct channel_list: what is mapped. An answer has as many entries as fit, from
				      * `first` on; 0 takes a new look, and the others go on with what it saw */
};

/* CHANNEL_EXIT, STATE, RUN and SET_STATE are followed by VCPU_FPU_BYTES of the FPU's area when VCPU_FPU_BIT is set
 * in valid[1] or charged[1], and by nothing when it is not: the packet alone says how long it is, whichever transport
 * the vCPU has. Only exits and runs by the page have it in the page. */

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
	CHANNEL_STARTED,         /* the vCPU ran already */
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
#define ENGINE_WATCH 0x10u      /* breakpoints on data */
#define ENGINE_INTERRUPTS 0x20u /* takes external interrupts */
#define ENGINE_NMI 0x40u        /* takes NMIs */
#define ENGINE_EXCEPTIONS 0x80u /* takes exceptions */
#define ENGINE_CPUID 0x100u     /* CPUID answers by a table that can be set */
#define ENGINE_MSR_FILTER 0x200u /* MSRs that the VMM names exit */
#define ENGINE_PAGING 0x400u    /* the guest can switch paging on */
#define ENGINE_LONG_MODE 0x800u /* the guest can enter long mode */

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

#define CPUID_SUBLEAF 0x1u /* the leaf has sub-leaves: `index` counts */

struct cpuid_leaf {
	uint32_t function; /* EAX */
	uint32_t index;    /* ECX, with CPUID_SUBLEAF */
	uint32_t flags;
	uint32_t eax, ebx, ecx, edx;
	uint32_t reserved;
};

/* A leaf that is not in the table is zero; beyond the highest basic leaf, what SDM vol. 2 (CPUID) says. What a
 * CPU computes stays its own: leaf 1 OSXSAVE, leaf 7 OSPKE, leaf 0xd EBX. */
struct channel_cpuid {
	struct channel_header header;
	uint32_t index; /* of the vCPU */
	uint32_t leaves;
	struct cpuid_leaf leaf[CHANNEL_CPUID_LEAVES];
};

#define MSR_FILTER_READ 0x1u
#define MSR_FILTER_WRITE 0x2u

struct msr_range {
	uint32_t first;
	uint32_t count; /* 1 to CHANNEL_MSR_RANGE */
	uint32_t flags; /* MSR_FILTER_*: which accesses give EXIT_MSR, also to MSRs that the engine keeps */
	uint32_t reserved;
};

struct channel_msr_filter {
	struct channel_header header;
	uint32_t ranges;
	uint32_t reserved;
	struct msr_range range[CHANNEL_MSR_RANGES];
};

struct channel_list {
	struct channel_header header;
	uint32_t first;
	uint32_t reserved;
};

enum mapping_kind {
	MAPPING_REGION = 0, /* an entry of the engine's own table: gpa, host, size, flags */
	MAPPING_KERNEL = 1, /* a memfd of core's in the address space, by /proc/self/maps: host, size, offset, inode, flags. One
			     * entry may be several regions that lie side by side */
};

struct channel_mapping {
	uint64_t gpa;
	uint64_t host;
	uint64_t size;
	uint64_t offset; /* in the file */
	uint64_t inode;
	uint32_t flags; /* CHANNEL_*; the kernel knows of CHANNEL_WRITABLE only */
	uint32_t kind;  /* enum mapping_kind */
};

struct channel_mappings {
	struct channel_header header;
	uint32_t first;
	uint32_t total;   /* of all entries that there are */
	uint32_t entries; /* of this packet */
	uint32_t reserved;
	struct channel_mapping entry[CHANNEL_MAPPING_ENTRIES];
};

struct channel_exit {
	struct channel_header header;
	uint32_t index;
	uint32_t reserved;
	struct vcpu_engine_half engine;
};

#endif
