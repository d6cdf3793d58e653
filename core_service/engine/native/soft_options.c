/* SPDX-License-Identifier: Apache-2.0
 *
 * Bochs asks for options by name and gets objects of its own classes. The functions that it asks (they are
 * the wheel's, in Rust) are interposed: this executable's definitions come first.
 */
#include "soft_options.h"

#include <string.h>

#include "soft.h"

/* Cannon Lake, the newest Intel core with AVX-512 whose every instruction Bochs has. Bochs counts its models in
 * the order of cpudb.h. */
#define MODEL_CANNON_LAKE 27

/* What nothing here serves, removed from CPUID and from the decoder: #UD instead of Bochs' models of it. */
#define EXCLUDED "vmx,mwait,x2apic,tsc_deadline"

void soft_options_create(struct bochs *bochs)
{
	static const char *const models[MODEL_CANNON_LAKE + 2] = {
		[0 ... MODEL_CANNON_LAKE] = "model",
	};
	bochs->option[OPTION_MODEL] = bochs->new_enum("model", models, MODEL_CANNON_LAKE);
	bochs->option[OPTION_ONE] = bochs->new_number("number", 1, 1, 1);
	bochs->option[OPTION_FALSE] = bochs->new_bool("off", false);
	bochs->option[OPTION_TRUE] = bochs->new_bool("on", true);
	bochs->option[OPTION_EMPTY] = bochs->new_string("text", "", 1);
	bochs->option[OPTION_EXCLUDED] = bochs->new_string("exclude_features", EXCLUDED, sizeof(EXCLUDED));
}

void soft_options_delete(struct bochs *bochs)
{
	bochs->delete_enum(bochs->option[OPTION_MODEL]);
	bochs->delete_number(bochs->option[OPTION_ONE]);
	bochs->delete_bool(bochs->option[OPTION_FALSE]);
	bochs->delete_bool(bochs->option[OPTION_TRUE]);
	bochs->delete_string(bochs->option[OPTION_EMPTY]);
	bochs->delete_string(bochs->option[OPTION_EXCLUDED]);
}

void *sim_get_param_enum(const char *name);
void *sim_get_param_enum(const char *name)
{
	(void)name; /* there is but cpu.model */
	return soft_current->bochs.option[OPTION_MODEL];
}

void *sim_get_param_num(const char *name);
void *sim_get_param_num(const char *name)
{
	(void)name; /* processors, cores, threads */
	return soft_current->bochs.option[OPTION_ONE];
}

void *sim_get_param_bool(const char *name);
void *sim_get_param_bool(const char *name)
{
	/* A triple fault resets, and the reset is an exit (soft_execution.c); else Bochs would panic. */
	bool value = !strcmp(name, "cpu.reset_on_triple_fault");
	return soft_current->bochs.option[value ? OPTION_TRUE : OPTION_FALSE];
}

void *sim_get_param_string(const char *name);
void *sim_get_param_string(const char *name)
{
	bool excluded = !strcmp(name, "cpu.exclude_features");
	return soft_current->bochs.option[excluded ? OPTION_EXCLUDED : OPTION_EMPTY];
}
