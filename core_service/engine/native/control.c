/* SPDX-License-Identifier: Apache-2.0 */
#include "control.h"

#include <string.h>
#include <unistd.h>

#include "channel_io.h"
#include "failure.h"
#include "hold.h"
#include "listing.h"
#include "memory.h"
#include "table.h"
#include "vcpu.h"

/* A handler answers by its status; one that has answered itself says so. */
#define ANSWERED ((enum channel_status)-1)

typedef enum channel_status handler(struct vm *, const struct packet *, struct failure *);

static enum channel_status create_vcpu(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	const struct channel_vcpu *request = &packet->message.vcpu;
	if (request->transport > VCPU_TRANSPORT_STREAM)
		return failed(failure, CHANNEL_BAD_MESSAGE, "transport %u: there are %u and %u", request->transport,
			      VCPU_TRANSPORT_PAGE, VCPU_TRANSPORT_STREAM);
	if ((request->transport == VCPU_TRANSPORT_PAGE) != (packet->fd >= 0))
		return failed(failure, CHANNEL_BAD_MESSAGE, "a page's descriptor belongs to the page transport");
	return vcpu_start(vm, request->index, request->transport, packet->fd, failure);
}

static enum channel_status map(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	const struct channel_range *range = &packet->message.range;
	if (packet->fd < 0)
		return failed(failure, CHANNEL_BAD_MESSAGE, "map without the dataspace's descriptor");
	if (range->flags & ~(CHANNEL_WRITABLE | CHANNEL_EXECUTABLE))
		return failed(failure, CHANNEL_BAD_MESSAGE, "map flags %#x: %#x are known", range->flags,
			      CHANNEL_WRITABLE | CHANNEL_EXECUTABLE);
	return memory_map(vm, range, packet->fd, failure);
}

static enum channel_status unmap(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	return memory_unmap(vm, &packet->message.range, failure);
}

static enum channel_status written(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	return memory_written(vm, &packet->message.range, failure);
}

static enum channel_status find(struct vm *vm, uint32_t index, struct vcpu **vcpu, struct failure *failure)
{
	*vcpu = vcpu_find(vm, index);
	return *vcpu ? CHANNEL_OK : failed(failure, CHANNEL_NO_VCPU, "no vCPU %u", index);
}

static enum channel_status request_pause(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	struct vcpu *vcpu;
	enum channel_status status = find(vm, packet->message.vcpu.index, &vcpu, failure);
	if (status == CHANNEL_OK)
		vcpu_request(vcpu, &vcpu->common->pause);
	return status;
}

static enum channel_status request_window(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	struct vcpu *vcpu;
	enum channel_status status = find(vm, packet->message.vcpu.index, &vcpu, failure);
	if (status == CHANNEL_OK)
		vcpu_request(vcpu, &vcpu->common->window);
	return status;
}

/* What follows struct channel_run; the packet's size was checked. */
static const uint8_t *fpu_charged(const struct packet *packet)
{
	return packet->size > sizeof(struct channel_run) ? packet->message.bytes + sizeof(struct channel_run) : NULL;
}

/* CHANNEL_RUN, CHANNEL_GET_STATE, CHANNEL_SET_STATE: the stopped vCPU's own thread serves them. */
static enum channel_status command(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	const struct channel_run *run = &packet->message.run;
	struct vcpu_engine_half state;
	uint8_t fpu[VCPU_FPU_BYTES];
	struct command command = {.type = run->header.type,
				  .exit_seq = run->exit_seq,
				  .vmm = &run->vmm,
				  .fpu = fpu_charged(packet),
				  .state = &state,
				  .fpu_state = fpu,
				  .failure = failure};
	struct vcpu *vcpu;
	enum channel_status status = find(vm, run->index, &vcpu, failure);
	if (status == CHANNEL_OK)
		status = vcpu_command(vcpu, &command);
	if (status != CHANNEL_OK || command.type != CHANNEL_GET_STATE)
		return status;
	channel_send_state(run->header.id, run->index, &state, fpu);
	return ANSWERED;
}

static enum channel_status resend(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	struct command command = {.type = CHANNEL_RESEND, .failure = failure};
	struct vcpu *vcpu;
	enum channel_status status = find(vm, packet->message.vcpu.index, &vcpu, failure);
	if (status == CHANNEL_OK && vcpu->page)
		return failed(failure, CHANNEL_BAD_MESSAGE, "vCPU %u: its exits are in its page", vcpu->index);
	return status == CHANNEL_OK ? vcpu_command(vcpu, &command) : status;
}

static enum channel_status no_cpuid(struct failure *failure)
{
	return failed(failure, CHANNEL_UNSUPPORTED, "%s: CPUID cannot be set", backend.name);
}

static enum channel_status get_cpuid(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	const struct channel_vcpu *request = &packet->message.vcpu;
	struct channel_cpuid table = {.header = {.type = CHANNEL_CPUID, .id = request->header.id},
				      .index = request->index};
	struct command command = {.type = CHANNEL_GET_CPUID, .leaf = table.leaf, .failure = failure};
	struct vcpu *vcpu;
	enum channel_status status = find(vm, request->index, &vcpu, failure);
	if (status == CHANNEL_OK && !(vm->capabilities & ENGINE_CPUID))
		status = no_cpuid(failure);
	if (status == CHANNEL_OK)
		status = vcpu_command(vcpu, &command);
	if (status != CHANNEL_OK)
		return status;
	table.leaves = command.leaves;
	channel_send_cpuid(&table);
	return ANSWERED;
}

static enum channel_status set_cpuid(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	struct channel_cpuid table = packet->message.cpuid;
	struct command command = {
		.type = CHANNEL_SET_CPUID, .leaf = table.leaf, .leaves = table.leaves, .failure = failure};
	struct vcpu *vcpu;
	enum channel_status status = find(vm, table.index, &vcpu, failure);
	if (status == CHANNEL_OK && !(vm->capabilities & ENGINE_CPUID))
		status = no_cpuid(failure);
	if (status == CHANNEL_OK)
		status = table_check_cpuid(&table, failure);
	if (status == CHANNEL_OK)
		status = vcpu_command(vcpu, &command);
	/* One that is not stopped has run. */
	return status == CHANNEL_NOT_STOPPED ? failed(failure, CHANNEL_STARTED, "vCPU %u runs", table.index) : status;
}

static enum channel_status set_msr_filter(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	const struct channel_msr_filter *filter = &packet->message.msr_filter;
	if (!(vm->capabilities & ENGINE_MSR_FILTER))
		return failed(failure, CHANNEL_UNSUPPORTED, "%s: no MSR filter", backend.name);
	enum channel_status status = table_check_msrs(filter, failure);
	if (status != CHANNEL_OK)
		return status;
	hold_begin(vm);
	status = backend.set_msr_filter(vm, filter->range, filter->ranges, failure);
	hold_end(vm);
	return status;
}

static enum channel_status list_mappings(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	const struct channel_list *request = &packet->message.list;
	struct channel_mappings answer = {.header = {.type = CHANNEL_MAPPINGS, .id = request->header.id}};
	enum channel_status status = listing_fill(vm, request->first, &answer, failure);
	if (status != CHANNEL_OK)
		return status;
	channel_send_mappings(&answer);
	return ANSWERED;
}

static const struct {
	size_t size;
	bool takes_fd;
	handler *handle;
} requests[] = {
	[CHANNEL_CREATE_VCPU] = {sizeof(struct channel_vcpu), true, create_vcpu},
	[CHANNEL_MAP] = {sizeof(struct channel_range), true, map},
	[CHANNEL_UNMAP] = {sizeof(struct channel_range), false, unmap},
	[CHANNEL_RUN] = {sizeof(struct channel_run), false, command},
	[CHANNEL_PAUSE] = {sizeof(struct channel_vcpu), false, request_pause},
	[CHANNEL_WINDOW] = {sizeof(struct channel_vcpu), false, request_window},
	[CHANNEL_GET_STATE] = {sizeof(struct channel_run), false, command},
	[CHANNEL_SET_STATE] = {sizeof(struct channel_run), false, command},
	[CHANNEL_WRITTEN] = {sizeof(struct channel_range), false, written},
	[CHANNEL_GET_CPUID] = {sizeof(struct channel_vcpu), false, get_cpuid},
	[CHANNEL_SET_CPUID] = {sizeof(struct channel_cpuid), false, set_cpuid},
	[CHANNEL_SET_MSR_FILTER] = {sizeof(struct channel_msr_filter), false, set_msr_filter},
	[CHANNEL_RESEND] = {sizeof(struct channel_vcpu), false, resend},
	[CHANNEL_LIST_MAPPINGS] = {sizeof(struct channel_list), false, list_mappings},
};

static size_t size_wanted(const struct packet *packet)
{
	uint32_t type = packet->message.header.type;
	size_t size = requests[type].size;
	bool charges = type == CHANNEL_RUN || type == CHANNEL_SET_STATE;
	if (charges && packet->size >= size && packet->message.run.vmm.charged[1] >> VCPU_FPU_BIT & 1)
		size += VCPU_FPU_BYTES;
	return size;
}

static enum channel_status handle(struct vm *vm, const struct packet *packet, struct failure *failure)
{
	uint32_t type = packet->message.header.type;
	if (packet->size < sizeof(packet->message.header))
		return failed(failure, CHANNEL_BAD_MESSAGE, "%zu bytes are no header", packet->size);
	if (packet->malformed)
		return failed(failure, CHANNEL_BAD_MESSAGE, "packet truncated, or several descriptors");
	if (type >= sizeof(requests) / sizeof(requests[0]) || !requests[type].handle)
		return failed(failure, CHANNEL_BAD_MESSAGE, "unknown message type %u", type);
	if (packet->size != size_wanted(packet))
		return failed(failure, CHANNEL_BAD_MESSAGE, "message type %u: %zu bytes, %zu wanted", type,
			      packet->size, size_wanted(packet));
	if (packet->fd >= 0 && !requests[type].takes_fd)
		return failed(failure, CHANNEL_BAD_MESSAGE, "message type %u takes no descriptor", type);
	return requests[type].handle(vm, packet, failure);
}

void control_serve(struct vm *vm)
{
	struct packet packet;
	while (channel_receive(&packet) == CHANNEL_PACKET) {
		struct failure failure = {0};
		enum channel_status status = handle(vm, &packet, &failure);
		if (packet.fd >= 0)
			close(packet.fd);
		uint32_t id = packet.size < sizeof(packet.message.header) ? 0 : packet.message.header.id;
		if (status != ANSWERED)
			channel_send_response(id, status, &failure);
	}
}
