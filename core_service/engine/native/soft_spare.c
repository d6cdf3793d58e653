/* SPDX-License-Identifier: Apache-2.0 */
#include "soft_spare.h"

static void *load(void *argument)
{
	struct soft_spare *spare = argument;
	spare->status = bochs_load(&spare->bochs, spare->library, &spare->failure);
	return NULL;
}

void soft_spare_start(struct soft_spare *spare, int library)
{
	spare->library = library;
	/* without a thread the first vCPU loads its copy itself */
	spare->started = pthread_create(&spare->thread, NULL, load, spare) == 0;
}

enum channel_status soft_spare_take(struct soft_spare *spare, struct bochs *bochs, struct failure *failure)
{
	if (!spare->started)
		return bochs_load(bochs, spare->library, failure);
	pthread_join(spare->thread, NULL);
	spare->started = false;
	*bochs = spare->bochs;
	*failure = spare->failure;
	return spare->status;
}

void soft_spare_discard(struct soft_spare *spare)
{
	struct bochs bochs;
	struct failure failure;
	if (spare->started && soft_spare_take(spare, &bochs, &failure) == CHANNEL_OK)
		bochs_unload(&bochs);
}
