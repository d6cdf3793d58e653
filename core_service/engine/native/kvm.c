/* SPDX-License-Identifier: Apache-2.0
 *
 * The KVM backend: its virtual machine. /dev/kvm is closed once that exists, since one open /dev/kvm is
 * as many virtual machines as its holder likes.
 */
#include "kvm.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "failure.h"
#include "kvm_registers.h"

/* Three pages and one that Intel's CPUs without unrestricted guest mode want in the guest's address space,
 * below the firmware; elsewhere they are not used. */
#define TSS_ADDRESS 0xfeffd000ul
#define IDENTITY_MAP_ADDRESS 0xfeffc000ull

static const struct {
	int number;
	int wanted; /* bits */
	const char *name;
} capabilities[] = {
	{KVM_CAP_SYNC_REGS, KVM_SYNC_X86_VALID_FIELDS, "KVM_CAP_SYNC_REGS"},
	{KVM_CAP_IMMEDIATE_EXIT, 1, "KVM_CAP_IMMEDIATE_EXIT"},
	{KVM_CAP_READONLY_MEM, 1, "KVM_CAP_READONLY_MEM"},
	{KVM_CAP_X86_USER_SPACE_MSR, 1, "KVM_CAP_X86_USER_SPACE_MSR"},
	{KVM_CAP_X86_MSR_FILTER, 1, "KVM_CAP_X86_MSR_FILTER"},
	{KVM_CAP_SET_GUEST_DEBUG, 1, "KVM_CAP_SET_GUEST_DEBUG"},
	{KVM_CAP_XSAVE, 1, "KVM_CAP_XSAVE"},
};

static enum channel_status check_capabilities(int kvm, struct failure *failure)
{
	int version = ioctl(kvm, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		return failed(failure, CHANNEL_UNSUPPORTED, "/dev/kvm: API version %d, %d wanted", version,
			      KVM_API_VERSION);
	for (size_t i = 0; i < sizeof(capabilities) / sizeof(capabilities[0]); i++) {
		int found = ioctl(kvm, KVM_CHECK_EXTENSION, capabilities[i].number);
		if ((found & capabilities[i].wanted) != capabilities[i].wanted)
			return failed(failure, CHANNEL_UNSUPPORTED, "/dev/kvm: %s is %#x, %#x wanted: Linux 5.16 or later",
				      capabilities[i].name, found, capabilities[i].wanted);
	}
	return CHANNEL_OK;
}

static enum channel_status open_failed(struct failure *failure)
{
	switch (errno) {
	case EACCES:
		return failed_call(failure, "/dev/kvm: add the user to group kvm");
	case ENOENT:
	case ENODEV:
		return failed_call(failure, "/dev/kvm: load kvm_intel or kvm_amd, and enable virtualization in the firmware");
	default:
		return failed_call(failure, "/dev/kvm");
	}
}

static int create_vm(int kvm)
{
	int fd;
	do {
		fd = ioctl(kvm, KVM_CREATE_VM, 0);
	} while (fd < 0 && errno == EINTR);
	return fd;
}

static enum channel_status read_host(struct vm *vm, int kvm, struct failure *failure)
{
	struct kvm_vm *own = kvm_vm(vm);
	int khz = ioctl(own->fd, KVM_GET_TSC_KHZ, 0);
	vm->tsc_khz = khz > 0 ? (uint32_t)khz : 0;
	int run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	int slots = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
	own->cpuid = kvm_cpuid_read(kvm, vm->tsc_khz);
	if (run_size <= 0 || slots <= 0 || !own->cpuid)
		return failed_call(failure, "/dev/kvm: sizes and CPUID");
	if (!kvm_host_restrict(vm, kvm))
		return failed_call(failure, "/dev/kvm: list of MSRs");
	own->run_size = (size_t)run_size;
	own->slots = (uint32_t)slots < KVM_SLOTS ? (uint32_t)slots : KVM_SLOTS;
	vm->physical_bits = kvm_cpuid_physical_bits(own->cpuid);
	return CHANNEL_OK;
}

static enum channel_status set_up(struct vm *vm, struct failure *failure)
{
	int fd = kvm_vm(vm)->fd;
	uint64_t identity_map = IDENTITY_MAP_ADDRESS;
	struct kvm_enable_cap msr_exits = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR,
		.args = {KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_FILTER},
	};
	if (ioctl(fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0 || ioctl(fd, KVM_SET_TSS_ADDR, TSS_ADDRESS) < 0)
		return failed_call(failure, "KVM_SET_TSS_ADDR");
	if (ioctl(fd, KVM_ENABLE_CAP, &msr_exits) < 0)
		return failed_call(failure, "KVM_CAP_X86_USER_SPACE_MSR");
	return CHANNEL_OK;
}

static void vm_destroy(struct vm *vm)
{
	struct kvm_vm *own = kvm_vm(vm);
	if (own->fd >= 0)
		close(own->fd);
	free(own->cpuid);
	free(own);
	vm->backend = NULL;
}

static enum channel_status create(struct vm *vm, int kvm, struct failure *failure)
{
	struct kvm_vm *own = calloc(1, sizeof(*own));
	enum channel_status status = check_capabilities(kvm, failure);
	if (!own || status != CHANNEL_OK) {
		free(own);
		return own ? status : failed_call(failure, "virtual machine");
	}
	vm->backend = own;
	own->fd = create_vm(kvm);
	if (own->fd < 0)
		status = failed_call(failure, "KVM_CREATE_VM");
	if (status == CHANNEL_OK)
		status = read_host(vm, kvm, failure);
	if (status == CHANNEL_OK)
		status = set_up(vm, failure);
	if (status != CHANNEL_OK)
		vm_destroy(vm);
	return status;
}

static enum channel_status vm_create(struct vm *vm, struct failure *failure)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return open_failed(failure);
	enum channel_status status = create(vm, kvm, failure);
	close(kvm);
	return status;
}

#define REASON(reason) (1ull << (reason))

/* What the VM and its vCPUs are asked; /dev/kvm is closed by then. */
static const uint32_t requests[] = {
	KVM_RUN, KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION, KVM_GET_REGS, KVM_GET_SREGS, KVM_SET_SREGS, KVM_GET_SREGS2,
	KVM_SET_SREGS2, KVM_GET_MSRS, KVM_SET_MSRS, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, KVM_GET_XCRS, KVM_SET_XCRS,
	KVM_GET_XSAVE, KVM_SET_XSAVE, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, KVM_INTERRUPT, KVM_NMI, KVM_TRANSLATE,
	KVM_SET_CPUID2, KVM_SET_GUEST_DEBUG, KVM_X86_SET_MSR_FILTER, KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR,
};

const struct backend backend = {
	.name = "kvm",
	.capabilities = ENGINE_FPU | ENGINE_SMP | ENGINE_DEBUG | ENGINE_PARALLEL | ENGINE_WATCH | ENGINE_INTERRUPTS |
			ENGINE_NMI | ENGINE_EXCEPTIONS | ENGINE_CPUID | ENGINE_MSR_FILTER | ENGINE_PAGING |
			ENGINE_LONG_MODE,
	.max_vcpus = CHANNEL_VCPUS,
	.registers = {KVM_SCALARS, KVM_SEGMENTS},
	/* Not EXIT_NMI_WINDOW: KVM holds an NMI back until it can be delivered, and tells nobody when that is. */
	.exit_reasons = REASON(EXIT_STARTUP) | REASON(EXIT_PORT) | REASON(EXIT_MMIO) | REASON(EXIT_MSR) |
			REASON(EXIT_HLT) | REASON(EXIT_SHUTDOWN) | REASON(EXIT_WINDOW) | REASON(EXIT_PAUSED) |
			REASON(EXIT_COMPLETED) | REASON(EXIT_DEBUG) | REASON(EXIT_MEMORY_FAULT) |
			REASON(EXIT_INVALID_STATE) | REASON(EXIT_INTERNAL_ERROR) | REASON(EXIT_TPR),
	.needs = {.ioctls = requests, .ioctl_count = sizeof(requests) / sizeof(requests[0])},
	.vm_create = vm_create,
	.vm_destroy = vm_destroy,
	.map = kvm_map,
	.unmap = kvm_unmap,
	/* .written: KVM's CPU sees writes to code as hardware does */
	.vcpu_create = kvm_vcpu_create,
	.vcpu_destroy = kvm_vcpu_destroy,
	.vcpu_loop = kvm_vcpu_loop,
	.kick = kvm_kick,
	.read_state = kvm_read_state,
	.write_state = kvm_write_state,
	.event_flags = kvm_event_flags,
	.inject = kvm_inject,
	.get_cpuid = kvm_get_cpuid,
	.set_cpuid = kvm_set_cpuid,
	.set_msr_filter = kvm_set_msr_filter,
};
