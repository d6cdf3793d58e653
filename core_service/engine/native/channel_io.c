/* SPDX-License-Identifier: Apache-2.0 */
#include "channel_io.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS_TAKEN 4 /* more than one is malformed; these are closed, the kernel drops the rest */

bool channel_valid(void)
{
	int type;
	socklen_t size = sizeof(type);
	return getsockopt(CHANNEL_FD, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET;
}

/* An empty packet reads like the end. Core that only shut down its sending side has ended as well. */
static bool hung_up(void)
{
	struct pollfd channel = {.fd = CHANNEL_FD, .events = POLLRDHUP};
	poll(&channel, 1, 0);
	return channel.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

/* The first descriptor is the packet's, the others are closed. Returns how many there were. */
static unsigned take_fds(struct msghdr *header, struct packet *packet)
{
	unsigned count = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= c->cmsg_len; at += sizeof(int)) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + at, sizeof(fd));
			if (count++ == 0)
				packet->fd = fd;
			else
				close(fd);
		}
	}
	return count;
}

enum channel_event channel_receive(struct packet *packet)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(FDS_TAKEN * sizeof(int))];
	struct iovec data = {.iov_base = &packet->message, .iov_len = sizeof(packet->message)};
	struct msghdr header = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};

	ssize_t size;
	do {
		size = recvmsg(CHANNEL_FD, &header, MSG_CMSG_CLOEXEC);
	} while (size < 0 && errno == EINTR);
	if (size < 0 || (size == 0 && hung_up()))
		return CHANNEL_ENDED;
	packet->size = (size_t)size;
	packet->fd = -1;
	unsigned fds = take_fds(&header, packet);
	packet->malformed = fds > 1 || header.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
	return CHANNEL_PACKET;
}

static void send_parts(struct iovec *part, size_t parts)
{
	struct msghdr header = {.msg_iov = part, .msg_iovlen = parts};
	while (sendmsg(CHANNEL_FD, &header, MSG_NOSIGNAL) < 0 && errno == EINTR)
		continue;
}

static void send_packet(const void *message, size_t size)
{
	send_parts(&(struct iovec){.iov_base = (void *)message, .iov_len = size}, 1);
}

void channel_send_hello(const struct vm *vm)
{
	struct channel_hello hello = {
		.header = {.type = CHANNEL_HELLO},
		.version = CHANNEL_VERSION,
		.page_abi = VCPU_PAGE_ABI,
		.capabilities = vm->capabilities,
		.max_vcpus = backend.max_vcpus < CHANNEL_VCPUS ? backend.max_vcpus : CHANNEL_VCPUS,
		.tsc_khz = vm->tsc_khz,
		.physical_bits = vm->physical_bits,
		.registers = {vm->registers[0], vm->registers[1]},
		.exit_reasons = backend.exit_reasons,
	};
	strncpy(hello.engine, backend.name, sizeof(hello.engine) - 1);
	send_packet(&hello, sizeof(hello));
}

static struct channel_response response(uint32_t type, uint32_t id, enum channel_status status,
					const struct failure *failure)
{
	struct channel_response response = {.header = {.type = type, .id = id}, .status = status};
	if (status != CHANNEL_OK) {
		response.error = failure->error;
		memcpy(response.text, failure->text, sizeof(response.text));
	}
	return response;
}

void channel_send_response(uint32_t id, enum channel_status status, const struct failure *failure)
{
	struct channel_response answer = response(CHANNEL_RESPONSE, id, status, failure);
	send_packet(&answer, sizeof(answer));
}

void channel_die(enum channel_status status, const struct failure *failure)
{
	struct channel_response last = response(CHANNEL_FAILED, 0, status, failure);
	send_packet(&last, sizeof(last));
	_exit(1);
}

static void send_half(struct channel_header header, uint32_t index, const struct vcpu_engine_half *half,
		      const uint8_t *fpu)
{
	struct channel_exit message = {.header = header, .index = index, .engine = *half};
	struct iovec part[] = {{.iov_base = &message, .iov_len = sizeof(message)},
			       {.iov_base = (void *)fpu, .iov_len = VCPU_FPU_BYTES}};
	send_parts(part, half->valid[1] >> VCPU_FPU_BIT & 1 ? 2 : 1);
}

void channel_send_state(uint32_t id, uint32_t index, const struct vcpu_engine_half *half, const uint8_t *fpu)
{
	send_half((struct channel_header){.type = CHANNEL_STATE, .id = id}, index, half, fpu);
}

void channel_send_exit(const struct vcpu *vcpu)
{
	send_half((struct channel_header){.type = CHANNEL_EXIT}, vcpu->index, vcpu->half, vcpu->fpu_valid);
}

void channel_send_cpuid(const struct channel_cpuid *table)
{
	send_packet(table, sizeof(*table));
}

void channel_send_mappings(const struct channel_mappings *mappings)
{
	send_packet(mappings, sizeof(*mappings));
}
