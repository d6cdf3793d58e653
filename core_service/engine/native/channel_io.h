/* SPDX-License-Identifier: Apache-2.0
 *
 * Packets of the channel to core: descriptor CHANNEL_FD. A packet is sent whole or not at all, so any thread
 * may send. Sending blocks while core does not read, and fails silently once core is gone: then the
 * control thread sees the end as well.
 */
#ifndef VMSESSION_CHANNEL_IO_H
#define VMSESSION_CHANNEL_IO_H

#include "engine.h"

/* A request as it came. */
struct packet {
	union {
		struct channel_header header;
		struct channel_vcpu vcpu;
		struct channel_range range;
		struct channel_run run;
		struct channel_cpuid cpuid;
		struct channel_msr_filter msr_filter;
		struct channel_list list;
		uint8_t bytes[sizeof(struct channel_run) + VCPU_FPU_BYTES];
	} message;
	size_t size;
	int fd;         /* -1, or the one descriptor that came with it; the receiver closes it */
	bool malformed; /* truncated, or more than one descriptor */
};

enum channel_event { CHANNEL_PACKET, CHANNEL_ENDED };

/* Control thread. Wait for the next request; CHANNEL_ENDED when core closed its end. */
enum channel_event channel_receive(struct packet *);

void channel_send_hello(const struct vm *);
void channel_send_response(uint32_t id, enum channel_status, const struct failure *);
/* `fpu` is sent where it is valid. */
void channel_send_state(uint32_t id, uint32_t index, const struct vcpu_engine_half *, const uint8_t *fpu);
void channel_send_cpuid(const struct channel_cpuid *);
void channel_send_mappings(const struct channel_mappings *);
/* The vCPU's thread: the exit in vcpu->half. */
void channel_send_exit(const struct vcpu *);

/* Tell core why with CHANNEL_FAILED, and end the process. */
_Noreturn void channel_die(enum channel_status, const struct failure *);

/* Whether CHANNEL_FD is a channel at all. */
bool channel_valid(void);

#endif
