/* SPDX-License-Identifier: Apache-2.0
 *
 * One copy of Bochs in this process, which is one CPU: its functions by name, its fields by offset.
 *
 * Bochs keeps its CPU in globals, so each vCPU has a copy of the library of its own. Most of Bochs' methods
 * are static then (BX_USE_CPU_SMF) and take no `this`.
 *
 * The library is Bochs commit 02c851a9 as built by bochscpu-build v0.4. Offsets were printed by gdb
 * (`ptype /o BX_CPU_C`) from a debug build of that commit in that configuration, and agree with the code of
 * the library's own accessors (cpu_get_cr0, cpu_get_star, cpu_set_killbit, ...). soft_library.c admits no
 * other build.
 */
#ifndef VMSESSION_SOFT_BOCHS_H
#define VMSESSION_SOFT_BOCHS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"

/* Offsets in BX_CPU_C, cpu/cpu.h. */
enum bochs_field {
	BOCHS_CPUID = 56,   /* bx_cpuid_t *: the CPU model */
	BOCHS_GENERAL = 88, /* gen_reg[]: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8-R15, RIP; 8 bytes each */
	BOCHS_RSP = BOCHS_GENERAL + 4 * 8,
	BOCHS_RIP = BOCHS_GENERAL + 16 * 8,
	BOCHS_EFLAGS = 248,   /* u32; the arithmetic flags are stale until force_flags() */
	BOCHS_PREV_RIP = 272, /* of the instruction that executes */
	BOCHS_PREV_RSP = 280,
	BOCHS_SPECULATIVE_RSP = 288, /* bool: prev_rsp is to be restored if the instruction faults */
	BOCHS_ICOUNT = 296,
	BOCHS_INHIBIT_MASK = 312, /* u32, BOCHS_INHIBIT_*: the interrupt shadow, while icount <= inhibit_icount */
	BOCHS_INHIBIT_ICOUNT = 320,
	BOCHS_SEGMENTS = 328, /* sregs[]: ES, CS, SS, DS, FS, GS; struct bochs_segment */
	BOCHS_GDTR = 520,     /* struct bochs_table */
	BOCHS_IDTR = 536,
	BOCHS_LDTR = 552,
	BOCHS_TR = 584,
	BOCHS_DR = 616, /* dr[4] */
	BOCHS_DR6 = 648,
	BOCHS_DR7 = 652,
	BOCHS_DEBUG_TRAP = 656, /* u32; bits 12-15: a #DB is due */
	BOCHS_CR0 = 660,
	BOCHS_CR2 = 664,
	BOCHS_CR3 = 672,
	BOCHS_CR4 = 680,
	BOCHS_CR4_ALLOWED = 684, /* u32: bits that this CPU model has */
	BOCHS_EFER = 692,
	BOCHS_EFER_ALLOWED = 696,
	BOCHS_TSC_ADJUST = 704,
	BOCHS_XCR0 = 720,
	BOCHS_XCR0_ALLOWED = 724,
	BOCHS_XSS_ALLOWED = 728,
	BOCHS_FPU = 736,     /* struct bochs_fpu */
	BOCHS_VECTORS = 960, /* vmm[32], 64 bytes each */
	BOCHS_MXCSR = 3072,
	BOCHS_MXCSR_MASK = 3076,
	BOCHS_OPMASK = 3080, /* opmask[8] */
	BOCHS_APIC_BASE = 3176,
	BOCHS_STAR = 3184,
	BOCHS_LSTAR = 3192,
	BOCHS_CSTAR = 3200,
	BOCHS_FMASK = 3208, /* u32 */
	BOCHS_KERNEL_GS_BASE = 3216,
	BOCHS_TSC_AUX = 3224,     /* u32 */
	BOCHS_SYSENTER_CS = 3228, /* u32 */
	BOCHS_SYSENTER_SP = 3232,
	BOCHS_SYSENTER_IP = 3240,
	BOCHS_PAT = 3248,
	BOCHS_XSS = 3480,
	BOCHS_EXT = 36978,      /* bool: an external event is being delivered */
	BOCHS_ACTIVITY = 36980, /* u32, BOCHS_ACTIVE... */
	BOCHS_PENDING = 36984,  /* u32, BOCHS_EVENT_* */
	BOCHS_MASKED = 36988,   /* u32, of the same: not to be taken now */
	BOCHS_ASYNC = 36992,    /* u32: not zero: handleAsyncEvent is called before the next instruction */
	BOCHS_CPU_MODE = 37000, /* u32, BOCHS_LONG_64 or another */
	BOCHS_LAST_EXCEPTION = 37012,     /* u32, BOCHS_ET_*: the one whose delivery goes on */
	BOCHS_STACK_WINDOW_SIZE = 37064,  /* u32, 0: the host address of the stack page is not cached */
	BOCHS_PDPTES = 135464,            /* PDPTR_CACHE.entry[4] */
};

/* Offsets in other globals. */
enum {
	BOCHS_COUNTDOWN = 0x1638,        /* bx_pc_system.currCountdown, u32: instructions to the next tick */
	BOCHS_COUNTDOWN_PERIOD = 0x163c, /* bx_pc_system.currCountdownPeriod, u32 */
	BOCHS_STAMPS = 8,                /* pageWriteStampTable.fineGranularityMapping, uint32_t *: see soft_code.c */
	BOCHS_PLUGINS = 56,              /* bx_devices.plugin*: pointers to device objects */
	BOCHS_PLUGINS_END = 144,
};

#define BOCHS_STAMP_TABLE_BYTES ((size_t)4 << 20)

enum { BOCHS_ACTIVE, BOCHS_HALTED, BOCHS_SHUT_DOWN };
enum { BOCHS_LONG_64 = 4 };
enum { BOCHS_EVENT_NMI = 1 << 0, BOCHS_EVENT_INTERRUPT = 1 << 10 };
enum { BOCHS_INHIBIT_INTERRUPTS = 1, BOCHS_INHIBIT_MOV_SS = 3 };
enum { BOCHS_ET_BENIGN = 0, BOCHS_ET_CONTRIBUTORY = 1, BOCHS_ET_PAGE_FAULT = 2, BOCHS_ET_DOUBLE_FAULT = 10 };
#define BOCHS_DEBUG_TRAPS 0xf000u

/* bx_segment_reg_t, cpu/descriptor.h */
struct bochs_segment {
	uint16_t selector, selector_index, selector_table_and_rpl, padding;
	uint32_t valid; /* 0: unusable; bit 0 and what Bochs has found out of its rights */
	uint8_t present, dpl, segment, type;
	uint64_t base;
	uint32_t limit; /* in bytes */
	uint8_t granularity, default_big, long_mode, available;
};

/* bx_global_segment_reg_t */
struct bochs_table {
	uint64_t base;
	uint16_t limit;
};

/* i387_t, cpu/i387.h. Registers and tags by physical number: ST(i) is (tos + i) & 7. */
struct bochs_fpu {
	uint16_t control, status, tags, opcode;
	uint64_t ip, dp;
	uint16_t cs, ds;
	uint32_t padding;
	struct {
		uint64_t significand;
		uint16_t sign_exponent;
	} __attribute__((aligned(16))) st[8];
	uint8_t top;
};

_Static_assert(sizeof(struct bochs_segment) == 32, "bx_segment_reg_t is 32 bytes");
_Static_assert(offsetof(struct bochs_fpu, st) == 32 && offsetof(struct bochs_fpu, top) == 160, "i387_t as in i387.h");

/* cpuid_function_t */
struct bochs_leaf {
	uint32_t eax, ebx, ecx, edx;
};

/* Functions of the copy: name here, symbol, result, parameters. */
#define BOCHS_FUNCTIONS(X) \
	X(create, "cpu_new", void, (unsigned id)) \
	X(loop, "cpu_loop", void, (unsigned id)) \
	X(bail, "cpu_bail", void, (unsigned id)) \
	X(task_priority, "cpu_get_cr8", uint32_t, (unsigned id)) \
	X(set_task_priority, "cpu_set_cr8", void, (unsigned id, uint32_t value)) \
	X(handle_async_event, "_ZN8BX_CPU_C16handleAsyncEventEv", bool, (void)) \
	X(enter_sleep_state, "_ZN8BX_CPU_C17enter_sleep_stateEj", void, (unsigned activity)) \
	X(interrupt, "_ZN8BX_CPU_C9interruptEhjbt", void, (uint8_t vector, unsigned type, bool push, uint16_t error)) \
	X(handle_context_change, "_ZN8BX_CPU_C22handleCpuContextChangeEv", void, (void)) \
	X(flush_tlb, "_ZN8BX_CPU_C9TLB_flushEv", void, (void)) \
	X(force_flags, "_ZN8BX_CPU_C11force_flagsEv", uint32_t, (void)) \
	X(set_flags, "_ZN8BX_CPU_C9setEFlagsEj", void, (uint32_t flags)) \
	X(load_pdptes, "_ZN8BX_CPU_C10CheckPDPTREm", bool, (uint64_t cr3)) \
	X(translate, "_ZN8BX_CPU_C20dbg_xlate_linear2phyEmPmS0_bb", bool, \
	  (uint64_t linear, uint64_t *physical, uint64_t *page_mask, bool verbose, bool nested)) \
	X(set_segment, "_ZN8BX_CPU_C19set_segment_ar_dataEP16bx_segment_reg_tbtmjt", bool, \
	  (struct bochs_segment *, bool valid, uint16_t selector, uint64_t base, uint32_t limit, uint16_t rights)) \
	X(forget_code, "_Z9handleSMCmj", void, (uint64_t gpa, uint32_t lines)) \
	X(breakpoint_page, "_ZN8BX_CPU_C18hwbreakpoint_checkEmjj", bool, (uint64_t linear, unsigned, unsigned)) \
	X(match_code, "_ZN8BX_CPU_C21code_breakpoint_matchEm", uint32_t, (uint64_t linear)) \
	X(match_data, "_ZN8BX_CPU_C18hwbreakpoint_matchEmjj", void, (uint64_t linear, unsigned bytes, unsigned access)) \
	X(match_port, "_ZN8BX_CPU_C18iobreakpoint_matchEjj", void, (unsigned port, unsigned bytes)) \
	X(read_msr, "_ZN8BX_CPU_C5rdmsrEjPm", bool, (uint32_t msr, uint64_t *value)) \
	X(write_msr, "_ZN8BX_CPU_C5wrmsrEjm", bool, (uint32_t msr, uint64_t value)) \
	X(write_cr8, "_ZN8BX_CPU_C8WriteCR8EP15bxInstruction_cm", void, (void *instruction, uint64_t value)) \
	X(iret16, "_ZN8BX_CPU_C6IRET16EP15bxInstruction_c", void, (void *instruction)) \
	X(iret32, "_ZN8BX_CPU_C6IRET32EP15bxInstruction_c", void, (void *instruction)) \
	X(iret64, "_ZN8BX_CPU_C6IRET64EP15bxInstruction_c", void, (void *instruction)) \
	X(pause, "_ZN8BX_CPU_C5PAUSEEP15bxInstruction_c", void, (void *instruction)) \
	X(cpuid, "_ZNK12corei3_cnl_t14get_cpuid_leafEjjP16cpuid_function_t", void, \
	  (const void *model, uint32_t leaf, uint32_t subleaf, struct bochs_leaf *)) \
	X(new_enum, "sim_new_param_enum", void *, (const char *name, const char *const *choices, uint32_t index)) \
	X(new_number, "sim_new_param_num", void *, (const char *name, uint64_t least, uint64_t most, uint64_t value)) \
	X(new_bool, "sim_new_param_bool", void *, (const char *name, bool value)) \
	X(new_string, "sim_new_param_string", void *, (const char *name, const char *value, uint32_t size)) \
	X(delete_enum, "sim_delete_param_enum", void, (void *)) \
	X(delete_number, "sim_delete_param_num", void, (void *)) \
	X(delete_bool, "sim_delete_param_bool", void, (void *)) \
	X(delete_string, "sim_delete_param_string", void, (void *))

/* The options that Bochs asks for by name: see soft_options.c. */
enum bochs_option { OPTION_MODEL, OPTION_ONE, OPTION_FALSE, OPTION_TRUE, OPTION_EMPTY, OPTION_EXCLUDED, OPTIONS };

struct bochs {
	int file; /* open as long as the copy is loaded: the loader knows libraries by path, and this is its path */
	void *handle;
	uint8_t *cpu;            /* bx_cpu */
	uint8_t *system;         /* bx_pc_system */
	uint32_t **stamps;       /* pageWriteStampTable.fineGranularityMapping */
	uint32_t *own_stamps;    /* what was there first; the copy frees it */
	void *option[OPTIONS]; /* owned */
#define BOCHS_MEMBER(name, symbol, result, parameters) result(*name) parameters;
	BOCHS_FUNCTIONS(BOCHS_MEMBER)
#undef BOCHS_MEMBER
};

/* Load a private copy. `library` stays the caller's. Does not create the CPU yet. */
enum channel_status bochs_load(struct bochs *, int library, struct failure *);
/* Unload it and close its file; no thread may be in it. What Bochs allocated for its one CPU it never frees, so
 * some 7 KB remain until the process ends: a vCPU lives as long as its VM. */
void bochs_unload(struct bochs *);

/* Fields of the CPU. Bochs reads and writes them as these types. */
static inline uint8_t *bochs_u8(const struct bochs *bochs, enum bochs_field field)
{
	return bochs->cpu + field;
}

static inline uint32_t *bochs_u32(const struct bochs *bochs, enum bochs_field field)
{
	return (uint32_t *)(bochs->cpu + field);
}

static inline uint64_t *bochs_u64(const struct bochs *bochs, enum bochs_field field)
{
	return (uint64_t *)(bochs->cpu + field);
}

static inline struct bochs_segment *bochs_segment(const struct bochs *bochs, enum bochs_field field, unsigned index)
{
	return (struct bochs_segment *)(bochs->cpu + field) + index;
}

static inline struct bochs_table *bochs_table(const struct bochs *bochs, enum bochs_field field)
{
	return (struct bochs_table *)(bochs->cpu + field);
}

#endif
