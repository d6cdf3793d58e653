/* SPDX-License-Identifier: Apache-2.0
 *
 * The Python symbols that the library's data refers to: the loader wants their addresses at once, all others
 * only when they are called. No interpreter runs here and nothing of the Python part is ever entered, so
 * any address will do.
 */

/* Never read: the library takes addresses only. */
#define PYTHON_SYMBOL(name) char name[8];

PYTHON_SYMBOL(PyBaseObject_Type)
PYTHON_SYMBOL(PyBytes_Type)
PYTHON_SYMBOL(PyExc_AttributeError)
PYTHON_SYMBOL(PyExc_BufferError)
PYTHON_SYMBOL(PyExc_ImportError)
PYTHON_SYMBOL(PyExc_IndexError)
PYTHON_SYMBOL(PyExc_KeyError)
PYTHON_SYMBOL(PyExc_MemoryError)
PYTHON_SYMBOL(PyExc_OverflowError)
PYTHON_SYMBOL(PyExc_RuntimeError)
PYTHON_SYMBOL(PyExc_RuntimeWarning)
PYTHON_SYMBOL(PyExc_StopIteration)
PYTHON_SYMBOL(PyExc_SystemError)
PYTHON_SYMBOL(PyExc_TypeError)
PYTHON_SYMBOL(PyExc_ValueError)
PYTHON_SYMBOL(PyFloat_Type)
PYTHON_SYMBOL(PyList_Type)
PYTHON_SYMBOL(PyLong_Type)
PYTHON_SYMBOL(PyModule_Type)
PYTHON_SYMBOL(PyObject_GenericGetDict)
PYTHON_SYMBOL(PyObject_GenericSetDict)
PYTHON_SYMBOL(PyObject_Vectorcall)
PYTHON_SYMBOL(PyObject_VectorcallMethod)
PYTHON_SYMBOL(PyProperty_Type)
PYTHON_SYMBOL(PyTuple_Type)
PYTHON_SYMBOL(PyType_GenericNew)
PYTHON_SYMBOL(PyType_Type)
PYTHON_SYMBOL(PyUnicode_Type)
PYTHON_SYMBOL(PyVectorcall_Call)
PYTHON_SYMBOL(Py_GenericAlias)
PYTHON_SYMBOL(Py_GenericAliasType)
PYTHON_SYMBOL(_PyWeakref_RefType)
PYTHON_SYMBOL(_Py_FalseStruct)
PYTHON_SYMBOL(_Py_NoneStruct)
PYTHON_SYMBOL(_Py_NotImplementedStruct)
PYTHON_SYMBOL(_Py_TrueStruct)
