/* SPDX-License-Identifier: Apache-2.0
 *
 * What the types of `dataspace._page` share: the waiter, which holds the page.
 */
#ifndef VMSESSION_WAITER_H
#define VMSESSION_WAITER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "page_wait.h"
#include "vcpu_page.h"

typedef struct {
	PyObject_HEAD
	Py_buffer buffer;
	struct page_spinner spinner;
} Waiter;

extern PyTypeObject WaiterType;
extern PyTypeObject ExitHeadType;

/* The page, or NULL with ValueError set once it is released. */
static inline struct vcpu_page *page_of(Waiter *self)
{
	if (!self->buffer.buf)
		PyErr_SetString(PyExc_ValueError, "the vCPU page is released");
	return self->buffer.buf;
}

#endif
