/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory slots: one per region.
 */
#include "failure.h"
#include "kvm.h"

static bool take_slot(struct kvm_vm *vm, uint32_t *slot)
{
	for (uint32_t i = 0; i < vm->slots; i++) {
		if (vm->slot_used[i / 64] >> i % 64 & 1)
			continue;
		vm->slot_used[i / 64] |= 1ull << i % 64;
		*slot = i;
		return true;
	}
	return false;
}

static void give_slot(struct kvm_vm *vm, uint32_t slot)
{
	vm->slot_used[slot / 64] &= ~(1ull << slot % 64);
}

enum channel_status kvm_map(struct vm *vm, struct region *region, struct failure *failure)
{
	struct kvm_vm *own = kvm_vm(vm);
	if (!take_slot(own, &region->slot))
		return failed(failure, CHANNEL_LIMIT, "all %u memory slots of this VM are used", own->slots);
	struct kvm_userspace_memory_region slot = {
		.slot = region->slot,
		.flags = region->writable ? 0 : KVM_MEM_READONLY,
		.guest_phys_addr = region->gpa,
		.memory_size = region->size,
		.userspace_addr = (uintptr_t)region->host,
	};
	if (ioctl(own->fd, KVM_SET_USER_MEMORY_REGION, &slot) == 0)
		return CHANNEL_OK;
	enum channel_status status =
		failed_call(failure, "memory slot [%#llx, %#llx)", (unsigned long long)region->gpa,
			    (unsigned long long)(region->gpa + region->size));
	give_slot(own, region->slot);
	return status;
}

void kvm_unmap(struct vm *vm, struct region *region)
{
	struct kvm_vm *own = kvm_vm(vm);
	/* Removing a slot that exists cannot fail. */
	struct kvm_userspace_memory_region none = {.slot = region->slot, .guest_phys_addr = region->gpa};
	ioctl(own->fd, KVM_SET_USER_MEMORY_REGION, &none);
	give_slot(own, region->slot);
}
