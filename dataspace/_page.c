/* SPDX-License-Identifier: Apache-2.0
 *
 * dataspace._page: the VMM's side of a vCPU page where Python cannot hold the pace: publishing with a
 * fence, and waiting outside the GIL. The head of an exit is in `_exit_head.c`; the rest of the records is
 * read and written by `dataspace/vcpu_page.py` through memoryviews.
 */
#include "waiter.h"

#include <errno.h>
#include <stddef.h>

#define WAIT_ANY_PAGES 128 /* FUTEX_WAITV_MAX */

/* PyBuffer_Release clears `obj` alone. */
static void release(Waiter *self)
{
	PyBuffer_Release(&self->buffer);
	self->buffer.buf = NULL;
}

/* The words are plain uint32_t in the ABI; C11 allows no atomic access to them without the cast. */
#define WORD(field) ((_Atomic uint32_t *)&(field))

static int Waiter_init(Waiter *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"page", "spin_ns", NULL};
	PyObject *object;
	unsigned int spin_ns = 50000;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|I", names, &object, &spin_ns))
		return -1;
	Py_buffer buffer;
	if (PyObject_GetBuffer(object, &buffer, PyBUF_WRITABLE) < 0)
		return -1;
	if ((size_t)buffer.len < sizeof(struct vcpu_page) || (uintptr_t)buffer.buf % 8) {
		PyErr_Format(PyExc_ValueError, "a vCPU page has %zu bytes, aligned to 8; this has %zd",
			     sizeof(struct vcpu_page), buffer.len);
		PyBuffer_Release(&buffer);
		return -1;
	}
	release(self);
	self->buffer = buffer;
	self->spinner = page_spinner(spin_ns);
	return 0;
}

static void Waiter_dealloc(Waiter *self)
{
	release(self);
	Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *Waiter_release(Waiter *self, PyObject *unused)
{
	(void)unused;
	release(self);
	Py_RETURN_NONE;
}

static void publish_run(struct vcpu_page *page)
{
	/* relaxed: only the engine's publication moves exit_seq, and the caller has already seen it */
	uint32_t seq = atomic_load_explicit(WORD(page->engine.exit_seq), memory_order_relaxed) + 1;
	page_publish(WORD(page->vmm.run_seq), seq, WORD(page->engine.engine_waiting));
}

static PyObject *Waiter_run(Waiter *self, PyObject *unused)
{
	(void)unused;
	struct vcpu_page *page = page_of(self);
	if (!page)
		return NULL;
	publish_run(page);
	Py_RETURN_NONE;
}

static void sleep_announced(struct vcpu_page *page, uint32_t seen, int64_t limit_ns)
{
	_Atomic uint32_t *exit_seq = WORD(page->engine.exit_seq);
	/* a count, since several threads of one VMM may wait; seq_cst orders it before the look below, against the
	 * engine's store of exit_seq before its look at vmm_waiting */
	atomic_fetch_add_explicit(WORD(page->vmm.vmm_waiting), 1, memory_order_seq_cst);
	if (!page_moved(exit_seq, seen))
		page_sleep(exit_seq, seen, limit_ns);
	atomic_fetch_sub_explicit(WORD(page->vmm.vmm_waiting), 1, memory_order_relaxed);
}

static int64_t until(uint64_t deadline)
{
	int64_t left = (int64_t)(deadline - page_now_ns());
	return left < PAGE_WAIT_SLEEP_LIMIT_NS ? left : PAGE_WAIT_SLEEP_LIMIT_NS;
}

static PyObject *exit_seq_object(struct vcpu_page *page)
{
	return PyLong_FromUnsignedLong(atomic_load_explicit(WORD(page->engine.exit_seq), memory_order_acquire));
}

/* Wait until exit_seq is no longer `seen`, and return it; NULL with an exception set if a signal handler raised. */
static PyObject *wait_for_exit(Waiter *self, struct vcpu_page *page, uint32_t seen, double timeout)
{
	_Atomic uint32_t *exit_seq = WORD(page->engine.exit_seq);
	if (page_moved(exit_seq, seen))
		return exit_seq_object(page);

	Py_buffer pinned; /* the page must outlive the wait even if another thread releases it meanwhile */
	if (PyObject_GetBuffer(self->buffer.obj, &pinned, PyBUF_WRITABLE) < 0)
		return NULL;
	uint64_t deadline = page_now_ns() + (uint64_t)(timeout * 1e9);
	bool moved, fine = true;

	PyThreadState *thread = PyEval_SaveThread();
	moved = page_spin(&self->spinner, exit_seq, seen, NULL, 0) ||
		page_part(&self->spinner, page->engine.engine_cpu, exit_seq, seen);
	while (!moved) {
		int64_t limit = until(deadline);
		if (limit <= 0)
			break;
		sleep_announced(page, seen, limit);
		moved = page_moved(exit_seq, seen);
		if (moved)
			break;
		PyEval_RestoreThread(thread);
		fine = PyErr_CheckSignals() == 0;
		thread = PyEval_SaveThread();
		if (!fine)
			break;
	}
	PyEval_RestoreThread(thread);
	PyObject *answer = fine ? exit_seq_object(page) : NULL;
	PyBuffer_Release(&pinned); /* perhaps the last hold on the page */
	return answer;
}

static bool parse_timeout(double timeout)
{
	if (timeout >= 0 && timeout <= 1e9)
		return true;
	PyErr_SetString(PyExc_ValueError, "timeout must be between 0 and 1e9 seconds");
	return false;
}

static PyObject *Waiter_wait(Waiter *self, PyObject *args)
{
	unsigned int seen;
	double timeout;
	if (!PyArg_ParseTuple(args, "Id", &seen, &timeout) || !parse_timeout(timeout))
		return NULL;
	struct vcpu_page *page = page_of(self); /* after the arguments, whose conversion may release it */
	return page ? wait_for_exit(self, page, seen, timeout) : NULL;
}

static PyObject *Waiter_exchange(Waiter *self, PyObject *arg)
{
	double timeout = PyFloat_AsDouble(arg);
	if ((timeout == -1.0 && PyErr_Occurred()) || !parse_timeout(timeout))
		return NULL;
	struct vcpu_page *page = page_of(self);
	if (!page)
		return NULL;
	uint32_t seen = atomic_load_explicit(WORD(page->engine.exit_seq), memory_order_acquire);
	publish_run(page);
	return wait_for_exit(self, page, seen, timeout);
}

static PyObject *ask(Waiter *self, size_t counter)
{
	struct vcpu_page *page = page_of(self);
	if (!page)
		return NULL;
	/* atomic adds: any thread of the VMM may ask. seq_cst: the request is visible before the kick. */
	_Atomic uint32_t *word = (_Atomic uint32_t *)((char *)page + counter);
	uint32_t number = atomic_fetch_add_explicit(word, 1, memory_order_seq_cst) + 1;
	atomic_fetch_add_explicit(WORD(page->vmm.kick_seq), 1, memory_order_seq_cst);
	page_wake(WORD(page->vmm.kick_seq));
	return PyLong_FromUnsignedLong(number);
}

static PyObject *Waiter_pause(Waiter *self, PyObject *unused)
{
	(void)unused;
	return ask(self, offsetof(struct vcpu_page, vmm.pause_seq));
}

static PyObject *Waiter_window(Waiter *self, PyObject *unused)
{
	(void)unused;
	return ask(self, offsetof(struct vcpu_page, vmm.window_seq));
}

static PyObject *Waiter_exit_seq(Waiter *self, void *unused)
{
	(void)unused;
	struct vcpu_page *page = page_of(self);
	return page ? exit_seq_object(page) : NULL;
}

static PyMethodDef waiter_methods[] = {
	{"run", (PyCFunction)Waiter_run, METH_NOARGS,
	 "run()\n--\n\nRun the stopped vCPU with the reply that stands in the page. Does not wait."},
	{"wait", (PyCFunction)Waiter_wait, METH_VARARGS,
	 "wait(seen, timeout)\n--\n\nWait until the exit counter is no longer `seen`, at most `timeout` seconds.\n"
	 "Returns the counter; it is still `seen` when the time is over. Releases the GIL."},
	{"exchange", (PyCFunction)Waiter_exchange, METH_O,
	 "exchange(timeout)\n--\n\nrun() and wait() in one call: returns the exit counter."},
	{"pause", (PyCFunction)Waiter_pause, METH_NOARGS,
	 "pause()\n--\n\nAsk for EXIT_PAUSED; returns the request's number. Any thread."},
	{"window", (PyCFunction)Waiter_window, METH_NOARGS,
	 "window()\n--\n\nAsk for EXIT_WINDOW; returns the request's number. Any thread."},
	{"release", (PyCFunction)Waiter_release, METH_NOARGS,
	 "release()\n--\n\nLet go of the page, so that its mapping can be closed."},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef waiter_properties[] = {
	{"exit_seq", (getter)Waiter_exit_seq, NULL, "The number of exits that the engine has published.", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject WaiterType = {
	PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dataspace._page.Waiter",
	.tp_doc = "Waiter(page, spin_ns=50000)\n--\n\nThe VMM's side of one vCPU page: `page` is a writable buffer of it.\n"
		  "Raises ValueError if it is too short, or once it is released.",
	.tp_basicsize = sizeof(Waiter),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = PyType_GenericNew,
	.tp_init = (initproc)Waiter_init,
	.tp_dealloc = (destructor)Waiter_dealloc,
	.tp_methods = waiter_methods,
	.tp_getset = waiter_properties,
};

/* The index of the first page whose exit counter is not what was seen, or -1. */
static int first_moved(Py_ssize_t count, struct vcpu_page **pages, const uint32_t *seen)
{
	for (Py_ssize_t i = 0; i < count; i++)
		if (page_moved(WORD(pages[i]->engine.exit_seq), seen[i]))
			return (int)i;
	return -1;
}

static void announce(Py_ssize_t count, struct vcpu_page **pages, uint32_t step)
{
	for (Py_ssize_t i = 0; i < count; i++)
		atomic_fetch_add_explicit(WORD(pages[i]->vmm.vmm_waiting), step, memory_order_seq_cst);
}

/* False with errno if the system does not let us wait: a loop that took it for a wake-up would spin. */
static bool sleep_on_all(Py_ssize_t count, struct vcpu_page **pages, const uint32_t *seen, int64_t limit_ns)
{
	struct futex_waitv waits[WAIT_ANY_PAGES];
	for (Py_ssize_t i = 0; i < count; i++)
		waits[i] = (struct futex_waitv){.val = seen[i],
						.uaddr = (uintptr_t)&pages[i]->engine.exit_seq,
						.flags = FUTEX_32};
	uint64_t wake_at = page_now_ns() + (uint64_t)limit_ns;
	struct timespec limit = {.tv_sec = (time_t)(wake_at / 1000000000u), .tv_nsec = (long)(wake_at % 1000000000u)};
	if (syscall(SYS_futex_waitv, waits, (unsigned int)count, 0, &limit, CLOCK_MONOTONIC) >= 0)
		return true;
	return errno == EAGAIN || errno == ETIMEDOUT || errno == EINTR;
}

static bool collect_counters(PyObject *counters, Py_ssize_t count, uint32_t *seen)
{
	for (Py_ssize_t i = 0; i < count; i++) {
		seen[i] = (uint32_t)PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(counters, i));
		if (PyErr_Occurred())
			return false;
	}
	return true;
}

static void unpin(Py_ssize_t count, Py_buffer *pinned)
{
	for (Py_ssize_t i = 0; i < count; i++)
		PyBuffer_Release(&pinned[i]);
}

static bool pin(PyObject *waiter, Py_buffer *pinned)
{
	if (!PyObject_TypeCheck(waiter, &WaiterType)) {
		PyErr_SetString(PyExc_TypeError, "wait_any takes a tuple of Waiter");
		return false;
	}
	if (!page_of((Waiter *)waiter))
		return false;
	return PyObject_GetBuffer(((Waiter *)waiter)->buffer.obj, pinned, PyBUF_WRITABLE) == 0;
}

/* All pages, which must outlive the wait even if another thread releases them meanwhile; or none. */
static bool pin_all(PyObject *waiters, Py_ssize_t count, Py_buffer *pinned, struct vcpu_page **pages)
{
	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *waiter = PyTuple_GET_ITEM(waiters, i);
		if (!pin(waiter, &pinned[i])) {
			unpin(i, pinned);
			return false;
		}
		pages[i] = ((Waiter *)waiter)->buffer.buf;
	}
	return true;
}

static PyObject *wait_any(PyObject *module, PyObject *args)
{
	(void)module;
	PyObject *waiters, *counters;
	double timeout;
	if (!PyArg_ParseTuple(args, "O!O!d", &PyTuple_Type, &waiters, &PyTuple_Type, &counters, &timeout) ||
	    !parse_timeout(timeout))
		return NULL;
	Py_ssize_t count = PyTuple_GET_SIZE(waiters);
	if (count < 1 || count > WAIT_ANY_PAGES || PyTuple_GET_SIZE(counters) != count)
		return PyErr_Format(PyExc_ValueError, "wait_any takes 1 to %d pages and as many counters; got %zd",
				    WAIT_ANY_PAGES, count);
	struct vcpu_page *pages[WAIT_ANY_PAGES];
	uint32_t seen[WAIT_ANY_PAGES];
	Py_buffer pinned[WAIT_ANY_PAGES];
	/* the counters first: their conversion may release a page */
	if (!collect_counters(counters, count, seen) || !pin_all(waiters, count, pinned, pages))
		return NULL;
	uint64_t deadline = page_now_ns() + (uint64_t)(timeout * 1e9);
	bool fine = true;
	int moved = first_moved(count, pages, seen);
	while (moved < 0 && fine) {
		int64_t limit = until(deadline);
		if (limit <= 0)
			break;
		int refused = 0;
		Py_BEGIN_ALLOW_THREADS
		announce(count, pages, 1);
		moved = first_moved(count, pages, seen);
		if (moved < 0 && !sleep_on_all(count, pages, seen, limit))
			refused = errno;
		announce(count, pages, (uint32_t)-1);
		moved = first_moved(count, pages, seen);
		Py_END_ALLOW_THREADS
		fine = PyErr_CheckSignals() == 0;
		if (fine && moved < 0 && refused) {
			errno = refused;
			PyErr_SetFromErrno(PyExc_OSError);
			fine = false;
		}
	}
	unpin(count, pinned);
	return fine ? PyLong_FromLong(moved) : NULL;
}

static PyMethodDef functions[] = {
	{"wait_any", wait_any, METH_VARARGS,
	 "wait_any(waiters, seen, timeout)\n--\n\nWait until the exit counter of one of the pages is no longer what was seen.\n"
	 "`waiters` and `seen` are tuples of equal length, 1 to 128. Returns the index of the first that moved,\n"
	 "-1 when the time is over. One thread serves many vCPUs with it, of one session or several."},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "dataspace._page",
	.m_doc = "Publishing and waiting on vCPU pages.",
	.m_size = -1,
	.m_methods = functions,
};

PyMODINIT_FUNC PyInit__page(void)
{
	if (PyType_Ready(&WaiterType) < 0 || PyType_Ready(&ExitHeadType) < 0)
		return NULL;
	PyObject *self = PyModule_Create(&module);
	if (!self || PyModule_AddObjectRef(self, "Waiter", (PyObject *)&WaiterType) < 0 ||
	    PyModule_AddObjectRef(self, "ExitHead", (PyObject *)&ExitHeadType) < 0) {
		Py_XDECREF(self);
		return NULL;
	}
	return self;
}
