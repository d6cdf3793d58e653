/* SPDX-License-Identifier: Apache-2.0
 *
 * dataspace._page.ExitHead: the part of an exit's record that every handler looks at, copied out of the
 * page and checked in one call. In Python this alone cost 0.3 us an exit.
 */
#include "waiter.h"

#include <stdbool.h>
#include <stddef.h>
#include <structmember.h>

typedef struct {
	PyObject_HEAD
	Waiter *waiter;
	PyObject *reasons; /* a tuple: what `reason` is for each number */
	PyObject *reason;
	unsigned int sequence;
	unsigned int flags;
	unsigned int size;
	unsigned int count;
	unsigned long long address;
	unsigned long long value;
	bool is_read;
} ExitHead;

static int ExitHead_init(ExitHead *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"waiter", "reasons", NULL};
	PyObject *waiter, *reasons;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!", names, &WaiterType, &waiter, &PyTuple_Type, &reasons))
		return -1;
	if (!PyTuple_GET_SIZE(reasons)) {
		PyErr_SetString(PyExc_ValueError, "reasons is empty: the first stands for no exit");
		return -1;
	}
	Py_XSETREF(self->waiter, (Waiter *)Py_NewRef(waiter));
	Py_XSETREF(self->reasons, Py_NewRef(reasons));
	Py_XSETREF(self->reason, Py_NewRef(PyTuple_GET_ITEM(reasons, 0)));
	return 0;
}

static void ExitHead_dealloc(ExitHead *self)
{
	Py_XDECREF(self->waiter);
	Py_XDECREF(self->reasons);
	Py_XDECREF(self->reason);
	Py_TYPE(self)->tp_free((PyObject *)self);
}

/* An MSR's value has no size: all of it counts. */
static unsigned long long low_bytes(uint64_t value, uint64_t bytes)
{
	return bytes == 0 || bytes >= 8 ? value : value & ((1ull << 8 * bytes) - 1);
}

static PyObject *ExitHead_take(ExitHead *self, PyObject *sequence)
{
	struct vcpu_page *page = self->waiter ? page_of(self->waiter) : NULL;
	unsigned long number = PyLong_AsUnsignedLong(sequence);
	if (!page || (number == (unsigned long)-1 && PyErr_Occurred()))
		return NULL;
	/* Plain loads, once: they come after the acquire load that saw the exit's number. An engine that goes on
	 * writing lies to its own VMM, which checks the copy. */
	struct vcpu_exit exit = page->engine.exit;
	uint64_t bytes = (uint64_t)exit.size * exit.count;
	bool known = exit.reason > EXIT_NONE && exit.reason < (size_t)PyTuple_GET_SIZE(self->reasons);
	if (!known || bytes > VCPU_DATA_BYTES)
		return PyErr_Format(PyExc_LookupError, "no exit has reason %lu with %lu accesses of %lu bytes",
				    (unsigned long)exit.reason, (unsigned long)exit.count,
				    (unsigned long)exit.size);
	self->sequence = (unsigned int)number;
	self->flags = exit.flags;
	self->size = exit.size;
	self->count = exit.count;
	self->address = exit.address;
	self->value = low_bytes(exit.value, bytes);
	self->is_read = exit.flags & EXIT_READ;
	Py_SETREF(self->reason, Py_NewRef(PyTuple_GET_ITEM(self->reasons, exit.reason)));
	return Py_NewRef(self->reason);
}

static PyMethodDef methods[] = {
	{"take_head", (PyCFunction)ExitHead_take, METH_O,
	 "take_head(sequence)\n--\n\nCopy the head of the record that was published with this number; returns the reason.\n"
	 "Raises LookupError for a reason or a size that no engine may publish."},
	{NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
	{"reason", T_OBJECT_EX, offsetof(ExitHead, reason), READONLY, "An item of `reasons`."},
	{"sequence", T_UINT, offsetof(ExitHead, sequence), READONLY, "The number of this exit, from 1."},
	{"flags", T_UINT, offsetof(ExitHead, flags), READONLY, "EXIT_* bits."},
	{"size", T_UINT, offsetof(ExitHead, size), READONLY, "Bytes of one access."},
	{"count", T_UINT, offsetof(ExitHead, count), READONLY, "Number of accesses."},
	{"address", T_ULONGLONG, offsetof(ExitHead, address), READONLY, "Port, guest-physical address, or MSR."},
	{"value", T_ULONGLONG, offsetof(ExitHead, value), READONLY, "What the guest writes, up to 8 bytes."},
	{"is_read", T_BOOL, offsetof(ExitHead, is_read), READONLY, "The guest reads, and waits for a value."},
	{NULL, 0, 0, 0, NULL},
};

PyTypeObject ExitHeadType = {
	PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dataspace._page.ExitHead",
	.tp_doc = "ExitHead(waiter, reasons)\n--\n\nThe head of the exits on a waiter's page; `reasons` has one item for each number\n"
		  "of `enum vcpu_exit_reason`, the first for no exit.",
	.tp_basicsize = sizeof(ExitHead),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
	.tp_new = PyType_GenericNew,
	.tp_init = (initproc)ExitHead_init,
	.tp_dealloc = (destructor)ExitHead_dealloc,
	.tp_methods = methods,
	.tp_members = members,
};
