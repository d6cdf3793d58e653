/* SPDX-License-Identifier: Apache-2.0
 *
 * The vCPU page: the shared-memory ABI between an engine and a VMM, one per vCPU.
 *
 * This file is the one definition. `dataspace/vcpu_page.py` is its Python view; a test holds them
 * together. All values are little-endian, in host byte order on x86-64.
 *
 * The object is VCPU_PAGE_BYTES long:
 *
 *   0x0000  engine half   written by the engine only: header, exit, valid registers
 *   0x0800  VMM half      written by the VMM only: run, pause and window counters, reply, charged registers
 *   0x1000  FPU, valid    written by the engine only: XSAVE area, standard format (SDM vol. 1, 13.4)
 *   0x2000  FPU, charged  written by the VMM only
 *
 * Rules
 *
 * 1. Every word has exactly one writer. There is no word that both sides write, so that a hostile or
 *    dying peer cannot overwrite an outcome. Each side keeps its own words privately and never reads
 *    them back from here.
 * 2. The vCPU is stopped when exit_seq == run_seq as the engine counts; it runs when the VMM has
 *    stored run_seq = exit_seq + 1. Any other value of run_seq is ignored. The engine stores the new
 *    exit_seq with release order after the exit record; the VMM stores run_seq with release order after
 *    the reply. The first run answers no exit: its reply is not read, and EXIT_STARTUP follows.
 * 3. While the vCPU is stopped the VMM half belongs to the VMM; the engine copies the reply once, when
 *    run_seq moves, and checks the copy. While the guest runs the engine reads only kick_seq,
 *    pause_seq and window_seq.
 * 4. Waiting: a side that is about to sleep sets its `waiting` word, issues a full fence, looks at the
 *    peer's counter again and sleeps on that counter with FUTEX_WAIT (shared). A side that publishes
 *    stores its counter, issues a full fence, and wakes if the peer's `waiting` word is not zero. A side
 *    that cannot fence leaves its `waiting` word at 1 and wakes always. Every sleep has a time limit,
 *    since a hostile peer can requeue or swallow a wake-up.
 * 5. The end of a session is no word in here: the VMM learns it from its lease, the engine from its
 *    channel.
 */
#ifndef VMSESSION_VCPU_PAGE_H
#define VMSESSION_VCPU_PAGE_H

#include <stdint.h>

#define VCPU_PAGE_MAGIC 0x55504356u /* "VCPU" */
#define VCPU_PAGE_ABI 2u
#define VCPU_HALF_BYTES 2048u
#define VCPU_VMM_HALF 0x800u
#define VCPU_FPU_VALID 0x1000u
#define VCPU_FPU_CHARGED 0x2000u
#define VCPU_FPU_BYTES 4096u
#define VCPU_PAGE_BYTES 0x3000u
#define VCPU_DATA_BYTES 256u
#define VCPU_WRITTEN_RANGES 8u
#define VCPU_WRITTEN_ALL 0xffffffffu

/* Scalar registers: index into `scalar`, bit in valid[0] / charged[0] / wanted[0]. With _GNU_SOURCE, glibc's
 * <signal.h> declares some of these names as others: include it in another file. */
enum vcpu_scalar {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
	REG_RIP, REG_RFLAGS,
	REG_CR0, REG_CR2, REG_CR3, REG_CR4, REG_CR8, /* CR8 is the task priority */
	REG_DR0, REG_DR1, REG_DR2, REG_DR3, REG_DR6, REG_DR7,
	REG_EFER, REG_XCR0, REG_XSS,
	REG_PDPTE0, REG_PDPTE1, REG_PDPTE2, REG_PDPTE3,
	REG_SYSENTER_CS, REG_SYSENTER_SP, REG_SYSENTER_IP,
	REG_STAR, REG_LSTAR, REG_CSTAR, REG_FMASK, REG_KERNEL_GS_BASE,
	REG_TSC, REG_TSC_OFFSET, REG_TSC_AUX,
	REG_ACTIVITY,         /* enum vcpu_activity */
	REG_INTERRUPTIBILITY, /* VCPU_SHADOW_* bits */
	REG_APIC_BASE, REG_PAT,
	REG_SCALARS,
};

/* What it does instead of executing. A vCPU that waits for SIPI gives no exit but EXIT_PAUSED, and only a charged
 * ACTIVITY_ACTIVE ends that; HALTED and SHUTDOWN are ended by a charged rip as well. */
enum vcpu_activity { ACTIVITY_ACTIVE, ACTIVITY_HALTED, ACTIVITY_SHUTDOWN, ACTIVITY_WAIT_FOR_SIPI };

#define VCPU_SHADOW_STI 0x1u
#define VCPU_SHADOW_MOV_SS 0x2u
#define VCPU_SHADOW_NMI 0x8u

/* Segments and tables: index into `segment`, bit in valid[1] / charged[1] / wanted[1]. */
enum vcpu_segment {
	SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR, SEG_GDTR, SEG_IDTR,
	SEG_SEGMENTS,
};
#define VCPU_FPU_BIT 32 /* in valid[1], charged[1], wanted[1]: the FPU area */

struct vcpu_segment_value {
	uint16_t selector;
	uint16_t attributes; /* AMD's packed form: 0-3 type, 4 S, 5-6 DPL, 7 P, 8 AVL, 9 L, 10 D/B, 11 G */
	uint32_t limit;      /* in bytes, granularity already applied */
	uint64_t base;
};

enum vcpu_exit_reason {
	EXIT_NONE = 0,
	EXIT_STARTUP,          /* the first run: reset state, nothing executed */
	EXIT_PORT,             /* port I/O: address = port, size, count, EXIT_READ for in */
	EXIT_MMIO,             /* access to an address where nothing is attached: address, size, EXIT_READ */
	EXIT_MSR,              /* address = MSR, EXIT_READ for rdmsr, value */
	EXIT_HLT,              /* ip at the HLT */
	EXIT_SHUTDOWN,         /* triple fault */
	EXIT_WINDOW,           /* an interrupt can be injected now, as was asked for */
	EXIT_NMI_WINDOW,       /* an NMI would be delivered at once, as was asked for */
	EXIT_PAUSED,
	EXIT_COMPLETED,        /* the instruction boundary that REPLY_COMPLETE asked for */
	EXIT_DEBUG,            /* a step or a breakpoint of the VMM: detail in DR6's layout, address = linear ip */
	EXIT_MEMORY_FAULT,     /* instruction fetch from nowhere (EXIT_FETCH); address */
	EXIT_INVALID_STATE,    /* the charged state cannot be entered */
	EXIT_INTERNAL_ERROR,   /* the engine cannot execute this: detail, instruction bytes */
	EXIT_TPR,              /* the guest lowered its task priority: value = CR8 */
	EXIT_REASONS,
};

/* `detail` of EXIT_INVALID_STATE. The reply was refused as a whole and nothing was executed; the next reply
 * answers the exit that the refused one was for, whose address, size, count and flags stand in the record.
 * Only with REFUSED_STATE some of the charged registers may have been taken over, and windows that it asked for or
 * withdrew stay so. */
enum vcpu_refusal {
	REFUSED_NONE,
	REFUSED_FLAGS,         /* unknown reply flags, or of a capability that this engine does not have; FETCH together
	                        * with what runs; FAULT at another exit than EXIT_MSR */
	REFUSED_INJECTION,     /* reserved bits or type, an exception's vector above 31, an error code without exception, a
	                        * kind of event that this engine does not have: no later time would do either */
	REFUSED_WRITTEN_COUNT, /* more ranges than VCPU_WRITTEN_RANGES */
	REFUSED_WRITTEN_RANGE, /* a range that is empty or wraps */
	REFUSED_REGISTERS,     /* charged registers that this engine does not accept */
	REFUSED_ACTIVITY,      /* an activity state that cannot be entered this way */
	REFUSED_STATE,         /* the engine cannot enter the charged state */
	REFUSED_BREAKPOINTS,   /* a kind of breakpoint that this engine does not have, or a malformed one */
};

/* Exit flags. */
#define EXIT_READ 0x01u            /* the guest reads: the reply's value or data is what it gets */
#define EXIT_MID_INSTRUCTION 0x02u /* the instruction is not finished: state is not at a boundary */
#define EXIT_INTERRUPTIBLE 0x04u   /* an external interrupt injected with the next run would be taken */
#define EXIT_IF 0x08u              /* the guest's interrupt flag */
#define EXIT_FETCH 0x10u           /* EXIT_MEMORY_FAULT: an instruction fetch */
#define EXIT_WRITE_PROTECTED 0x20u /* EXIT_MMIO: there is an attachment, but it is read-only */
#define EXIT_IP_VALID 0x40u        /* `ip` holds the instruction's address */
#define EXIT_NMI_OPEN 0x80u        /* an NMI would be delivered at once; only with engines that have EXIT_NMI_WINDOW */

enum vcpu_injection_result { INJECTION_NONE, INJECTION_TAKEN, INJECTION_NOT_TAKEN };

struct vcpu_exit {
	uint32_t reason;
	uint32_t flags;
	uint64_t address;  /* port, guest-physical address, or MSR index */
	uint64_t value;    /* out, MMIO write, wrmsr: the data when it is at most 8 bytes in all */
	uint32_t size;     /* bytes of one access: 1, 2, 4 or 8 */
	uint32_t count;    /* accesses (rep); size * count <= VCPU_DATA_BYTES, longer strings give several exits. How many
	                    * accesses an exit joins is the engine's choice */
	uint64_t ip;       /* of the instruction, see EXIT_IP_VALID */
	uint32_t instruction_length; /* bytes, 0 where not known */
	uint32_t injection;          /* enum vcpu_injection_result of the last reply's injection */
	uint32_t detail;             /* EXIT_DEBUG: DR6; EXIT_INVALID_STATE: enum vcpu_refusal; EXIT_INTERNAL_ERROR: the engine's own */
	uint32_t instruction_bytes_size;
	uint8_t instruction_bytes[16];
};

struct vcpu_engine_half {
	/* header, written before the page is shared */
	uint32_t magic;
	uint32_t abi;
	uint32_t size; /* VCPU_PAGE_BYTES */
	uint32_t index;
	uint32_t tsc_khz; /* nominal, 0 where not known */
	uint32_t fpu_size; /* bytes of the XSAVE area that this engine moves, 0 = FPU state is not valid here */
	uint32_t reserved0[10];
	/* 0x040: counters */
	uint32_t exit_seq;
	uint32_t engine_waiting;
	uint32_t pause_ack;  /* the pause_seq that the last EXIT_PAUSED acknowledged */
	uint32_t window_ack; /* the window_seq that the last EXIT_WINDOW acknowledged */
	uint32_t engine_cpu; /* the core that the engine's thread was on when it published: a hint, see page_wait.h */
	uint32_t reserved1[11];
	/* 0x080 */
	struct vcpu_exit exit;
	uint8_t reserved2[128 - sizeof(struct vcpu_exit)];
	/* 0x100: the exit's data when size * count > 8 */
	uint8_t data[VCPU_DATA_BYTES];
	/* 0x200 */
	uint64_t valid[2];
	uint64_t scalar[64];
	struct vcpu_segment_value segment[16];
	uint8_t reserved3[VCPU_HALF_BYTES - 0x510];
};

/* Reply flags. */
#define REPLY_COMPLETE 0x01u        /* finish the instruction and stop at the boundary with EXIT_COMPLETED */
#define REPLY_FETCH 0x02u           /* do not run: publish the same exit again with the wanted registers */
#define REPLY_FAULT 0x04u           /* EXIT_MSR: raise #GP instead */
#define REPLY_WITHDRAW_WINDOW 0x08u /* forget window requests up to the present window_seq, and that for an NMI window */
#define REPLY_STEP 0x10u            /* execute one instruction, or finish this one, and stop with EXIT_DEBUG. Forgotten at the
                                     * next exit at a boundary, whichever it is */
#define REPLY_NMI_WINDOW 0x20u      /* publish EXIT_NMI_WINDOW as soon as an NMI would be delivered; stays until it was */
#define REPLY_BREAKPOINTS 0x40u     /* the VMM's breakpoints are those of `debug` from the next boundary on */

/* Charged registers, an injection and COMPLETE belong to an instruction boundary. At an exit in the middle of
 * an instruction they wait for its end; a further exit of the same instruction may come first, whose reply
 * adds to the registers and replaces the injection. The injection's result is in the first exit after it. That end
 * may be an exit of its own, EXIT_MEMORY_FAULT or EXIT_INTERNAL_ERROR: it comes after the registers and the injection,
 * and in the place of EXIT_COMPLETED. */

/* Injection: vector | type << 8 | INJECT_ERROR_CODE | INJECT_VALID, as in AMD's EVENTINJ (APM vol. 2, 15.20). */
#define INJECT_VALID 0x80000000u
#define INJECT_ERROR_CODE 0x800u
#define INJECT_TYPE_SHIFT 8
enum vcpu_inject_type { INJECT_INTERRUPT = 0, INJECT_NMI = 2, INJECT_EXCEPTION = 3 };

struct vcpu_range {
	uint64_t gpa;
	uint64_t size;
};

struct vcpu_reply {
	uint32_t flags;
	uint32_t injection;       /* 0 = none */
	uint32_t injection_error; /* error code of an exception */
	uint32_t written_count;   /* ranges in `written`, or VCPU_WRITTEN_ALL */
	uint64_t value;           /* in, MMIO read, rdmsr: the data when it is at most 8 bytes in all */
	uint64_t wanted[2];       /* registers to deliver with the next exits, where it is at a boundary */
	struct vcpu_range written[VCPU_WRITTEN_RANGES]; /* guest memory that the VMM wrote since the last run */
};

/* Breakpoints of the VMM, unseen by the guest, whose own do not fire while there are any. `control` has the
 * layout of DR7 (SDM vol. 3, 17.2.4): breakpoint n is on with bit 2n or 2n + 1; R/W 0 (execute, LEN 0), 1 (write)
 * or 3 (read or write); all other bits zero. Execution stops before the instruction, and the next run steps over
 * it; data breakpoints stop after it. */
struct vcpu_debug {
	uint64_t address[4]; /* linear */
	uint32_t control;
	uint32_t reserved;
};
#define VCPU_DEBUG_STEP 0x4000u /* in `detail` of EXIT_DEBUG: BS; bits 0 to 3 tell the breakpoints */

struct vcpu_vmm_half {
	/* 0x800: counters */
	uint32_t run_seq;
	uint32_t vmm_waiting;
	uint32_t kick_seq; /* bumped after pause_seq or window_seq; the engine sleeps on it while the guest runs */
	uint32_t pause_seq;
	uint32_t window_seq;
	uint32_t reserved0[11];
	/* 0x840 */
	struct vcpu_reply reply;
	uint8_t reserved1[192 - sizeof(struct vcpu_reply)];
	/* 0x900: the reply's data when size * count > 8 */
	uint8_t data[VCPU_DATA_BYTES];
	/* 0xa00 */
	uint64_t charged[2];
	uint64_t scalar[64];
	struct vcpu_segment_value segment[16];
	/* 0xd10 */
	struct vcpu_debug debug; /* with REPLY_BREAKPOINTS */
	uint8_t reserved2[VCPU_HALF_BYTES - 0x510 - sizeof(struct vcpu_debug)];
};

struct vcpu_page {
	struct vcpu_engine_half engine;
	struct vcpu_vmm_half vmm;
	uint8_t fpu_valid[VCPU_FPU_BYTES];
	uint8_t fpu_charged[VCPU_FPU_BYTES];
};

_Static_assert(sizeof(struct vcpu_exit) <= 128, "the exit record fits its slot");
_Static_assert(sizeof(struct vcpu_reply) <= 192, "the reply record fits its slot");
_Static_assert(sizeof(struct vcpu_engine_half) == VCPU_HALF_BYTES, "the engine half is 2 KiB");
_Static_assert(sizeof(struct vcpu_vmm_half) == VCPU_HALF_BYTES, "the VMM half is 2 KiB");
_Static_assert(sizeof(struct vcpu_page) == VCPU_PAGE_BYTES, "the page object is three pages");
_Static_assert(REG_SCALARS <= 64 && SEG_SEGMENTS <= 16, "masks are 64 bits wide");

#endif
