/* SPDX-License-Identifier: Apache-2.0
 *
 * The KVM backend's own: what kvm*.c share. Kernel interface: Documentation/virt/kvm/api.rst.
 */
#ifndef VMSESSION_KVM_H
#define VMSESSION_KVM_H

#include <errno.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "engine.h"

#define KVM_SLOTS 32768u /* regions of one VM, where the kernel gives as many */

struct kvm_vm {
	int fd;
	size_t run_size;          /* of the kvm_run mapping */
	struct kvm_cpuid2 *cpuid; /* of every vCPU at first, but for its index */
	bool software;           /* KVM without hardware virtualization (kvm_pvm): emulates all but 64-bit ring 3 */
	uint32_t slots;          /* at most KVM_SLOTS */
	uint64_t slot_used[KVM_SLOTS / 64];
};

struct kvm_vcpu {
	int fd;
	struct kvm_run *run;
	/* KVM_RUN has still to complete the instruction of the last exit with what we filled in. */
	bool unfinished;
	/* KVM_SYNC_X86_* of what run->s.regs holds, as the CPU has it or as it will have it. */
	uint64_t fresh;
	/* An interrupt would be taken now: as KVM said at its last exit, and nothing was injected since. */
	bool interruptible;
	/* An NMI was injected that may be pending still: one that came within another waits for its IRET. */
	bool nmi_due;
	/* An event was injected that KVM_RUN has still to deliver. */
	bool event_due;
	struct kvm_cpuid2 *cpuid;
	struct kvm_guest_debug debug; /* as KVM has it */
};

static inline struct kvm_vm *kvm_vm(const struct vm *vm)
{
	return vm->backend;
}

static inline struct kvm_vcpu *kvm_vcpu(const struct vcpu *vcpu)
{
	return vcpu->backend;
}

/* kvm_host.c: take away from vm->capabilities and vm->registers what this host lacks. */
bool kvm_host_restrict(struct vm *, int kvm_fd);

/* kvm_cpuid.c: what the host's KVM supports less what nothing here serves. NULL with errno on failure;
 * the caller frees it. */
struct kvm_cpuid2 *kvm_cpuid_read(int kvm_fd, uint32_t tsc_khz);
uint32_t kvm_cpuid_physical_bits(const struct kvm_cpuid2 *);
/* Bytes of the XSAVE area, at most VCPU_FPU_BYTES. */
uint32_t kvm_cpuid_xsave_bytes(const struct kvm_cpuid2 *);
/* The table that a vCPU begins with. Fails with errno. */
bool kvm_cpuid_begin(struct vcpu *);
uint32_t kvm_get_cpuid(struct vcpu *, struct cpuid_leaf *);
enum channel_status kvm_set_cpuid(struct vcpu *, const struct cpuid_leaf *, uint32_t leaves, struct failure *);

/* kvm_filter.c */
enum channel_status kvm_set_msr_filter(struct vm *, const struct msr_range *, uint32_t ranges, struct failure *);

/* kvm_code.c: the instruction that comes next. */
/* It, or its end in the next page, is where nothing is attached: `gpa`. */
bool kvm_fetch_fault(struct vcpu *, uint64_t *gpa);
/* It is a HLT that will be executed. */
bool kvm_halts_next(struct vcpu *);
/* Not emulated, where KVM has no hardware virtualization: in ring 3 of 64-bit mode. */
bool kvm_runs_natively(struct vcpu *);

/* kvm_debug.c */
/* Before KVM_RUN, at a boundary: have KVM debug what is to be debugged. 0 or -errno: -EOPNOTSUPP where this host's
 * KVM would lose it. */
int kvm_debug_enter(struct vcpu *);
/* KVM executes one instruction only. */
bool kvm_debug_steps(const struct kvm_vcpu *);
void kvm_debug_exit(struct vcpu *);

/* kvm_memory.c */
enum channel_status kvm_map(struct vm *, struct region *, struct failure *);
void kvm_unmap(struct vm *, struct region *);

/* kvm_vcpu.c */
enum channel_status kvm_vcpu_create(struct vcpu *, struct failure *);
void kvm_vcpu_destroy(struct vcpu *);
void kvm_vcpu_loop(struct vcpu *);
void kvm_kick(struct vcpu *);
/* KVM_RUN that only takes over dirty registers and completes the last exit's instruction: 0 when that
 * gave another exit, -EINTR when it is done, another -errno on failure. */
int kvm_complete(struct kvm_vcpu *);

/* kvm_exit.c: publish what KVM_RUN returned with. `error` is 0 or its -errno. */
enum run_verdict kvm_exit(struct vcpu *, int error);

/* kvm_state.c */
void kvm_read_state(struct vcpu *, const uint64_t wanted[2], struct vcpu_engine_half *out);
bool kvm_write_state(struct vcpu *, const struct vcpu_vmm_half *charged, const uint8_t *fpu);
/* The fields that KVM_RUN is to return along, for the registers wanted. */
uint64_t kvm_sync_fields(const uint64_t wanted[2]);

/* kvm_event.c */
uint32_t kvm_event_flags(struct vcpu *);
bool kvm_inject(struct vcpu *, uint32_t injection, uint32_t error);
/* At a HLT: an NMI is pending that nothing blocks any more. KVM's emulator does not look for it behind IRET, and
 * KVM_RUN delivers it when the guest is entered again. */
bool kvm_nmi_wakes(struct vcpu *);

#endif
